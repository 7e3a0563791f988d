"""Replies under way: each a row of ids that grows by the token picked for it until it ends."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from drift.errors import PolicyError
from drift.policies.base import Sampling
from drift.policies.kept import block_keys
from drift.policies.pick import decide
from drift.types import Completion

SHOWN = 200


@dataclass(eq=False)
class Row:
    """One reply under way.

    Attributes:
        prompt_ids: what it replies to.
        sampling: how it is drawn.
        seed: its own.
        reply: who waits for it, if anyone.
        ids: prompt and reply so far.
        logprobs: of the reply's ids.
        finish: why it ended; empty while it goes on.
    """

    prompt_ids: tuple[int, ...]
    sampling: Sampling
    seed: int
    reply: asyncio.Future[Completion] | None = None
    ids: list[int] = field(init=False)
    logprobs: list[float] = field(init=False)
    finish: str = field(init=False)

    def __post_init__(self) -> None:
        self.restart()

    @cached_property
    def keys(self) -> list[int]:
        """By which what is kept of the prompt is found."""
        return block_keys(self.prompt_ids)

    def restart(self) -> None:
        """Forget the reply; it will be the same again."""
        self.ids, self.logprobs, self.finish = list(self.prompt_ids), [], ""

    @property
    def wanted(self) -> bool:
        """Whether anyone still waits for it."""
        return self.reply is not None and not self.reply.done()

    @property
    def reply_ids(self) -> list[int]:
        """What was sampled."""
        return self.ids[len(self.prompt_ids) :]


class RowPicker:
    """Picks the next token of rows, and notes where they end.

    Args:
        model: a causal LM.
        tokenizer: its tokenizer.
        source: how messages name the model.
        eos_ids: ids that end a reply.

    Attributes:
        picked: tokens so far.
        decided_again: how many of them were in doubt.
    """

    def __init__(self, model: Any, tokenizer: Any, source: str, eos_ids: Sequence[int]) -> None:
        self._model, self._tokenizer, self._source = model, tokenizer, source
        self.eos_ids = frozenset(eos_ids)
        # In 16-bit floats arithmetic is too coarse to decide anything again.
        self._exact = next(model.parameters()).dtype in (torch.float32, torch.float64)
        self.picked = self.decided_again = 0

    def advance(self, rows: Sequence[Row], logits_BV: torch.Tensor) -> None:
        """Give each row one more token; raises ``PolicyError`` where a row's logits are no distribution."""
        # Rows that are drawn alike are picked together.
        for sampling in dict.fromkeys(row.sampling for row in rows):
            places = [at for at, row in enumerate(rows) if row.sampling == sampling]
            logits = logits_BV if len(places) == len(rows) else logits_BV[places]
            self._advance([rows[at] for at in places], logits, sampling)

    def _advance(self, rows: Sequence[Row], logits_BV: torch.Tensor, sampling: Sampling) -> None:
        seeds, positions = [row.seed for row in rows], [len(row.logprobs) for row in rows]
        alone = (lambda at: self.logits_alone(rows[at].ids)) if self._exact else None
        tokens, logprobs, again = decide(logits_BV, seeds, positions, sampling, alone)
        self.picked, self.decided_again = self.picked + len(tokens), self.decided_again + len(again)
        for row, token, logprob in zip(rows, tokens, logprobs, strict=True):
            if not math.isfinite(logprob):
                raise self._not_finite(row.ids)
            row.ids.append(token)
            row.logprobs.append(logprob)
            if token in self.eos_ids or (sampling.stop and any(each in self._text(row) for each in sampling.stop)):
                row.finish = "stop"
            elif len(row.logprobs) == sampling.max_new_tokens:
                row.finish = "length"

    def logits_alone(self, ids: Sequence[int]) -> torch.Tensor:
        """``(V,)`` logits after ``ids``, computed for them alone and all at once."""
        ids_1T = torch.tensor([ids], device=self._model.device)
        logits: torch.Tensor = self._model(input_ids=ids_1T, use_cache=False).logits[0, -1]
        return logits

    def _text(self, row: Row) -> str:
        kept = [token for token in row.reply_ids if token not in self.eos_ids]
        text: str = self._tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _not_finite(self, ids: Sequence[int]) -> PolicyError:
        return PolicyError(
            f"the model {self._source!r} computes NaN or infinite logits after the prompt "
            f"{self._tokenizer.decode(ids)[-SHOWN:]!r} ({len(ids)} ids). Its weights are damaged or its precision is "
            "too low: look at how it was trained, or set policy.dtype to float32 or bfloat16."
        )
