"""Held-out loss: its value from the saved model and the data alone; the best model and the end, also after a kill."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from drift.api import train
from drift.dataset.store import TrajectoryWriter, read_trajectories
from drift.errors import ConfigError, Interrupted, TrainingError
from drift.manifest import read_manifest
from drift.policies.fingerprint import fingerprint
from drift.policies.hf import load_model
from drift.training.config import TrainingConfig
from drift.training.divergence import sampled_logprobs
from drift.training.examples import rows_of
from drift.training.held_out import HeldOutLoss
from drift.training.kl_limit import set_aside
from drift.types import Trajectory
from drift.weights.config import WeightConfig
from drift.weights.stage import weigh_dataset
from drift.weights.table import read_weights

Make = Callable[..., Trajectory]
SHARE = 0.3


@pytest.fixture
def weighed(tmp_path: Path, tiny_model: Path, make_trajectory: Make) -> tuple[Path, Path]:
    """Ten prompts of four conversations; Swift's weights, half of them negative."""
    folder = tmp_path / "made"
    policy, rng = fingerprint(*load_model(str(tiny_model))), np.random.default_rng(3)
    made = [
        make_trajectory(f"t{p}", k, [str(n) for n in rng.integers(99, size=1 + k % 3)], solved=k < 2, policy=policy)
        for p in range(10)
        for k in range(4)
    ]
    with TrajectoryWriter(folder / "data", {"trajectories": len(made), "policy": policy}, []) as writer:
        for trajectory in made:
            writer.append(trajectory)
        writer.finish()
    weigh_dataset(folder / "data", WeightConfig(scheme="swift"), folder / "weights")
    return folder / "data", folder / "weights"


def settings(**changes: Any) -> dict[str, Any]:
    given = {"max_steps": 12, "batch_size": 12, "learning_rate": 3e-3, "save_steps": 0, "warmup": 0.0}
    return {**given, "hold_out": {"share": SHARE, "every": 2, **changes.pop("hold_out", {})}, **changes}


def course(out: Any) -> list[tuple[int, float]]:
    lines = (Path(out) / "held-out.jsonl").read_text().splitlines()
    return [(row["step"], row["nll"]) for row in map(json.loads, lines)]


def own_measurement(weighed: tuple[Path, Path], model: Any) -> float:
    """Nats per token of the held-out replies with a weight above 0, by their weight."""
    made, weights = read_trajectories(weighed[0]), read_weights(weighed[1], weighed[0])
    aside = set_aside({t.group_id for t in made}, 99, SHARE)
    loaded, nats, tokens = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval(), 0.0, 0.0
    for trajectory in (t for t in made if t.group_id in aside):
        (logprobs,) = sampled_logprobs(loaded, rows_of(trajectory, [1.0] * len(trajectory.turns), normalization="sum"))
        for turn, weight in zip(trajectory.turns, weights[trajectory.id], strict=True):
            count = len(turn.completion.token_ids)
            own, logprobs = logprobs[:count], logprobs[count:]
            nats -= max(weight, 0.0) * own.sum()
            tokens += max(weight, 0.0) * count
    return nats / tokens


def same(one: Any, other: Any) -> bool:
    first, second = (AutoModelForCausalLM.from_pretrained(each).state_dict() for each in (one, other))
    return all(torch.equal(first[name], second[name]) for name in first)


