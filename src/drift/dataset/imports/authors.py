"""``drift``: the rollouts that the DRIFT authors' published code writes, one object per trajectory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drift.dataset.imports.base import BadRow, Logged, name_of, replies, show
from drift.dataset.imports.columns import Columns
from drift.dataset.imports.messages import chat_messages


def authors(row: Mapping[str, Any]) -> Logged:
    """``{prompt_id, messages, turn_rewards: {t1, t2, …}, t_star, answer_norms?, reward_details?}``.

    ``turn_rewards`` goes on to the most turns a conversation could have had; those after its last reply are padding.
    ``t_star`` is the turn that solved the task, null if none did. ``answer_norms`` lists the answers that could be
    read, over all turns; ``reward_details.tN.actions`` says which turn each came from. A turn with several answers is
    known by its last. ``format_penalty`` is left out: weigh with ``--format_failure`` instead, which counts the
    replies without an answer.
    """
    found = chat_messages(row.get("messages"))
    count = replies(found)
    rewards = row.get("turn_rewards")
    if not isinstance(rewards, Mapping):
        raise BadRow("reward_missing", f"turn_rewards: got {show(rewards)}, expected an object with t1, t2, …")
    late = [key for key in rewards if key not in _turns(count) and rewards[key]]
    if late:
        raise BadRow("turn_mismatch", f"turn_rewards: {show(late)} is not 0, and there are {count} replies")
    return Logged(
        messages=found,
        rewards=tuple(Columns().number(rewards.get(turn), f"turn_rewards.{turn}") for turn in _turns(count)),
        success=_success(row, count),
        answers=_answers(row, count),
        graded=(True,) * count,
        group_id=name_of(row.get("prompt_id"), "prompt_id"),
    )


def _turns(count: int) -> list[str]:
    return [f"t{turn}" for turn in range(1, count + 1)]


def _success(row: Mapping[str, Any], count: int) -> bool:
    solved = row.get("t_star")
    if solved is not None and (isinstance(solved, bool) or solved != count):
        raise BadRow("turn_mismatch", f"t_star: got {show(solved)}, expected null or the last reply's turn, {count}")
    return solved is not None


def _answers(row: Mapping[str, Any], count: int) -> tuple[str | None, ...]:
    given = row.get("answer_norms")
    if given is None:
        return (None,) * count
    if not isinstance(given, list | tuple) or not all(answer is None or isinstance(answer, str) for answer in given):
        raise BadRow("bad_field", f"answer_norms: got {show(given)}, expected a list of texts")
    details = row.get("reward_details")
    if not isinstance(details, Mapping):
        if len(given) != count:
            raise BadRow(
                "turn_mismatch",
                f"answer_norms: {len(given)} for {count} replies, and no reward_details to say whose they are",
            )
        return tuple(answer or None for answer in given)
    answers: list[str | None] = []
    at = 0
    for turn in _turns(count):
        detail = details.get(turn)
        actions = detail.get("actions") if isinstance(detail, Mapping) else None
        end = at + (len(actions) if isinstance(actions, list | tuple) else 0)
        own = [answer for answer in given[at:end] if answer]
        answers.append(own[-1] if own else None)
        at = end
    if at != len(given):
        raise BadRow("turn_mismatch", f"answer_norms: {len(given)}, and reward_details tells of {at}")
    return tuple(answers)
