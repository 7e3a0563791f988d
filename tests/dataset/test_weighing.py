import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drift.dataset.store import TrajectoryWriter
from drift.dataset.weighing import compute_weights, outcomes, read_weights, weigh_dataset, weights_hash
from drift.errors import ConfigError, DatasetError
from drift.recipe import Recipe, RolloutSettings
from drift.types import Message, Trajectory
from drift.weights.config import WeightConfig

Make = Callable[..., Trajectory]
OPEN: tuple[Message, ...] = (
    {"role": "user", "content": "Guess my number."},
    {"role": "assistant", "content": "<answer>4</answer>"},
)


@pytest.fixture
def data(make_trajectory: Make) -> list[Trajectory]:
    """Prompt a: solved at turns 1 and 3, unsolved twice; b: never solved; c: solved at once each time; one failure."""
    return [
        make_trajectory("a", 0, ("5",), True),
        make_trajectory("a", 1, ("1", "1", "5"), True),
        make_trajectory("a", 2, ("1", "2", "3")),
        make_trajectory("a", 3, ("1", "1", None)),
        make_trajectory("b", 0, ("1", "2")),
        make_trajectory("b", 1, ("1", "1")),
        make_trajectory("c", 0, ("7",), True),
        make_trajectory("c", 1, ("7",), True),
        make_trajectory("c", 2, (), error="environment.start raised OSError: gone"),
    ]


def stored(folder: Path, trajectories: list[Trajectory]) -> Path:
    with TrajectoryWriter(folder, {"trajectories": len(trajectories)}, []) as writer:
        for trajectory in trajectories:
            writer.append(trajectory)
        writer.finish()
    return folder


def test_outcomes_are_counted_off_the_conversations(data: list[Trajectory]) -> None:
    found = outcomes(data)
    assert found.ids == ["a#0", "a#1", "a#2", "a#3", "b#0", "b#1", "c#0", "c#1"]
    assert found.success_N.tolist() == [True, True, False, False, False, False, True, True]
    assert found.turns_N.tolist() == [1, 3, 3, 3, 2, 2, 1, 1]
    assert found.distinct_N.tolist() == [1, 2, 3, 1, 2, 1, 1, 1]
    assert found.failures_N.tolist() == [0, 0, 0, 1, 0, 0, 0, 0]


def test_drift_weights_of_stored_conversations_follow_equations_12_and_13(data: list[Trajectory]) -> None:
    returns_N, weights_N, _ = compute_weights(outcomes(data), WeightConfig(beta=0.2))
    expected = [1.0, 0.81 - 0.5 * (1 - 2 / 3), 0.0, -0.5 * (1 - 1 / 3), 0.0, -0.25, 1.0, 1.0]
    assert returns_N == pytest.approx(expected, abs=1e-12)
    for group in ([0, 1, 2, 3], [4, 5], [6, 7]):
        z = sum(math.exp(expected[i] / 0.2) for i in group) / len(group)
        assert weights_N[group] == pytest.approx([math.exp(expected[i] / 0.2) / z for i in group], rel=1e-12)


def test_the_reward_can_be_the_outcome_for_conversations_that_carry_one(make_trajectory: Make) -> None:
    logged = [make_trajectory("a", k, ("1", "2"), rewards=(0.1 * k, 0.3)) for k in range(3)]
    returns_N, weights_N, _ = compute_weights(outcomes(logged), WeightConfig(scheme="refit", base="reward", gamma=0.5))
    assert returns_N == pytest.approx([0.15, 0.2, 0.25])
    assert weights_N.tolist() == returns_N.tolist()


def test_prompts_that_teach_nothing_are_kept_or_dropped_as_told_and_counted(data: list[Trajectory]) -> None:
    found = outcomes(data)
    _, kept_N, report = compute_weights(found, WeightConfig())
    assert (kept_N > 0).all() and report["dropped_groups"] == 0
    assert (report["groups_without_success"], report["groups_with_equal_returns"], report["groups"]) == (1, 1, 3)
    assert report["mixed_share"] == pytest.approx(1 / 3)
    _, without_N, report = compute_weights(found, WeightConfig(no_success="drop"))
    assert without_N[4:6].tolist() == [0, 0] and (without_N[:4] == kept_N[:4]).all() and report["dropped_groups"] == 1
    _, unequal_N, report = compute_weights(found, WeightConfig(no_success="drop", equal_returns="drop"))
    assert unequal_N[4:].tolist() == [0] * 4 and report["dropped_groups"] == 2


