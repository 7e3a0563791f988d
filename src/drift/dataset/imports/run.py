"""The import: a log file in, a data set of trajectories out, bad rows written down beside it."""

from __future__ import annotations

import functools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from drift.chat import TemplateChat
from drift.dataset.imports import FORMATS, SHAPES
from drift.dataset.imports.base import BadRow, Fields, Logged, PassedOver, show, with_notes
from drift.dataset.imports.columns import Columns
from drift.dataset.imports.files import Source, open_source
from drift.dataset.imports.groups import Survey, group_of
from drift.dataset.imports.tokens import Target, to_trajectory
from drift.dataset.lock import DirectoryLock
from drift.dataset.store import KIND, TASKS, TrajectoryWriter, task_line
from drift.errors import DatasetError, require
from drift.files import open_beside, writing
from drift.keywords import make_record
from drift.manifest import MANIFEST, check_out
from drift.policies import model_path
from drift.policies.stored import StoredModel, context_limit
from drift.progress import Progress
from drift.registry import check_settings
from drift.types import Task, Trajectory

REJECTED = "rejected.jsonl"
SHOWN = 20
SHARD_SIZE = 256
# What was left out although the row is in: --strict stops on it.
LOSSES = frozenset({"reasoning_left_out", "too_long"})
# Fields that change what was said, or what the model was asked to do, and that have no place in a trajectory.
_CHANGES = {"documents", "response_format", "tool_choice", "chat_template_kwargs", "additional_histories", "tools"}
ReadRow = Callable[[Mapping[str, Any]], Sequence[Logged | BadRow]]


def make_reader(name: str, settings: Mapping[str, Any]) -> ReadRow:
    """The reader of a format, with its own settings filled in; unknown names are refused with the nearest known one."""
    reader = FORMATS.get(name)
    if name in SHAPES:
        return functools.partial(_read, reader, make_record(Columns, settings))
    check_settings(reader, settings, where=f"columns of format {name!r}")
    return functools.partial(_read, functools.partial(reader, **settings), None)


