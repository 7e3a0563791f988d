"""The import: a log file in, a data set of trajectories out, bad rows written down beside it."""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from drift.chat import TemplateChat
from drift.dataset.imports import FORMATS
from drift.dataset.imports.base import BadRow, Reader, show
from drift.dataset.imports.sources import Source, open_source
from drift.dataset.imports.tokens import Target, opening_hash, to_trajectory
from drift.dataset.lock import DirectoryLock
from drift.dataset.store import TrajectoryWriter, write_tasks
from drift.errors import DatasetError, require
from drift.manifest import MANIFEST, writing
from drift.policies import model_path
from drift.policies.stored import StoredModel, context_limit
from drift.progress import Progress
from drift.registry import check_settings
from drift.types import Task, Trajectory

REJECTED = "rejected.jsonl"
SHOWN = 20
SHARD_SIZE = 256


def make_reader(name: str, settings: Mapping[str, Any]) -> Reader:
    """The reader of a format, with its own settings filled in; unknown names are refused with the nearest known one."""
    reader = FORMATS.get(name)
    check_settings(reader, settings, where=f"columns of format {name!r}")
    return functools.partial(reader, **settings)


def load_target(model: str, max_length: int = 0) -> Target:
    """The template, the limit and the fingerprint of a model.

    Args:
        model: ``default``, a folder or a hub id.
        max_length: the most tokens a prompt and its reply may hold; 0 takes the model's limit.

    Raises:
        PolicyError: the model can't be loaded, or has no chat template.
    """
    require(max_length >= 0, "max_length", max_length, "a whole number ≥ 0 (0 takes the model's limit)")
    stored = StoredModel(model_path(model))
    chat = TemplateChat(stored.tokenizer, source=model)
    return Target(
        chat=chat,
        end_ids=frozenset(stored.end_ids),
        end_id=chat.end_of_turn(stored.end_ids),
        max_length=max_length or context_limit(stored.config),
        fingerprint=stored.fingerprint(),
    )


class Conversion:
    """One pass over a log. Keeps a count per group and a digest per name, and otherwise one row at a time.

    Attributes:
        groups: trajectories made, by group.
        excluded: rows left out, by reason; the first ``SHOWN`` of them are in ``shown``.
        with_success: rows that say whether they ended with the task solved.
    """

    def __init__(self, source: Source, reader: Reader, target: Target) -> None:
        self._source, self._reader, self._target = source, reader, target
        self._names: set[bytes] = set()
        self.groups: Counter[str] = Counter()
        self.excluded: Counter[str] = Counter()
        self.shown: list[BadRow] = []
        self.with_success = 0

    def __iter__(self) -> Iterator[Trajectory | BadRow]:
        for line, value in self._source:
            try:
                yield self._convert(line, value)
            except BadRow as bad:
                bad.line = line
                self.excluded[bad.reason] += 1
                if len(self.shown) < SHOWN:
                    self.shown.append(bad)
                yield bad

    def by_reason(self) -> str:
        """Number of rows left out for each reason."""
        return ", ".join(f"{reason} {count}" for reason, count in sorted(self.excluded.items()))

    def _convert(self, line: int, value: object) -> Trajectory:
        if isinstance(value, BadRow):
            raise value
        if not isinstance(value, Mapping):
            raise BadRow("not_object", f"got {show(value)}, expected an object")
        logged = self._reader(value)
        name = None if logged.id is None else hashlib.sha256(logged.id.encode()).digest()[:16]
        if name in self._names:
            raise BadRow("duplicate_id", f"id: {show(logged.id)} is that of an earlier row")
        group = logged.group_id or opening_hash(logged)
        made = to_trajectory(logged, group_id=group, sample=self.groups[group], target=self._target, line=line)
        # Counted only now, so that a row which is left out leaves no gap.
        self.groups[group] += 1
        self.with_success += logged.success is not None
        if name is not None:
            self._names.add(name)
        return made


