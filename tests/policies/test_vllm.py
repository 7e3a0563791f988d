import asyncio
import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drift.dataset.store import read_trajectories
from drift.environments.arithmetic import Arithmetic
from drift.errors import ConfigError, PolicyError
from drift.manifest import read_manifest
from drift.policies import DEFAULT_MODEL, make_policy
from drift.policies.base import Sampling
from drift.policies.hf import HFPolicy, load_model
from drift.policies.vllm import VLLMPolicy
from drift.rollouts.collect import collect
from drift.types import Completion, Trajectory

TASKS = Arithmetic().tasks("train", 60, 1)
QUICK = {"enforce_eager": True}
installed = importlib.util.find_spec("vllm") is not None


@pytest.mark.skipif(installed, reason="vLLM is installed")
def test_without_vllm_the_extra_is_named_before_anything_is_read() -> None:
    with pytest.raises(PolicyError, match=r"vLLM is missing .* pip install 'drift-rl\[vllm\]'"):
        make_policy("vllm:./nowhere")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tensor_parallel_size": 0}, r"policy\.tensor_parallel_size: got 0"),
        ({"gpu_memory_utilization": 1.5}, r"policy\.gpu_memory_utilization: got 1\.5"),
        ({"max_num_seqs": 0}, r"policy\.max_num_seqs: got 0"),
        ({"max_model_len": -1}, r"policy\.max_model_len: got -1"),
        ({"dtype": "int8"}, r"policy\.dtype: got 'int8'"),
        ({"max_num_seq": 3}, r"Did you mean 'max_num_seqs'\?"),
        (
            {"arguments": {"trust_remote_code": True}},
            r"arguments\.trust_remote_code: .* it is false",
        ),
        ({"arguments": {"logprobs_mode": "processed_logprobs"}}, r"arguments\.logprobs_mode: not to be given there"),
    ],
)
def test_wrong_settings_are_told_before_anything_is_loaded(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_policy("vllm:default", settings)


@pytest.fixture(scope="module")
def policy() -> Iterator[VLLMPolicy]:
    if not installed:
        pytest.skip("no vLLM here; make test-vllm runs this where there is")
    made = VLLMPolicy("default", arguments=QUICK)
    with made.keep_running():
        yield made


def ask(policy: Any, prompts: list[tuple[int, ...]], sampling: Sampling) -> list[Completion]:
    async def all_at_once() -> list[Completion]:
        return await asyncio.gather(
            *(policy.complete(p, sampling=sampling, seed=2**62 + i) for i, p in enumerate(prompts))
        )

    return asyncio.run(all_at_once())


def openings(policy: Any) -> list[tuple[int, ...]]:
    return [policy.chat.first([{"role": "user", "content": str(task.payload["question"])}]) for task in TASKS]


def held(policy: Any, sampling: Sampling, out: Path, samples: int = 1) -> list[Trajectory]:
    plan = {"environment": {"name": "arithmetic"}, "samples": samples, "seed": 1, "sampling": sampling}
    collect(TASKS, Arithmetic(), policy, out, **plan)
    return read_trajectories(out)


def own_logprobs(model: Any, prompt_ids: tuple[int, ...], token_ids: tuple[int, ...]) -> list[float]:
    import torch

    ids = torch.tensor([[*prompt_ids, *token_ids]])
    with torch.inference_mode():
        scores = torch.log_softmax(model(ids).logits[0, :-1].double(), -1)
    found: list[float] = scores.gather(-1, ids[0, 1:, None])[len(prompt_ids) - 1 :, 0].tolist()
    return found


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_greedy_conversations_are_those_of_hf_to_the_token(policy: VLLMPolicy, tmp_path: Path) -> None:
    greedy = Sampling(temperature=0, max_new_tokens=16)
    hf = HFPolicy(str(DEFAULT_MODEL))
    assert policy.fingerprint == hf.fingerprint and policy.context_length == hf.context_length == 1024
    ours, theirs = held(policy, greedy, tmp_path / "vllm"), held(hf, greedy, tmp_path / "hf")
    assert [t.messages for t in ours] == [t.messages for t in theirs]
    turns = [pair for x, y in zip(ours, theirs, strict=True) for pair in zip(x.turns, y.turns, strict=True)]
    assert len(turns) > 100
    for one, other in turns:
        assert one.prompt_ids == other.prompt_ids
        assert one.completion.token_ids == other.completion.token_ids
        assert one.completion.text == other.completion.text
        assert one.completion.finish_reason == other.completion.finish_reason == "stop"
        assert one.completion.logprobs == pytest.approx(other.completion.logprobs, abs=2e-3)
    assert read_manifest(tmp_path / "vllm", "trajectories")["policy_errors"] == {}
    # A reply cut short has no end-of-turn token, a whole one has.
    for length, reason in ((2, "length"), (16, "stop")):
        replies = [ask(p, openings(p)[:8], Sampling(temperature=0, max_new_tokens=length)) for p in (policy, hf)]
        for one, other in zip(*replies, strict=True):
            assert (one.token_ids, one.text, one.finish_reason) == (other.token_ids, other.text, other.finish_reason)
            assert one.finish_reason == reason and (one.token_ids[-1] == 1) == (reason == "stop")


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_logprobs_are_the_models_own_whatever_the_sampling(policy: VLLMPolicy) -> None:
    model, _ = load_model(str(DEFAULT_MODEL))
    prompts = openings(policy) * 2
    replies = ask(policy, prompts, Sampling(temperature=1.4, top_p=0.9, max_new_tokens=16))
    for prompt, reply in zip(prompts[::5], replies[::5], strict=True):
        assert reply.logprobs == pytest.approx(own_logprobs(model, prompt, reply.token_ids), abs=2e-3)
    # Seeds above 2**62 are told apart: one prompt, two of them.
    assert sum(a.token_ids != b.token_ids for a, b in zip(replies[:60], replies[60:], strict=True)) > 20
    alone = [ask(policy, [prompts[0]], Sampling(max_new_tokens=16))[0] for _ in range(2)]
    assert alone[0] == alone[1]


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_stop_strings_stay_in_the_reply_and_nothing_after_them(policy: VLLMPolicy) -> None:
    hf = HFPolicy(str(DEFAULT_MODEL))
    stopped = Sampling(temperature=0, max_new_tokens=16, stop=("1", "7", "er>4"))
    seen = 0
    for one, other in zip(ask(policy, openings(policy), stopped), ask(hf, openings(hf), stopped), strict=True):
        assert (one.token_ids, one.text, one.finish_reason) == (other.token_ids, other.text, other.finish_reason)
        assert len(one.logprobs or ()) == len(one.token_ids)
        seen += one.token_ids[-1] != 1
    assert 10 < seen < len(TASKS)


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_requests_that_the_engine_drops_are_sent_again_and_counted(policy: VLLMPolicy) -> None:
    sampling = Sampling(max_new_tokens=200, temperature=1.0)
    whole = ask(policy, openings(policy), sampling)

    async def with_drops() -> list[Completion]:
        running = [
            asyncio.create_task(policy.complete(prompt, sampling=sampling, seed=2**62 + i))
            for i, prompt in enumerate(openings(policy))
        ]
        dropped = 0
        while not dropped:
            await asyncio.sleep(0.001)

            async def drop(engine: Any) -> int:
                names = list(engine.output_processor.request_states)[:3]
                await engine.abort(names, internal=True)
                return len(names)

            dropped = await policy.in_engine(drop)
        return await asyncio.gather(*running)

    found = asyncio.run(with_drops())
    assert len(found) == len(whole) and all(reply.finish_reason in ("stop", "length") for reply in found)
    assert 0 < policy.counts["abort"] <= 3
    policy.counts.clear()


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_what_the_engine_refuses_is_told_with_what_to_do(policy: VLLMPolicy) -> None:
    with pytest.raises(PolicyError, match=r"vLLM refuses a prompt of 2000 ids"):
        ask(policy, [(5,) * 2000], Sampling(max_new_tokens=4))
    with pytest.raises(ConfigError, match=r"sampling\.temperature: got 0\.001"):
        ask(policy, [(5, 6)], Sampling(temperature=0.001))
    with pytest.raises(ConfigError, match=r"argument of vLLM's engine 'block_sise'.*Did you mean 'block_size'\?"):
        VLLMPolicy("default", arguments={"block_sise": 16})
    with pytest.raises(PolicyError, match=r"vLLM can't start with 'default': .*max_model_len"):
        ask(VLLMPolicy("default", max_model_len=4096), [(5, 6)], Sampling(max_new_tokens=4))


def children() -> set[int]:
    import psutil

    found = psutil.Process().children(recursive=True)
    return {child.pid for child in found if "VLLM" in child.name() and child.status() != psutil.STATUS_ZOMBIE}


def left_of(before: set[int], seconds: float = 30.0) -> set[int]:
    """``children`` beside those of ``before``; on a busy machine they end a little after they were told to."""
    end = time.monotonic() + seconds
    while children() - before and time.monotonic() < end:
        time.sleep(0.1)
    return children() - before


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_an_adapter_speaks_as_the_model_that_it_is_merged_into_and_an_engine_that_dies_costs_what_was_in_flight(
    tmp_path: Path,
) -> None:
    if not installed:
        pytest.skip("no vLLM here")
    import torch
    from peft import LoraConfig, get_peft_model

    model, tokenizer = load_model(str(DEFAULT_MODEL))
    torch.manual_seed(0)
    tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.4)
    tuned.save_pretrained(tmp_path / "adapter")
    tuned.merge_and_unload().save_pretrained(tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    before = children()
    policy = VLLMPolicy("default", adapter=str(tmp_path / "adapter"), arguments=QUICK)
    merged = HFPolicy(str(tmp_path / "merged"))
    greedy = Sampling(temperature=0, max_new_tokens=16)
    base = [reply.token_ids for reply in ask(HFPolicy(str(DEFAULT_MODEL)), openings(merged), greedy)]
    expected = [reply.token_ids for reply in ask(merged, openings(merged), greedy)]
    with policy.keep_running():
        found = [reply.token_ids for reply in ask(policy, openings(policy), greedy)]
        # Merged weights are other floats than a product added: a near tie may fall the other way.
        assert sum(a == b for a, b in zip(found, expected, strict=True)) >= 0.95 * len(found)
        assert sum(a == b for a, b in zip(found, base, strict=True)) < 0.8 * len(found)
        assert policy.fingerprint.split("+")[0] == HFPolicy(str(DEFAULT_MODEL)).fingerprint != policy.fingerprint
    assert not left_of(before)

    class Dying(Arithmetic):
        started = 0

        def start(self, task: Any) -> Any:
            Dying.started += 1
            if Dying.started == 300:
                for pid in children() - before:
                    os.kill(pid, signal.SIGKILL)
            return super().start(task)

    plan = {
        "environment": {"name": "a"},
        "samples": 8,
        "seed": 1,
        "sampling": Sampling(max_new_tokens=12),
        "concurrency": 16,
    }
    with pytest.raises(PolicyError, match=r"engine of 'default' died .* run the same command again"):
        collect(TASKS, Dying(), policy, tmp_path / "run", **plan)
    kept = len(read_trajectories(tmp_path / "run", complete_only=False))
    assert 200 < kept < 300 and not left_of(before)
    # The same policy starts another engine.
    manifest = collect(TASKS, Arithmetic(), policy, tmp_path / "run", **plan)
    assert manifest["counts"]["trajectories"] == 480 and not left_of(before)


@pytest.mark.vllm
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_run_that_is_stopped_leaves_no_engine_behind(tmp_path: Path, number: signal.Signals, code: int) -> None:
    if not installed:
        pytest.skip("no vLLM here")
    import psutil

    command = [sys.executable, "-m", "drift", "rollout", "arithmetic", "--out", str(tmp_path / "run")]
    command += ["--model", "vllm:default", "--policy.arguments", '{"enforce_eager": true}']
    command += ["--tasks", "2000", "--samples", "64", "--max_new_tokens", "12"]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert child.stderr is not None
        for line in child.stderr:
            # Progress begins before any conversation has ended.
            if re.match(r"rollouts: [1-9]", line):
                break
        family = psutil.Process(child.pid).children(recursive=True)
        assert any("VLLM" in member.name() for member in family)
        # Ctrl-C reaches the whole group, a kill one process.
        os.killpg(child.pid, number) if number == signal.SIGINT else os.kill(child.pid, number)
        said = child.stderr.read()
        assert child.wait(60) == code, said
        end = time.monotonic() + 60
        while any(m.is_running() and m.status() != psutil.STATUS_ZOMBIE for m in family) and time.monotonic() < end:
            time.sleep(0.5)
        assert not [m for m in family if m.is_running() and m.status() != psutil.STATUS_ZOMBIE]
        if number == signal.SIGINT:
            assert "Run the same command again" in said
            assert len(read_trajectories(tmp_path / "run", complete_only=False)) > 0
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)


