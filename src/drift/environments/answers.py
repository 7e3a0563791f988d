"""Reading an answer out of a reply, and the episode that ends with the right one."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence

from drift.errors import require
from drift.types import Message, Step
from drift.verifiers.base import Verification, judged, unparseable
from drift.verifiers.expressions import core
from drift.verifiers.reading import read, spoken, tagged

# At most 18 digits: beyond that no task here has an answer, and int() on a million digits is an attack.
_WHOLE = re.compile(r"([+-]?)\s*(\d{1,3}(?:,\d{3}){1,5}|\d{1,18})(?:\.0*)?")


def extract_answer(reply: str) -> str | None:
    """The text of the last filled answer tag after the thinking, stripped; ``None`` if there is none."""
    return tagged(spoken(reply))


def parse_whole_number(text: str) -> int | None:
    """The integer that ``text`` is, allowing a sign, thousands separators and ``.0``; ``None`` if it is not one."""
    match = _WHOLE.fullmatch(text.strip().replace("\u2212", "-"))
    if match is None:
        return None
    sign, digits = match.groups()
    return int(sign + digits.replace(",", ""))


def check_whole_number(reply: str, right: Callable[[int], bool]) -> Verification:
    """Whether ``right`` holds of the whole number that ``reply`` gives as its answer (``drift.verifiers.reading``).

    A bare number is none: to give an answer as such is part of what ``arithmetic`` and ``guess`` ask for.
    """
    found = read(reply)
    found = None if found is not None and found.where == "alone" else found
    number = None if found is None else parse_whole_number(found.answer)
    if found is not None and number is None:
        number = parse_whole_number(core(found.answer))
    return unparseable("") if number is None else judged(right(number), str(number))


def filled(text: str, *, turn: int, turns: int, reward: float = 0.0) -> str:
    """``text`` with what stands in braces in it: ``{turn}``, the turn to come, ``{left}``, how many replies are left,
    and ``{reward}``, what the last reply earned.
    """
    values = {"{turn}": str(turn), "{left}": str(turns - turn + 1), "{reward}": f"{reward:g}"}
    return re.sub(r"\{(?:turn|left|reward)\}", lambda found: values[found.group()], text)


def require_texts(where: str, texts: str | Sequence[str]) -> None:
    """Raise ``ConfigError`` unless ``texts`` is one, or one for each turn."""
    each = (texts,) if isinstance(texts, str) else tuple(texts)
    require(bool(each) and all(isinstance(text, str) and text for text in each), where, texts, "a text, or some")


class AnswerEpisode:
    """A conversation that ends with the first right answer, or after ``max_turns`` replies (method.md, section 1).

    Args:
        opening: the question, said as the user, or all messages that come before the first reply.
        max_turns: T, the most replies.
        check: judges a reply.
        feedback: what is said to an answer that is not right; ``None`` stands for a reply without a readable one. Of
            several texts the first is said after the first reply, and so on, and the last ever after; what ``filled``
            knows is filled in.
    """

    def __init__(
        self,
        opening: str | Sequence[Message],
        max_turns: int,
        check: Callable[[str], Awaitable[Verification]],
        feedback: Callable[[str | None], str | Sequence[str]],
    ) -> None:
        self._opening: list[Message] = (
            [{"role": "user", "content": opening}] if isinstance(opening, str) else list(opening)
        )
        self._max_turns = max_turns
        self._check, self._feedback = check, feedback
        self._turn = 0

    def opening(self) -> list[Message]:
        """The question, and what comes before it."""
        return list(self._opening)

    async def step(self, reply: str) -> Step:
        """Reward 1 for the right answer, else 0."""
        self._turn += 1
        checked = await self._check(reply)
        done = checked.right or self._turn >= self._max_turns
        return Step(
            messages=() if done else ({"role": "user", "content": self._said(checked)},),
            reward=float(checked.right),
            done=done,
            success=checked.right,
            answer=checked.answer,
            info={"reason": checked.reason} if checked.reason else {},
        )

    def _said(self, checked: Verification) -> str:
        texts = self._feedback(checked.answer)
        text = texts if isinstance(texts, str) else texts[min(self._turn, len(texts)) - 1]
        return filled(text, turn=self._turn + 1, turns=self._max_turns, reward=float(checked.right))
