"""What will be trained, to be read before it is: conversations as text, what each reply weighs, what is left out."""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drift.dataset.pick import read_by_id
from drift.dataset.store import KIND as TRAJECTORIES
from drift.dataset.store import stream_trajectories
from drift.errors import DatasetError, require
from drift.manifest import read_manifest
from drift.reporting.sentences import chain_line, chosen, sentences
from drift.types import Message, Trajectory
from drift.weights.table import KIND as WEIGHTS
from drift.weights.table import WeightTable, read_weights

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
# What turns the direction of text around.
_TURNS_AROUND = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True, kw_only=True)
class Said:
    """One message as it is shown.

    Attributes:
        role: who says it.
        text: what, without control sequences.
        weight: what its tokens weigh in training; ``None`` for what no loss ever touches.
        why: why a reply weighs nothing; empty where it weighs something.
    """

    role: str
    text: str
    weight: float | None = None
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One conversation as it is shown: its id, its prompt, how it went, its messages, and why nothing of it counts."""

    id: str
    group: str
    outcome: str
    said: tuple[Said, ...]
    why: str


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What will be trained.

    Attributes:
        sentences: on all of the data set.
        left_out: how many conversations and replies are not trained, by reason.
        shown: some conversations, those of the largest weight first.
        largest: the largest ``|w|`` of all.
        page: where the page is, if one was written.
    """

    sentences: tuple[str, ...]
    left_out: Mapping[str, int]
    shown: tuple[Shown, ...]
    largest: float
    page: Path | None = None

    def __str__(self) -> str:
        return str(self.page) if self.page else "\n".join(self.sentences)

    def _repr_html_(self) -> str:
        from drift.reporting.page import preview_page

        page = html.escape(preview_page(self), quote=True)
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 40em; border: 0" title="preview"></iframe>'


