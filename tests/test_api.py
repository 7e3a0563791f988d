from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import drift
from drift.dataset.store import TrajectoryWriter
from drift.errors import ConfigError
from drift.types import Trajectory
from drift.weights.config import WeightConfig

# How long each conversation about two prompts was, and whether it succeeded.
HELD = {("a", 0): (1, True), ("a", 1): (3, True), ("a", 2): (2, False), ("b", 0): (2, True), ("b", 1): (3, False)}


@pytest.fixture
def data(make_trajectory: Callable[..., Trajectory], tmp_path: Path) -> Path:
    with TrajectoryWriter(tmp_path / "data", {"trajectories": len(HELD)}, []) as writer:
        for (task, sample), (turns, solved) in HELD.items():
            answers = tuple(str(turn) for turn in range(turns))
            writer.append(make_trajectory(task, sample, answers, solved))
        writer.finish()
    return tmp_path / "data"


def quick(returns_N: Any, group_N: Any, *, turns_N: Any, power: float, scale: float = 1.0) -> Any:
    """Of successes, the less the longer they took."""
    return scale * (returns_N > 0) / turns_N**power


quick.turns = "all"  # type: ignore[attr-defined]
quick.signed = False  # type: ignore[attr-defined]


def weights(folder: drift.Artifact) -> list[list[float]]:
    return [row["weights"] for row in pq.read_table(folder / "weights.parquet").to_pylist()]


def test_a_function_is_weighed_with_as_any_scheme_and_told_by_where_it_is(data: Path, tmp_path: Path) -> None:
    out = drift.weigh(data, quick, out=tmp_path / "out", power=2, gamma=0.5, steps=["drop_unsolved"])
    # All replies of a conversation alike, as the function says of itself.
    assert weights(out) == [[1 / turns**2 * solved] * turns for turns, solved in HELD.values()]
    chain = out.manifest["chain"]
    assert (chain["scheme"], chain["gamma"], chain["turns"]) == (f"{__name__}:quick", 0.5, "all")
    assert chain["settings"] == {"power": 2, "scale": 1.0}
    assert chain["steps"] == ["drop_unsolved", {"skip_small": {"share": 0.001}}]
    returns = [row["return"] for row in pq.read_table(out / "weights.parquet").to_pylist()]
    assert returns == [0.5 ** (turns - 1) * solved for turns, solved in HELD.values()]


def test_settings_by_keyword_are_those_of_a_config(data: Path, tmp_path: Path) -> None:
    config = WeightConfig(scheme={"awr": {"w_max": 1.5}}, beta=0.3, steps=["drop_unsolved"])
    one = drift.weigh(data, config=config, out=tmp_path / "one")
    two = drift.weigh(data, "awr", beta=0.3, steps=["drop_unsolved"], w_max=1.5, out=tmp_path / "two")
    first, second = one.manifest, two.manifest
    assert first["config"] == second["config"] and first["weights_hash"] == second["weights_hash"]
    assert 0 < max(map(max, weights(one))) <= 1.5
    # And keywords beside a config change it.
    three = drift.weigh(data, config=WeightConfig(scheme="awr", beta=0.2, steps=["drop_unsolved"]), beta=0.3, w_max=1.5)
    assert three == data.parent / "weights" and three.manifest["weights_hash"] == first["weights_hash"]


@pytest.mark.parametrize(
    ("scheme", "settings", "message"),
    [
        ("awr", {"w_mx": 3}, r"unknown argument 'w_mx' in drift.weigh with the scheme 'awr'\. Did you mean 'w_max'\?"),
        ("drift", {"stps": ["drop_unsolved"]}, r"unknown argument 'stps' .*Did you mean 'steps'\?"),
        ("drift", {"steps": ["drop_unsolvd"]}, r"unknown step 'drop_unsolvd'\. Did you mean 'drop_unsolved'\?"),
        ("drft", {}, r"unknown scheme 'drft'\. Did you mean 'drift'\?"),
        (quick, {"powr": 2}, r"unknown argument 'powr' in .*:quick'\. Did you mean 'power'\?"),
        (quick, {"turns_N": [1]}, r"unknown argument 'turns_N'"),
        (quick, {}, r"quick needs power"),
        (quick, {"power": 2, "beta": 0.1}, r"weights\.beta: got 0\.1, and the scheme .*:quick has no β"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(
    data: Path, tmp_path: Path, scheme: Any, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        drift.weigh(data, scheme, out=tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()
