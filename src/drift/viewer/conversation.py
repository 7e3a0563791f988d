"""One conversation as a person reads it: who said what, what was read from it, what it earned and what it weighs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drift.dataset.schema import from_row
from drift.errors import DatasetError
from drift.reporting.preview import turns_of, why_not, why_zero
from drift.types import Message, Trajectory, Turn
from drift.verifiers.reading import read
from drift.viewer.choose import read_rows
from drift.viewer.library import Found
from drift.viewer.tokens import Piece, pieces

# Where shades of improbable tokens begin, in nats.
SHADES = (0.1, 0.35, 0.7, 1.2, 2.0, 3.5, 5.5)
STRENGTHS = 5


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What is known of one reply.

    Attributes:
        number: which it is, from 1.
        verdict: right, wrong, no answer read, not asked or not judged.
        answer: in normalised form; ``None`` if none was read.
        where: the place in the reply that it was read from (``drift.verifiers.reading``); empty if none.
        reward: the environment's own.
        weight: what its tokens weigh in training; ``None`` without weights.
        why: why it weighs nothing; empty where it weighs something.
        strength: -5 to 5, its weight beside the largest of all.
        finish_reason: why it ended.
        tokens: how many; ``None`` where that is not known.
        logprob: the mean of their log-probabilities in nats; ``None`` where they are not known.
        info: what else the environment noted, as JSON; empty if nothing.
        pieces: its text by tokens; empty without a tokenizer.
    """

    number: int
    verdict: str
    answer: str | None
    where: str
    reward: float
    weight: float | None
    why: str
    strength: int
    finish_reason: str
    tokens: int | None
    logprob: float | None
    info: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, kw_only=True)
class Said:
    """One message.

    Attributes:
        role: who says it.
        parts: its text, cut where the answer begins and ends that was read from it: one part or three.
        thinking: what was thought before; empty if nothing.
        calls: what it has beside text, as JSON: calls of tools, the name of a tool.
        judged: what is known of it as a reply; ``None`` of what no policy said.
    """

    role: str
    parts: tuple[str, ...]
    thinking: str = ""
    calls: str = ""
    judged: Judged | None = None


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """One conversation with its figures.

    Attributes:
        record: as it is stored.
        said: its messages.
        value: return, and weight of the largest ``|w|``; ``None`` without weights.
        why: why nothing of it is trained; empty if something is, or that is not known.
    """

    record: Trajectory
    said: tuple[Said, ...]
    value: tuple[float, float] | None
    why: str

    @property
    def reward(self) -> float:
        """What its replies earned together."""
        return sum(turn.step.reward for turn in self.record.turns)


def read_conversation(found: Found, at: int, tokenizer: Any | None = None) -> Conversation:
    """Conversation number ``at`` of ``found``; raises ``DatasetError`` where it can't be read."""
    return next(read_conversations(found, [at], tokenizer))


def read_conversations(found: Found, places: Sequence[int], tokenizer: Any | None = None) -> Iterator[Conversation]:
    """Conversations of ``found`` by their numbers; raises ``DatasetError`` where one can't be read."""
    rows = read_rows(found.columns, places)
    for at in places:
        if at not in rows:
            raise DatasetError(f"conversation {at} of {found.data.name} can't be read: its shard is damaged or gone.")
        yield _conversation(found, at, rows[at], tokenizer)


def _conversation(found: Found, at: int, row: dict[str, Any], tokenizer: Any | None) -> Conversation:
    weights = found.weighed.of(at) if found.weighed else None
    try:
        record = from_row(row)
        said = tuple(_said(record, weights, found, tokenizer))
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise DatasetError(
            f"conversation {row['id']!r} of {found.data.name} is not as drift writes them ({error}): its messages "
            "don't hold its turns, or something is missing. Make the data set again."
        ) from error
    why = why_not(record, weights, None) if found.weighed else ""
    value = (float(found.weighed.return_N[at]), float(found.weighed.weight_N[at])) if found.weighed else None
    return Conversation(record=record, said=said, value=None if value and math.isnan(value[0]) else value, why=why)


def _said(record: Trajectory, weights: Sequence[float] | None, found: Found, tokenizer: Any) -> Iterator[Said]:
    settings = found.data.manifest["spec"].get("environment", {}).get("settings", {})
    strict, fallback = settings.get("strict") is True, str(settings.get("fallback", ""))
    at = len(record.messages) - sum(1 + len(turn.step.messages) for turn in record.turns)
    yield from map(_message, record.messages[:at])
    for number, turn in enumerate(record.turns):
        reply = turn.completion
        place = read(reply.text, strict=strict, fallback=fallback) if turn.step.answer is not None else None
        head, answer, tail = reply.text.rpartition(place.answer) if place and place.answer else (reply.text, "", "")
        yield Said(
            role="assistant",
            parts=(head, answer, tail) if answer else (reply.text,),
            thinking=reply.thinking,
            calls=_calls(record.messages[at]),
            judged=_judged(
                number, turn, place.where if place else "", _weight(record, weights, number, found), tokenizer
            ),
        )
        yield from map(_message, turn.step.messages)
        at += 1 + len(turn.step.messages)


def _weight(
    record: Trajectory, weights: Sequence[float] | None, number: int, found: Found
) -> tuple[float | None, str, int]:
    """Weight, why it is zero, strength."""
    if found.weighed is None or found.weights is None:
        return None, "", 0
    weight = weights[number] if weights is not None and number < len(weights) else 0.0
    why = (
        ""
        if weight or weights is None or not any(weights)
        else why_zero(record, number, turns_of(found.weights.manifest))
    )
    share = abs(weight) / found.weighed.largest if found.weighed.largest else 0.0
    return weight, why, int(math.copysign(math.ceil(STRENGTHS * share), weight))


def _judged(
    number: int, turn: Turn, where: str, weight: tuple[float | None, str, int], tokenizer: Any | None
) -> Judged:
    reply, step = turn.completion, turn.step
    if not step.graded:
        verdict = "not asked"
    elif step.success is None:
        verdict = "not judged"
    elif step.success:
        verdict = "right"
    else:
        verdict = "no answer read" if step.answer is None else "wrong"
    split = tuple(pieces(tokenizer, reply.token_ids, reply.logprobs)) if tokenizer is not None else ()
    # Another model's tokenizer would show what nobody said.
    split = split if reply.text.strip() in "".join(piece.text for piece in split) else ()
    return Judged(
        number=number + 1,
        verdict=verdict,
        answer=step.answer,
        where=where,
        reward=step.reward,
        weight=weight[0],
        why=weight[1],
        strength=weight[2],
        finish_reason=reply.finish_reason,
        tokens=len(reply.token_ids) or None,
        logprob=sum(reply.logprobs) / len(reply.logprobs) if reply.logprobs else None,
        info=json.dumps(dict(step.info), ensure_ascii=False) if step.info else "",
        pieces=split,
    )


def _message(message: Message) -> Said:
    return Said(role=message["role"], parts=(message["content"],), calls=_calls(message))


def _calls(message: Mapping[str, Any]) -> str:
    more = {key: value for key, value in message.items() if key not in ("role", "content")}
    return json.dumps(more, ensure_ascii=False, indent=1) if more else ""


def shade(piece: Piece) -> int:
    """How improbable a piece was, from 0 to 7."""
    return 0 if piece.logprob is None else sum(-piece.logprob >= least for least in SHADES)
