"""Simulated users who know the answer and don't reveal it: rules, or a model whose replies are checked for leaks.

A user by rule answers from a set of candidates that holds the right answer, without knowing which it is, and only where
the answer is the same for every candidate. So whatever is asked, every candidate stays as possible as it was: there are
at least two, and nothing that the user says depends on which one is right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from drift.environments.base import stable_unit
from drift.environments.mentions import last_question, numbers_named, options_named, plain
from drift.problems.base import LETTERS
from drift.verifiers.numeric import read_quantity

DECLINED = "No comment on that one."
ASK_ABOUT_ONE = "Please ask about one option, by its letter: perhaps it can be ruled out."
TOO_CLOSE = "That would give too much away."
ASK_A_PROPERTY = "Please ask whether the answer is above or below some number, or even, odd, negative or whole."
NOTHING_TO_ADD = "The question says all that is needed."


@dataclass(frozen=True, kw_only=True)
class ChoiceUser:
    """Rules out one named option per turn, unless it is a candidate.

    Args:
        options: the options' texts.
        candidates: indexes of those that are never ruled out.
    """

    options: tuple[str, ...]
    candidates: frozenset[int]

    def reply(self, message: str) -> str:
        """Whether the one option that is asked about can be ruled out, or that nothing is said about it."""
        named = options_named(last_question(message), self.options)
        if len(named) != 1:
            return ASK_ABOUT_ONE
        (at,) = named
        return DECLINED if at in self.candidates else f"Option {LETTERS[at]} can be ruled out."

    def names_candidate(self, message: str) -> bool:
        """Whether ``message`` names a candidate, so that any answer but the rule's could confirm or deny it."""
        return bool(options_named(message, self.options) & self.candidates)


_NUMBER = r"(-?\s?[0-9]{1,20}(?:,[0-9]{3}){0,6}(?:\.[0-9]{1,20})?)"
_MORE = re.compile(
    rf"(?:\b(?:greater|more|larger|bigger|higher)\s+than|\b(?:above|over|exceeds?|exceeding)|>)\s*\$?{_NUMBER}"
)
_LESS = re.compile(rf"(?:\b(?:less|smaller|fewer|lower)\s+than|\b(?:below|under)|<)\s*\$?{_NUMBER}")
_LEAST = re.compile(rf"(?:\bat\s+least|>=|≥)\s*\$?{_NUMBER}")
_MOST = re.compile(rf"(?:\bat\s+most|<=|≤)\s*\$?{_NUMBER}")
_IS = re.compile(
    rf"(?:\bis\s+(?:it|the\s+(?:final\s+)?answer|this|that)|\bequals?(?:\s+to)?|(?<![<>])=)\s*\$?{_NUMBER}"
)
_ANY = re.compile(_NUMBER)
_NOT = re.compile(r"\b(?:not|never|nor|neither)\b|n['’]t\b")


@dataclass(frozen=True, kw_only=True)
class NumberUser:
    """Says yes or no to a question about size, sign, parity or wholeness that has one answer for all candidates.

    Args:
        candidates: the numbers that stay possible whatever is asked; without any the user has nothing to say.
    """

    candidates: frozenset[Fraction]

    def reply(self, message: str) -> str:
        """Yes, no, that it would give too much away, or what can be asked."""
        if not self.candidates:
            return NOTHING_TO_ADD
        asked = plain(last_question(message)).casefold()
        if _NOT.search(asked):
            return ASK_A_PROPERTY
        answers = {_truth(asked, value) for value in self.candidates}
        if answers == {None}:
            return ASK_A_PROPERTY
        if len(answers) > 1:
            return TOO_CLOSE
        return "Yes." if answers == {True} else "No."

    def names_candidate(self, message: str) -> bool:
        """Whether a candidate's value is named."""
        return not numbers_named(message).isdisjoint(map(abs, self.candidates))


