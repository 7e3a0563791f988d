"""Checks an import of logs against a list of what it must make of each row, on the ids and masks that it writes.

    python -m benchmarks.logs CORPUS MODEL [--template FILE] [--every] [--fields]

CORPUS is a folder with ``expected.jsonl``; each of its lines names a ``file``, a ``row`` (null: the file as a whole),
what the user ``told``, and what ``must`` come of it: ``in``, ``refused`` or ``counted``, with ``why_refused``,
``trained_text``, ``trained_holds``, ``not_trained``, ``prompt_must_hold``, ``reward``, ``success``, ``groups``, and the
``needs`` that a template must meet. MODEL gives the tokenizer; ``--template`` is one to use instead of its own.

With ``--fields`` every value of every row is changed, one at a time: what the import then makes of the row, what it
refuses, or what it counts must change too, or the field must be among those that it says it did not use.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from drift.chat import TemplateChat
from drift.dataset.imports.base import BadRow, is_empty
from drift.dataset.imports.files import open_source
from drift.dataset.imports.run import REJECTED, Conversion, load_target, make_reader, read_rejected, write_all
from drift.dataset.imports.tokens import Target
from drift.dataset.store import read_trajectories
from drift.errors import DriftError
from drift.types import Trajectory

Line = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an import made of a file: its conversations, what it left out, what it counted, or the error it ended in."""

    trajectories: list[Trajectory]
    left_out: set[tuple[int, str]]
    counted: dict[str, int]
    error: str = ""

    def of(self, row: int | None, part: str | None) -> Trajectory | None:
        """The conversation of a row, or of a part of it."""
        for each in self.trajectories:
            info = each.turns[-1].step.info
            if info["line"] == row and info.get("part") == part:
                return each
        return None


def run_import(path: Path, told: Line, target: Target) -> Outcome:
    """Import a file with what the user tells."""
    columns = {key: value for key, value in told.items() if key != "max_length"}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "data"
        limited = replace(target, max_length=told.get("max_length", target.max_length))
        try:
            conversion = Conversion(open_source(path), make_reader("auto", columns), limited)
        except DriftError as error:
            return Outcome(trajectories=[], left_out=set(), counted={}, error=str(error))
        message, trajectories = "", []
        try:
            write_all(conversion, {}, out)
            trajectories = read_trajectories(out)
        except DriftError as error:
            message = str(error)
        rejected = read_rejected(out, 10_000) if (out / REJECTED).is_file() else []
        left_out = {(bad.line, bad.reason) for bad in rejected}
        counted = conversion.facts()["counted"]
        return Outcome(trajectories=trajectories, left_out=left_out, counted=counted, error=message)


def adapted(line: Line, chat: TemplateChat) -> Line:
    """What must come of a row with this template."""
    needs = line.get("needs") or []
    if line["must"] == "in" and "tools" in needs and not (chat.takes_tools and chat.takes_calls):
        return {**line, "must": "refused", "why_refused": "template_lacks_tools"}
    if line["must"] == "in" and "reasoning" in needs and not chat.takes_thinking:
        return {**line, "must": "counted", "why_refused": "reasoning_left_out", "trained_holds": []}
    return line


def faults(line: Line, outcome: Outcome, decode: Any) -> Iterator[str]:
    """What is not as ``line`` says."""
    why, row, part = line["why_refused"], line["row"], line.get("part")
    if row is None and line["must"] == "refused":
        if not outcome.error:
            yield "not refused"
        return
    found = outcome.of(row, part)
    if line["must"] == "refused":
        if (row, why) not in outcome.left_out and not outcome.error:
            yield f"left out: {sorted(outcome.left_out)}"
        return
    if line["must"] == "counted" and not outcome.counted.get(why):
        yield f"counted: {outcome.counted} {outcome.error}"
    if row is None or (not line["trained_text"] and line["must"] == "counted"):
        if row is not None and found is not None:
            yield "in"
        return
    if found is None:
        yield f"not in: {sorted(outcome.left_out)} {outcome.error}"
        return
    yield from faults_of_ids(line, found, decode)
    rewards = [turn.step.reward for turn in found.turns]
    if line["reward"] != (rewards if isinstance(line["reward"], list) else sum(rewards)):
        yield f"reward {rewards}"
    if found.success != line["success"]:
        yield f"success {found.success}"
    together = {t.turns[-1].step.info["line"] for t in outcome.trajectories if t.group_id == found.group_id}
    inside = {t.turns[-1].step.info["line"] for t in outcome.trajectories}
    if line["groups"] and together != set(line["groups"]) & inside:
        yield f"groups {sorted(together)}"