def test_a_grouped_scheme_needs_two_conversations_of_a_prompt(make_trajectory: Make) -> None:
    alone = outcomes([make_trajectory("a", 0, ("1",), True), make_trajectory("b", 0, ("1",))])
    for scheme in ("drift", "swift", "awr"):
        with pytest.raises(ConfigError, match=f"'{scheme}' compares conversations of one prompt"):
            compute_weights(alone, WeightConfig(scheme=scheme))
    assert compute_weights(alone, WeightConfig(scheme="rft"))[1].tolist() == [1, 0]


def test_weights_that_are_all_zero_are_refused(make_trajectory: Make) -> None:
    failed = outcomes([make_trajectory("a", k, ("1",)) for k in range(2)])
    with pytest.raises(ConfigError, match="leaves every weight 0: 1 of 1 prompts have no success"):
        compute_weights(failed, WeightConfig(scheme="rft"))


def test_weights_are_written_beside_the_data_and_read_by_id(tmp_path: Path, data: list[Trajectory]) -> None:
    folder = stored(tmp_path / "data", data)
    manifest = weigh_dataset(folder, WeightConfig(), tmp_path / "weights")
    assert manifest["excluded"] == {"failed": 1}
    by_id = read_weights(tmp_path / "weights", folder).by_id()
    expected = compute_weights(outcomes(data), WeightConfig())[1]
    assert by_id == dict(zip(outcomes(data).ids, expected.tolist(), strict=True))
    again = weigh_dataset(folder, WeightConfig(), tmp_path / "again")
    assert again["weights_hash"] == manifest["weights_hash"]
    assert weigh_dataset(folder, WeightConfig(beta=0.2), tmp_path / "other")["weights_hash"] != manifest["weights_hash"]


def test_first_replies_are_weighed_as_if_conversations_had_ended_there(make_trajectory: Make) -> None:
    made = [
        make_trajectory("a", 0, ("5",), True),
        make_trajectory("a", 1, ("1", "5"), True),
        make_trajectory("a", 2, (None, "5"), True),
        make_trajectory("b", 0, ("1", "1")),
        make_trajectory("b", 1, ("2", "5"), True),
    ]
    config = WeightConfig(scheme="bolt", beta=0.5, format_failure=0.1)
    returns_N, weights_N, report = compute_weights(outcomes(made), config)
    assert returns_N == pytest.approx([1, 0, -0.1, 0, 0], abs=1e-12)
    raw = [math.exp(r / 0.5) for r in (1, 0, -0.1)]
    assert weights_N == pytest.approx([*(3 * each / sum(raw) for each in raw), 1, 1], rel=1e-12)
    assert (report["groups_without_success"], report["mixed_share"]) == (1, 0.5)
    # Corrections at turn 2: of conversations that were graded wrong at turn 1 and right at the second and last.
    assert compute_weights(outcomes(made), WeightConfig(scheme="star"))[1].tolist() == [0, 1, 1, 0, 1]
    # The best of each prompt; b's has one success.
    assert compute_weights(outcomes(made), WeightConfig(scheme="star_gate"))[1].tolist() == [1, 0, 0, 0, 1]


def test_prompts_without_success_can_be_shrunk(data: list[Trajectory]) -> None:
    found = outcomes(data)
    returns_N, kept_N, _ = compute_weights(found, WeightConfig())
    _, shrunken_N, _ = compute_weights(found, WeightConfig(no_success="shrink", shrink_prior=4))
    assert (shrunken_N[[0, 1, 2, 3, 6, 7]] == kept_N[[0, 1, 2, 3, 6, 7]]).all()
    tilted = [math.exp(r / 0.1) for r in returns_N]
    own, shared = sum(tilted[4:6]) / 2, sum(tilted) / 8
    expected = [each / ((2 * own + 4 * shared) / 6) for each in tilted[4:6]]
    assert shrunken_N[4:6] == pytest.approx(expected, rel=1e-9) and sum(expected) < 0.01


