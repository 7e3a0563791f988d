import random
from collections.abc import Callable
from pathlib import Path

import pytest

from drift.dataset.store import TrajectoryWriter
from drift.policies.fingerprint import fingerprint
from drift.policies.hf import load_model
from drift.types import Trajectory
from drift.weights.config import WeightConfig
from drift.weights.stage import weigh_dataset
from drift.weights.table import read_weights


@pytest.fixture
def weighed(tmp_path: Path, tiny_model: Path, make_trajectory: Callable[..., Trajectory]) -> tuple[Path, Path]:
    """A small data set that claims the tiny model as its policy, and its weights."""
    policy = fingerprint(*load_model(str(tiny_model)))
    made = [
        make_trajectory(f"t{i}", k, ("1", str(k)), solved=(i + k) % 3 == 0, policy=policy)
        for i in range(8)
        for k in range(4)
    ]
    with TrajectoryWriter(tmp_path / "data", {"trajectories": 32, "policy": policy}, []) as writer:
        for trajectory in made:
            writer.append(trajectory)
        writer.finish()
    weigh_dataset(tmp_path / "data", WeightConfig(), tmp_path / "weights")
    return tmp_path / "data", tmp_path / "weights"


@pytest.fixture
def uneven(tmp_path: Path, tiny_model: Path, make_trajectory: Callable[..., Trajectory]) -> tuple[Path, Path]:
    """Prompts of 2 to 9 conversations of one to three replies of unequal length; weights of both signs."""
    rng = random.Random(3)
    policy = fingerprint(*load_model(str(tiny_model)))
    made = [
        make_trajectory(
            f"t{prompt}",
            k,
            tuple(str(rng.randrange(10 ** rng.randint(1, 30))) for _ in range(rng.randint(1, 3))),
            solved=k % 2 == 0,
            policy=policy,
        )
        for prompt, size in enumerate((9, 2, 5, 3, 7, 2))
        for k in range(size)
    ]
    with TrajectoryWriter(tmp_path / "data", {"trajectories": len(made), "policy": policy}, []) as writer:
        for trajectory in made:
            writer.append(trajectory)
        writer.finish()
    weigh_dataset(tmp_path / "data", WeightConfig(scheme="swift"), tmp_path / "weights")
    weights = read_weights(tmp_path / "weights", tmp_path / "data").weights_T
    assert weights.min() < 0 < weights.max()
    return tmp_path / "data", tmp_path / "weights"
