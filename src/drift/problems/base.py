"""What a problem is, and how a set of them is read: one function from a row of the hub's schema to a problem."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drift.errors import ConfigError

# What parts the cells of a table, by the ending of its file.
TABLES = {".csv": ",", ".tsv": "\t"}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A question and its right answer.

    Attributes:
        question: the text.
        gold: the answer: an expression, or the letter of the right option.
        options: the options of a multiple choice, in the order of their letters; empty otherwise.
        verifier: the verifier that suits the answer; empty for the environment's default one.
    """

    question: str
    gold: str
    options: tuple[str, ...] = ()
    verifier: str = ""

    @property
    def id(self) -> str:
        """Depends on the question and its options alone, so that one problem in two sets is one problem."""
        text = " ".join("\x1f".join((self.question, *sorted(self.options))).casefold().split())
        return "q-" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A row that holds no problem to ask, and the reason, by which such rows are counted."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class ProblemSet:
    """Where problems come from.

    Attributes:
        hub: id of the data set on the hub.
        configs: the hub's configurations that together are the set; ``None`` is the default one.
        splits: our ``train`` and ``test`` to the hub's name; a split that is missing does not exist.
        read: makes a problem of a row, or says why the row is left out; ``KeyError``, ``ValueError`` or ``TypeError``
            mean that it is not of the schema.
        make_rows: gives the rows of a split, for a set that is computed; ``hub`` is then its name alone.
    """

    hub: str
    configs: tuple[str | None, ...] = (None,)
    splits: Mapping[str, str] = field(default_factory=lambda: {"train": "train", "test": "test"})
    read: Callable[[Row], Problem | LeftOut]
    make_rows: Callable[[str], Iterable[Row]] | None = None


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The distinct problems of one split, in the order of their source, and what the other rows were.

    Attributes:
        problems: the problems.
        counts: rows by what became of them: ``rows`` (all of them), ``problems``, ``repeated`` (a problem that an
            earlier row holds) and ``left_out_<reason>``.
    """

    problems: tuple[Problem, ...]
    counts: Mapping[str, int]


def load_split(problem_set: ProblemSet, split: str, file: str = "") -> Loaded:
    """Read one split, and count what was left out.

    Args:
        problem_set: whose.
        split: ``train`` or ``test``.
        file: a local file (see ``local_rows``) of the hub's schema; empty reads from the hub.

    Raises:
        ConfigError: no such split or file, the hub can't be reached, or a row is not of the schema.
    """
    if not file and split not in problem_set.splits:
        raise ConfigError(
            f"{problem_set.hub} has no {split} split, only {', '.join(problem_set.splits)}. "
            f"Name another set for it, or give a local file as environment.{split}_file."
        )
    if file:
        rows: Iterable[Row] = local_rows(Path(file).expanduser())
    else:
        rows = problem_set.make_rows(split) if problem_set.make_rows else _hub_rows(problem_set, split)
    problems: dict[str, Problem] = {}
    counts: Counter[str] = Counter()
    for number, row in enumerate(rows, start=1):
        try:
            problem = problem_set.read(row)
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise ConfigError(
                f"row {number} of {file or problem_set.hub} is not of the schema of {problem_set.hub}: "
                f"{type(error).__name__}: {error}. Fix or remove the row, or name the set that the file belongs to."
            ) from error
        if isinstance(problem, LeftOut):
            counts[f"left_out_{problem.reason}"] += 1
        else:
            counts["repeated"] += problem.id in problems
            problems.setdefault(problem.id, problem)
    if not problems:
        raise ConfigError(f"{file or problem_set.hub} holds no problem that can be used in its {split} split.")
    kept = {"rows": len(problems) + counts.total(), "problems": len(problems)}
    return Loaded(problems=tuple(problems.values()), counts=kept | dict(sorted((+counts).items())))


def multiple_choice(question: str, texts: Sequence[str], right: int, *, shuffle: bool = False) -> Problem:
    """A problem with options, whose answer is the letter of the right one.

    Args:
        question: the text.
        texts: the options.
        right: index of the right one.
        shuffle: put them in an order that depends on their texts alone, for schemas that list the right one first.

    Raises:
        ValueError: fewer than two options, more than 26, or ``right`` is none of them.
    """
    if not 2 <= len(texts) <= len(LETTERS) or not 0 <= right < len(texts):
        raise ValueError(f"{len(texts)} options with number {right} right, expected 2 to 26 and one of them")
    order = list(range(len(texts)))
    if shuffle:
        order.sort(key=lambda at: hashlib.sha256("\x1f".join((texts[at], *sorted(texts))).encode()).digest())
    options = tuple(texts[at].strip() for at in order)
    return Problem(question=question.strip(), gold=LETTERS[order.index(right)], options=options)


def local_rows(path: Path) -> Iterator[Row]:
    """The rows of a JSON Lines, JSON, CSV, TSV or Parquet file; raises ``ConfigError`` if it can't be read."""
    try:
        if path.suffix.lower() in TABLES:
            with path.open(encoding="utf-8-sig", newline="") as cells:
                yield from csv.DictReader(cells, delimiter=TABLES[path.suffix.lower()], strict=True)
            return
        with path.open("rb") as file:
            head = file.read(64).lstrip()
        if head.startswith(b"PAR1"):
            import pyarrow.parquet as pq

            yield from pq.read_table(path).to_pylist()
        elif head.startswith(b"["):
            yield from json.loads(path.read_text(encoding="utf-8"))
        else:
            with path.open(encoding="utf-8") as lines:
                yield from (json.loads(line) for line in lines if line.strip())
    except (OSError, ValueError, csv.Error) as error:
        kinds = "JSON Lines, JSON, CSV, TSV or Parquet"
        raise ConfigError(f"{path} can't be read: {error}. Give a file of {kinds}, in UTF-8.") from error


def _hub_rows(problem_set: ProblemSet, split: str) -> Iterator[Row]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ConfigError(
            f"{problem_set.hub} is read with the datasets package, which is missing. "
            "Install it: pip install 'drift-rl[datasets]', or give local files."
        ) from error
    for config in problem_set.configs:
        try:
            rows = load_dataset(problem_set.hub, config, split=problem_set.splits[split])
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"{problem_set.hub} can't be read from the hub: {error}. "
                f"Check the connection, or give a local file as environment.{split}_file."
            ) from error
        yield from rows