def _read(reader: Callable[..., Any], columns: Columns | None, row: Mapping[str, Any]) -> list[Logged | BadRow]:
    """The conversations of a row, the last of which tells of the fields that nobody read."""
    fields = Fields(row)
    read = reader(fields) if columns is None else reader(fields, columns)
    made = [read] if isinstance(read, Logged) else list(read)
    if columns is not None and columns.notes:
        noted = {name: fields.path(name) for name in columns.notes}
        made = [each if isinstance(each, BadRow) else with_notes(each, noted) for each in made]
    last = max((at for at, each in enumerate(made) if isinstance(each, Logged)), default=None)
    if last is not None:
        made[last] = replace(made[last], unused=(*made[last].unused, *fields.unread()))
    return made


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
    """Two passes over a log: one that compares its rows, and one that makes trajectories, a row at a time.

    Attributes:
        source: the log.
        line: of the row that was read last.
        made: trajectories made.
        passed: conversations passed over, because they are none or another row holds them.
        groups: trajectories made, by group, of groups that several rows share.
        single: groups of one conversation.
        excluded: rows that can't be used, by reason; the first ``SHOWN`` of them are in ``shown``.
        counted: conversations of which something must be known, by what it is, whether they are in or not.
        unused: conversations in which a field that holds something was not used, by field.
        with_success: conversations that say whether they ended with the task solved.
    """

    def __init__(self, source: Source, reader: ReadRow, target: Target) -> None:
        self.source, self._reader, self._target = source, reader, target
        self.made = self.single = self.passed = self.with_success = self.line = 0
        self.groups: Counter[str] = Counter()
        self.excluded: Counter[str] = Counter()
        self.counted: Counter[str] = Counter()
        self.unused: Counter[str] = Counter()
        self.shown: list[BadRow] = []
        self._survey, self._compared = Survey(), False

    def compare(self) -> None:
        """Look at all rows first: which of them one conversation or prompt holds together."""
        with Progress("compare", self.source.rows, unit="rows") as progress:
            for line, read in self._rows():
                if not isinstance(read, BadRow):
                    self._survey.add(read, line)
                progress.advance(line - self.line)
                self.line = line
        self._survey.finish()
        self.line, self._compared = 0, True

    def __iter__(self) -> Iterator[Trajectory | BadRow]:
        if not self._compared:
            self.compare()
        for line, read in self._rows():
            self.line = line
            try:
                if isinstance(read, BadRow):
                    raise read
                yield self._convert(line, read)
            except BadRow as bad:
                bad.line = line
                if isinstance(bad, PassedOver):
                    self.counted[bad.reason] += 1
                    self.passed += 1
                else:
                    self.excluded[bad.reason] += 1
                    self.shown += [bad] if len(self.shown) < SHOWN else []
                yield bad

    def _rows(self) -> Iterator[tuple[int, Logged | BadRow]]:
        for line, value in self.source:
            try:
                if isinstance(value, BadRow):
                    raise value
                if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
                    value = {"messages": value}
                if not isinstance(value, Mapping):
                    raise BadRow("not_object", f"got {show(value)}, expected an object")
                yield from ((line, logged) for logged in self._reader(value))
            except BadRow as bad:
                yield line, bad

    def _convert(self, line: int, logged: Logged) -> Trajectory:
        logged, remarks = self._survey.settled(logged)
        if logged.fault is not None:
            raise logged.fault
        group = group_of(logged, line)
        made, more = to_trajectory(logged, group_id=group, sample=self.groups[group], target=self._target, line=line)
        # Counted only now, so that a row which is left out leaves no gap.
        self.made += 1
        if self._survey.is_shared(group):
            self.groups[group] += 1
        else:
            self.single += 1
        self.counted.update({*logged.remarks, *remarks, *more})
        self.unused.update(set(logged.unused))
        self.with_success += logged.success is not None
        return made

    @property
    def single_groups(self) -> int:
        """Groups of which one conversation is in."""
        return self.single + sum(count == 1 for count in self.groups.values())

    def facts(self) -> dict[str, Any]:
        """What the manifest says of the rows."""
        counted = Counter(self.counted)
        counted["success_unknown"] = self.made - self.with_success
        counted["groups_of_one"] = self.single_groups
        return {
            "rows": self.excluded.total() + self.made + self.passed,
            "groups": self.single + len(self.groups),
            "excluded": dict(sorted(self.excluded.items())),
            "counted": {reason: count for reason, count in sorted(counted.items()) if count},
            "unused": dict(sorted(self.unused.items())),
            "with_success": self.with_success,
        }

    def by_reason(self) -> str:
        """Number of rows left out for each reason."""
        return ", ".join(f"{reason} {count}" for reason, count in sorted(self.excluded.items()))


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
    """Write the conversations of a log to ``out`` as trajectories, and return the manifest.

    Args:
        path: a file, a folder of files, or a data set of the hub (``files.open_source``).
        out: directory of the trajectories. An import that was interrupted there goes on.
        format: name of a registered format; ``auto`` finds out what each row is.
        settings: the format's own settings; of drift's own formats, ``Columns``.
        model: the model to be trained: ``default``, a folder or a hub id.
        max_length: the most tokens a prompt and its reply may hold; 0 takes the model's limit.
        strict: fail, before anything is written, if any row is bad or loses something.

    Raises:
        ConfigError: no such format, or unknown settings.
        DatasetError: the file can't be read, every row is bad, or any is under ``strict``; or ``out`` holds other data.
        PolicyError: the model can't be used.
    """
    check_out(out, KIND)
    reader = make_reader(format, settings)
    source = open_source(path)
    target = load_target(model, max_length)
    if strict:
        _refuse_losses(path, source.rows, Conversion(source, reader, target))
    spec = {
        "import": {"format": format, "settings": dict(settings), "file": path.name, "sha256": source.sha256},
        "ids": "retokenized",
        "tokenizer": model,
        "end_id": target.end_id,
        "max_length": target.max_length,
        "policy": target.fingerprint,
    }
    return write_all(Conversion(source, reader, target), spec, out)


