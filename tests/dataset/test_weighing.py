import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from drift.dataset.store import TrajectoryWriter
from drift.dataset.weighing import compute_weights, outcomes, read_weights, weigh_dataset, weights_hash
from drift.errors import ConfigError, DatasetError
from drift.types import Trajectory
from drift.weights.config import WeightConfig

Make = Callable[..., Trajectory]


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