@pytest.mark.vllm
@pytest.mark.timeout(1800)
def test_one_recipe_samples_with_vllm_trains_and_measures_both_models_with_vllm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not installed:
        pytest.skip("no vLLM here")
    import drift

    plan: dict[str, Any] = {
        "policy": {"engine": "vllm", "arguments": QUICK}, "max_new_tokens": 12, "rollouts.tasks": 20,
        "rollouts.samples": 8, "max_steps": 10, "training.batch_size": 16, "learning_rate": 3e-4,
        "evaluation.tasks": 40, "evaluation.samples": 1,
    }  # fmt: skip
    before = children()
    run = drift.run("guess", out=tmp_path / "run", **plan)
    assert run is not None and not left_of(before)
    own = HFPolicy(str(DEFAULT_MODEL)).fingerprint
    assert run.rollouts.manifest["spec"]["policy"] == own and run.model.manifest["steps"] == 10
    held = {name: read_trajectories(run / "evaluation" / "greedy" / name) for name in ("base", "tuned")}
    assert held["base"][0].policy == own != held["tuned"][0].policy
    # The tuned model's greedy conversations are those that transformers holds.
    drift.evaluate("guess", str(run / "model"), tasks=40, samples=0, max_new_tokens=12, out=tmp_path / "here")
    here = read_trajectories(tmp_path / "here" / "greedy" / "model")
    same = {
        name: sum(a.messages == b.messages for a, b in zip(found, here, strict=True)) for name, found in held.items()
    }
    assert same["tuned"] >= 38 and same["base"] < 38
    # Finished, the same command does nothing, and needs no engine for that.
    monkeypatch.setattr("drift.policies.vllm_engine.Engine", None)
    assert drift.run("guess", out=tmp_path / "run", **plan) == run