def test_what_adaptive_sampling_did_is_undone_when_its_data_are_weighed(tmp_path: Path, make_trajectory: Make) -> None:
    made = [make_trajectory("a", k, ("1",), k == 0) for k in range(4)]
    made += [make_trajectory("b", k, ("1",), True) for k in range(2)]
    with TrajectoryWriter(tmp_path / "data", {"trajectories": 8, "first": 2}, []) as writer:
        for trajectory in made:
            writer.append(trajectory)
        writer.finish()
    manifest = weigh_dataset(tmp_path / "data", WeightConfig(scheme="sft"), tmp_path / "w")
    # One success of four: it was among the first two for sure, the failures once in three.
    by_id = read_weights(tmp_path / "w", tmp_path / "data").by_id()
    expected = {"a#0": 1, **{f"a#{k}": 1 / 3 for k in (1, 2, 3)}, "b#0": 1, "b#1": 1}
    assert by_id == pytest.approx(expected, rel=1e-12)
    assert manifest["diagnostics"]["undone_sampling"] == {"first": 2, "prompts": 1}
    # Of the first two alone: prompt a was mixed, b was not.
    assert manifest["diagnostics"]["rollouts"] == {"k": [1, 2], "mixed_share": [0, 0.5]}


def test_weights_of_other_data_are_refused(tmp_path: Path, data: list[Trajectory]) -> None:
    first, other = stored(tmp_path / "first", data), stored(tmp_path / "other", data[:6])
    weigh_dataset(first, WeightConfig(), tmp_path / "weights")
    with pytest.raises(DatasetError, match="made from another data set"):
        read_weights(tmp_path / "weights", other)
    (tmp_path / "weights" / "weights.parquet").write_bytes(b"nonsense")
    with pytest.raises(DatasetError, match="can't be read"):
        read_weights(tmp_path / "weights", first)


def test_data_in_which_everything_failed_is_refused(tmp_path: Path, make_trajectory: Make) -> None:
    folder = stored(tmp_path / "data", [make_trajectory("a", k, (), error="gone") for k in range(2)])
    with pytest.raises(DatasetError, match="all 2 trajectories failed"):
        weigh_dataset(folder, WeightConfig(), tmp_path / "weights")


def test_the_weights_hash_ignores_order() -> None:
    assert weights_hash(["a", "b"], np.array([1.0, 2.0])) == weights_hash(["b", "a"], np.array([2.0, 1.0]))
    assert weights_hash(["a", "b"], np.array([1.0, 2.0])) != weights_hash(["a", "b"], np.array([2.0, 1.0]))


def test_tasks_that_open_alike_are_one_prompt_if_asked(make_trajectory: Make) -> None:
    hidden = [dataclasses.replace(make_trajectory(task, 0, ("4",), task == "b"), messages=OPEN) for task in "abc"]
    found = outcomes(hidden, group_by="opening")
    assert len(set(found.groups)) == 1 and found.groups[0].startswith("opening-")
    other = dataclasses.replace(hidden[0], messages=({"role": "user", "content": "Guess my letter."}, *OPEN[1:]))
    system = dataclasses.replace(hidden[0], messages=({"role": "system", "content": "Be brief."}, *OPEN))
    assert len(set(outcomes([*hidden, other, system], group_by="opening").groups)) == 3
    _, weights_N, _ = compute_weights(found, WeightConfig(beta=0.5))
    z = (math.exp(2) + 2) / 3
    assert weights_N == pytest.approx([1 / z, math.exp(2) / z, 1 / z], rel=1e-12)


def test_the_same_answer_has_one_worth_however_it_was_put_and_judged(make_trajectory: Make) -> None:
    # One prompt whose verifier takes 4 for right once in three times; 5 is taken always.
    made = [make_trajectory("a", k, ("4", "6") if k else ("4",), not k) for k in range(3)]
    made += [make_trajectory("a", 3 + k, ("5",), True) for k in range(3)]
    said = dataclasses.replace(made[0].turns[0].completion, text="Surely <answer>4</answer>")
    made[0] = dataclasses.replace(made[0], turns=(dataclasses.replace(made[0].turns[0], completion=said),))
    found, config = outcomes(made, paths=True), WeightConfig(luck="average", beta=0.25, repetition=0.0)
    returns_N, weights_N, report = compute_weights(found, config)
    assert returns_N.tolist() == [1, 0, 0, 1, 1, 1]
    tilted = [math.exp(4 / 3)] * 3 + [math.exp(4)] * 3
    assert weights_N == pytest.approx([6 * value / sum(tilted) for value in tilted], rel=1e-12)
    assert report["averaged_trajectories"] == 3
    with pytest.raises(ConfigError, match="read the outcomes with paths=True"):
        compute_weights(outcomes(made), config)