def _truth(asked: str, value: Fraction) -> bool | None:
    """Whether what is asked holds of ``value``; ``None`` if no one property is asked about."""
    answers: list[bool] = []
    comparisons = 0
    for pattern, holds in (
        (_MORE, value.__gt__),
        (_LESS, value.__lt__),
        (_LEAST, value.__ge__),
        (_MOST, value.__le__),
        (_IS, value.__eq__),
    ):
        for match in pattern.finditer(asked):
            comparisons += 1
            answers.append(bool(holds(Fraction(re.sub(r"[\s,]", "", match.group(1))))))
    if comparisons != len(_ANY.findall(asked)):
        return None
    whole = value.denominator == 1
    for word, true in (
        ("even", whole and value % 2 == 0),
        ("odd", whole and value % 2 == 1),
        ("negative", value < 0),
        ("positive", value > 0),
        ("whole|integer", whole),
    ):
        if re.search(rf"\b(?:{word})\b", asked):
            answers.append(true)
    return answers[0] if len(answers) == 1 else None


def rule_user(task_id: str, gold: str, options: Sequence[str], decoys: int) -> ChoiceUser | NumberUser:
    """The user for one problem. The candidates: the answer and ``decoys`` others that depend on the problem alone."""
    if options:
        right = LETTERS.index(gold)
        others = sorted(set(range(len(options))) - {right}, key=lambda at: stable_unit("decoy", task_id, at))
        return ChoiceUser(options=tuple(options), candidates=frozenset({right, *others[:decoys]}))
    value = number(gold)
    if value is None:
        return NumberUser(candidates=frozenset())
    # Even steps, so that the user can say whether a whole number is even.
    step = Fraction(max(2, 2 * round(abs(value) / 10))) if value.denominator == 1 else abs(value) / 5
    sides = [1 if stable_unit("decoy", task_id, at) < 0.5 else -1 for at in range(decoys)]
    return NumberUser(candidates=frozenset({value, *(value + side * at * step for at, side in enumerate(sides, 1))}))


def number(gold: str) -> Fraction | None:
    """The value of an answer that is one number, or ``None``."""
    quantity = read_quantity(gold)
    return None if quantity is None else quantity.value


_TRUTHS = frozenset({"true", "false", "yes", "no"})
_SAYING = re.compile(r"\b(?:true|false|yes|no|yeah|nope|correct|incorrect|right|wrong|indeed|affirmative|negative)\b")
_NOISE = re.compile(r"\\(?:left|right|text|mathrm|mathbf|boxed|dfrac|tfrac|frac|displaystyle)|[\s$\\{}()\[\]*_`]")


def leaks(reply: str, gold: str, options: Sequence[str], mentioned: frozenset[int] = frozenset()) -> bool:
    """Whether a reply gives the answer away, as far as its words and numbers show; in doubt it does.

    Args:
        reply: what the user would say.
        gold: the answer: an option's letter if there are options.
        options: the options' texts.
        mentioned: options that the user has spoken of before; with all wrong ones named, the right one is known.
    """
    if options:
        right = LETTERS.index(gold)
        named = options_named(reply, options)
        return right in named or len((named | mentioned) - {right}) >= len(options) - 1
    if gold.strip().casefold() in _TRUTHS:
        return _SAYING.search(plain(reply).casefold()) is not None
    value = number(gold)
    if value is not None:
        named_values = numbers_named(reply)
        scaled = {abs(value), abs(value) * 100, abs(value) / 100} if "%" in gold + reply else {abs(value)}
        return any(_near(one, other) for one in named_values for other in scaled)
    squeezed = _NOISE.sub("", plain(gold)).casefold()
    return bool(squeezed) and squeezed in _NOISE.sub("", plain(reply)).casefold()


def _near(one: Fraction, other: Fraction) -> bool:
    if one.denominator == other.denominator == 1:
        return one == other
    return abs(one - other) <= abs(other) / 1000
