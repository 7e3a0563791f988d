import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from drift.api import train
from drift.cli import main
from drift.dataset.store import TrajectoryWriter, read_trajectories
from drift.errors import ConfigError, TrainingError
from drift.manifest import read_manifest
from drift.policies.fingerprint import fingerprint
from drift.policies.hf import load_model
from drift.training.checkpoints import last_checkpoint
from drift.training.config import TrainingConfig
from drift.training.divergence import sampled_logprobs
from drift.training.examples import rows_of
from drift.training.kl_limit import PER_PROMPT, HeldOut, set_aside
from drift.types import Trajectory
from drift.weights.config import WeightConfig
from drift.weights.stage import weigh_dataset
from drift.weights.table import read_weights

Make = Callable[..., Trajectory]


@pytest.fixture(autouse=True)
def measured_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drift.training.kl_limit.STEPS", 2)


@pytest.fixture(scope="module")
def weighed(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, make_trajectory: Make) -> tuple[Path, Path]:
    """Twelve prompts of six conversations, one of which failed; Swift's weights, half of them negative."""
    folder = tmp_path_factory.mktemp("weighed")
    policy = fingerprint(*load_model(str(tiny_model)))
    rng = random.Random(5)
    made = [
        make_trajectory(
            f"t{prompt:02}",
            k,
            tuple(str(rng.randrange(1000)) for _ in range(1 + k % 3)),
            solved=k % 2 == 0,
            policy=policy,
            error="it broke" if (prompt, k) == (3, 2) else None,
        )
        for prompt in range(12)
        for k in range(6)
    ]
    with TrajectoryWriter(folder / "data", {"trajectories": len(made), "policy": policy}, []) as writer:
        for trajectory in made:
            writer.append(trajectory)
        writer.finish()
    config = WeightConfig(scheme="swift", steps=[{"bound_negative": None}])
    weigh_dataset(folder / "data", config, folder / "weights")
    return folder / "data", folder / "weights"


@pytest.fixture(scope="module")
def free(weighed: tuple[Path, Path], tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty steps within a limit that is never passed, measured every second one."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("drift.training.kl_limit.STEPS", 2)
        out = tmp_path_factory.mktemp("free") / "model"
        train(*weighed, out=out, model=str(tiny_model), **settings(kl_limit=1e9))
    return out


def settings(**changes: Any) -> dict[str, Any]:
    defaults = {"max_steps": 20, "batch_size": 12, "tokens_per_batch": 300, "learning_rate": 2e-4, "plan": "uniform"}
    return {
        **defaults,
        "save_steps": 0,
        "warmup": 0.0,
        **changes,
    }


def measured(out: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["kl"]) for row in map(json.loads, (out / "kl.jsonl").read_text().splitlines())]


def crossing(course: list[tuple[int, float]], after: int) -> tuple[float, int]:
    """A limit that a measurement is the first to pass, and its place: the first from ``after`` on that can be."""
    for at in range(after, len(course)):
        highest = max(kl for _, kl in course[:at])
        if course[at][1] > 1.05 * highest:
            return (highest + course[at][1]) / 2, at
    raise AssertionError(f"nothing grows: {course}")


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict())


def same(one: Path, other: Path) -> bool:
    first, second = parameters(one), parameters(other)
    return all(torch.equal(first[name], second[name]) for name in first)


def own_measurement(data: Path, base: Path, model: Path) -> float:
    """KL on the prompts set aside, from the saved model and the data alone."""
    made = [t for t in read_trajectories(data) if t.error is None]
    aside = set_aside({t.group_id for t in made}, 2)
    total, conversations = 0.0, 0
    loaded = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() for folder in (base, model)]
    for group in aside:
        for trajectory in sorted((t for t in made if t.group_id == group), key=lambda t: t.id)[:PER_PROMPT]:
            rows = rows_of(trajectory, [1.0] * len(trajectory.turns), normalization="sum")
            ours, theirs = (np.concatenate(sampled_logprobs(one, rows)) for one in loaded)
            ratio = np.exp(theirs - ours)
            total += float(np.sum(ratio - 1 - np.log(ratio)))
            conversations += 1
    return total / conversations


