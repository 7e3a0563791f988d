"""What an import counts of conversations, in words (docs/artifacts.md has the same list)."""

from __future__ import annotations

REMARKS = {
    "greeting_not_trained": "the assistant speaks first: that is seen and not trained",
    "empty_reply": "a reply is empty: it is seen and not trained",
    "refusal_as_text": "a refusal is trained as the text that it is",
    "plain_text_pair": "a plain prompt is taken as what the user says",
    "consecutive_roles": "one speaker has several messages in a row, which are kept as they are",
    "reasoning_left_out": "a thought is not trained: it is hidden, or the chat template has no place for it",
    "too_long": "later replies are too long for the model and not trained, those before them are",
    "duplicate": "says what an earlier one says: kept",
    "duplicate_id": "has the id of an earlier one: kept if it says something else, left out if not",
    "prefix_of_row": "begins another one, which holds it: left out",
    "trained_elsewhere": "rows of their own tell more of earlier replies (thoughts, cut off): trained there, seen here",
    "not_a_generation": "is no reply of a model (a span or observation of another kind): left out",
    "groups_of_one": "the only one of its prompt: nothing to compare it with within the prompt",
    "success_unknown": "doesn't say whether the task was solved, which is not the same as failed",
}


def in_words(counted: dict[str, int], unused: dict[str, int], total: int) -> list[str]:
    """What was counted, a line each, and the fields that were not used."""
    lines = [f"{count:,} of {total:,}: {REMARKS[reason]} ({reason})" for reason, count in counted.items()]
    if unused:
        names = ", ".join(f"{name} ({count:,})" for name, count in sorted(unused.items(), key=lambda each: -each[1]))
        lines.append(f"fields that were not used: {names}")
    return lines
