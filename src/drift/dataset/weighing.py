"""The weighing stage: a data set of trajectories in, a table of weights beside it out."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from drift.dataset.store import KIND as TRAJECTORIES
from drift.dataset.store import read_trajectories
from drift.errors import ConfigError, DatasetError
from drift.manifest import read_manifest, write_atomic, write_manifest
from drift.types import Trajectory
from drift.weights.config import WeightConfig
from drift.weights.diagnostics import diagnose, equal_returns
from drift.weights.groups import group_max, index_groups
from drift.weights.returns import trajectory_return
from drift.weights.schemes import apply_scheme, get_scheme

KIND = "weights"
FILE = "weights.parquet"


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """What the return of each trajectory is made of; arrays ``(N,)``, trajectories that failed left out."""

    ids: list[str]
    groups: list[str]
    success_N: NDArray[np.bool_]
    reward_N: NDArray[np.float64]
    turns_N: NDArray[np.int64]
    graded_N: NDArray[np.int64]
    distinct_N: NDArray[np.int64]
    failures_N: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class WeightTable:
    """Weights as they were written: id, group and weight of each trajectory that did not fail."""

    ids: list[str]
    groups: list[str]
    weights_N: NDArray[np.float64]

    def by_id(self) -> dict[str, float]:
        """Weight by trajectory id."""
        return dict(zip(self.ids, self.weights_N.tolist(), strict=True))


def outcomes(trajectories: Sequence[Trajectory]) -> Outcomes:
    """Read outcomes off trajectories. Those with an error or without a turn have none and are left out."""
    kept = [t for t in trajectories if t.error is None and t.turns]
    graded = [[turn.step.answer for turn in t.turns if turn.step.graded] for t in kept]
    return Outcomes(
        ids=[t.id for t in kept],
        groups=[t.group_id for t in kept],
        success_N=np.array([t.success for t in kept], bool),
        reward_N=np.array([sum(turn.step.reward for turn in t.turns) for t in kept], float),
        turns_N=np.array([len(t.turns) for t in kept], np.int64),
        graded_N=np.array(list(map(len, graded)), np.int64),
        distinct_N=np.array([len({*answers} - {None}) for answers in graded], np.int64),
        failures_N=np.array([answers.count(None) for answers in graded], np.int64),
    )


def compute_weights(
    found: Outcomes, config: WeightConfig
) -> tuple[NDArray[np.float64], NDArray[np.float64], dict[str, Any]]:
    """Returns and weights of all trajectories, and the diagnostics.

    Raises:
        ConfigError: a grouped scheme and fewer than two trajectories per prompt, or all weights 0.
    """
    info = get_scheme(config.scheme)
    index_N, groups = index_groups(found.groups)
    if info.grouped and np.bincount(index_N).max() < 2:
        raise ConfigError(
            f"weighting {config.scheme!r} compares conversations of one prompt, and no prompt has more than one. "
            "Sample at least two per task (--samples 16 is published), or use sft, rft, refit or rwr."
        )
    repetition = info.repetition if config.repetition is None else config.repetition
    returns_N = trajectory_return(
        found.success_N if config.base == "success" else found.reward_N,
        found.turns_N,
        found.distinct_N,
        found.failures_N,
        gamma=config.gamma,
        repetition=repetition,
        format_failure=config.format_failure,
        graded_N=found.graded_N,
    )
    named = {"success_N": found.success_N, "beta": config.beta, "w_max": config.w_max, **config.parameters}
    weights_N = apply_scheme(config.scheme, returns_N, index_N, named)
    without_G = group_max(found.success_N.astype(float), index_N, groups) == 0
    equal_G = equal_returns(returns_N, index_N)
    dropped_G = np.zeros(groups, bool)
    if config.no_success == "drop":
        dropped_G |= without_G
    if config.equal_returns == "drop":
        dropped_G |= equal_G
    weights_N = np.where(dropped_G[index_N], 0.0, weights_N)
    if not weights_N.any():
        raise ConfigError(
            f"weighting {config.scheme!r} leaves every weight 0: {int(without_G.sum())} of {groups} prompts have no "
            f"success, {int(equal_G.sum())} have equal returns. Sample more, or set no_success / equal_returns to keep."
        )
    report = {**diagnose(weights_N, returns_N, index_N, found.success_N), "dropped_groups": int(dropped_G.sum())}
    return returns_N, weights_N, report


def weigh_dataset(data: Path, config: WeightConfig, out: Path) -> dict[str, Any]:
    """Weigh the data set in ``data`` and write weights and manifest to ``out``.

    Raises:
        DatasetError: ``data`` is missing, empty, damaged or incomplete, or every trajectory in it failed.
        ConfigError: the settings don't fit the data.
    """
    start = time.monotonic()
    manifest = read_manifest(data, TRAJECTORIES)
    get_scheme(config.scheme)
    trajectories = read_trajectories(data)
    found = outcomes(trajectories)
    if not found.ids:
        raise DatasetError(f"{data}: all {len(trajectories)} trajectories failed; there is nothing to weigh.")
    returns_N, weights_N, report = compute_weights(found, config)
    table = pa.table({"id": found.ids, "group_id": found.groups, "return": returns_N, "weight": weights_N})
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    write_atomic(out / FILE, buffer.getvalue().to_pybytes())
    content = {
        "config": config.to_dict(),
        "dataset_hash": manifest["dataset_hash"],
        "weights_hash": weights_hash(found.ids, weights_N),
        "excluded": {"failed": len(trajectories) - len(found.ids)},
        "diagnostics": report,
        "cost": {"seconds": round(time.monotonic() - start, 3)},
    }
    write_manifest(out, KIND, content)
    return read_manifest(out, KIND)


def weights_hash(ids: Sequence[str], weights_N: NDArray[np.float64]) -> str:
    """Hash of weights by trajectory id, in any order."""
    rows = sorted(f"{i} {float(w).hex()}" for i, w in zip(ids, weights_N, strict=True))
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def read_weights(directory: Path, data: Path) -> WeightTable:
    """The weights in ``directory``; raises ``DatasetError`` where they were not made from ``data`` as it is now."""
    manifest = read_manifest(directory, KIND)
    current = read_manifest(data, TRAJECTORIES)["dataset_hash"]
    if manifest["dataset_hash"] != current:
        raise DatasetError(
            f"the weights in {directory} were made from another data set than {data} "
            f"(hash {manifest['dataset_hash']}, now {current}). Run drift weigh again."
        )
    try:
        table = pq.read_table(directory / FILE)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{directory / FILE} can't be read: {error}. Run drift weigh again.") from error
    return WeightTable(
        ids=table.column("id").to_pylist(),
        groups=table.column("group_id").to_pylist(),
        weights_N=table.column("weight").to_numpy(),
    )
