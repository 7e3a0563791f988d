"""Numbers as people and models write them, compared exactly or within a tolerance."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

from drift.errors import require
from drift.verifiers.base import Verification, judged, unparseable
from drift.verifiers.numbers import MAX_CHARACTERS, Quantity, clean, read_quantity, same_unit, show

Percent = Literal["either", "exact"]
Units = Literal["match", "ignore"]
_LIST = re.compile(r"\[(.*)\]|\((.*)\)|\{(.*)\}", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Numeric:
    """Right if the numbers are equal; a gold written as a list is compared number by number, in order.

    A gold written as a whole number or a fraction of two is compared exactly, any other one within
    ``|answer − gold| ≤ max(absolute, relative·|gold|)``, in exact rational arithmetic.

    Args:
        absolute: tolerance in the unit of the gold.
        relative: tolerance as a share of the gold.
        integers_exact: compare whole numbers and fractions exactly, whatever the tolerances.
        percent: what 50% is: ``exact``, 0.5 and nothing else; or ``either``, 0.5 or 50 where only one of the two
            sides has a percent sign.
        units: ``match``, wrong if both have a unit and the units differ (none is converted); or ``ignore``.
    """

    absolute: float = 0.0
    relative: float = 1e-3
    integers_exact: bool = True
    percent: Percent = "either"
    units: Units = "match"

    def __post_init__(self) -> None:
        for name in ("absolute", "relative"):
            value = getattr(self, name)
            require(0 <= value < float("inf"), f"verifier.settings.{name}", value, "a finite number ≥ 0")
        require(self.percent in get_args(Percent), "verifier.settings.percent", self.percent, "either or exact")
        require(self.units in get_args(Units), "verifier.settings.units", self.units, "match or ignore")

    def verify(self, reply: str, gold: str) -> Verification:
        """Check ``reply``, the text of an answer, against ``gold``."""
        expected, listed = _read(gold)
        require(expected is not None, "gold", gold[:80], "a number, or a list of numbers in brackets")
        assert expected is not None
        if len(reply) > MAX_CHARACTERS:
            return unparseable("length")
        found = _read(reply)[0] if listed else _read_one(reply)
        if found is None:
            return unparseable("not a number")
        correct = len(found) == len(expected) and all(map(self._same, found, expected))
        answer = ", ".join(map(show, found))
        return judged(correct, f"[{answer}]" if listed else answer)

    async def verify_async(self, reply: str, gold: str) -> Verification:
        """The same; it takes microseconds."""
        return self.verify(reply, gold)

    def _same(self, answer: Quantity, gold: Quantity) -> bool:
        if self.units == "match" and not same_unit(answer.unit, gold.unit):
            return False
        if self._close(answer.value, gold.value, gold.whole):
            return True
        if self.percent == "either" and answer.percent != gold.percent:
            bare = [side.value * 100 if side.percent else side.value for side in (answer, gold)]
            return self._close(bare[0], bare[1], gold.whole)
        return False

    def _close(self, answer: Fraction, gold: Fraction, whole: bool) -> bool:
        if answer == gold or (whole and self.integers_exact):
            return answer == gold
        return abs(answer - gold) <= max(Fraction(self.absolute), Fraction(self.relative) * abs(gold))


def _read_one(text: str) -> list[Quantity] | None:
    quantity = read_quantity(text)
    return None if quantity is None else [quantity]


def _read(text: str) -> tuple[list[Quantity] | None, bool]:
    """The numbers of ``text`` and whether it is a list: in brackets, or commas between what is no single number."""
    if len(text) > MAX_CHARACTERS:
        return None, False
    single = _read_one(text)
    if single is not None:
        return single, False
    bare = clean(text).replace("\\", "")
    match = _LIST.fullmatch(bare)
    inner = bare if match is None else next(group for group in match.groups() if group is not None)
    numbers = [read_quantity(part) for part in re.split("[,;]", inner)]
    found = [number for number in numbers if number is not None]
    complete = len(found) == len(numbers)
    return (found, True) if complete and (match is not None or len(found) > 1) else (None, False)
