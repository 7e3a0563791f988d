"""Logged conversations to trajectories, with the chat template of the model to be trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drift.chat import TemplateChat
from drift.dataset.imports.base import BadRow, Logged
from drift.errors import PolicyError
from drift.types import Completion, Message, Step, Trajectory, Turn


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


def to_trajectory(logged: Logged, *, group_id: str, sample: int, target: Target, line: int) -> Trajectory:
    """The trajectory of a logged conversation.

    Each assistant message becomes a turn, whose ids are those of the template's own text of the conversation up to it
    (``TemplateChat.logged``)::

        prompt_ids + token_ids = ids of the template's text, up to the id that ends the reply

    A reply that was cut off has no such id. Nothing was sampled: there are no log-probabilities, and the seed is 0.

    Raises:
        BadRow: the template refuses the conversation or rewrites a reply, or it is too long for the model.
    """
    return Trajectory(
        id=f"{group_id}#{sample}",
        task_id=group_id,
        group_id=group_id,
        sample=sample,
        policy=target.fingerprint,
        seed=0,
        messages=_plain(logged.messages),
        turns=_turns(logged, {"line": line, **({"id": logged.id} if logged.id else {})}, target),
        stop_reason="success" if logged.success else "turns",
    )


def _turns(logged: Logged, origin: Mapping[str, Any], target: Target) -> tuple[Turn, ...]:
    messages = logged.messages
    spoken = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    turns: list[Turn] = []
    for turn, at in enumerate(spoken):
        last = turn == len(spoken) - 1
        cut_off = bool(logged.cut_off) and logged.cut_off[turn]
        following = messages[at + 1] if at + 1 < len(messages) else None
        try:
            prompt, ids = target.chat.logged(messages[: at + 1], following, target.end_ids, cut_off=cut_off)
        except PolicyError as error:
            raise BadRow("template_refuses", str(error)) from error
        if target.max_length is not None and len(prompt) + len(ids) > target.max_length:
            raise BadRow(
                "too_long",
                f"{len(prompt) + len(ids)} tokens up to reply {turn + 1} of {len(spoken)}, "
                f"expected at most {target.max_length}",
            )
        step = Step(
            messages=_plain(messages[at + 1 : None if last else spoken[turn + 1]]),
            reward=logged.rewards[turn],
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
        turns.append(Turn(prompt_ids=prompt, completion=completion, step=step))
    return tuple(turns)


def _plain(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Messages as records have them: without the thinking, which their turns have."""
    return tuple({"role": message["role"], "content": message["content"]} for message in messages)


def opening_hash(logged: Logged) -> str:
    """Hash of the messages before the first reply: conversations that open alike answer one prompt."""
    first = next(at for at, message in enumerate(logged.messages) if message["role"] == "assistant")
    opening = [[message["role"], message["content"]] for message in logged.messages[:first]]
    return hashlib.sha256(json.dumps(opening).encode()).hexdigest()[:16]
