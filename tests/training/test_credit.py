"""Training on first replies alone, and on conversations whose mistakes are left out or pushed away."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from drift.api import train
from drift.dataset.outcomes import is_rejected, outcomes
from drift.dataset.store import TrajectoryWriter
from drift.errors import ConfigError
from drift.manifest import read_manifest
from drift.policies.fingerprint import fingerprint
from drift.policies.hf import load_model
from drift.training.config import TrainingConfig
from drift.training.examples import rows_of
from drift.types import Trajectory
from drift.weights.config import WeightConfig, link
from drift.weights.stage import compute_weights, weigh_dataset
from drift.weights.steps import bound_negative
from drift.weights.table import read_weights
from drift.weights.turns import REGISTRY as TURNS
from drift.weights.turns import Conversations

Make = Callable[..., Trajectory]


@pytest.fixture
def data(tmp_path: Path, tiny_model: Path, make_trajectory: Make) -> tuple[Path, list[Trajectory]]:
    """Prompts solved at turn 1 by some conversations and at turn 2 by others."""
    policy = fingerprint(*load_model(str(tiny_model)))
    made = [
        make_trajectory(f"t{n}", k, ("5",) if k % 2 else ("77", "5"), True, policy=policy)
        for n in range(4)
        for k in range(4)
    ]
    with TrajectoryWriter(tmp_path / "data", {"trajectories": len(made), "policy": policy}, []) as writer:
        for trajectory in made:
            writer.append(trajectory)
        writer.finish()
    return tmp_path / "data", made


def settings(**changes: Any) -> TrainingConfig:
    plain = {"max_steps": 8, "batch_size": 16, "plan": "uniform", "learning_rate": 5e-4, "save_steps": 0}
    return TrainingConfig(**{**plain, **changes})


def score(folder: Path, trajectory: Trajectory, turn: int) -> float:
    """log p of a reply given what came before it."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt, reply = trajectory.turns[turn].prompt_ids, trajectory.turns[turn].completion.token_ids
    ids = torch.tensor([[*prompt, *reply]])
    with torch.inference_mode():
        logprobs = torch.log_softmax(model(ids).logits[0, :-1], -1).gather(-1, ids[0, 1:, None])
    return float(logprobs[len(prompt) - 1 :].sum())


def weigh_into(data: Path, out: Path, **settings: Any) -> dict[str, Any]:
    return weigh_dataset(data, WeightConfig(**settings), out)


def test_weights_of_first_replies_train_first_replies_alone(
    data: tuple[Path, list[Trajectory]], tiny_model: Path, tmp_path: Path
) -> None:
    folder, made = data
    with pytest.raises(ConfigError, match=r"weights\.turns: got 'terminal', expected first.*bolt"):
        WeightConfig(scheme="bolt", turns="terminal")
    assert weigh_into(folder, tmp_path / "w", scheme="bolt")["chain"]["turns"] == "first"
    out = train(folder, tmp_path / "w", out=tmp_path / "m", model=str(tiny_model), config=settings())
    assert read_manifest(out, "model")["weights"]["turns"] == "first"
    right, mistaken = made[1], made[0]
    rise = [score(out, each, 0) - score(tiny_model, each, 0) for each in (right, mistaken)]
    assert rise[0] > rise[1] + 0.5


def test_mistakes_on_the_way_to_a_success_are_imitated_left_out_or_pushed_away(
    data: tuple[Path, list[Trajectory]], tiny_model: Path, tmp_path: Path
) -> None:
    folder, made = data
    rises = []
    for name, change in (
        ("all", {"turns": "all"}),
        ("left", {"turns": "credited"}),
        ("pushed", {"turns": {"credited": -0.5}, "steps": [{"bound_negative": None}]}),
        ("last", {"turns": "terminal"}),
    ):
        weights = tmp_path / f"weights-{name}"
        weigh_into(folder, weights, scheme="rft", **change)
        out = train(folder, weights, out=tmp_path / name, model=str(tiny_model), config=settings())
        rises.append(score(out, made[0], 0) - score(tiny_model, made[0], 0))
    assert rises[0] > rises[1] + 0.5 > rises[2] + 1.0
    # Left out, the mistake is what it is when last replies alone are trained.
    assert rises[3] == pytest.approx(rises[1], abs=1e-3)


def test_credit_is_given_reply_by_reply(make_trajectory: Make) -> None:
    """A question, a mistake, a step that earns a part of the reward, and the last reply, a failure."""
    asked, mistaken, partly, failed = make_trajectory("t", 0, ("1", "2", "3", "4"), rewards=(0, 0, 0.25, 0)).turns
    asked = replace(asked, step=replace(asked.step, graded=False, answer=None))
    steps = [
        (asked, mistaken, partly, failed),
        make_trajectory("t", 1, ("1", "2", "3"), True).turns,
        make_trajectory("t", 2, ("7",)).turns,
    ]
    made = [replace(make_trajectory("t", k), turns=turns) for k, turns in enumerate(steps)]
    seen = outcomes(made)
    data = conversations_of(made)
    assert seen.rejected_T.tolist() == [False, True, False, False, True, True, False, False]
    for rejected, weights, expected in (
        (0.0, (2.0, 1.5, -1.0), [2.0, 0, 2.0, 2.0, 0, 0, 1.5, -1.0]),
        (-0.25, (2.0, 1.0, -1.0), [2.0, -0.5, 2.0, 2.0, -0.25, -0.25, 1.0, -1.0]),
        # A mistake is pushed away whatever the sign of the weight.
        (-0.25, (-2.0, 0.0, 3.0), [-2.0, -0.5, -2.0, -2.0, 0, 0, 0, 3.0]),
    ):
        spread = link({"credited": rejected}, TURNS, "weights.turns")
        assert spread(np.array(weights), data).tolist() == expected
        # Without a factor it is what is given by default; and where every earlier reply was rejected, terminal.
        if not rejected:
            assert link("credited", TURNS, "weights.turns")(np.array(weights), data).tolist() == expected
            assert link("terminal", TURNS, "weights.turns")(np.array(weights), data).tolist()[4:] == expected[4:]
    for wrong in (0.5, -1.5):
        with pytest.raises(ConfigError, match=rf"weights\.turns\.credited: got {wrong}, expected a number from -1"):
            link({"credited": wrong}, TURNS, "weights.turns")(np.ones(3), data)


