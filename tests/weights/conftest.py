"""What several tests of weights share: many random conversations, and functions of another package."""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drift.types import Trajectory
from drift.weights.turns import Conversations


@pytest.fixture
def data(make_trajectory: Callable[..., Trajectory]) -> list[Trajectory]:
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


@pytest.fixture(scope="session")
def random_conversations() -> Callable[..., Conversations]:
    """Conversations of any number: prompts of 1 to 16 that are interleaved, a third of them unsolved.

    Of 1 to 5 turns. Of half the prompts returns are those of DRIFT's equation, of the others graded and negative
    rewards of few values, so that many tie.
    """

    def make(seed: int, count: int = 10_000, **changes: Any) -> Conversations:
        return dataclasses.replace(drawn(seed, count), **changes)

    @functools.cache
    def drawn(seed: int, count: int) -> Conversations:
        rng = np.random.default_rng(seed)
        sizes = rng.integers(1, 17, count)
        group_N = rng.permutation(np.repeat(np.arange(count), sizes)[:count])
        # Numbered in the order in which they appear, as those of a data set.
        _, first, group_N = np.unique(group_N, return_index=True, return_inverse=True)
        group_N = np.argsort(np.argsort(first))[group_N]
        groups = int(group_N.max()) + 1
        seen = [0] * groups
        sample_N = np.zeros(count, np.int32)
        for at, group in enumerate(group_N.tolist()):
            sample_N[at], seen[group] = seen[group], seen[group] + 1
        turns_N = rng.integers(1, 6, count)
        success_N = (rng.random(count) < 0.4) & (rng.random(groups) < 0.67)[group_N]
        shaped_N = success_N * 0.9 ** (turns_N - 1) - 0.5 * (1 - rng.integers(1, turns_N + 1) / turns_N)
        graded_N = rng.choice([-1.0, -0.25, 0.0, 0.1, 0.5, 0.5, 2.0], count)
        last_T = np.zeros(int(turns_N.sum()), bool)
        last_T[np.cumsum(turns_N) - 1] = True
        return Conversations(
            group_N=group_N.astype(np.intp),
            returns_N=np.where((rng.random(groups) < 0.5)[group_N], shaped_N, graded_N),
            success_N=success_N,
            reward_N=graded_N,
            turns_N=turns_N.astype(np.int32),
            sample_N=sample_N,
            first_wrong_N=rng.random(count) < 0.5,
            stopped_N=success_N,
            rejected_T=(rng.random(len(last_T)) < 0.6) & ~last_T,
        )

    return make


@pytest.fixture
def declare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Install a package for real: a module, and the dist-info that importlib.metadata reads."""

    def install(source: str, **points: dict[str, str]) -> None:
        (tmp_path / "extra_weights.py").write_text(source)
        info = tmp_path / "extra_weights-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: extra-weights\nVersion: 1.0\n")
        lines = [
            line
            for group, names in points.items()
            for line in (f"[drift.{group}]", *(f"{name} = {value}" for name, value in names.items()))
        ]
        (info / "entry_points.txt").write_text("\n".join([*lines, ""]))
        monkeypatch.syspath_prepend(tmp_path)

    yield install
    sys.modules.pop("extra_weights", None)
