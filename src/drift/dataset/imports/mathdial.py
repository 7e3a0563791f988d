"""``mathdial``: tutoring conversations of MathDial (CC BY-SA 4.0, github.com/eth-nlped/mathdial)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from drift.dataset.imports.base import BadRow, Logged, name_of, on_last, replies, show, text
from drift.dataset.imports.messages import chat_messages
from drift.types import Message

# self-correctness, the teacher's own word on whether the student got it right in the end: reward, and success.
OUTCOMES: dict[str, tuple[float, bool]] = {
    "Yes": (1.0, True),
    "Yes, but I had to reveal the answer": (0.5, False),
    "No": (0.0, False),
}
_TEACHER = re.compile(r"Teacher:\s*(?:\((\w+)\))?\s*(.*)", re.DOTALL)
_STUDENT = re.compile(r"(\w[\w' -]*):\s*(.*)", re.DOTALL)


def mathdial(row: Mapping[str, Any]) -> Logged:
    """``{qid, question, student_incorrect_solution, student_profile, self-correctness, conversation}``.

    The teacher is the assistant, because it is the tutor that Refit and Swift train. Every conversation opens with the
    teacher, so the student's part opens it here: the problem and the solution that the student believes in. Who
    teaches is not told the right solution. What one speaker says twice in a row is one message; the teacher's move
    (``focus``, ``probing``, ``telling``, ``generic``) goes to the turn's ``info``. Conversations about one question
    share a group.
    """
    opening = f"{text(row.get('question'), 'question')}\n\nMy solution:\n" + text(
        row.get("student_incorrect_solution"), "student_incorrect_solution"
    )
    messages: list[Message] = [{"role": "user", "content": opening}]
    moves: list[list[str]] = []
    profile = row.get("student_profile")
    student = profile.split(maxsplit=1)[0] if isinstance(profile, str) and profile.strip() else "Student"
    for at, said in enumerate(text(row.get("conversation"), "conversation").split("|EOM|")):
        role, move, words = _utterance(said, student, f"conversation[{at}]")
        last = messages[-1]
        if last["role"] == role:
            last["content"] = "\n".join(filter(None, (last["content"], words)))
        else:
            messages.append({"role": role, "content": words})
            moves += [[]] if role == "assistant" else []
        if role == "assistant" and move:
            moves[-1].append(move)
    outcome = row.get("self-correctness")
    if outcome is None:
        raise BadRow("reward_missing", f"self-correctness: nothing there, expected one of {', '.join(OUTCOMES)}")
    if not isinstance(outcome, str) or outcome not in OUTCOMES:
        raise BadRow("reward_not_a_number", f"self-correctness: got {show(outcome)}, expected {', '.join(OUTCOMES)}")
    reward, success = OUTCOMES[outcome]
    found = chat_messages(messages)
    return Logged(
        messages=found,
        rewards=on_last(reward, replies(found)),
        success=success,
        answers=(None,) * replies(found),
        group_id=name_of(row.get("qid"), "qid"),
        info=tuple({"moves": given} for given in moves),
    )


def _utterance(said: str, student: str, where: str) -> tuple[Any, str | None, str]:
    """Who speaks, the teacher's move, and what is said."""
    teacher = _TEACHER.fullmatch(said.strip())
    if teacher:
        return "assistant", teacher[1], teacher[2]
    other = _STUDENT.fullmatch(said.strip())
    if other and other[1] in ("Student", student):
        return "user", None, other[2]
    raise BadRow("unknown_role", f"{where}: got {show(said)}, expected Teacher:, Student: or {student}:")