def conversations_of(made: list[Trajectory]) -> Conversations:
    seen = outcomes(made)
    none_N = np.zeros(len(made), bool)
    return Conversations(
        group_N=seen.group_index(),
        returns_N=np.zeros(len(made)),
        success_N=seen.success_N,
        reward_N=seen.reward_N,
        turns_N=seen.turns_N,
        sample_N=seen.sample_N,
        first_wrong_N=none_N,
        stopped_N=seen.success_N,
        rejected_T=seen.rejected_T,
    )


def test_the_bound_on_negative_weights_holds_for_rejected_replies_as_for_negative_conversations(
    make_trajectory: Make,
) -> None:
    """Every trained row is added up by prompt, with Swift-like weights of both signs and 0 to 3 rejected replies."""
    rng = np.random.default_rng(3)
    made = [
        make_trajectory(f"t{n}", k, ("7",) * int(rng.integers(1, 5)), k % 3 == 0) for n in range(6) for k in range(5)
    ]
    weights_N = rng.normal(size=len(made)) + np.repeat([0.6, 0.6, 0.6, 0.0, 0.0, -9.0], 5)
    data = conversations_of(made)
    ends = np.cumsum(data.turns_N)
    for share, rejected in ((0.1, -0.5), (0.1, -1.0), (0.0, -0.3), (100.0, -0.5)):
        spread_T = link({"credited": rejected}, TURNS, "weights.turns")(weights_N, data)
        found = np.split(bound_negative(spread_T, data, share=share), ends[:-1])
        negative = dict.fromkeys([t.group_id for t in made], 0.0)
        for trajectory, weights_of_replies in zip(made, found, strict=True):
            for row in rows_of(trajectory, weights_of_replies.tolist(), normalization="mean"):
                negative[trajectory.group_id] -= sum(value for value in row.weight if value < 0)
        for group, down in negative.items():
            up = before = 0.0
            for trajectory, weight in zip(made, weights_N.tolist(), strict=True):
                if trajectory.group_id != group:
                    continue
                for turn in trajectory.turns:
                    mistake = turn is not trajectory.turns[-1] and is_rejected(turn.step)
                    value = rejected * abs(weight) if mistake else weight
                    up, before = up + max(value, 0.0), before + max(-value, 0.0)
            assert down == pytest.approx(min(before, share * up), rel=1e-9, abs=1e-12)
        kept_T = spread_T >= 0
        assert np.array_equal(np.concatenate(found)[kept_T], spread_T[kept_T])


def test_pushing_rejected_replies_away_is_bounded_by_default(
    data: tuple[Path, list[Trajectory]], tiny_model: Path, tmp_path: Path
) -> None:
    folder, made = data
    falls = {}
    for name, steps in (("none", [{"bound_negative": None}]), ("default", []), ("zero", [{"bound_negative": 0.0}])):
        manifest = weigh_into(folder, tmp_path / name, scheme="rft", turns={"credited": -1.0}, steps=steps)
        # Half of the conversations have one rejected reply, and every one weighs 1: 4 up, 2 down for each prompt.
        values = np.sort(read_weights(tmp_path / name, folder).weights_T)
        pushed = {"none": -1.0, "default": -0.1 * 4 / 2, "zero": 0.0}[name]
        assert values.tolist() == pytest.approx([pushed] * 8 + [1.0] * 16, rel=1e-9)
        taken = {next(iter(each["step"])): each["share"] for each in manifest["diagnostics"]["steps"]}
        assert taken.get("bound_negative") == pytest.approx({"none": None, "default": 6.4 / 24, "zero": 8 / 24}[name])
        out = train(folder, tmp_path / name, out=tmp_path / f"m-{name}", model=str(tiny_model), config=settings())
        falls[name] = score(tiny_model, made[0], 0) - score(out, made[0], 0)
        assert read_manifest(out, "model")["weights"] == manifest["chain"]
    assert falls["none"] > falls["default"] + 0.2 and falls["default"] > falls["zero"]


def test_credited_weights_come_out_of_weighing_reply_by_reply(data: tuple[Path, list[Trajectory]]) -> None:
    made = data[1]
    config = WeightConfig(scheme="rft", turns={"credited": -0.3}, steps=[{"bound_negative": None}])
    assert compute_weights(outcomes(made), config).weights_T.tolist() == [-0.3, 1.0, 1.0] * 8
