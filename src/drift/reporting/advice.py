"""What a run's own figures say should be tried next, each with the figure that says so."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from drift.reporting.facts import Facts, warnings_of
from drift.reporting.sentences import sentences

# Shares from which something is worth a word.
_MANY_CUT_OFF, _MANY_UNREAD, _FEW_THAT_COUNT, _ALL = 0.1, 0.2, 0.05, 0.95


def loud_lines(facts: Facts) -> list[str]:
    """What makes all that follows worth little, such as that no conversation succeeded: what shouts in capitals."""
    told = [*warnings_of(facts), *facts.counted]
    told += sentences(facts.weights["diagnostics"]) if facts.weights else []
    return list(dict.fromkeys(line for line in told if re.search(r"[A-Z]{2,} [A-Z]{2,}", line)))


def next_steps(facts: Facts) -> list[str]:
    """What to try next, the most telling first; empty where the figures say nothing."""
    return [*_of_replies(facts), *_of_weights(facts), *_of_training(facts), *_of_result(facts)]


def _of_replies(facts: Facts) -> Iterator[str]:
    replies = (facts.rollouts or {}).get("replies", {})
    total = sum(replies.get(kind, 0) for kind in ("stop", "length", "content_filter", "tool_calls", "refusal"))
    if total and replies.get("length", 0) > _MANY_CUT_OFF * total:
        share = replies["length"] / total
        yield f"{share:.0%} of the replies ran out of tokens: raise sampling.max_new_tokens."
    if facts.evaluation:
        row = facts.rows.get((facts.policies[-1], f"{facts.measured['modes'][0]}/format_failures"))
        if row and row["value"] is not None and row["value"] > _MANY_UNREAD:
            yield (
                f"In {row['value']:.0%} of {facts.policies[-1]}'s replies no answer could be read: say in the prompt "
                "how to answer, give an example, and look with drift verify at what is read."
            )


def _of_weights(facts: Facts) -> Iterator[str]:
    if not facts.weights:
        if facts.rollouts and facts.rollouts["complete"]:
            yield "Conversations are there and no weights: drift weigh rollouts."
        return
    seen = facts.weights["diagnostics"]
    kept = seen["trajectories"] - seen["zero_weights"]
    if kept and seen["ess"] < _FEW_THAT_COUNT * seen["trajectories"]:
        yield (
            f"{kept:,} conversations count like {seen['ess']:,.0f} of equal weight: take a larger beta, or more "
            "samples for each prompt."
        )
    if seen["groups"] and seen["groups_without_success"] > seen["groups"] / 2 and seen["successes"]:
        yield (
            f"{seen['groups_without_success']:,} of {seen['groups']:,} prompts have no success: easier tasks, or more "
            "samples, would teach more for the same price."
        )


def _of_training(facts: Facts) -> Iterator[str]:
    held = [row for row in facts.held_out if row["nll"] is not None]
    best = min(held, key=lambda row: row["nll"])["step"] if held else None
    if best is not None and best < held[-1]["step"]:
        yield f"The held-out loss was lowest at step {best:g} and rose after it: take fewer steps, or more prompts."
        return
    losses = [row["loss"] for row in facts.curve if "loss" in row]
    if len(losses) >= 5 and losses[-1] < losses[0]:
        late = (losses[-2] - losses[-1]) / (losses[0] - losses[-1])
        if late > 1 / len(losses):
            yield f"The loss still fell at the end, by {losses[-2] - losses[-1]:.2g} a line: raise training.max_steps."
    if facts.kl and (limit := (facts.model or {}).get("kl_limit")) and limit.get("stopped_at"):
        at = limit["stopped_at"]
        yield f"Training went past kl_limit at step {at}: a smaller learning_rate gets further within it."


def _of_result(facts: Facts) -> Iterator[str]:
    if facts.evaluation is None:
        if facts.model and not facts.likelihood:
            yield "Nothing was measured: drift evaluate says on held-out tasks whether the model has become better."
        return
    base, last = facts.policies[0], facts.policies[-1]
    metric = f"{facts.measured['modes'][0]}/multi@{facts.measured['max_turns']}"
    row, difference = facts.rows.get((last, metric)), facts.rows.get((f"{last} - {base}", metric))
    if row is None or difference is None or difference["low"] is None or row["value"] is None:
        return
    yield from _of_difference(row, difference, last, base)


def _of_difference(row: Mapping[str, Any], difference: Mapping[str, Any], last: str, base: str) -> Iterator[str]:
    half = 50 * (difference["high"] - difference["low"])
    if difference["high"] < 0:
        yield f"{last} got worse: halve training.learning_rate, set training.kl_limit, or take more prompts."
    elif difference["low"] <= 0:
        yield (
            f"The difference is known to ± {half:.0f} points on {row['prompts']:,} tasks: four times as many would "
            "halve that. If it stays near 0, take more prompts or steps."
        )
    elif row["value"] >= _ALL:
        yield f"{last} solves {100 * row['value']:.1f} %: harder tasks would show more."
    else:
        yield f"{last} is better than {base} and not perfect: rounds: 2 samples anew from it and goes on."