def faults_of_ids(line: Line, found: Trajectory, decode: Any) -> Iterator[str]:
    """What is not trained, or not seen, as ``line`` says."""
    trained = [turn for turn in found.turns if turn.loss_weight]
    texts = [decode(turn.completion.token_ids) for turn in trained]
    for text in line["trained_text"]:
        if not any(
            turn.completion.text.strip().endswith(text) and text in ids
            for turn, ids in zip(trained, texts, strict=True)
        ):
            yield f"not trained: {text!r}"
    if not line.get("trained_holds") and len(texts) != len(line["trained_text"]):
        yield f"trained {texts}"
    yield from (f"not trained: {text!r}" for text in line.get("trained_holds") or () if text not in "".join(texts))
    yield from (f"trained: {text!r}" for text in line["not_trained"] if text in "".join(texts))
    seen = decode(trained[-1].prompt_ids) if trained else ""
    yield from (
        f"not seen: {text!r}"
        for text in line["prompt_must_hold"]
        if text not in seen and json.dumps(text)[1:-1] not in seen
    )


@dataclass(frozen=True)
class Row:
    """A log of one row."""

    value: Any
    line: int
    rows: int = 1

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        yield self.line, copy.deepcopy(self.value)


def made_of(row: Row, told: Line, target: Target) -> tuple[str, Conversion]:
    """Everything that an import makes and says of a row."""
    conversion = Conversion(row, make_reader("auto", told), target)  # type: ignore[arg-type]
    made = [repr(each) if not isinstance(each, BadRow) else f"{each.reason}: {each.detail}" for each in conversion]
    return json.dumps([made, conversion.facts()]), conversion


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where each text, number and truth value of a JSON value is."""
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(each, (*path, key))
    elif not is_empty(value):
        yield path


def changed(value: Any, path: tuple[Any, ...]) -> Any:
    """A copy of a JSON value with another value of the same kind at ``path``."""
    if not path:
        if isinstance(value, bool):
            return not value
        return value + 1 if isinstance(value, int | float) else f"{value} zq"
    other = copy.copy(value)
    other[path[0]] = changed(value[path[0]], path[1:])
    return other


def lost_fields(path: Path, told: Line, target: Target) -> Iterator[str | None]:
    """Of each value of a file's rows: where it is if it can change without anything changing or being said of it."""
    for line, value in open_source(path):
        if not isinstance(value, dict):
            continue
        before, conversion = made_of(Row(value, line), told, target)
        if not conversion.made:
            # Refused as a whole, which is said.
            continue
        for place in leaves(value):
            named = ".".join(str(key) for key in place if not isinstance(key, int))
            told_of = any(named == name or named.startswith(f"{name}.") for name in conversion.unused)
            seen = told_of or made_of(Row(changed(value, place), line), told, target)[0] != before
            yield None if seen else f"{path.name} line {line}: {'.'.join(map(str, place))}"


def report_fields(corpus: Path, lines: Sequence[Line], target: Target) -> None:
    """Print the fields that are lost in silence, and how many."""
    found: list[str | None] = []
    for name, told in sorted({(line["file"], json.dumps(line.get("told") or {})) for line in lines}):
        columns = {key: each for key, each in json.loads(told).items() if key != "max_length"}
        try:
            found += lost_fields(corpus / name, columns, target)
        except DriftError as error:
            print(f"{name}: {error}".splitlines()[0][:200])
    lost = [place for place in found if place is not None]
    print("\n".join(lost))
    print(f"{len(lost)} of {len(found)} values can change in silence")


def main() -> None:
    """Print the lines that are not met, by kind, and how many are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("model")
    parser.add_argument("--template", type=Path)
    parser.add_argument("--every", action="store_true", help="print every line that is not met")
    parser.add_argument("--fields", action="store_true", help="look for fields that are lost in silence")
    given = parser.parse_args()
    target = load_target(given.model)
    tokenizer = target.chat._tokenizer
    if given.template:
        tokenizer.chat_template = given.template.read_text()
        target = replace(target, chat=TemplateChat(tokenizer, source=given.model))
    lines = [json.loads(text) for text in (given.corpus / "expected.jsonl").read_text().split("\n") if text]
    if given.fields:
        report_fields(given.corpus, lines, target)
        return
    outcomes: dict[str, Outcome] = {}
    missed: Counter[str] = Counter()
    for line in lines:
        key = json.dumps([line["file"], line.get("told")])
        if key not in outcomes:
            outcomes[key] = run_import(given.corpus / line["file"], line.get("told") or {}, target)
        wrong = list(faults(adapted(line, target.chat), outcomes[key], tokenizer.decode))
        missed[line["kind"]] += bool(wrong)
        if wrong and given.every:
            print(f"{line['file']} row {line['row']} {line.get('part') or ''}: {'; '.join(wrong)[:600]}")
    print("; ".join(f"{kind} {count}" for kind, count in missed.items() if count))
    print(f"{len(lines) - missed.total()} of {len(lines)} lines as they say")


if __name__ == "__main__":
    main()