def test_training_ends_at_the_last_measurement_within_the_limit(
    weighed: tuple[Path, Path], free: Path, tiny_model: Path, tmp_path: Path
) -> None:
    course = measured(free)
    assert [step for step, _ in course] == list(range(2, 21, 2))
    limit, at = crossing(course, 5)
    out = train(*weighed, out=tmp_path / "out", model=str(tiny_model), **settings(kl_limit=limit))
    manifest = read_manifest(out, "model")
    assert measured(out) == course[: at + 1]
    assert manifest["steps"] == course[at - 1][0]
    assert manifest["kl_limit"] == {
        "limit": limit,
        "step": course[at - 1][0],
        "kl": course[at - 1][1],
        "stopped_at": course[at][0],
        "stopped_kl": course[at][1],
        "conversations": PER_PROMPT,
    }
    assert own_measurement(weighed[0], tiny_model, out) == pytest.approx(course[at - 1][1], rel=1e-3)
    assert read_manifest(free, "model")["kl_limit"]["stopped_at"] is None
    assert own_measurement(weighed[0], tiny_model, free) == pytest.approx(course[-1][1], rel=1e-3)
    # The tokens of the steps that were taken, the last of them beyond the limit.
    assert manifest["cost"]["tokens_trained"] < read_manifest(free, "model")["cost"]["tokens_trained"]


