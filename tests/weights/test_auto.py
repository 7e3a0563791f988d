"""scheme: auto, on data of each kind: what it takes, that the weights are those of what it names, and what it says."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drift.dataset.outcomes import outcomes
from drift.dataset.store import TrajectoryWriter
from drift.errors import ConfigError
from drift.reporting.sentences import summary_of
from drift.types import Trajectory
from drift.weights.auto import settled
from drift.weights.config import WeightConfig
from drift.weights.stage import compute_weights, weigh_dataset
from drift.weights.table import read_weights

Make = Callable[..., Trajectory]
GRADES = (0.0, 0.25, 0.5, 1.0)


def unjudged(trajectory: Trajectory) -> Trajectory:
    """As in a log that says nothing of success."""
    turns = [dataclasses.replace(turn, step=dataclasses.replace(turn.step, success=None)) for turn in trajectory.turns]
    return dataclasses.replace(trajectory, turns=tuple(turns))


def conversations(kind: str, make: Make) -> list[Trajectory]:
    prompts, samples = (12, 1) if kind == "alone" else (3, 4)
    made = []
    for prompt in range(prompts):
        for k in range(samples):
            grade = GRADES[(prompt + k) % 4]
            rewards = {
                "right or wrong": (0.0, float(grade > 0.3)),
                "thumbs": (0.0, 5.0 if grade > 0.3 else 1.0),
                "by reply": (grade / 2, grade / 2),
            }.get(kind, (0.0, grade))
            one = make(f"p{prompt}", k, ("1", "2"), grade > 0.3, rewards=rewards)
            made.append(one if kind == "right or wrong" else unjudged(one))
    return made


@pytest.mark.parametrize(
    ("kind", "same", "words"),
    [
        ("right or wrong", {"scheme": "rft"}, "right or wrong, and 100% of the prompts have both"),
        (
            "thumbs",
            {"scheme": "rft", "outcome": {"reward": 1.0, "above": 1.0}},
            "successes alone are trained (rft), 6 of",
        ),
        ("by reply", {"scheme": "refit", "turns": "own"}, "4 values, and 75% of the conversations were rewarded more"),
        ("graded", {"scheme": "star_gate", "turns": "terminal"}, "100% of the prompts have conversations that differ"),
        ("alone", {"scheme": "swift", "baseline": "fitted"}, "most prompts have one conversation"),
    ],
)
def test_it_is_what_it_names(
    tmp_path: Path, make_trajectory: Make, kind: str, same: dict[str, Any], words: str
) -> None:
    data, tables = tmp_path / "data", []
    with TrajectoryWriter(data, {}, []) as writer:
        for trajectory in conversations(kind, make_trajectory):
            writer.append(trajectory)
        writer.finish()
    for name, settings in (("auto", {"scheme": "auto"}), ("same", same)):
        manifest = weigh_dataset(data, WeightConfig(**settings), tmp_path / name)
        said = list(summary_of("weights", manifest, tmp_path / name))
        tables.append((read_weights(tmp_path / name, data), manifest["chain"], said))
        assert ("auto" in manifest) == (name == "auto")
    (found, chain, said), (expected, other, usual) = tables
    assert {name: list(value) for name, value in found.items()} == {name: list(expected[name]) for name in found}
    assert chain == other and words in said[0] and "docs/" in said[0] and said[-1] == usual[-1]


@pytest.mark.parametrize(("right", "scheme", "words"), [(3, "rft", "25% of the conv"), (1, "refit", "75% of the conv")])
def test_graded_rewards_give_way_to_successes_where_many_are_right(
    make_trajectory: Make, right: int, scheme: str, words: str
) -> None:
    """As measured on the two tasks of docs/results.md: 47 % of the conversations are right in one, 4 % in the other."""
    made = []
    for at in range(12):
        half = GRADES[at % 4] / 2
        made.append(make_trajectory(f"p{at // 4}", at % 4, ("1", "2"), at < right, rewards=(half, half)))
    config, found = settled(WeightConfig(scheme="auto", outcome="reward"), outcomes(made, replies=True), logged=False)
    assert config.chain.scheme.name == scheme and config.outcome == "reward" and words in found["why"]


def test_what_nobody_judged_is_said(tmp_path: Path, make_trajectory: Make) -> None:
    with TrajectoryWriter(tmp_path / "data", {}, []) as writer:
        for trajectory in conversations("graded", make_trajectory):
            writer.append(trajectory)
        writer.finish()
    with pytest.raises(ConfigError, match="no conversation says whether it succeeded"):
        weigh_dataset(tmp_path / "data", WeightConfig(scheme="auto", outcome="success"), tmp_path / "weights")


def test_in_memory_it_says_what_to_read_where_words_decide(make_trajectory: Make) -> None:
    made = conversations("alone", make_trajectory)
    with pytest.raises(ConfigError, match="words=True"):
        compute_weights(outcomes(made), WeightConfig(scheme="auto"))
    assert compute_weights(outcomes(made, words=True), WeightConfig(scheme="auto")).chain["baseline"] == "fitted"


def test_settings_of_other_schemes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"weights\.beta: got 0\.1, and the scheme auto has no β"):
        WeightConfig(scheme="auto", beta=0.1)
