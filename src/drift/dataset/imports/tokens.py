"""Logged conversations to trajectories, with the chat template of the model to be trained."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drift.chat import TemplateChat
from drift.dataset.imports.base import BadRow, Logged
from drift.errors import PolicyError
from drift.types import Completion, Message, Step, Trajectory, Turn

_THINK = re.compile(r"\s*<think>\s*(.*?)\s*</think>\s*(.*)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Target:
    """The model that conversations are written down for.

    Attributes:
        chat: its template and tokenizer.
        end_ids: every id that ends a reply.
        end_id: the one that ends a reply after which the template says nothing.
        max_length: the most tokens a prompt and its reply may hold, where there is a limit.
        fingerprint: of the model.
    """

    chat: TemplateChat
    end_ids: frozenset[int]
    end_id: int
    max_length: int | None
    fingerprint: str


def to_trajectory(
    logged: Logged, *, group_id: str, sample: int, target: Target, line: int
) -> tuple[Trajectory, tuple[str, ...]]:
    """The trajectory of a logged conversation, and what must be counted of how the template takes it.

    Each reply becomes a turn, whose ids are those of the template's own text of the conversation up to it
    (``TemplateChat.logged``)::

        prompt_ids + token_ids = ids of the template's text, up to the id that ends the reply

    A reply that was cut off has no such id. Nothing was sampled: there are no log-probabilities, and the seed is 0.
    Where later replies are too long for the model, those before them are kept, and the reward of the conversation is
    that of the last one kept.

    Raises:
        BadRow: the template refuses the conversation, has no place for its tools or rewrites a reply, or no reply fits.
    """
    messages, remarks = _for_template(logged, target.chat)
    places = logged.reply_places
    rendered: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for turn, at in enumerate(places):
        cut_off = bool(logged.cut_off) and logged.cut_off[turn]
        following = messages[at + 1] if at + 1 < len(messages) else None
        try:
            prompt, ids = target.chat.logged(
                messages[: at + 1], following, target.end_ids, cut_off=cut_off, tools=logged.tools
            )
        except PolicyError as error:
            raise BadRow("template_refuses", str(error)) from error
        if target.max_length is not None and len(prompt) + len(ids) > target.max_length:
            if not any(logged.loss_weights[:turn] or (1.0,) * turn):
                raise BadRow(
                    "too_long",
                    f"{len(prompt) + len(ids)} tokens up to reply {turn + 1} of {len(places)}, "
                    f"expected at most {target.max_length}",
                )
            remarks.append("too_long")
            break
        rendered.append((prompt, ids))
    origin = {
        "line": line,
        **({"id": logged.id} if logged.id else {}),
        **({"part": logged.part} if logged.part else {}),
    }
    trajectory = Trajectory(
        id=f"{group_id}#{sample}",
        task_id=group_id,
        group_id=group_id,
        sample=sample,
        policy=target.fingerprint,
        seed=0,
        messages=_plain(messages),
        turns=_turns(logged, messages, rendered, origin),
        stop_reason="success" if logged.success else "turns",
        tools=logged.tools,
    )
    return trajectory, tuple(remarks)


def _turns(
    logged: Logged,
    messages: Sequence[Message],
    rendered: Sequence[tuple[tuple[int, ...], tuple[int, ...]]],
    origin: Mapping[str, Any],
) -> tuple[Turn, ...]:
    turns: list[Turn] = []
    places, count = logged.reply_places, len(rendered)
    for turn, (prompt, ids) in enumerate(rendered):
        at, last = places[turn], turn == count - 1
        cut_off = bool(logged.cut_off) and logged.cut_off[turn]
        step = Step(
            messages=_plain(messages[at + 1 : None if last else places[turn + 1]]),
            # What replies that don't fit earned was earned by the conversation.
            reward=sum(logged.rewards[turn:]) if last else logged.rewards[turn],
            done=last,
            success=logged.success if last else False,
            answer=logged.answers[turn],
            info={**(logged.info[turn] if logged.info else {}), **(origin if last else {})},
            graded=bool(logged.graded) and logged.graded[turn],
        )
        completion = Completion(
            text=messages[at]["content"],
            token_ids=ids,
            logprobs=None,
            finish_reason="length" if cut_off else "stop",
            thinking=messages[at].get("reasoning_content", ""),
        )
        weight = logged.loss_weights[turn] if logged.loss_weights else 1.0
        turns.append(Turn(prompt_ids=prompt, completion=completion, step=step, loss_weight=weight))
    return tuple(turns)


def _for_template(logged: Logged, chat: TemplateChat) -> tuple[list[Message], list[str]]:
    """The messages as the template takes them: thoughts where it has a place for them, and tools only if it has."""
    has_calls = any("tool_calls" in message for message in logged.messages)
    if (logged.tools and not chat.takes_tools) or (has_calls and not chat.takes_calls):
        what = "the list of tools" if logged.tools and not chat.takes_tools else "calls of tools"
        raise BadRow("template_lacks_tools", f"the chat template has no place for {what}. Train a model that has one")
    messages: list[Message] = []
    remarks: list[str] = []
    for message in logged.messages:
        inside = _THINK.fullmatch(message["content"]) if message["role"] == "assistant" else None
        if inside and chat.takes_thinking and "reasoning_content" not in message:
            message = {**message, "reasoning_content": inside[1], "content": inside[2]}
        elif "reasoning_content" in message and not chat.takes_thinking:
            remarks = ["reasoning_left_out"]
        messages.append(message)
    return messages, remarks


def _plain(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Messages as records have them: without the thinking, which their turns have."""
    return tuple({key: each[key] for key in each if key != "reasoning_content"} for each in messages)  # type: ignore[literal-required, misc]