def import_file(
    path: Path,
    out: Path,
    *,
    format: str,
    settings: Mapping[str, Any],
    model: str,
    max_length: int = 0,
    strict: bool = False,
) -> dict[str, Any]:
    """Write the conversations of a log file to ``out`` as trajectories, and return the manifest.

    Args:
        path: JSON Lines or Parquet.
        out: directory of the trajectories. An import that was interrupted there goes on.
        format: name of a registered format.
        settings: the format's own settings.
        model: the model to be trained: ``default``, a folder or a hub id.
        max_length: the most tokens a prompt and its reply may hold; 0 takes the model's limit.
        strict: fail, before anything is written, if any row is bad.

    Raises:
        ConfigError: no such format, or unknown settings.
        DatasetError: the file can't be read, every row is bad, or any is under ``strict``; or ``out`` holds other data.
        PolicyError: the model can't be used.
    """
    reader = make_reader(format, settings)
    source = open_source(path)
    target = load_target(model, max_length)
    if strict:
        _refuse_bad_rows(path, source.rows, Conversion(source, reader, target))
    spec = {
        "import": {"format": format, "settings": dict(settings), "file": path.name, "sha256": source.sha256},
        "ids": "retokenized",
        "tokenizer": model,
        "end_id": target.end_id,
        "max_length": target.max_length,
        "policy": target.fingerprint,
    }
    return _write_all(source, Conversion(source, reader, target), spec, out)


def _write_all(source: Source, conversion: Conversion, spec: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Write the good rows as trajectories and the bad ones to ``rejected.jsonl``; returns the manifest."""
    temporary = out / f".{REJECTED}.tmp"
    with ExitStack() as stack:
        progress = stack.enter_context(Progress("import", source.rows, unit="rows"))
        writer: TrajectoryWriter | None = None
        # Locked before anything is written: two imports would write the same list of rejected rows.
        lock = stack.enter_context(DirectoryLock(out))
        with writing(temporary):
            rejected = stack.enter_context(temporary.open("w", encoding="utf-8"))
        stack.callback(temporary.unlink, missing_ok=True)
        for made in conversion:
            progress.advance()
            if isinstance(made, BadRow):
                with writing(temporary):
                    rejected.write(json.dumps({"line": made.line, "reason": made.reason, "detail": made.detail}) + "\n")
                continue
            if writer is None:
                writer = stack.enter_context(TrajectoryWriter(out, spec, [], shard_size=SHARD_SIZE, lock=lock))
            if made.id not in writer.done:
                writer.append(made)
        with writing(temporary):
            rejected.close()
            if writer is not None or not (out / MANIFEST).is_file():
                temporary.replace(out / REJECTED)
        if writer is None:
            raise _nothing_left(source.path, conversion, out)
        groups = sorted(conversion.groups.items())
        tasks = (Task(id=name, group_id=name, split="train", payload={"conversations": n}) for name, n in groups)
        write_tasks(out, tasks)
        return writer.finish(
            {
                "rows": conversion.excluded.total() + conversion.groups.total(),
                "excluded": dict(sorted(conversion.excluded.items())),
                "with_success": conversion.with_success,
            }
        )


def _refuse_bad_rows(path: Path, rows: int, conversion: Conversion) -> None:
    with Progress("check", rows, unit="rows") as progress:
        for _ in conversion:
            progress.advance()
    if conversion.excluded:
        raise DatasetError(
            f"{path}: {conversion.excluded.total()} rows can't be imported ({conversion.by_reason()}), and --strict "
            "was given; nothing was written. Fix them, or leave out --strict to import the others.\n"
            f"{listing(conversion.shown)}"
        )


def _nothing_left(path: Path, conversion: Conversion, out: Path) -> DatasetError:
    if not conversion.excluded:
        return DatasetError(f"{path} holds no rows. Give a file with at least one conversation.")
    return DatasetError(
        f"{path}: none of {conversion.excluded.total()} rows can be imported ({conversion.by_reason()}). "
        f"Check --format and --columns; {out / REJECTED} says why for each.\n{listing(conversion.shown)}"
    )


def listing(rejected: list[BadRow]) -> str:
    """Rejected rows for people, one a line."""
    return "\n".join(f"  line {row.line}: {row}" for row in rejected)


def read_rejected(directory: Path, count: int = SHOWN) -> list[BadRow]:
    """The first ``count`` rows that an import left out."""
    path = directory / REJECTED
    try:
        with path.open(encoding="utf-8") as file:
            return [BadRow(**json.loads(line)) for line, _ in zip(file, range(count), strict=False)]
    except (OSError, ValueError, TypeError) as error:
        raise DatasetError(f"{path} can't be read: {error}. Run the same import again.") from error