def make_preview(data: Path, weights: Path, *, rows: int, max_length: int | None) -> Preview:
    """Read what ``weights`` say of ``data``; see ``drift.preview``."""
    require(rows >= 1, "rows", rows, "a whole number ≥ 1")
    require(max_length is None or max_length >= 1, "max_length", max_length, "a whole number ≥ 1")
    manifest = read_manifest(data, TRAJECTORIES)
    table = read_weights(weights, data)
    made = read_manifest(weights, WEIGHTS) if weights.is_dir() else None
    chosen_ids = _spread(table, rows)
    held: dict[str, Shown] = {}
    left: Counter[str] = Counter()
    spare = max(1, rows // 4)
    for trajectory in stream_trajectories(data):
        given = table.get(trajectory.id)
        shown = _shown(trajectory, given, turns_of(made), max_length)
        left.update([shown.why] if shown.why else [each.why for each in shown.said if each.why])
        if trajectory.id in chosen_ids or (given is None and len(held.keys() - chosen_ids) < spare):
            held[trajectory.id] = shown
    told = [chain_line(made["chain"]), *chosen(made), *sentences(made["diagnostics"])] if made else []
    for reason, count in manifest.get("excluded", {}).items():
        left[f"row of the log: {reason}"] += count
    return Preview(
        sentences=tuple(told),
        left_out=dict(left.most_common()),
        shown=tuple(_by_weight(held.values())),
        largest=float(np.abs(table.weights_T).max(initial=0.0)),
    )


def weighed_examples(data: Path, weights: Path, rows: int) -> tuple[list[Shown], float]:
    """``rows`` conversations from the largest weight to the smallest, and the largest ``|w|`` of all.

    None where the weights were not made of what is in ``data`` now.
    """
    try:
        table = read_weights(weights, data) if rows else None
    except DatasetError:
        table = None
    if table is None or not len(table.ids):
        return [], 0.0
    turns = turns_of(read_manifest(weights, WEIGHTS))
    found = read_by_id(data, _spread(table, rows))
    shown = [_shown(each, table[name], turns, None) for name, each in found.items()]
    return _by_weight(shown), float(np.abs(table.weights_T).max(initial=0.0))


def _by_weight(shown: Iterable[Shown]) -> list[Shown]:
    return sorted(shown, key=lambda each: -max((said.weight or 0.0 for said in each.said), default=0))


def _spread(table: WeightTable, rows: int) -> set[str]:
    """Ids of conversations from the largest weight to the smallest, evenly apart."""
    less_N = -np.maximum.reduceat(table.weights_T, table.start_N[:-1])
    order = np.argsort(less_N, kind="stable")
    return {table.ids[int(order[at])].as_py() for at in np.linspace(0, len(order) - 1, rows).astype(int)}


def turns_of(manifest: Mapping[str, Any] | None) -> str:
    """How the weights of a manifest were spread over replies; empty without one."""
    turns = manifest["chain"]["turns"] if manifest else ""
    return turns if isinstance(turns, str) else next(iter(turns))


def _shown(trajectory: Trajectory, weights: Sequence[float] | None, turns: str, max_length: int | None) -> Shown:
    whole = why_not(trajectory, weights, max_length)
    at = len(trajectory.messages) - sum(1 + len(turn.step.messages) for turn in trajectory.turns)
    said = list(map(_plain, trajectory.messages[:at]))
    for number, turn in enumerate(trajectory.turns):
        weight = 0.0 if whole or weights is None else weights[number]
        why = "" if weight or whole else why_zero(trajectory, number, turns)
        thought = f"(thinks) {turn.completion.thinking}\n" if turn.completion.thinking else ""
        reply = _plain(trajectory.messages[at])
        said.append(Said(role=reply.role, text=readable(thought) + reply.text, weight=weight, why=why))
        said += map(_plain, turn.step.messages)
        at += 1 + len(turn.step.messages)
    reward = sum(turn.step.reward for turn in trajectory.turns)
    judged = {True: "success", False: "no success", None: "success not known"}[trajectory.success]
    return Shown(
        id=readable(trajectory.id),
        group=readable(trajectory.group_id),
        outcome=f"reward {reward:.4g}, {judged}",
        said=tuple(said),
        why=whole,
    )


def why_not(trajectory: Trajectory, weights: Sequence[float] | None, max_length: int | None) -> str:
    """Why nothing of a conversation is trained; empty if something is."""
    if trajectory.error is not None:
        return f"it failed ({readable(trajectory.error.partition(':')[0])})"
    if weights is None:
        return "it has no weights: what was asked of it is not known, or they were not made for it"
    last = max((at for at, weight in enumerate(weights) if weight), default=-1)
    if last < 0:
        return "all of its replies weigh 0"
    turn = trajectory.turns[last]
    length = len(turn.prompt_ids) + len(turn.completion.token_ids)
    if max_length is not None and length > max_length:
        return f"it is longer than {max_length:,} tokens"
    return ""


def why_zero(trajectory: Trajectory, number: int, turns: str) -> str:
    """Why one reply of a conversation that is trained weighs nothing."""
    step = trajectory.turns[number].step
    if trajectory.turns[number].loss_weight == 0:
        return "the log says that it counts for nothing"
    if turns in ("terminal", "first"):
        return f"turns: {turns}"
    if turns == "credited" and step.graded and not step.success and step.reward <= 0:
        return "turns: credited, and it was a mistake that another followed"
    return "scheme and steps give it nothing"


def _plain(message: Message) -> Said:
    calls = "".join(f"\n(calls) {json.dumps(call, ensure_ascii=False)}" for call in message.get("tool_calls", ()))
    return Said(role=message["role"], text=readable(f"{message['content']}{calls}".strip()))


def readable(text: str) -> str:
    """``text`` without what could steer a terminal or turn its direction around; line breaks and tabs stay."""
    kept = _ESCAPES.sub("", text)
    return "".join(
        c for c in kept if c in "\n\t" or (unicodedata.category(c) not in ("Cc", "Cs") and c not in _TURNS_AROUND)
    )


def lines(preview: Preview) -> Iterator[str]:
    """What of the data set is left out, in sentences."""
    for reason, count in preview.left_out.items():
        yield f"{count:,} not trained: {reason}."
