import atexit
import os
import shutil
import tempfile

# One thread per worker: the tests run two workers on two cores. Set before torch is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
if "DRIFT_CACHE" not in os.environ:
    os.environ["DRIFT_CACHE"] = tempfile.mkdtemp(prefix="drift-cache-")
    atexit.register(shutil.rmtree, os.environ["DRIFT_CACHE"], ignore_errors=True)

import dataclasses
import gc
import random
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drift.types import Completion, Message, Step, Trajectory, Turn

from .forking import FOLDER, QuickPopen, WorkerPopen, start_servers, starting

# Half a million objects of torch and its like stay for good: they need not be looked through again and again.
gc.disable()


def pytest_collection_finish() -> None:
    """What was imported is out of the garbage collector's way, which ``Trainer`` calls after every run."""
    gc.freeze()
    gc.enable()


def pytest_configure(config: pytest.Config) -> None:
    """Fork servers for all workers, which are forks too; none where coverage is measured, which a fork would not be."""
    if not hasattr(os, "fork") or FOLDER in os.environ or getattr(config.option, "cov_source", None):
        return
    folder = tempfile.TemporaryDirectory(prefix="drift-tests-")
    servers, popen = start_servers(Path(folder.name)), subprocess.Popen
    if getattr(config.option, "numprocesses", None):
        subprocess.Popen = WorkerPopen  # type: ignore[misc]

    def end() -> None:
        subprocess.Popen = popen  # type: ignore[misc]
        del os.environ[FOLDER]
        for server in servers:
            server.communicate()
        folder.cleanup()

    config.add_cleanup(end)


@pytest.fixture
def quick_starts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python processes that the test starts, itself or through drift, are forks; see ``forking``. Not in slow tests."""
    if FOLDER in os.environ and not request.node.get_closest_marker("slow"):
        for module in starting():
            monkeypatch.setattr(module, "Popen", QuickPopen)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an untrained Qwen2 of two layers and the default policy's kind of tokenizer."""
    import torch
    from tests.small_tokenizer import small_tokenizer
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = small_tokenizer()
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=304,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            initializer_range=0.15,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    folder = tmp_path_factory.mktemp("tiny")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole small run, which tests copy."""
    from tests.test_audit import RECIPE

    from drift.pipeline import run_recipe

    out = tmp_path_factory.mktemp("finished") / "run"
    run_recipe(RECIPE, out)
    return out


@pytest.fixture(scope="session")
def make_trajectory() -> Callable[..., Trajectory]:
    """Builds a trajectory from what matters in a test: its replies' answers and which of them is right."""

    def make(
        task: str = "t",
        sample: int = 0,
        answers: tuple[str | None, ...] = ("1",),
        solved: bool = False,
        *,
        rewards: tuple[float, ...] | None = None,
        error: str | None = None,
        policy: str = "p",
    ) -> Trajectory:
        messages: list[Message] = [{"role": "user", "content": f"question {task}"}]
        turns: list[Turn] = []
        prompt: tuple[int, ...] = (1, 2, 3)
        for at, answer in enumerate(answers):
            last = at == len(answers) - 1
            reply = f"<answer>{answer}</answer>" if answer is not None else "no idea"
            feedback: tuple[Message, ...] = () if last else ({"role": "user", "content": "Incorrect."},)
            ids = tuple(reply.encode())
            step = Step(
                messages=feedback,
                reward=rewards[at] if rewards else float(last and solved),
                done=last,
                success=last and solved,
                answer=answer,
            )
            completion = Completion(text=reply, token_ids=ids, logprobs=(-0.5,) * len(ids), finish_reason="stop")
            turns.append(Turn(prompt_ids=prompt, completion=completion, step=step))
            messages += [{"role": "assistant", "content": reply}, *feedback]
            prompt = (*prompt, *ids, 9, 8)
        reason: Any = "error" if error else "success" if solved else "turns"
        return Trajectory(
            id=f"{task}#{sample}",
            task_id=task,
            group_id=task,
            sample=sample,
            policy=policy,
            seed=sample,
            messages=tuple(messages),
            turns=tuple(turns),
            stop_reason=reason,
            error=error,
        )

    return make


@pytest.fixture(scope="session")
def random_trajectories(make_trajectory: Callable[..., Trajectory]) -> Callable[..., list[Trajectory]]:
    """Builds shuffled prompts of 1 to 6 conversations over one or two tasks.

    Some failed; answers can't be read, are repeated or are not asked for; rewards are graded, 0 or negative.
    """

    def make(seed: int, prompts: int = 23) -> list[Trajectory]:
        rng = random.Random(seed)
        conversations = []
        for prompt in range(prompts):
            for sample in range(rng.randint(1, 6)):
                answers = tuple(rng.choice([None, "", "1", "2", "é 3"]) for _ in range(rng.randint(0, 5)))
                failed = "gone" if not answers or rng.random() < 0.1 else None
                rewards = tuple(rng.choice([0.0, -0.1, rng.uniform(0, 0.3)]) for _ in answers)
                task = f"{'é' if prompt % 3 else 'z'}{prompt}{rng.choice('ab')}"
                one = make_trajectory(task, sample, answers, rng.random() < 0.5, rewards=rewards, error=failed)
                turns = [dataclasses.replace(t, step=dataclasses.replace(t.step, graded=True)) for t in one.turns]
                if turns and rng.random() < 0.3:
                    step = dataclasses.replace(turns[0].step, graded=False, answer=None)
                    turns[0] = dataclasses.replace(turns[0], step=step)
                conversations.append(dataclasses.replace(one, group_id=f"prompt {prompt}", turns=tuple(turns)))
        rng.shuffle(conversations)
        return conversations

    return make
