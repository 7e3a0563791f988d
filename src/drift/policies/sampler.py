"""Picking the next token for each row of a batch, each from its own stream of random numbers.

A trajectory must not depend on which others share its batch. Float arithmetic does depend on it, in the last bits,
so a pick that falls within ``MARGIN`` of another token's region is decided again from logits computed for that row
alone, without padding: the same computation whatever the batch was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor, StoppingCriteria

from drift.policies.base import Sampling

MARGIN = 1e-4


def pick(logits_BV: torch.Tensor, uniforms_B: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose one token per row, and say how near the choice was to another.

    Sampling inverts the cumulative distribution, ``token = min{v : Σ_{u≤v} p_u > uniform}``, with p the softmax of
    ``logits / temperature`` restricted to the top-p nucleus. Greedy takes the largest logit.

    Args:
        logits_BV: ``(B, V)`` raw logits of the policy.
        uniforms_B: ``(B,)`` float64 numbers in [0, 1), unused when greedy.
        sampling: temperature and top-p.

    Returns:
        ``(B,)`` token ids, and ``(B,)`` margins: distance to the nearest decision boundary, in logits when greedy
        and in probability when sampling.
    """
    if sampling.greedy:
        top = logits_BV.float().topk(min(2, logits_BV.shape[-1]), dim=-1)
        return top.indices[:, 0], top.values[:, 0] - top.values[:, -1]
    probs_BV = torch.softmax(logits_BV.double() / sampling.temperature, dim=-1)
    margin_B = torch.full_like(uniforms_B, torch.inf)
    if sampling.top_p < 1:
        ordered_BV, order_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
        before_BV = ordered_BV.cumsum(dim=-1) - ordered_BV
        margin_B = (before_BV[:, 1:] - sampling.top_p).abs().min(dim=-1).values
        kept_BV = torch.where(before_BV < sampling.top_p, ordered_BV, 0.0)
        probs_BV = torch.zeros_like(probs_BV).scatter(-1, order_BV, kept_BV)
    cdf_BV = probs_BV.cumsum(dim=-1)
    target_B1 = (uniforms_B * cdf_BV[:, -1]).unsqueeze(-1)
    token_B1 = torch.searchsorted(cdf_BV, target_B1, right=True).clamp(max=cdf_BV.shape[-1] - 1)
    upper_B = (cdf_BV.gather(-1, token_B1) - target_B1).squeeze(-1).abs()
    lower_B = (target_B1 - (cdf_BV - probs_BV).gather(-1, token_B1)).squeeze(-1).abs()
    return token_B1.squeeze(-1), torch.minimum(margin_B, torch.minimum(upper_B, lower_B))


def undefined(logits_BV: torch.Tensor) -> torch.Tensor:
    """``(B,)`` whether a row's softmax is undefined: there is NaN or +∞ in it, or nothing but −∞."""
    return ~torch.isfinite(logits_BV.amax(dim=-1))


class SeededPicker(LogitsProcessor):  # type: ignore[misc]
    """Makes ``generate(do_sample=False)`` take the token that each row's own seed picks, and keeps its log-probability.

    Args:
        seeds: one per row.
        sampling: how to pick.
        canonical: ``(ids of one row without padding) -> (V,)`` logits computed for it alone, or ``None`` where
            arithmetic is too coarse for exact decisions (16-bit floats).
        mask_BT: ``(B, T)`` attention mask of the prompts, 0 on the left padding.
        not_finite: the error to raise where the logits after these ids of a row leave no distribution.
    """

    def __init__(
        self,
        seeds: list[int],
        sampling: Sampling,
        canonical: Callable[[torch.Tensor], torch.Tensor] | None,
        mask_BT: torch.Tensor,
        not_finite: Callable[[list[int]], Exception],
    ) -> None:
        self._sampling, self._not_finite = sampling, not_finite
        self._canonical = canonical
        self._padding_B = (mask_BT == 0).sum(dim=-1).tolist()
        # Rows that ended, which are no longer looked at twice; ``RowEnds`` sets it.
        self.finished_B = torch.zeros(len(seeds), dtype=torch.bool, device=mask_BT.device)
        self.logprobs: list[torch.Tensor] = []
        if not sampling.greedy:
            streams = [
                np.random.Generator(np.random.Philox(key=seed)).random(sampling.max_new_tokens) for seed in seeds
            ]
            self._uniforms_BT = torch.from_numpy(np.stack(streams)).to(mask_BT.device)
        else:
            self._uniforms_BT = torch.zeros((len(seeds), sampling.max_new_tokens), dtype=torch.float64)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Replace the scores by ones under which ``argmax`` is the picked token."""
        for row in (undefined(scores) & ~self.finished_B).nonzero().flatten().tolist():
            raise self._not_finite(self._ids_of(row, input_ids).tolist())
        uniforms_B = self._uniforms_BT[:, len(self.logprobs)].to(scores.device)
        token_B, margin_B = pick(scores, uniforms_B, self._sampling)
        if self._canonical is not None:
            close_B = (margin_B < MARGIN) & ~self.finished_B
            for row in close_B.nonzero().flatten().tolist():
                ids_T = self._ids_of(row, input_ids)
                alone_1V = self._canonical(ids_T).unsqueeze(0)
                if undefined(alone_1V).any():
                    raise self._not_finite(ids_T.tolist())
                token_B[row] = pick(alone_1V, uniforms_B[row : row + 1], self._sampling)[0][0]
        token_B1 = token_B.unsqueeze(-1)
        self.logprobs.append(torch.log_softmax(scores.float(), dim=-1).gather(-1, token_B1).squeeze(-1))
        return torch.full_like(scores, -torch.inf).scatter(-1, token_B1, 0.0)

    def _ids_of(self, row: int, input_ids: torch.Tensor) -> torch.Tensor:
        """The row without its padding: ids of the prompt and of the reply so far."""
        return input_ids[row, self._padding_B[row] :]


class RowEnds(StoppingCriteria):  # type: ignore[misc]
    """Notes where each row ends: at an end-of-turn token or once its text holds a stop string.

    Args:
        eos_ids: ids that end a reply.
        stop: strings that end a reply.
        decode: ids to text.
        prompt_length: padded length T of the prompts.
        picker: learns which rows are over.
    """

    def __init__(
        self,
        eos_ids: list[int],
        stop: tuple[str, ...],
        decode: Callable[[list[int]], str],
        prompt_length: int,
        picker: SeededPicker,
    ) -> None:
        self._eos_ids = eos_ids
        self._stop = stop
        self._decode = decode
        self._prompt_length = prompt_length
        self._picker = picker
        self.ended_B = picker.finished_B
        self.lengths_B = torch.zeros_like(self.ended_B, dtype=torch.long)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """``(B,)`` which rows are over, this step's token counted."""
        last_B = input_ids[:, -1]
        self.lengths_B = self.lengths_B + (~self.ended_B).long()
        ends_B = torch.isin(last_B, torch.tensor(self._eos_ids, device=last_B.device))
        if self._stop:
            for row in (~self.ended_B & ~ends_B).nonzero().flatten().tolist():
                text = self._decode(input_ids[row, self._prompt_length :].tolist())
                ends_B[row] = any(string in text for string in self._stop)
        self.ended_B = self.ended_B | ends_B
        self._picker.finished_B = self.ended_B
        return self.ended_B
