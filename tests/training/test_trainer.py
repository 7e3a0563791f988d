import json
import math
import pickle
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, MambaConfig

from drift.api import train
from drift.dataset.store import TrajectoryWriter
from drift.errors import ConfigError, DatasetError, Interrupted, TrainingError
from drift.manifest import read_manifest
from drift.policies.fingerprint import fingerprint
from drift.policies.hf import check_attention, load_model
from drift.training.arguments import training_arguments
from drift.training.checkpoints import last_checkpoint
from drift.training.config import TrainingConfig
from drift.training.forward import use_trees, use_weighted_loss
from drift.training.plan import PlanOptions, Rows, plan_steps
from drift.training.trainer import StepDataset, WeightedTrainer
from drift.types import Example, Trajectory
from drift.weights.config import WeightConfig
from drift.weights.stage import weigh_dataset
from drift.weights.table import read_weights

Make = Callable[..., Trajectory]
pytestmark = pytest.mark.usefixtures("quick_starts")


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    """Rows of uneven length with weights of both signs, so that wrong normalisers show."""
    rng = random.Random(0)
    rows = []
    for index in range(16):
        length = rng.randint(6, 30)
        weight = rng.choice([0.1, 1.0, 4.0, -0.5])
        sampled = [False] * 3 + [True] * (length - 3)
        rows.append(
            Example(
                trajectory_id=str(index),
                group_id="g",
                token_ids=tuple(rng.randrange(8, 300) for _ in range(length)),
                sampled=tuple(sampled),
                weight=tuple(weight * s for s in sampled),
                mass=abs(weight),
            )
        )
    return rows