def write_all(conversion: Conversion, spec: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Write the good rows as trajectories and the others to ``rejected.jsonl``; returns the manifest."""
    source = conversion.source
    with ExitStack() as stack:
        # Locked before anything is written: two imports would write the same list of rejected rows.
        lock = stack.enter_context(DirectoryLock(out))
        rejected, tasks = (stack.enter_context(_Temporary(out / name)) for name in (REJECTED, TASKS))
        conversion.compare()
        writer: TrajectoryWriter | None = None
        done = 0
        with Progress("import", source.rows, unit="rows") as progress:
            for made in conversion:
                progress.advance(conversion.line - done)
                done = conversion.line
                if isinstance(made, BadRow):
                    rejected.write(json.dumps({"line": made.line, "reason": made.reason, "detail": made.detail}))
                    continue
                if writer is None:
                    writer = stack.enter_context(TrajectoryWriter(out, spec, [], shard_size=SHARD_SIZE, lock=lock))
                if made.id not in writer.done:
                    writer.append(made)
                if made.group_id not in conversion.groups:
                    tasks.write(_task(made.group_id, 1))
        if writer is not None or not (out / MANIFEST).is_file():
            rejected.keep()
        if writer is None:
            raise _nothing_left(source.path, conversion, out)
        for name, count in sorted(conversion.groups.items()):
            tasks.write(_task(name, count))
        tasks.keep()
        facts = conversion.facts()
        return writer.finish({**facts, **({"files_passed_over": source.passed_over} if source.passed_over else {})})


def _task(group: str, count: int) -> str:
    return task_line(Task(id=group, group_id=group, split="train", payload={"conversations": count}))


class _Temporary:
    """A text file that appears under its name once it is whole, and not at all if the import fails before."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> _Temporary:
        with writing(self._path):
            self._temporary, handle = open_beside(self._path)
            self._file: IO[str] = os.fdopen(handle, "w", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        with writing(self._path):
            self._file.close()
            self._temporary.unlink(missing_ok=True)

    def write(self, line: str) -> None:
        """Add a line."""
        with writing(self._temporary):
            self._file.write(line + "\n")

    def keep(self) -> None:
        """Give the file its name."""
        with writing(self._temporary):
            self._file.close()
            self._temporary.replace(self._path)


def _refuse_losses(path: Path, rows: int, conversion: Conversion) -> None:
    """Raise ``DatasetError`` if a row is bad, or loses something that changes what was said."""
    conversion.compare()
    with Progress("check", rows, unit="rows") as progress:
        done = 0
        for _ in conversion:
            progress.advance(conversion.line - done)
            done = conversion.line
    lost = {reason: count for reason, count in sorted(conversion.counted.items()) if reason in LOSSES}
    lost |= {
        f"{name} not used": count
        for name, count in sorted(conversion.unused.items())
        if name.rpartition(".")[2] in _CHANGES
    }
    if conversion.excluded or lost:
        what = ", ".join(filter(None, [conversion.by_reason(), *(f"{key} {count}" for key, count in lost.items())]))
        raise DatasetError(
            f"{path}: {conversion.excluded.total() + sum(lost.values())} rows can't be imported as they are ({what}), "
            "and --strict was given; nothing was written. Fix them, or leave out --strict to import what can be.\n"
            f"{listing(conversion.shown)}"
        )


def _nothing_left(path: Path, conversion: Conversion, out: Path) -> DatasetError:
    if not conversion.excluded:
        passed = ", ".join(f"{reason} {count}" for reason, count in sorted(conversion.counted.items()))
        return DatasetError(
            f"{path} holds no rows{f' of a conversation ({passed})' if passed else ''}. "
            "Give a file with at least one conversation."
        )
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