def test_verdicts_of_a_verifier_that_errs_weigh_what_they_are_worth_on_average(make_trajectory: Make) -> None:
    # Of four replies two are accepted: 0.5 = 0.7 q + 0.1 with errors of 0.1 and 0.2, so q = 4/7.
    made = [make_trajectory("a", k, ("1",), k < 2) for k in range(4)]
    found, rates = outcomes(made), {"false_positive": 0.1, "false_negative": 0.2}
    accepted, refused = 4 / 7 * 0.8 / 0.5, 4 / 7 * 0.2 / 0.5
    tilted = [chance * math.exp(1 / 0.3) + 1 - chance for chance in (accepted, refused)]
    returns_N, weights_N, _ = compute_weights(found, WeightConfig(beta=0.3, **rates))
    assert weights_N == pytest.approx([2 * t / sum(tilted) for t in (tilted[0],) * 2 + (tilted[1],) * 2], rel=1e-12)
    assert returns_N == pytest.approx([0.3 * math.log(t) for t in (tilted[0],) * 2 + (tilted[1],) * 2], rel=1e-12)
    for scheme in ("rft", "refit"):
        _, weights_N, _ = compute_weights(found, WeightConfig(scheme=scheme, **rates))
        assert weights_N == pytest.approx([accepted] * 2 + [refused] * 2, rel=1e-12)
    # A prompt with no more accepted than errors explain has no success.
    few = outcomes([make_trajectory("b", k, ("1", "2", "3", "4", "5"), k == 0) for k in range(4)] + made)
    _, weights_N, report = compute_weights(few, WeightConfig(no_success="drop", **rates))
    assert weights_N[:4].tolist() == [0] * 4 and (weights_N[4:] > 0).all() and report["dropped_groups"] == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"luck": "mean"}, "weights.luck: got 'mean', expected keep or average"),
        ({"luck": "average", "scheme": "rft"}, "weights.luck: got 'average', expected keep with the scheme rft"),
        ({"luck": "average", "beta": "auto"}, "weights.beta: got 'auto', expected a number with luck: average"),
        ({"luck": "average", "no_success": "shrink"}, "weights.no_success: got 'shrink', expected keep or drop"),
        ({"luck": "average", "false_positive": 0.1}, "one of the two is enough"),
        ({"group_by": "prompt"}, "weights.group_by: got 'prompt', expected task or opening"),
        ({"false_positive": 1.0}, "weights.false_positive: got 1.0, expected a chance of at least 0 and below 1"),
        ({"false_negative": -0.1}, "weights.false_negative: got -0.1, expected a chance"),
        ({"false_positive": 0.5, "false_negative": 0.6}, "got 1.1, expected less than 1"),
        ({"false_positive": 0.1, "base": "reward"}, "weights.base: got 'reward', expected success"),
        ({"false_negative": 0.1, "beta": "auto"}, "weights.beta: got 'auto', expected a number with false_positive"),
    ],
)
def test_settings_of_chance_that_make_no_sense_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        WeightConfig(**settings)


@pytest.mark.parametrize("settings", [{"group_by": "opening"}, {"luck": "average"}])
def test_adaptive_sampling_can_be_undone_for_tasks_alone(data: list[Trajectory], settings: dict[str, Any]) -> None:
    said = r"rollouts\.first: got 2, expected 0 with weights\.group_by: \w+ and weights\.luck: \w+\. Adaptive"
    with pytest.raises(ConfigError, match=said):
        compute_weights(outcomes(data, paths=True), WeightConfig(**settings), first=2)
    # A recipe is refused before anything is rolled out.
    with pytest.raises(ConfigError, match=said):
        Recipe(rollouts=RolloutSettings(first=2), weights=WeightConfig(**settings))
