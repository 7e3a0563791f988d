"""Whether a trainer that renders an export's messages again would train on the ids that were sampled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any


class Rendering:
    """Renders rows as TRL does, and compares with the ids that were sampled.

    TRL takes what the chat template gives for the prompt with a generation prompt, and for prompt and completion
    together; the completion is what follows their common beginning.

    Args:
        tokenizer: of the model to be trained, with a chat template.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.counts: Counter[str] = Counter(
            {"same_ids": 0, "same_but_for_the_end": 0, "other_ids": 0, "refused": 0, "no_ids": 0}
        )

    def compare(self, row: Mapping[str, Any]) -> None:
        """Count each completion of ``row`` (``chosen`` and ``rejected``, or ``completion``).

        ``same_but_for_the_end`` are those to which the template adds something after the last reply, such as a line
        break after the end of the turn, which TRL trains too.
        """
        ids = row.get("sampled_ids")
        for name in ("chosen", "rejected", "completion"):
            if name in row:
                kind = "no_ids" if ids is None else self._kind(row["prompt"], row[name], [*ids["prompt"], *ids[name]])
                self.counts[kind] += 1

    def _kind(self, prompt: Sequence[Any], completion: Sequence[Any], sampled: list[int]) -> str:
        from jinja2 import TemplateError

        try:
            rendered = self._tokenizer.apply_chat_template([*prompt, *completion], tokenize=True, return_dict=True)
        except TemplateError:
            return "refused"
        found = list(rendered["input_ids"])
        if found == sampled:
            return "same_ids"
        return "same_but_for_the_end" if found[: len(sampled)] == sampled else "other_ids"
