"""Rows for other trainers: pairs for DPO, single conversations for KTO, and with weights for plain fine-tuning.

Which pairs are made is decided by returns and sample numbers alone: within a set, candidates are ordered from the
highest return to the lowest, equals by sample, and the first is paired with the last, the second with the last but one,
and so on while the returns differ by more than the margin. So nothing is in two pairs, and the widest differences come
first.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from drift.exports.config import ExportConfig
from drift.exports.conversations import Conversation, Part, plain

Item = TypeVar("Item")
Row = dict[str, Any]


def opposite(items: Sequence[Item], values: Sequence[float], *, margin: float) -> list[tuple[Item, Item]]:
    """Best with worst, second best with second worst, … while the values differ by more than ``margin``.

    Args:
        items: candidates; of equal ones the earlier counts as better.
        values: one for each.
        margin: how much a pair's values must differ by, at least 0.
    """
    order = sorted(range(len(items)), key=lambda at: (-values[at], at))
    found = []
    for better, worse in zip(order[: len(order) // 2], reversed(order), strict=False):
        if not values[better] - values[worse] > margin:
            break
        found.append((items[better], items[worse]))
    return found


def whole_pairs(group: Sequence[Conversation], config: ExportConfig, counts: Counter[str]) -> Iterator[Row]:
    """``dpo``: whole conversations of one prompt, from the first reply to the last.

    Conversations of one prompt that opened differently are not compared.
    """
    for same in _by_history(group, [0] * len(group)):
        for better, worse in _chosen_pairs(same, config, counts):
            chosen, rejected = better.part(0, better.last), worse.part(0, worse.last)
            yield _row(better, 0, _about(better, worse, better.value, worse.value), chosen=chosen, rejected=rejected)


def final_pairs(group: Sequence[Conversation], config: ExportConfig, counts: Counter[str]) -> Iterator[Row]:
    """``dpo-final``: the last replies of two conversations, after the history of the better one.

    Under ``history: shared`` the worse one has that same history.
    """
    for same in _by_history(group, [each.last if config.history == "shared" else 0 for each in group]):
        for better, worse in _chosen_pairs(same, config, counts):
            chosen, rejected = better.part(better.last, better.last), worse.part(worse.last, worse.last)
            about = _about(better, worse, better.value, worse.value)
            yield _row(better, better.last, about, chosen=chosen, rejected=rejected)


def step_pairs(group: Sequence[Conversation], config: ExportConfig, counts: Counter[str]) -> Iterator[Row]:
    """``dpo-step``: distinct replies to one history, at every turn that conversations of the prompt share.

    A reply's value is the mean return of the conversations that went on from it: a Monte Carlo estimate of its worth,
    from as few as one conversation.
    """
    for turn in range(max(each.last for each in group) + 1):
        there = [each for each in group if each.last >= turn]
        for same in _by_history(there, [turn] * len(there)):
            replies: dict[str, list[Conversation]] = defaultdict(list)
            for conversation in same:
                replies[conversation.trajectory.turns[turn].completion.text].append(conversation)
            if len(replies) < 2:
                continue
            counts["histories"] += 1
            going_on = list(replies.values())
            values = [sum(c.value for c in each) / len(each) for each in going_on]
            pairs = opposite(list(zip(going_on, values, strict=True)), values, margin=config.margin)
            counts["histories_without_pair"] += not pairs
            for (better, high), (worse, low) in pairs[: config.pairs]:
                about = {
                    "group_id": better[0].trajectory.group_id,
                    "turn": turn + 1,
                    **_about(better[0], worse[0], high, low),
                    "chosen_count": len(better),
                    "rejected_count": len(worse),
                }
                chosen, rejected = better[0].part(turn, turn), worse[0].part(turn, turn)
                yield _row(better[0], turn, about, chosen=chosen, rejected=rejected)


def _chosen_pairs(
    same: Sequence[Conversation], config: ExportConfig, counts: Counter[str]
) -> Iterator[tuple[Conversation, Conversation]]:
    pairs = opposite(same, [conversation.value for conversation in same], margin=config.margin)
    counts["histories"] += 1
    counts["histories_without_pair"] += not pairs
    for better, worse in pairs[: config.pairs]:
        final = config.format == "dpo-final"
        if _said(better, final) == _said(worse, final):
            # The same words, better for when they were said or by luck: nothing to prefer them to.
            counts["same_replies"] += 1
            continue
        yield better, worse


def _by_history(group: Sequence[Conversation], turn_of: Sequence[int]) -> list[list[Conversation]]:
    """Conversations whose policy saw the same before the turn given for each: the same ids, or messages without ids."""
    found: dict[object, list[Conversation]] = defaultdict(list)
    for conversation, turn in zip(group, turn_of, strict=True):
        said = tuple((message["role"], message["content"]) for message in conversation.history(turn))
        found[said, conversation.history_ids(turn)].append(conversation)
    return list(found.values())


def _said(conversation: Conversation, final: bool) -> list[str]:
    turns = conversation.trajectory.turns
    return [turn.completion.text for turn in (turns[-1:] if final else turns)]


def _about(better: Conversation, worse: Conversation, high: float, low: float) -> Row:
    return {
        "group_id": better.trajectory.group_id,
        "chosen_id": better.trajectory.id,
        "rejected_id": worse.trajectory.id,
        "chosen_return": high,
        "rejected_return": low,
    }


def _row(source: Conversation, turn: int, about: Row, **parts: Part) -> Row:
    """What follows the history of ``source`` before ``turn``, part by part, with the ids where there are any."""
    said = {name: plain(part.messages) for name, part in parts.items()}
    row: Row = {"prompt": plain(source.history(turn)), **said, **about}
    if all(part.token_ids is not None for part in parts.values()):
        row["sampled_ids"] = {"prompt": list(source.history_ids(turn))}
        for name, part in parts.items():
            row["sampled_ids"] |= {name: part.token_ids, f"{name}_mask": part.mask}
    return row


def labelled(group: Sequence[Conversation], config: ExportConfig, counts: Counter[str]) -> Iterator[Row]:
    """``kto``: each conversation from its first reply to its last, and whether it is a good one."""
    for conversation in group:
        good = conversation.trajectory.success if config.threshold is None else conversation.value > config.threshold
        if good is None:
            counts["unlabelled"] += 1
            continue
        counts["good" if good else "bad"] += 1
        about = {
            "label": good,
            "group_id": conversation.trajectory.group_id,
            "completion_id": conversation.trajectory.id,
            "completion_return": conversation.value,
        }
        yield _row(conversation, 0, about, completion=conversation.part(0, conversation.last))


def weighted(group: Sequence[Conversation], config: ExportConfig, counts: Counter[str]) -> Iterator[Row]:
    """``sft`` and ``sft-sharegpt``: each conversation that has a positive weight, with a ``weight`` for each reply.

    Negative weights are 0 here, and counted: no trainer of plain fine-tuning pushes away. What follows the last reply
    that weighs something is left out.
    """
    for conversation in group:
        kept = [max(weight, 0.0) for weight in conversation.weights]
        counts["replies_below_zero"] += sum(weight < 0 for weight in conversation.weights)
        last = max((turn for turn, weight in enumerate(kept) if weight > 0), default=-1)
        if last < 0:
            counts["without_weight"] += 1
            continue
        source = conversation.trajectory
        messages = plain([*conversation.history(0), *conversation.part(0, last).messages])
        # What the opening holds of an assistant's was never sampled, and is not trained.
        for message in messages:
            message |= {"weight": 0.0} if message["role"] == "assistant" else {}
        for turn in range(last + 1):
            message = messages[conversation.reply_at[turn]]
            message["weight"] = kept[turn]
            thought = source.turns[turn].completion.thinking
            message |= {"reasoning_content": thought} if thought else {}
        reward = sum(turn.step.reward for turn in source.turns)
        about: Row = {"weight": max(kept), "id": source.id, "group_id": source.group_id, "reward": reward}
        about |= {} if source.success is None else {"success": source.success}
        tools = list(source.tools)
        if config.format == "sft":
            yield {"messages": messages, **({"tools": tools} if tools else {}), **about}
        else:
            yield {**_sharegpt(messages), **({"tools": json.dumps(tools)} if tools else {}), **about}


def _sharegpt(messages: Sequence[Row]) -> Row:
    """Messages as LLaMA-Factory has them: the system beside them, calls as JSON, thinking within the text."""
    names = {"user": "human", "assistant": "gpt", "tool": "observation", "developer": "system"}
    said, system = [], ""
    for message in messages:
        if message["role"] in ("system", "developer"):
            system = "\n\n".join(filter(None, [system, message["content"]]))
            continue
        thought = message.get("reasoning_content")
        one = {
            "from": "function_call" if message.get("tool_calls") else names[message["role"]],
            "value": (f"<think>\n{thought}\n</think>\n\n" if thought else "") + message["content"],
        }
        if message.get("tool_calls"):
            one["value"] = json.dumps([call["function"] for call in message["tool_calls"]])
        said.append({**one, **({"weight": message["weight"]} if "weight" in message else {})})
    return {"conversations": said, **({"system": system} if system else {})}