def test_the_loss_is_that_of_the_saved_model_and_held_out_prompts_are_not_trained_on(
    weighed: tuple[Path, Path], tiny_model: Path, tmp_path: Path
) -> None:
    free = train(*weighed, out=tmp_path / "free", model=str(tiny_model), **settings())
    found, told = course(free), read_manifest(free, "model")
    assert [step for step, _ in found] == [0, 2, 4, 6, 8, 10, 12]
    assert found[0][1] == pytest.approx(own_measurement(weighed, tiny_model), rel=1e-4)
    assert found[-1][1] == pytest.approx(own_measurement(weighed, free.path), rel=1e-4)
    whole = train(*weighed, out=tmp_path / "whole", model=str(tiny_model), **settings(max_steps=1) | {"hold_out": 0})
    assert told["counts"]["rows"] == 7 * 4 and read_manifest(whole, "model")["counts"]["rows"] == 10 * 4
    # Two of a prompt's four have a weight above 0.
    expected = {"prompts": 3, "rows": 3 * 2, "step": 12, "nll": found[-1][1], "base_nll": found[0][1]}
    assert told["held_out"] == {**expected, "stopped_at": None} and told["steps"] == 12
    # Measuring changes nothing of what is trained.
    seldom = train(*weighed, out=tmp_path / "seldom", model=str(tiny_model), **settings(hold_out={"every": 99}))
    assert [step for step, _ in course(seldom)] == [0, 12] and same(free.path, seldom.path)


@pytest.mark.slow
def test_the_best_model_is_kept_and_a_run_that_was_stopped_ends_like_one_that_was_not(
    weighed: tuple[Path, Path], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So large a rate that what is held out soon gets worse.
    given = settings(
        max_steps=24, learning_rate=2e-2, save_steps=2, hold_out={"keep": "best", "patience": 3, "every": 1}
    )
    whole = train(*weighed, out=tmp_path / "whole", model=str(tiny_model), **given)
    found, told = course(whole), read_manifest(whole, "model")
    best = min(found[1:], key=lambda pair: pair[1])
    assert found[-1][0] == best[0] + 3 == told["held_out"]["stopped_at"] < 24
    assert (told["steps"], told["held_out"]["step"], told["held_out"]["nll"]) == (best[0], *best)
    assert own_measurement(weighed, whole.path) == pytest.approx(best[1], rel=1e-4)
    assert not (whole.path / "best").exists()
    measure = HeldOutLoss._measure
    # Before any checkpoint; and where the best of all lies behind the last checkpoint, or before it.
    for stop in (1, best[0] + 1, best[0] + 2):
        broken = tmp_path / f"stopped-{stop}"

        def stopping(self: HeldOutLoss, step: int, stop: int = stop) -> None:
            if step == stop:
                raise KeyboardInterrupt
            measure(self, step)

        with monkeypatch.context() as patched, pytest.raises(Interrupted):
            patched.setattr(HeldOutLoss, "_measure", stopping)
            train(*weighed, out=broken, model=str(tiny_model), **given)
        again = train(*weighed, out=broken, model=str(tiny_model), **given)
        assert course(again) == found and read_manifest(again, "model")["held_out"] == told["held_out"]
        assert same(again.path, whole.path)


def test_settings_that_can_not_be_are_refused(weighed: tuple[Path, Path], tiny_model: Path, tmp_path: Path) -> None:
    for given, said in (
        ({"hold_out": 1.5}, r"hold_out\.share: got 1\.5"),
        ({"hold_out": {"share": 0.1, "evry": 3}}, "Did you mean 'every'"),
        ({"hold_out": {"every": 3}}, "training.hold_out needs share"),
        ({"hold_out": {"share": 0.1, "keep": "first"}}, "expected last or best"),
        ({"hold_out": {"share": 0.1, "keep": "best"}, "kl_limit": 1.0}, "one of the two can decide"),
        ({"hold_out": 0.1, "engine": "fsdp"}, r"training\.hold_out.*engine fsdp"),
    ):
        with pytest.raises(ConfigError, match=said):
            TrainingConfig(**given)
    assert TrainingConfig(hold_out=0.1).held_out == TrainingConfig(hold_out={"share": 0.1}).held_out
    with pytest.raises(TrainingError, match=r"training\.hold_out: no conversation of the prompts set aside"):
        train(*weighed, out=tmp_path / "out", model=str(tiny_model), **settings(max_length=20))