def one_step(model_folder: Path, rows: list[Example], out: Path, tokens: int, trees: bool) -> dict[str, torch.Tensor]:
    """Parameters after one step of plain gradient descent on all rows, ``tokens`` at most in one forward pass."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    use_weighted_loss(model)
    use_trees(model, trees)
    lengths = np.array([len(row.token_ids) for row in rows])
    facts = Rows(group_N=np.zeros(len(rows), np.int64), length_N=lengths, mass_N=np.array([row.mass for row in rows]))
    size = len(rows)
    options = PlanOptions(plan="uniform", batch_size=size, conversations=size, together=16, ranks=1, seed=0)
    steps = plan_steps(facts, 1, options)
    config = TrainingConfig(
        batch_size=len(rows), max_steps=1, warmup=0.0, save_steps=0, arguments={"max_grad_norm": 0.0}
    )
    trainer = WeightedTrainer(
        model=model,
        args=training_arguments(config, out, 1, 0, "cpu"),
        train_dataset=StepDataset(steps, rows, rank=0, tokens_per_batch=tokens, trees=trees),
        optimizers=(torch.optim.SGD(model.parameters(), lr=1.0), None),
    )
    trainer.train()
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def expected_step(model_folder: Path, rows: list[Example]) -> dict[str, torch.Tensor]:
    """The same step, from each row's gradient computed alone in float64."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float64)
    for row in rows:
        ids = torch.tensor([row.token_ids])
        logprobs = torch.log_softmax(model(input_ids=ids).logits[0, :-1], -1)
        picked = logprobs.gather(-1, ids[0, 1:, None]).squeeze(-1)
        (-(torch.tensor(row.weight[1:], dtype=torch.float64) * picked).sum() / len(rows)).backward()
    return {name: (parameter - parameter.grad).detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("trees", [True, False])
@pytest.mark.parametrize("tokens", [10_000, 90, 1])
def test_one_pass_is_many_passes_is_each_row_alone(
    tiny_model: Path, examples: list[Example], tmp_path: Path, tokens: int, trees: bool
) -> None:
    expected = expected_step(tiny_model, examples)
    found = one_step(tiny_model, examples, tmp_path, tokens, trees)
    for name, value in found.items():
        assert torch.allclose(value.double(), expected[name], rtol=1e-5, atol=2e-6), name


def test_two_ranks_of_uneven_load_are_one(tiny_model: Path, examples: list[Example], tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(
        textwrap.dedent(
            """
            import gc, pickle, sys, torch
            import numpy as np
            from transformers import AutoModelForCausalLM
            from pathlib import Path
            from drift.training.config import TrainingConfig
            from drift.training.forward import use_weighted_loss, use_trees
            from drift.training.plan import PlanOptions, Rows, plan_steps
            from drift.training.arguments import training_arguments
            from drift.training.trainer import StepDataset, WeightedTrainer

            folder, rows, out = sys.argv[1:]
            examples = pickle.loads(Path(rows).read_bytes())
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            use_weighted_loss(model)
            use_trees(model, True)
            plain = {"max_grad_norm": 0.0}
            config = TrainingConfig(batch_size=16, max_steps=1, warmup=0.0, save_steps=0, arguments=plain)
            args = training_arguments(config, Path(out), 1, 0, "cpu")
            lengths = np.array([len(row.token_ids) for row in examples])
            # One prompt has nearly all rows, and one rank makes more passes than the other.
            masses = np.array([row.mass for row in examples])
            facts = Rows(group_N=np.array([0] * 13 + [1, 2, 3]), length_N=lengths, mass_N=masses)
            options = PlanOptions(plan="uniform", batch_size=16, conversations=16, together=16, ranks=2, seed=0)
            steps = plan_steps(facts, 1, options)
            tokens = 40 if args.process_index else 200
            trainer = WeightedTrainer(
                model=model,
                args=args,
                train_dataset=StepDataset(
                    steps, examples, rank=args.process_index, tokens_per_batch=tokens, trees=True
                ),
                optimizers=(torch.optim.SGD(model.parameters(), lr=1.0), None),
            )
            assert trainer.accelerator.num_processes == 2
            trainer.train()
            if trainer.is_world_process_zero():
                torch.save({n: p.detach() for n, p in model.named_parameters()}, Path(out) / "after.pt")
            # The group must not end with DDP: torch would wait, with Python's lock, for threads of gloo that may be
            # waiting for that lock.
            del trainer, model
            gc.collect()
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()
            """
        )
    )
    (tmp_path / "rows.pkl").write_bytes(pickle.dumps(examples))
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    command += [str(tiny_model), str(tmp_path / "rows.pkl")]
    done = subprocess.run([*command, str(tmp_path / "out")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = expected_step(tiny_model, examples)
    for name, value in torch.load(tmp_path / "out" / "after.pt").items():
        assert torch.allclose(value.double(), expected[name], rtol=1e-5, atol=2e-6), name


def settings(**changes: Any) -> TrainingConfig:
    defaults = {"max_steps": 6, "batch_size": 8, "tokens_per_batch": 100, "learning_rate": 1e-3, "save_steps": 2}
    return TrainingConfig(**{**defaults, "arguments": {"logging_steps": 1}, "plan": "uniform", **changes})


def curve(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict())


def test_the_result_is_an_ordinary_model_folder(weighed: tuple[Path, Path], tiny_model: Path, tmp_path: Path) -> None:
    out = train(*weighed, out=tmp_path / "model", model=str(tiny_model), config=settings(normalization="mean"))
    before, after = parameters(tiny_model), parameters(out)
    assert before.keys() == after.keys() and any(not torch.equal(before[k], after[k]) for k in before)
    assert AutoTokenizer.from_pretrained(out).chat_template == AutoTokenizer.from_pretrained(tiny_model).chat_template
    manifest = read_manifest(out, "model")
    assert (manifest["normalization"], manifest["steps"]) == ("mean", 6)
    assert manifest["weights"] == read_manifest(weighed[1], "weights")["chain"]
    weights = read_weights(weighed[1], weighed[0])
    rows = sum(any(values) for values in weights.values())
    assert (manifest["counts"]["conversations"], manifest["counts"]["rows"]) == (32, rows)
    # Eight rows of so many, as a mean over all conversations.
    assert manifest["loss"] == {"plan": "uniform", "divisor": pytest.approx(8 * 32 / rows)}
    assert [row["step"] for row in curve(out)] == [1, 2, 3, 4, 5, 6]
    assert all(row["loss"] > 0 and row["grad_norm"] > 0 for row in curve(out))
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["checkpoint-4", "checkpoint-6"]


def test_the_same_seed_gives_the_same_curve_and_model(
    weighed: tuple[Path, Path], tiny_model: Path, tmp_path: Path
) -> None:
    runs = [train(*weighed, out=tmp_path / n, model=str(tiny_model), config=settings(), seed=s) for n, s in
            (("a", 1), ("b", 1), ("c", 2))]  # fmt: skip
    assert curve(runs[0]) == curve(runs[1]) != curve(runs[2])
    first, second = parameters(runs[0]), parameters(runs[1])
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_training_killed_and_started_again_ends_with_the_same_curve_and_model(
    weighed: tuple[Path, Path], tiny_model: Path, tmp_path: Path
) -> None:
    whole = train(*weighed, out=tmp_path / "whole", model=str(tiny_model), config=settings(max_steps=12))
    command = [sys.executable, "-m", "drift", "train", *map(str, weighed), "--out", str(tmp_path / "broken")]
    command += ["--model", str(tiny_model), "--max_steps", "12", "--batch_size", "8", "--tokens_per_batch", "100"]
    command += ["--learning_rate", "1e-3", "--save_steps", "2", "--arguments.logging_steps", "1", "--plan", "uniform"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while last_checkpoint(tmp_path / "broken") is None and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "broken" / "manifest.json").exists()
    again = train(*weighed, out=tmp_path / "broken", model=str(tiny_model), config=settings(max_steps=12))
    assert curve(again) == curve(whole)
    first, second = parameters(whole), parameters(again)
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_a_checkpoint_without_an_end_is_not_gone_on_from(tmp_path: Path) -> None:
    for step, files in ((2, ["trainer_state.json", "optimizer.pt"]), (10, ["optimizer.pt"])):
        folder = tmp_path / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        for name in files:
            (folder / name).touch()
    found = last_checkpoint(tmp_path)
    assert found is not None and found.name == "checkpoint-2"
    assert last_checkpoint(tmp_path / "none") is None


def test_ctrl_c_keeps_the_checkpoint_and_says_so(weighed: tuple[Path, Path], tiny_model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "drift", "train", *map(str, weighed), "--out", str(tmp_path / "model")]
    command += ["--model", str(tiny_model), "--max_steps", "20000", "--batch_size", "8", "--save_steps", "2"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while last_checkpoint(tmp_path / "model") is None and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == Interrupted.exit_code
    assert "drift: stopped at step" in errors and "is kept. Run the same command again" in errors


def test_uniform_weights_train_as_sft_does_under_drift_with_equal_returns(
    tmp_path: Path, tiny_model: Path, make_trajectory: Make
) -> None:
    policy = fingerprint(*load_model(str(tiny_model)))
    with TrajectoryWriter(tmp_path / "data", {"trajectories": 12, "policy": policy}, []) as writer:
        for k in range(12):
            writer.append(make_trajectory(f"t{k % 3}", k, ("1", "2"), solved=True, policy=policy))
        writer.finish()
    curves = []
    for scheme in ("sft", "drift"):
        weigh_dataset(tmp_path / "data", WeightConfig(scheme=scheme), tmp_path / scheme)
        out = tmp_path / f"model-{scheme}"
        curves.append(
            curve(train(tmp_path / "data", tmp_path / scheme, out=out, model=str(tiny_model), config=settings()))
        )
    assert curves[0] == curves[1]


def test_conversations_are_drawn_by_weight_and_all_of_them_count(
    weighed: tuple[Path, Path], tiny_model: Path, tmp_path: Path
) -> None:
    """The step that resamples leaves some without a weight; the loss is a mean over them too."""
    data = weighed[0]
    before = read_weights(weighed[1], data)
    weigh_dataset(data, WeightConfig(steps=[{"skip_small": None}, {"resample": 0.5}]), tmp_path / "half")
    after = read_weights(tmp_path / "half", data)
    drawn = sum(any(values) for values in after.values())
    sizes = Counter(name.split("#")[0] for name in before)
    assert 0 < drawn <= sum(max(1, round(size / 2)) for size in sizes.values())
    out = train(data, tmp_path / "half", out=tmp_path / "model", model=str(tiny_model), config=settings())
    found = read_manifest(out, "model")
    assert found["counts"] == {
        "conversations": 32, "rows": drawn, "skipped_unweighted": 0, "skipped_zero_weight": 32 - drawn,
        "skipped_too_long": 0,
    }  # fmt: skip
    assert found["loss"]["divisor"] == pytest.approx(min(8, drawn) * 32 / drawn)
    assert next(step for step in found["weights"]["steps"] if "resample" in step)["resample"]["share"] == 0.5


def test_lora_trains_an_adapter_and_saves_the_merged_model(
    weighed: tuple[Path, Path], tiny_model: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    config = settings(lora={"r": 2, "lora_alpha": 32}, learning_rate=1e-2)
    out = train(*weighed, out=tmp_path / "model", model=str(tiny_model), config=config)
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, out / "adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    ids = torch.tensor([[5, 40, 50, 60]])
    with torch.inference_mode():
        assert torch.allclose(adapted(ids).logits, merged(ids).logits, atol=1e-4)
    before, after = parameters(tiny_model), parameters(out)
    changed = {name.split(".")[-2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_another_attention_trains_alike(weighed: tuple[Path, Path], tiny_model: Path, tmp_path: Path) -> None:
    curves = {}
    for attention in ("auto", "sdpa", "eager"):
        config = settings(attention=attention)
        curves[attention] = [
            row["loss"]
            for row in curve(train(*weighed, out=tmp_path / attention, model=str(tiny_model), config=config))
        ]
    for attention in ("sdpa", "eager"):
        assert curves[attention] == pytest.approx(curves["auto"], rel=1e-5)


def test_attention_that_can_not_be_had_is_refused_before_a_model_is_loaded(
    weighed: tuple[Path, Path], tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"training\.attention: got 'flesh', expected one of auto, sdpa"):
        settings(attention="flesh")
    with pytest.raises(ConfigError, match=r"training\.dtype: got 'float32', expected bfloat16 with attention flash"):
        settings(attention="flash_attention_2")
    for attention in ("flex_attention", "flash_attention_2"):
        config = settings(attention=attention, dtype="bfloat16")
        with pytest.raises(ConfigError, match=rf"training\.attention: got '{attention}', expected .* on a CPU"):
            train(*weighed, out=tmp_path / "m", model=str(tiny_model), config=config, device="cpu")
    assert not (tmp_path / "m").exists()
    # A model that has no such attention, known from its configuration alone.
    MambaConfig(vocab_size=99).save_pretrained(tmp_path / "mamba")
    with pytest.raises(ConfigError, match=r"training\.attention: sdpa can't be used with model .*MambaForCausalLM"):
        check_attention(str(tmp_path / "mamba"), "sdpa", device="cpu")
    check_attention(str(tiny_model), "sdpa", device="cpu")


def test_negative_weights_push_replies_away(tmp_path: Path, tiny_model: Path, make_trajectory: Make) -> None:
    policy = fingerprint(*load_model(str(tiny_model)))
    good, bad = make_trajectory("t", 0, ("1",), True, policy=policy), make_trajectory("t", 1, ("77",), policy=policy)
    with TrajectoryWriter(tmp_path / "data", {"trajectories": 2, "policy": policy}, []) as writer:
        writer.append(good)
        writer.append(bad)
        writer.finish()
    weigh_dataset(tmp_path / "data", WeightConfig(scheme="swift"), tmp_path / "weights")
    config = settings(batch_size=2, max_steps=10, learning_rate=3e-4, save_steps=0)
    out = train(tmp_path / "data", tmp_path / "weights", out=tmp_path / "m", model=str(tiny_model), config=config)

    def score(folder: Path, trajectory: Trajectory) -> float:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        turn = trajectory.turns[0]
        ids = torch.tensor([[*turn.prompt_ids, *turn.completion.token_ids]])
        with torch.inference_mode():
            logprobs = torch.log_softmax(model(ids).logits[0, :-1], -1).gather(-1, ids[0, 1:, None])
        return float(logprobs[len(turn.prompt_ids) - 1 :].sum())

    rise_good, rise_bad = (score(out, t) - score(tiny_model, t) for t in (good, bad))
    # What the two replies share rises or falls together; what tells them apart must not.
    assert rise_good > rise_bad + 0.5


def test_bad_settings_and_data_are_refused_before_training(
    weighed: tuple[Path, Path], tiny_model: Path, tmp_path: Path, make_trajectory: Make
) -> None:
    with pytest.raises(DatasetError, match=r"sampled by another policy \(model-"):
        train(*weighed, out=tmp_path / "x", model="default", config=settings())
    with pytest.raises(TrainingError, match="no rows to train on"):
        train(*weighed, out=tmp_path / "x", model=str(tiny_model), config=settings(max_length=2))
    with pytest.raises(ConfigError, match=r"training\.lora: .*nothing_like_it.* Set target_modules to modules of this"):
        lora = {"r": 2, "target_modules": ["nothing_like_it"]}
        train(*weighed, out=tmp_path / "y", model=str(tiny_model), config=settings(lora=lora))
    train(*weighed, out=tmp_path / "z", model=str(tiny_model), config=settings())
    with pytest.raises(DatasetError, match=r"config\.learning_rate: 0\.001 -> 0\.5"):
        train(*weighed, out=tmp_path / "z", model=str(tiny_model), config=settings(learning_rate=0.5))
    for change, name in (
        ({"batch_size": 0}, "batch_size"),
        ({"tokens_per_batch": -1}, "tokens_per_batch"),
        ({"rows_together": 0}, "rows_together"),
        ({"plan": "sorted"}, "plan"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"max_steps": 0}, "max_steps"),
        ({"epochs": -1.0}, "epochs"),
        ({"normalization": "max"}, "normalization"),
        ({"warmup": 2}, "warmup"),
        ({"dtype": "float8"}, "dtype"),
    ):
        with pytest.raises(ConfigError, match=f"training.{name}: got"):
            settings(**change)


def test_epochs_take_the_place_of_steps(weighed: tuple[Path, Path], tiny_model: Path, tmp_path: Path) -> None:
    for plan, epochs in (("uniform", 0.3), ("uniform", 2.0), ("drawn", 1.0), ("balanced", 1.5)):
        config = settings(plan=plan, epochs=epochs, batch_size=5)
        out = train(*weighed, out=tmp_path / f"{plan}-{epochs}", model=str(tiny_model), config=config)
        manifest = read_manifest(out, "model")
        rows = manifest["counts"]["rows"]
        assert rows % 5, "a pass is no whole number of batches"
        # Balanced steps pass over the data in a whole number of them.
        of_pass = round(rows / 5) if plan == "balanced" else rows / 5
        assert manifest["steps"] == math.ceil(epochs * of_pass)


@pytest.mark.parametrize("change", [{"max_steps": 1}, {"epochs": 1.0, "batch_size": 500}], ids=["max_steps", "epochs"])
def test_a_run_of_one_step_changes_the_model(
    weighed: tuple[Path, Path], tiny_model: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    config = settings(warmup=0.1, save_steps=0, **change)
    out = train(*weighed, out=tmp_path / "model", model=str(tiny_model), config=config)
    assert read_manifest(out, "model")["steps"] == 1
    ((line,), before, after) = curve(out), parameters(tiny_model), parameters(out)
    # One step of warm-up, and the rate rises on from it to the peak.
    assert line["learning_rate"] == pytest.approx(1e-3 / 2, rel=1e-6)
    moved = torch.cat([(after[name] - before[name]).flatten().abs() for name in before])
    # The first step of Adam is of the size of the rate, where there is a gradient.
    assert float(moved.median()) == pytest.approx(1e-3 / 2, rel=0.2)


def planned_rate(schedule: str, step: int, warmup: int, steps: int) -> float:
    """Of the peak, in step ``step`` counted from 0: it rises from the first step, and then as transformers has it."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    share = (step - warmup) / (steps - warmup)
    return {"linear": 1 - share, "cosine": 0.5 * (1 + math.cos(math.pi * share))}.get(schedule, 1.0)


@pytest.mark.parametrize("schedule", ["constant_with_warmup", pytest.param("linear", marks=pytest.mark.slow), "cosine"])
def test_the_rate_rises_from_the_first_step_and_goes_on_so_after_a_resume(
    weighed: tuple[Path, Path], tiny_model: Path, tmp_path: Path, schedule: str
) -> None:
    arguments = {"lr_scheduler_type": schedule, "logging_steps": 1, "save_total_limit": 9}
    config = settings(max_steps=10, warmup=0.4, save_steps=2, arguments=arguments)
    out = train(*weighed, out=tmp_path / "model", model=str(tiny_model), config=config)
    whole = curve(out)
    expected = [1e-3 * planned_rate(schedule, step, 4, 10) for step in range(10)]
    rates = [line["learning_rate"] for line in whole]
    assert rates == pytest.approx(expected, rel=1e-6)
    assert 0 < rates[0] < rates[1] < rates[2] < rates[3] < rates[4] == max(rates) == pytest.approx(1e-3)
    reference = parameters(out)
    # As a kill leaves it, within the warm-up and after it.
    for kept in (2, 6):
        for name in ("manifest.json", "model.safetensors"):
            (out / name).unlink()
        for step in range(kept + 2, 11, 2):
            shutil.rmtree(out / "checkpoints" / f"checkpoint-{step}", ignore_errors=True)
        train(*weighed, out=out, model=str(tiny_model), config=config)
        assert curve(out) == whole
        assert all(torch.equal(reference[name], value) for name, value in parameters(out).items())


def test_a_loss_that_is_not_finite_stops_training_and_keeps_the_checkpoint(
    weighed: tuple[Path, Path], tiny_model: Path, tmp_path: Path
) -> None:
    config = settings(
        learning_rate=1e30, warmup=0.0, max_steps=50, arguments={"logging_steps": 1, "max_grad_norm": 0.0}
    )
    with pytest.raises(TrainingError, match=r"went wrong by step \d+: (loss|grad_norm) is (nan|inf)"):
        train(*weighed, out=tmp_path / "model", model=str(tiny_model), config=config)
    assert not (tmp_path / "model" / "manifest.json").exists()


def test_a_disk_that_fills_up_is_told_and_training_goes_on_later(
    weighed: tuple[Path, Path], tiny_model: Path, tmp_path: Path
) -> None:
    script = textwrap.dedent(
        """
        import resource, signal, sys
        from drift.cli import main

        # No file may grow past one and a half models: the model fits, the optimizer's state does not.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop()), resource.RLIM_INFINITY))
        sys.exit(main(sys.argv[1:]))
        """
    )
    size = (tiny_model / "model.safetensors").stat().st_size
    arguments = ["train", *map(str, weighed), "--out", str(tmp_path / "m"), "--model", str(tiny_model)]
    arguments += ["--max_steps", "4", "--batch_size", "8", "--save_steps", "2", "--learning_rate", "1e-3"]
    full = subprocess.run(
        [sys.executable, "-c", script, *arguments, str(size * 3 // 2)], capture_output=True, text=True
    )
    assert full.returncode == 1, full.stderr
    assert "drift: " in full.stderr and "can't be written: " in full.stderr and "Traceback" not in full.stderr
    assert last_checkpoint(tmp_path / "m") is None
    again = subprocess.run([sys.executable, "-m", "drift", *arguments], capture_output=True, text=True)
    assert again.returncode == 0 and read_manifest(tmp_path / "m", "model")["steps"] == 4


def test_a_finished_training_is_looked_at_before_it_is_called_finished(
    weighed: tuple[Path, Path], tiny_model: Path, tmp_path: Path
) -> None:
    data, weights = weighed
    out = tmp_path / "model"

    def again() -> None:
        train(data, weights, model=str(tiny_model), out=out, config=TrainingConfig(max_steps=1, save_steps=0))

    again()
    again()
    path = out / "model.safetensors"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    for content in (bytes(flipped), whole[:-4], None):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(
            DatasetError, match=r"finished training whose model is damaged: model\.safetensors .*delete"
        ):
            again()
        path.touch()
    (out / "sums.json").unlink()
    path.unlink()
    with pytest.raises(DatasetError, match=r"is damaged: sums\.json, which the manifest lists, is gone"):
        again()
    # What the message says to do works.
    (out / "manifest.json").unlink()
    again()
    assert path.read_bytes() == whole
    # Nor is it finished where the data are no longer those that the manifest describes.
    shard = next((data / "shards").iterdir())
    shard.rename(shard.with_name("000007-0123456789abcdef.parquet"))
    with pytest.raises(DatasetError, match="is not of the data set that its manifest describes"):
        again()
