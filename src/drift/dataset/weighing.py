"""The weighing stage: a data set of trajectories in, a table of weights beside it out, whatever their number."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from drift.checksums import sum_of
from drift.dataset.buckets import Buckets
from drift.dataset.outcomes import COLUMNS, ROWS, Outcomes, outcome_rows, outcomes, sorted_outcomes
from drift.dataset.store import KIND as TRAJECTORIES
from drift.dataset.store import count_trajectories, stream_columns
from drift.dataset.table import WeightTable
from drift.errors import ConfigError, DatasetError
from drift.manifest import MANIFEST, read_manifest, replacing, write_manifest
from drift.weights.choosing import RolloutReport
from drift.weights.config import WeightConfig
from drift.weights.diagnostics import Tally, equal_returns
from drift.weights.groups import group_max, group_mean, group_sum
from drift.weights.schemes import apply_scheme, get_scheme, survey_scheme
from drift.weights.stopping import stopping_factors
from drift.weights.tempering import Shrinkage, Tempering

__all__ = ["Outcomes", "WeightTable", "compute_weights", "outcomes", "read_weights", "weigh_dataset", "weights_hash"]
KIND = "weights"
FILE = "weights.parquet"
# Trajectories weighed at once; some 300 bytes each.
BUCKET_ROWS = 131_072
# Squares of what is larger could not be added up.
LARGEST = 1e100
_TABLE = pa.schema([("id", pa.string()), ("group_id", pa.string()), ("return", pa.float64()), ("weight", pa.float64())])
Floats = NDArray[np.float64]


class Weigher:
    """Weighs trajectories a part at a time, each prompt whole in one part.

    Args:
        config: the settings.
        parts: gives all trajectories, always in the same parts and order. Schemes that need it look at them before.
        first: with adaptive sampling, how many samples of a task came first; weights undo what that does.

    Raises:
        ConfigError: the settings don't fit the data.
    """

    def __init__(self, config: WeightConfig, parts: Callable[[], Iterable[Outcomes]], *, first: int = 0) -> None:
        self._first, self._continued = first, 0
        self._config, self._info = config, get_scheme(config.scheme)
        self._tally, self._rollouts, self._done, self._dropped, self._largest = Tally(), RolloutReport(), 0, 0, 0
        self._named: dict[str, Any] = {"w_max": config.w_max, "refit_shift": config.refit_shift, **config.parameters}
        if config.beta != "auto":
            self._named = {"beta": config.beta, **self._named}

        def returns() -> Iterator[tuple[Floats, NDArray[np.intp], NDArray[np.bool_]]]:
            return ((self._returns(part), part.group_index(), part.success_N) for part in map(self._seen, parts()))

        self._named |= survey_scheme(config.scheme, lambda: (each for each, *_ in returns()), self._named)
        self._tempering = Tempering(config, returns) if self._info.partitioned else None
        self._shrinkage: Shrinkage | None = None
        if self._tempering and config.no_success == "shrink":
            self._shrinkage = Shrinkage(config.shrink_prior, self._tempering, returns)
        self._whole_N = None if self._info.local else self._weigh_whole(parts())

    def weigh(self, found: Outcomes) -> tuple[Floats, Floats]:
        """Returns and weights of the next part."""
        whole, config = found, self._config
        found = self._seen(whole)
        returns_N, index_N = self._returns(found), found.group_index()
        _check_size("return", returns_N, whole.ids)
        named = self._data(found)
        if self._tempering:
            named["beta"] = self._tempering.beta(returns_N, index_N)
        if self._whole_N is None:
            weights_N = apply_scheme(config.scheme, returns_N, index_N, named)
        else:
            weights_N = self._whole_N[self._done : self._done + len(index_N)]
        sizes_G = np.bincount(index_N)
        unsolved_G = group_max(found.success_N.astype(float), index_N, len(sizes_G)) == 0
        dropped_G = unsolved_G if config.no_success == "drop" else np.zeros(len(sizes_G), bool)
        if config.equal_returns == "drop":
            dropped_G = dropped_G | equal_returns(returns_N, index_N)
        if self._shrinkage:
            shrunken_N = self._shrinkage.weights(returns_N, index_N)
            weights_N = np.where(unsolved_G[index_N], shrunken_N, weights_N)
        if self._first:
            first_N = whole.sample_N < self._first
            weights_N = self._undo(weights_N, stopping_factors(whole.success_N, first_N, index_N), index_N)
            self._continued += int(group_max((~first_N).astype(float), index_N, len(sizes_G)).sum())
        weights_N = np.where(dropped_G[index_N], 0.0, weights_N)
        _check_size("weight", weights_N, whole.ids)
        self._tally.add(weights_N, returns_N, index_N, found.success_N)
        fair_N = whole.sample_N < self._first if self._first else None
        beta = named["beta"] if self._tempering else None
        self._rollouts.add(returns_N, index_N, found.success_N, beta, fair_N=fair_N)
        self._done += len(index_N)
        self._dropped += int(dropped_G.sum())
        self._largest = max(self._largest, int(sizes_G.max(initial=0)))
        return returns_N, weights_N

    def _undo(self, weights_N: Floats, factors_N: Floats, index_N: NDArray[np.intp]) -> Floats:
        """Weights as if every prompt had been sampled alike; those that divide by Ẑ divide by an unbiased one."""
        corrected_N = weights_N * factors_N
        if not self._info.partitioned:
            return corrected_N
        groups = int(index_N.max(initial=-1)) + 1
        # Ẑ is the mean of what weights are in proportion to: before, that of weights was the group's total over K.
        total_G, mean_G = group_sum(corrected_N, index_N, groups), group_mean(weights_N, index_N, groups)
        scale_G = np.divide(
            mean_G * group_sum(factors_N, index_N, groups), total_G, out=np.ones(groups), where=total_G > 0
        )
        return corrected_N * scale_G[index_N]

    def _seen(self, found: Outcomes) -> Outcomes:
        return found.first_turn() if self._info.first_turn else found

    def _data(self, found: Outcomes) -> dict[str, Any]:
        """What a weighting can ask for by name."""
        wrong_N = found.first_graded_N & ~found.first_success_N
        return {"success_N": found.success_N, "turns_N": found.turns_N, "first_wrong_N": wrong_N, **self._named}

    def report(self, weights: Callable[[], Iterable[Floats]], returns: Callable[[], Iterable[Floats]]) -> Any:
        """The diagnostics of all parts; both arguments give all values once more, a part at a time.

        Raises:
            ConfigError: a grouped scheme and fewer than two trajectories per prompt, or all weights 0.
        """
        scheme = self._config.scheme
        if self._info.grouped and self._largest < 2:
            raise ConfigError(
                f"weighting {scheme!r} compares conversations of one prompt, and no prompt has more than one. "
                "Sample at least two per task (--samples 16 is published), or use sft, rft, refit or rwr."
            )
        found = self._tally.report(weights, returns)
        if found["zero_weights"] == found["trajectories"]:
            raise ConfigError(
                f"weighting {scheme!r} leaves every weight 0: {found['groups_without_success']} of {found['groups']} "
                f"prompts have no success, {found['groups_with_equal_returns']} have equal returns. Sample more, or "
                "set no_success / equal_returns to keep."
            )
        found["dropped_groups"] = self._dropped
        found["rollouts"] = self._rollouts.report()
        if self._first:
            found["undone_sampling"] = {"first": self._first, "prompts": self._continued}
        return {**found, **(self._tempering.report() if self._tempering else {})}

    def _returns(self, found: Outcomes) -> Floats:
        config = self._config
        return found.returns(
            base=config.base,
            gamma=config.gamma,
            repetition=self._info.repetition if config.repetition is None else config.repetition,
            format_failure=config.format_failure,
        )

    def _weigh_whole(self, parts: Iterable[Outcomes]) -> Floats:
        """All weights at once, for a scheme of another package that does not say that it is local."""
        groups, columns, data = 0, [], []
        for part in parts:
            index_N = part.group_index()
            columns.append((self._returns(part), index_N + groups))
            data.append(self._data(part))
            groups += int(index_N.max(initial=-1)) + 1
        returns_N, index_N = (np.concatenate(each) for each in zip(*columns, strict=True))
        named = {key: np.concatenate([each[key] for each in data]) for key in data[0] if key.endswith("_N")}
        return apply_scheme(self._config.scheme, returns_N, index_N, {**named, **self._named})


def _check_size(name: str, values_N: Floats, ids: pa.Array) -> None:
    """Refuse what is finite and yet too large for sums of squares; raises ``ConfigError``."""
    at = int(np.argmax(np.abs(values_N))) if len(values_N) else 0
    if len(values_N) and not abs(values_N[at]) <= LARGEST:
        raise ConfigError(
            f"the {name} of trajectory {ids[at].as_py()!r} is {values_N[at]:g}, expected at most {LARGEST:g} in size. "
            "Look at its rewards, or scale them."
        )


def compute_weights(found: Outcomes, config: WeightConfig, *, first: int = 0) -> tuple[Floats, Floats, dict[str, Any]]:
    """Returns and weights of all trajectories, and the diagnostics; ``first`` as of ``Weigher``.

    Raises:
        ConfigError: a grouped scheme and fewer than two trajectories per prompt, or all weights 0.
    """
    weigher = Weigher(config, lambda: [found], first=first)
    returns_N, weights_N = weigher.weigh(found)
    return returns_N, weights_N, weigher.report(lambda: [weights_N], lambda: [returns_N])


def weigh_dataset(data: Path, config: WeightConfig, out: Path) -> dict[str, Any]:
    """Weigh the data set in ``data`` and write weights and manifest to ``out``.

    Only the columns that outcomes need are read. Their rows are put into buckets by prompt on disk, and weighed and
    written a bucket at a time, so that memory does not grow with the number of trajectories.

    Raises:
        DatasetError: ``data`` is missing, empty, damaged or incomplete, or every trajectory in it failed.
        ConfigError: the settings don't fit the data.
        StorageError: the disk refuses.
    """
    start = time.monotonic()
    manifest = read_manifest(data, TRAJECTORIES)
    get_scheme(config.scheme)
    count, kept, digest = count_trajectories(data), 0, 0
    with Buckets(out, ROWS, "group_id", max(1, math.ceil(count / BUCKET_ROWS))) as buckets:
        for batch in stream_columns(data, COLUMNS):
            rows = outcome_rows(batch)
            kept += len(rows)
            buckets.add(rows)
        if not kept:
            raise DatasetError(f"{data}: all {count} trajectories failed; there is nothing to weigh.")

        def parts() -> Iterator[Outcomes]:
            return (sorted_outcomes(rows) for rows in map(buckets.read, range(buckets.count)) if len(rows))

        weigher = Weigher(config, parts, first=int(manifest["spec"].get("first", 0)))
        with replacing(out / FILE) as temporary:
            with pq.ParquetWriter(temporary, _TABLE, compression="zstd") as writer:
                for found in parts():
                    returns_N, weights_N = weigher.weigh(found)
                    digest += _sum_of_digests(found.ids.to_pylist(), weights_N)
                    writer.write_table(pa.table([found.ids, found.groups, returns_N, weights_N], schema=_TABLE))
            report = weigher.report(lambda: _column(temporary, "weight"), lambda: _column(temporary, "return"))
            # Until the manifest of the new weights is there, there is none: one never describes others' weights.
            (out / MANIFEST).unlink(missing_ok=True)
            file_sum = sum_of(temporary)
    content = {
        "config": config.to_dict(),
        "dataset_hash": manifest["dataset_hash"],
        "weights_hash": _hexadecimal(digest),
        "file_sum": file_sum,
        "excluded": {"failed": count - kept},
        "diagnostics": report,
        "cost": {"seconds": round(time.monotonic() - start, 3)},
    }
    write_manifest(out, KIND, content)
    return read_manifest(out, KIND)


def weights_hash(ids: Sequence[str] | pa.ChunkedArray, weights_N: Floats) -> str:
    """Hash of weights by trajectory id, in any order: the sum modulo 2²⁵⁶ of the SHA-256 of each row.

    A row is the weight as 8 bytes, the lowest first, and the id in UTF-8. Equal for equal weights; it is no proof
    against someone who looks for other weights of the same sum.
    """
    digest = 0
    for first in range(0, len(ids), BUCKET_ROWS):
        part = slice(first, first + BUCKET_ROWS)
        names = ids[part].to_pylist() if isinstance(ids, pa.ChunkedArray) else ids[part]
        digest += _sum_of_digests(names, weights_N[part])
    return _hexadecimal(digest)


def _sum_of_digests(ids: Sequence[str], weights_N: Floats) -> int:
    weights = np.asarray(weights_N, "<f8").view("V8").tolist()
    rows = zip(ids, weights, strict=True)
    digests = b"".join([hashlib.sha256(weight + name.encode()).digest() for name, weight in rows])
    # Eight words of 32 bits a row, summed in 64: carries come last.
    sums = np.frombuffer(digests, ">u4").reshape(-1, 8).sum(axis=0, dtype=np.uint64).tolist()
    return sum(word << 32 * place for place, word in enumerate(reversed(sums)))


def _hexadecimal(digest: int) -> str:
    return f"{digest % 2**256:064x}"


def _column(path: Path, name: str) -> Iterator[Floats]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(BUCKET_ROWS, columns=[name]):
            yield batch.column(0).to_numpy(zero_copy_only=False)


def read_weights(directory: Path, data: Path) -> WeightTable:
    """The weights in ``directory``; raises ``DatasetError`` where they were not made from ``data`` as it is now."""
    manifest = read_manifest(directory, KIND)
    current = read_manifest(data, TRAJECTORIES)["dataset_hash"]
    if manifest["dataset_hash"] != current:
        raise DatasetError(
            f"the weights in {directory} were made from another data set than {data} "
            f"(hash {manifest['dataset_hash']}, now {current}). Run drift weigh again."
        )
    return read_table(directory, manifest)


def read_table(directory: Path, manifest: Mapping[str, Any]) -> WeightTable:
    """The file of weights as ``manifest`` describes it; raises ``DatasetError`` where it is not what was written."""
    path, wanted = directory / FILE, manifest.get("file_sum")
    try:
        found = sum_of(path)
        if wanted is not None and found != wanted:
            raise OSError(f"its checksum is {found}, expected {wanted}")
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path} can't be read: {error}. Run drift weigh again.") from error
    weights = WeightTable(
        ids=table.column("id"),
        groups=table.column("group_id"),
        weights_N=table.column("weight").to_numpy(),
    )
    bad = np.flatnonzero(~np.isfinite(weights.weights_N))
    if len(bad):
        at = int(bad[0])
        raise DatasetError(
            f"{path}: {len(bad)} weights are not finite; that of trajectory {weights.ids[at].as_py()!r} is "
            f"{weights.weights_N[at]}, expected a number. Run drift weigh again."
        )
    return weights
