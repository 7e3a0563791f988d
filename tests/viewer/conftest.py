import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

import drift
from drift.dataset.store import TrajectoryWriter
from drift.types import Message, Trajectory

HOSTILE = (
    "</div><script>alert(1)</script><img src=//evil.example onerror=alert(2)>{{ 1111*1111 }}\u202e\x1b[2J\x00\u2028"
)


def saying(trajectory: Trajectory, text: str) -> Trajectory:
    """The same with ``text`` as its last reply."""
    last = trajectory.turns[-1]
    turn = dataclasses.replace(last, completion=dataclasses.replace(last.completion, text=text))
    message: Message = {"role": "assistant", "content": text}
    return dataclasses.replace(
        trajectory, turns=(*trajectory.turns[:-1], turn), messages=(*trajectory.messages[:-1], message)
    )


@pytest.fixture
def run(tmp_path: Path, random_trajectories: Callable[..., list[Trajectory]]) -> Path:
    """Rollouts of 23 prompts in shards of 8, one of them hostile, and their weights."""
    made = random_trajectories(3)
    first = next(at for at, each in enumerate(made) if each.turns and each.error is None)
    made[first] = saying(made[first], f"<answer>{HOSTILE}</answer> Straße")
    write(tmp_path / "rollouts", made)
    drift.weigh(tmp_path / "rollouts", "swift", outcome="reward", out=tmp_path / "weights")
    return tmp_path


def write(folder: Path, made: list[Trajectory]) -> None:
    """A finished data set."""
    spec = {"trajectories": len(made), "tasks": 1, "samples": len(made), "sampling": {"temperature": 1.0}}
    with TrajectoryWriter(folder, spec, [], shard_size=8) as writer:
        for trajectory in made:
            writer.append(trajectory)
        writer.finish()
