"""Trajectories on disk: append-only Parquet shards that are there whole or not at all, and a manifest."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from drift.checksums import sum_of, sum_of_bytes
from drift.dataset.lock import DirectoryLock
from drift.dataset.schema import DAMAGED, SCHEMA, dataset_hash, from_row, to_row
from drift.dataset.tally import Tally
from drift.errors import ConfigError, DatasetError
from drift.files import own_folder, remove_leftovers, write_atomic
from drift.keywords import by_fields
from drift.manifest import MANIFEST, differing_keys, read_manifest, write_manifest
from drift.policies.base import old_note
from drift.progress import watched
from drift.types import Task, Trajectory

KIND = "trajectories"
TASKS = "tasks.jsonl"
FLUSH_SECONDS = 20.0
# Trajectories read at once: they hold all ids and texts.
ROWS_AT_ONCE = 2048


class TrajectoryWriter:
    """Writes a data set, or goes on writing one that was interrupted.

    Args:
        directory: where; made if missing.
        spec: everything that decides what the trajectories are. A directory begun with another spec is refused.
        tasks: the tasks of the data set.
        shard_size: trajectories per shard. A shard is also closed every 20 seconds, so little is lost in a crash.
        lock: of a caller who holds the directory already, and goes on holding it.

    Attributes:
        done: ids of the trajectories that were there before.
        count: trajectories that are on disk now.
        before: the manifest that was there before; empty if none.

    Raises:
        DatasetError: begun with another spec, or another process is writing to it.
        StorageError: the disk refuses.
    """

    def __init__(
        self,
        directory: Path,
        spec: Mapping[str, Any],
        tasks: Sequence[Task],
        *,
        shard_size: int = 2048,
        lock: DirectoryLock | None = None,
    ) -> None:
        self._directory, self._spec, self._shard_size = directory, dict(spec), shard_size
        self._rows: list[dict[str, Any]] = []
        # Of the last shard: where it lies, what its rows are the first of, how many, and how many there are with them.
        self._written: tuple[Path, list[dict[str, Any]], int, int] = (directory, [], 0, 0)
        self._own_lock = DirectoryLock(directory) if lock is None else None
        try:
            self._begin(tasks)
        except BaseException:
            self._release()
            raise

    def _begin(self, tasks: Sequence[Task]) -> None:
        directory = self._directory
        remove_leftovers(own_folder(directory / "shards"))
        self._seconds_before = 0.0
        self.before: Mapping[str, Any] = {}
        if (directory / MANIFEST).is_file():
            old = read_manifest(directory, KIND)
            changed = differing_keys(old["spec"], self._spec)
            # One that was begun and holds nothing yet is nobody's.
            if changed and shards(directory):
                raise DatasetError(
                    f"{directory} holds trajectories of another run: {'; '.join(changed)}."
                    f"{old_note(str(old['spec'].get('policy')))} Give another directory, or the settings it was begun "
                    "with."
                )
            self.before = {} if changed else old
            self._seconds_before = float(self.before["cost"]["seconds"]) if self.before else 0.0
            # What is gone is sampled again; what is another's would be taken for this run's.
            _refuse_others(directory, old.get("shards"))
        self.done = frozenset(_read_ids(directory, self._spec.get("policy")))
        self.count = len(self.done)
        write_tasks(directory, tasks)
        self._start = self._flushed = time.monotonic()
        self._write_manifest()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.flush()
            if kind is not None:
                self._write_manifest()
        finally:
            self._release()

    def _release(self) -> None:
        if self._own_lock is not None:
            self._own_lock.release()

    def append(self, trajectory: Trajectory) -> None:
        """Add one trajectory; it is on disk after the next flush."""
        self._rows.append(to_row(trajectory))
        if len(self._rows) >= self._shard_size or time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what was appended as one shard, once: whoever is interrupted while it is written comes here again."""
        self._flushed = time.monotonic()
        self._forget_written()
        if not self._rows:
            return
        shards = self._directory / "shards"
        index = 1 + max((int(path.stem.partition("-")[0]) for path in shards.glob("*.parquet")), default=-1)
        buffer = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(self._rows, schema=SCHEMA), buffer, compression="zstd")
        data = buffer.getvalue().to_pybytes()
        # Content and checksum appear in one rename.
        path, count = shards / f"{index:06d}-{sum_of_bytes(data)}.parquet", len(self._rows)
        self._written = path, self._rows, count, self.count + count
        write_atomic(path, data)
        self._forget_written()

    def _forget_written(self) -> None:
        """Let go of the rows that are on disk, an interrupt between that and this or not."""
        path, rows, count, total = self._written
        if rows is self._rows and path.exists():
            # In this order, as an interrupt may come between them too.
            self.count = total
            self._rows = rows[count:]

    def finish(self, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Close the data set: write counts, cost, hash and ``more`` into the manifest, and return it."""
        self.flush()
        tally = Tally()

        def counted() -> Iterator[Trajectory]:
            for trajectory in watched(_stored(self._directory), "read back", self.count, unit="conversations"):
                tally.add(trajectory)
                yield trajectory

        names = [path.name for path in shards(self._directory)]
        tasks_sum = sum_of(self._directory / TASKS)
        digest = dataset_hash(counted())
        more = {"shards": names, "tasks_sum": tasks_sum, **tally.record(), **(more or {})}
        told: dict[str, Any] = {"counts": tally.counts, "tokens_sampled": tally.tokens_sampled}
        self._write_manifest(complete=True, dataset_hash=digest, more=more, **told)
        return read_manifest(self._directory, KIND)

    def _write_manifest(
        self,
        *,
        complete: bool = False,
        counts: Mapping[str, int] = MappingProxyType({}),
        dataset_hash: str | None = None,
        tokens_sampled: int | None = None,
        more: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        seconds = round(self._seconds_before + time.monotonic() - self._start, 3)
        content = {
            "spec": self._spec,
            "complete": complete,
            "counts": dict(counts),
            "dataset_hash": dataset_hash,
            "cost": {"seconds": seconds, "tokens_sampled": tokens_sampled},
            **more,
        }
        write_manifest(self._directory, KIND, content)


def shards(directory: str | Path) -> list[Path]:
    """The files that hold a data set's rows, in the order they were written."""
    # Hidden ones are another system's, as the ``._NAME`` that a Mac writes beside each file it copies.
    return sorted(path for path in (Path(directory) / "shards").glob("*.parquet") if path.name[0] != ".")


def check_shard(path: Path) -> None:
    """Compare a shard with the checksum in its name, ``NUMBER-SUM.parquet``; one without a sum is not checked.

    Raises:
        OSError: it can't be read, or holds something else than was written.
    """
    _, dash, wanted = path.stem.partition("-")
    if not dash:
        return
    found = sum_of(path)
    if found != wanted:
        raise OSError(f"its checksum is {found}, expected {wanted}: it was changed after it was written")


def stored_columns(directory: str | Path, columns: list[str] | None, *, rows: int = 65_536) -> Iterator[pa.RecordBatch]:
    """As ``stream_columns``, of what a data set holds so far, finished or not."""
    for path in shards(directory):
        with _reading(path):
            check_shard(path)
            file = pq.ParquetFile(path)
            batches = file.iter_batches(rows, columns=columns)
        with file:
            while True:
                with _reading(path):
                    batch = next(batches, None)
                if batch is None:
                    break
                yield batch


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except DAMAGED as error:
        raise DatasetError(
            f"shard {path} can't be read: {str(error).rstrip('.')}. Delete that file and run the same rollout "
            "command again: only its trajectories are sampled again."
        ) from error


def _stored(directory: str | Path) -> Iterator[Trajectory]:
    for batch in stored_columns(directory, None, rows=ROWS_AT_ONCE):
        yield from map(from_row, batch.to_pylist())


def _read_ids(directory: Path, policy: str | None) -> Iterator[str]:
    """The ids of all rows on disk; raises ``DatasetError`` where one is not of ``policy``."""
    for batch in stored_columns(directory, ["id", "policy"]):
        found = set(batch.column("policy").unique().to_pylist()) - {policy}
        if policy and found:
            raise DatasetError(
                f"{directory} has trajectories of the policy {', '.join(sorted(found))}, expected {policy}, which its "
                "manifest names: shards of another run lie there. Take them out, or give another directory."
            )
        yield from batch.column("id").to_pylist()


def _refuse_others(directory: Path, listed: Sequence[str] | None) -> None:
    """Raise ``DatasetError`` for shards that a finished data set does not list."""
    others = sorted({path.name for path in shards(directory)} - set(listed)) if listed is not None else []
    if others:
        raise DatasetError(
            f"{directory}: {', '.join(others)} in shards/ is not of the data set that its manifest describes. "
            "Restore the shards that were there, or give another directory."
        )


def read_checked(directory: str | Path) -> dict[str, Any]:
    """The manifest of a finished data set whose shards are those that it lists, with as many rows.

    A shard's name has its checksum, which is compared when the shard is read; here only footers are. Manifests of
    earlier versions list no shards: there the rows alone are compared.

    Raises:
        DatasetError: missing, of another kind, not finished, or with other shards.
    """
    directory = Path(directory)
    manifest = read_manifest(directory, KIND)
    if not manifest["complete"]:
        count = sum(_rows_in(path) for path in shards(directory))
        raise DatasetError(
            f"{directory} is incomplete: {count} of {manifest['spec'].get('trajectories', '?')} trajectories. "
            "Run the same command again: it goes on where it was."
        )
    listed, expected = manifest.get("shards"), int(manifest["counts"]["trajectories"])
    _refuse_others(directory, listed)
    count = sum(_rows_in(path) for path in shards(directory))
    if count != expected:
        raise DatasetError(
            f"{directory}: {count} trajectories on disk, the manifest says {expected}: a shard is missing. "
            "Restore it, or run the same rollout command again: the missing ones are sampled again."
        )
    return manifest


def _rows_in(path: Path) -> int:
    with _reading(path):
        if not path.is_file():
            raise OSError("no ordinary file there")
        try:
            return int(pq.read_metadata(path).num_rows)
        except pa.ArrowException:
            check_shard(path)
            raise


def read_trajectories(directory: str | Path, *, complete_only: bool = True) -> list[Trajectory]:
    """All trajectories of a data set, sorted by task and sample, whatever order they were written in.

    Args:
        directory: the data set.
        complete_only: refuse one that was interrupted.

    Raises:
        DatasetError: missing, damaged, empty, of another schema version, interrupted, or with a shard gone.
    """
    read_manifest(Path(directory), KIND)
    found = stream_trajectories(directory) if complete_only else _stored(directory)
    return sorted(found, key=lambda trajectory: (trajectory.task_id, trajectory.sample))


def stream_trajectories(directory: str | Path) -> Iterator[Trajectory]:
    """The trajectories of a finished data set, some at a time in memory, in the order they were written.

    Raises:
        DatasetError: as ``read_trajectories``.
    """
    for batch in stream_columns(directory, None, rows=ROWS_AT_ONCE):
        yield from map(from_row, batch.to_pylist())


def stream_columns(directory: str | Path, columns: list[str] | None, *, rows: int = 65_536) -> Iterator[pa.RecordBatch]:
    """Columns of a finished data set, at most ``rows`` rows at a time, in the order they were written.

    Args:
        directory: the data set.
        columns: names as Parquet has them, those inside others with dots; one that a shard lacks is left out. ``None``
            is all of them.
        rows: per batch; a batch never spans two shards.

    Raises:
        DatasetError: as ``stream_trajectories``.
    """
    if not count_trajectories(directory):
        raise _empty(directory)
    yield from stored_columns(directory, columns, rows=rows)


def repeated(ids: Callable[[], Iterable[str]]) -> list[str]:
    """Ids that are there more than once. A hash is held of each, and the text of those alone whose hashes meet."""
    hashes_N = np.sort(np.fromiter(map(hash, ids()), np.int64))
    meeting = set(hashes_N[1:][hashes_N[1:] == hashes_N[:-1]].tolist())
    counts = Counter(name for name in ids() if hash(name) in meeting) if meeting else Counter[str]()
    return [name for name, count in counts.items() if count > 1]


def count_trajectories(directory: str | Path) -> int:
    """How many trajectories a finished data set says it holds; raises ``DatasetError`` where it is not finished."""
    return int(read_checked(directory)["counts"]["trajectories"])


def _empty(directory: str | Path) -> DatasetError:
    return DatasetError(f"{directory} holds no trajectories. Run the rollouts with at least one task.")


def write_tasks(directory: Path, tasks: Iterable[Task]) -> None:
    """Write the tasks of a data set."""
    lines = map(task_line, tasks)
    write_atomic(directory / TASKS, ("\n".join(lines) + "\n").encode())


def task_line(task: Task) -> str:
    """A task as a line of the list of tasks."""
    return json.dumps({"id": task.id, "group_id": task.group_id, "split": task.split, "payload": dict(task.payload)})


def read_tasks(directory: str | Path) -> list[Task]:
    """The tasks of a data set; raises ``DatasetError`` where there is none, or its list of tasks is damaged."""
    return list(stream_tasks(directory))


def stream_tasks(directory: str | Path) -> Iterator[Task]:
    """The tasks of a data set, one after the other; raises what ``read_tasks`` raises, in part only on the way."""
    path = Path(directory) / TASKS
    manifest = read_manifest(path.parent, KIND)
    try:
        wanted = manifest.get("tasks_sum")
        if wanted and sum_of(path) != wanted:
            raise ValueError(f"its checksum is {sum_of(path)}, expected {wanted}: it was changed after it was written")
        with path.open() as lines:
            yield from (Task(**json.loads(line)) for line in lines if line.strip())
    except (OSError, ValueError, TypeError) as error:
        raise DatasetError(f"{path} can't be read: {error}. Run the same rollout command again.") from error


@by_fields()
def as_hf_dataset(directory: str | os.PathLike[str]) -> Any:
    """What a data set holds, finished or not, as ``datasets.Dataset``, with the ``messages`` that chat tooling expects.

    Args:
        directory: directory of trajectories.

    Raises:
        DatasetError: it is missing, something else, of another schema version, or empty.
        ConfigError: the library ``datasets`` is not installed.
    """
    directory = Path(directory)
    if read_manifest(directory, KIND)["complete"]:
        read_checked(directory)
    files = [str(path) for path in shards(directory)]
    if not files:
        raise _empty(directory)
    try:
        from datasets import Dataset
    except ImportError as error:
        raise ConfigError("as_hf_dataset needs datasets. Install it: pip install 'drift-rl[datasets]'.") from error
    return Dataset.from_parquet(files)
