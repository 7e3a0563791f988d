"""What each metric means, in a line for whoever has not read docs/artifacts.md, and which way is better."""

from __future__ import annotations

import re

# {k} is the number after @.
_MEANINGS = {
    "multi": "solved within {k} turns",
    "accuracy": "right at turn {k}, of those that got there unsolved",
    "corrected": "solved by turn {k}, of those wrong at turn 1: recovery",
    "turns_to_success": "turn of the first success, of those solved; fewer is better",
    "turns": "turns of a conversation",
    "distinct_answers": "different answers per answer, of two turns or more: low means repeating oneself",
    "format_failures": "replies in which no answer could be read; fewer is better",
    "reply_tokens": "tokens of a reply",
    "reward": "what the environment gave, summed over a conversation",
    "floor": "what guessing without repeats would solve in {k} turns",
    "above_floor": "how far from guessing (0) to solving all (1)",
    "pass": "one of {k} independent first replies is right",
    "feedback_gain": "what feedback adds over asking {k} times anew",
    "repeated_replies": "replies that are word for word an earlier one; fewer is better",
    "repeated_4grams": "4-grams of tokens said before in the conversation; fewer is better",
    "looped_4grams": "4-grams of tokens said before in the same reply; fewer is better",
    "cut_off": "replies that ran out of tokens; fewer is better",
    "kl_base_tuned": "distance from the base on its own conversations, nats each",
    "kl_tuned_base": "distance from the base on the tuned model's conversations, nats each",
}


def meaning(metric: str) -> str:
    """The meaning of a metric such as ``multi@5``; empty for one that is not drift's own."""
    stem, _, k = metric.partition("@")
    per_token = stem.startswith("kl_") and stem.endswith("_per_token")
    found = _MEANINGS.get(stem.removesuffix("_per_token") if per_token else stem, "")
    if stem.startswith("judge_"):
        found = f"the judge's grade, 0 to 10: {re.sub('_', ' ', stem.removeprefix('judge_'))}"
    found = found.replace("{k} turns", "1 turn" if k == "1" else "{k} turns").replace("{k}", k)
    return found.replace("nats each", "nats a token") if per_token else found
