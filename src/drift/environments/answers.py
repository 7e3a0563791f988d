"""Reading an answer out of a reply, and the episode that ends with the right one."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

from drift.types import Message, Step
from drift.verifiers.base import Verification, judged, unparseable

# A tag within the answer ends the attempt, so that a reply of open tags alone is read in linear time.
_ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL | re.IGNORECASE)
# At most 18 digits: beyond that no task here has an answer, and int() on a million digits is an attack.
_WHOLE = re.compile(r"([+-]?)\s*(\d{1,3}(?:,\d{3}){1,5}|\d{1,18})(?:\.0*)?")


def extract_answer(reply: str) -> str | None:
    """The text of the last ``<answer>…</answer>`` in ``reply``, stripped; ``None`` if there is none."""
    answers = _ANSWER.findall(reply)
    return answers[-1].strip() if answers else None


def parse_whole_number(text: str) -> int | None:
    """The integer that ``text`` is, allowing a sign, thousands separators and ``.0``; ``None`` if it is not one."""
    match = _WHOLE.fullmatch(text.strip().replace("\u2212", "-"))
    if match is None:
        return None
    sign, digits = match.groups()
    return int(sign + digits.replace(",", ""))


def check_whole_number(reply: str, right: Callable[[int], bool]) -> Verification:
    """Whether ``right`` holds of the whole number that ``reply`` gives as its tagged answer."""
    text = extract_answer(reply)
    number = None if text is None else parse_whole_number(text)
    return unparseable("") if number is None else judged(right(number), str(number))


class AnswerEpisode:
    """A conversation that ends with the first right answer, or after ``max_turns`` replies (method.md, section 1).

    Args:
        opening: the question, said as the user.
        max_turns: T, the most replies.
        check: judges a reply.
        feedback: what is said to an answer that is not right; ``None`` stands for a reply without a readable one.
    """

    def __init__(
        self,
        opening: str,
        max_turns: int,
        check: Callable[[str], Awaitable[Verification]],
        feedback: Callable[[str | None], str],
    ) -> None:
        self._opening, self._max_turns = opening, max_turns
        self._check, self._feedback = check, feedback
        self._turn = 0

    def opening(self) -> list[Message]:
        """The question, as one user message."""
        return [{"role": "user", "content": self._opening}]

    async def step(self, reply: str) -> Step:
        """Reward 1 for the right answer, else 0."""
        self._turn += 1
        checked = await self._check(reply)
        done = checked.right or self._turn >= self._max_turns
        return Step(
            messages=() if done else ({"role": "user", "content": self._feedback(checked.answer)},),
            reward=float(checked.right),
            done=done,
            success=checked.right,
            answer=checked.answer,
            info={"reason": checked.reason} if checked.reason else {},
        )
