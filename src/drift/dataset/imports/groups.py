"""What rows of a log have to do with one another: prompts that they share, records that are there twice or grow."""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from drift.dataset.imports.base import OF_ITS_ROW, Logged, PassedOver, show

_THOUGHT = re.compile(r"\A\s*<think>.*?</think>\s*", re.DOTALL)


def opening_hash(logged: Logged) -> str:
    """Hash of what stands before the first reply: conversations that open alike answer one prompt."""
    opening: list[object] = [[each["role"], each["content"]] for each in logged.messages[: logged.reply_places[0]]]
    opening += [logged.tools] if logged.tools else []
    return hashlib.sha256(json.dumps(opening).encode()).hexdigest()[:16]


def group_of(logged: Logged, line: int) -> str:
    """The prompt that a conversation belongs to: as its log says, or by its opening."""
    if logged.group_id is None:
        return opening_hash(logged)
    return logged.group_id.replace(OF_ITS_ROW, f"row-{line}")


def digests_of(logged: Logged, *, whole: bool = True) -> list[int]:
    """64-bit hashes of the conversation up to each of its replies, with the weights of their loss.

    The last one is of all that was said in it. ``whole`` counts what clients do not send back: what was thought, and
    that a reply was cut off.
    """
    running = hashlib.blake2b(json.dumps(logged.tools).encode(), digest_size=8)
    places = logged.reply_places
    weights = dict(zip(places, logged.loss_weights or (1.0,) * len(places), strict=True))
    cut_off = {at for at, cut in zip(places, logged.cut_off, strict=False) if cut and whole}
    found = []
    for at, each in enumerate(logged.messages):
        calls = [call["function"] for call in each.get("tool_calls", ())]
        thought = each.get("reasoning_content") if whole else None
        content = each["content"] if whole or at not in weights else _THOUGHT.sub("", each["content"], count=1)
        said = [each["role"], content, thought, calls, weights.get(at), at in cut_off]
        running.update(json.dumps(said, sort_keys=True).encode())
        if at in weights:
            found.append(int.from_bytes(running.digest()))
    return found


class Survey:
    """What a first pass over a log must know of all its rows, in 8 bytes for each reply, row, name and group."""

    def __init__(self) -> None:
        self._whole, self._inner, self._fuller, self._names, self._groups = (array("Q") for _ in range(5))
        self._seen: dict[int, set[int]] = {}

    def add(self, logged: Logged, line: int) -> None:
        """Take in one conversation."""
        *inner, whole = digests_of(logged)
        self._whole.append(whole)
        self._inner.extend(inner if logged.grows else ())
        sent_back = digests_of(logged, whole=False)[-1]
        self._fuller.extend([sent_back] if sent_back != whole and logged.fault is None else ())
        if logged.id is not None:
            self._names.append(_hash(logged.id))
        self._groups.append(_hash(group_of(logged, line)))

    def finish(self) -> None:
        """Keep only what is there more than once."""
        self._folded = _common(self._whole, self._inner)
        self._told = _common(self._fuller, self._inner)
        self._repeated, self._shared_names, self._shared_groups = map(
            _repeated, (self._whole, self._names, self._groups)
        )
        self._whole, self._inner, self._fuller, self._names, self._groups = (array("Q") for _ in range(5))

    def is_shared(self, group: str) -> bool:
        """Whether more than one row is of this group."""
        return _hash(group) in self._shared_groups

    def settled(self, logged: Logged) -> tuple[Logged, tuple[str, ...]]:
        """A conversation that comes after others of the log, and what is to be counted of it.

        A reply that stands here as clients send them back, without its thought or that it was cut off, is not trained
        where its own row says so.

        Raises:
            PassedOver: another row holds it, or it is a record that was there before.
        """
        *inner, whole = digests_of(logged)
        remarks: list[str] = []
        if logged.grows and whole in self._folded:
            raise PassedOver("prefix_of_row", "another row goes on from where this one ends")
        name = None if logged.id is None else _hash(logged.id)
        if name in self._shared_names:
            record = hash((whole, logged.rewards))
            before = self._seen.setdefault(_hash(f"name {name}"), set())
            if record in before:
                raise PassedOver("duplicate_id", f"id: {show(logged.id)} is that of an earlier row with the same words")
            remarks += ["duplicate_id"] if before else []
            before.add(record)
        if whole in self._repeated:
            before = self._seen.setdefault(whole, set())
            remarks += ["duplicate"] if before else []
            before.add(0)
        told = [logged.grows and digest in self._told for digest in inner]
        if any(told):
            weights = logged.loss_weights or (1.0,) * (len(inner) + 1)
            weights = tuple(0.0 if other else weight for weight, other in zip(weights, [*told, False], strict=True))
            logged = replace(logged, loss_weights=weights)
            remarks.append("trained_elsewhere")
        return logged, tuple(remarks)


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())


def _repeated(hashes: array[int]) -> set[int]:
    values, counts = np.unique(np.frombuffer(hashes, np.uint64), return_counts=True)
    return set(values[counts > 1].tolist())


def _common(one: array[int], other: Iterable[int]) -> set[int]:
    return set(np.intersect1d(np.frombuffer(one, np.uint64), np.frombuffer(other, np.uint64)).tolist())  # type: ignore[call-overload]