def test_measuring_changes_nothing_of_what_is_trained(
    weighed: tuple[Path, Path], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    for steps in (1, 20):
        monkeypatch.setattr("drift.training.kl_limit.STEPS", steps)
        runs.append(train(*weighed, out=tmp_path / str(steps), model=str(tiny_model), **settings(kl_limit=1e9)))
    often, seldom = runs
    assert same(often, seldom)
    assert (often / "metrics.jsonl").read_text() == (seldom / "metrics.jsonl").read_text()
    assert measured(often)[-1] == measured(seldom)[0]


def test_what_is_set_aside_is_not_trained_on(weighed: tuple[Path, Path], tiny_model: Path, tmp_path: Path) -> None:
    counts = [
        read_manifest(
            train(*weighed, out=tmp_path / str(limit), model=str(tiny_model), **settings(kl_limit=limit, max_steps=2)),
            "model",
        )["counts"]["rows"]
        for limit in (0.0, 1e9)
    ]
    # A tenth of twelve prompts is one, of six conversations and as many rows.
    assert counts[0] - counts[1] == 6 * 1


@pytest.mark.parametrize("checkpointed", [4, pytest.param(12, marks=pytest.mark.slow)])
def test_a_run_that_was_killed_ends_like_one_that_was_not(
    weighed: tuple[Path, Path], tiny_model: Path, tmp_path: Path, checkpointed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Checkpoints every four steps, measurements every three: 3, 4, 6, 8, 9, 12, 15, 16 and so on.
    monkeypatch.setattr("drift.training.kl_limit.STEPS", 3)
    given = settings(save_steps=4, arguments={"save_total_limit": 9})
    course = measured(train(*weighed, out=tmp_path / "free", model=str(tiny_model), **given, kl_limit=1e9))
    assert [step for step, _ in course] == [3, 4, 6, 8, 9, 12, 15, 16, 18, 20]
    limit, at = crossing(course, 6)
    assert course[at][0] in (15, 16)
    given["kl_limit"] = limit
    whole = train(*weighed, out=tmp_path / "whole", model=str(tiny_model), **given)
    told = read_manifest(whole, "model")["kl_limit"]
    assert (told["step"], told["stopped_at"]) == (course[at - 1][0], course[at][0])
    # No checkpoint of a model beyond the limit.
    kept = last_checkpoint(whole)
    assert kept is not None and kept.name == "checkpoint-12"
    # As a kill leaves it: with a later checkpoint's lines written, and no model.
    broken = tmp_path / "broken"
    whole.path.rename(broken)
    reference = {name: value.clone() for name, value in parameters(broken).items()}
    before = measured(broken)
    (broken / "manifest.json").unlink()
    (broken / "model.safetensors").unlink()
    for folder in (broken / "checkpoints").glob("checkpoint-*"):
        if int(folder.name.split("-")[1]) > checkpointed:
            folder.rename(tmp_path / f"gone-{folder.name}")
    again = train(*weighed, out=broken, model=str(tiny_model), **given)
    assert read_manifest(again, "model")["kl_limit"] == told and measured(again) == before
    found = parameters(again)
    assert all(torch.equal(found[name], value) for name, value in reference.items())


def test_a_limit_that_is_passed_at_once_says_what_to_do(
    weighed: tuple[Path, Path], tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"first measurement, at step 2, .*Lower training.learning_rate"):
        train(*weighed, out=tmp_path / "out", model=str(tiny_model), **settings(kl_limit=1e-9))
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_lora_adapter_goes_back_too(weighed: tuple[Path, Path], tiny_model: Path, tmp_path: Path) -> None:
    given = settings(lora={"r": 4, "lora_alpha": 32}, learning_rate=1e-3)
    course = measured(train(*weighed, out=tmp_path / "free", model=str(tiny_model), **given, kl_limit=1e9))
    limit, at = crossing(course, 3)
    out = train(*weighed, out=tmp_path / "out", model=str(tiny_model), **given, kl_limit=limit)
    assert read_manifest(out, "model")["kl_limit"]["step"] == course[at - 1][0]
    assert own_measurement(weighed[0], tiny_model, out) == pytest.approx(course[at - 1][1], rel=1e-2)


@pytest.mark.usefixtures("quick_starts")
def test_two_processes_stop_together_where_one_does(
    weighed: tuple[Path, Path], free: Path, tiny_model: Path, tmp_path: Path
) -> None:
    course = measured(free)
    limit, at = crossing(course, 3)
    out = train(
        *weighed,
        out=tmp_path / "two",
        model=str(tiny_model),
        device="cpu",
        # Measured before each checkpoint: what is set here does not reach the processes.
        **settings(kl_limit=limit, num_processes=2, save_steps=2),
    )
    told = read_manifest(out, "model")
    steps = (told["kl_limit"]["step"], told["kl_limit"]["stopped_at"], told["ranks"])
    assert steps == (course[at - 1][0], course[at][0], 2)
    assert measured(out) == [(step, pytest.approx(kl, rel=1e-2)) for step, kl in course[: at + 1]]
    assert own_measurement(weighed[0], tiny_model, out) == pytest.approx(course[at - 1][1], rel=1e-2)


def test_prompts_set_aside_hang_on_their_names_alone() -> None:
    groups = [f"g{n}" for n in range(200)]
    chosen = set_aside(groups, 8)
    assert len(chosen) == 8 and chosen == set_aside(list(reversed(groups)), 8)
    assert set_aside(groups, 3) < chosen and len(set_aside(groups, 100)) == 20
    assert len(set_aside(["a", "b"], 8)) == 1
    with pytest.raises(TrainingError, match="there are 1"):
        set_aside(["a"], 8)


def test_the_same_conversations_are_kept_whatever_order_they_come_in(make_trajectory: Make) -> None:
    made = [make_trajectory("a", k, ("1", "22")) for k in range(9)] + [make_trajectory("b", 0)]
    made.append(make_trajectory("a", 9, ("1",), error="it broke"))
    chosen = []
    for order in (made, made[::-1]):
        held = HeldOut({"a"}, 400)
        assert [t.id for t in held.set_aside_from(order)] == ["b#0"]
        chosen.append(held.rows())
    assert chosen[0] == chosen[1]
    assert sorted({row.trajectory_id for row in chosen[0]}) == [f"a#{k}" for k in range(PER_PROMPT)]
    long = HeldOut({"a"}, 10)
    list(long.set_aside_from(made))
    assert long.rows() == []


def test_settings_that_can_not_be_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"training\.kl_limit.*engine fsdp"):
        TrainingConfig(kl_limit=1.0, engine="fsdp")
    with pytest.raises(ConfigError, match=r"training\.kl_limit"):
        TrainingConfig(kl_limit=-1.0)


def test_the_share_of_negative_weights_is_what_is_trained(
    weighed: tuple[Path, Path], tiny_model: Path, tmp_path: Path
) -> None:
    data = weighed[0]
    losses = {}
    for share in ("null", "1", "0.1", "0", "the default"):
        weights, out = tmp_path / f"weights-{share}", tmp_path / f"share-{share}"
        steps = [] if share == "the default" else [f"{{bound_negative: {share}}}"]
        steps.append("{skip_small: null}")
        line = ["weigh", str(data), "--scheme", "swift", "--out", str(weights), "--steps", f"[{', '.join(steps)}]"]
        assert main(line) == 0
        # Each prompt's Σ|w⁻| as a share of its Σw⁺, over all replies.
        table = read_weights(weights, data)
        sums: dict[str, list[float]] = {}
        for name, values in table.items():
            own = sums.setdefault(name.split("#")[0], [0.0, 0.0])
            for value in values:
                own[value < 0] += abs(value)
        shares = [down / up for up, down in sums.values()]
        wanted = {"null": max(shares), "the default": 0.1}.get(share) or float(share)
        assert max(shares) == pytest.approx(wanted, rel=1e-9) and all(value <= wanted + 1e-9 for value in shares)
        line = ["train", str(data), str(weights), "--model", str(tiny_model), "--device", "cpu", "--out", str(out)]
        line += [
            "--max-steps",
            "2",
            "--batch-size",
            "99",
            "--save-steps",
            "0",
            "--arguments.logging_steps",
            "1",
            "--plan",
            "uniform",
        ]
        assert main(line) == 0
        losses[share] = (out / "metrics.jsonl").read_text() + json.dumps(read_manifest(out, "model")["counts"])
    # Each step holds all rows. Only the prompt of which a conversation failed is past a share of 1.
    assert losses["the default"] == losses["0.1"]
    assert len(set(losses.values())) == 4, losses
