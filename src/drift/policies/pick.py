"""Picking the next token of each row of a batch, each from its own stream of random numbers.

A conversation must not depend on which others share its batch, nor on what was kept of it in a cache. Float arithmetic
does depend on both, in the last bits. So a pick says whether it would be the same with logits that are a little off,
and one that might not be is made again from logits that are computed for its row alone: the same whatever the batch.

A draw is a race (Gumbel-max): ``argmax_v (logit_v / temperature + gumbel_v)`` is distributed as the softmax. It is run
in two heats, first among blocks of tokens, each with the logarithm of its sum of exponentials for a logit, then within
the block that won: two short rows of noise instead of one as long as the vocabulary. How far the winner is ahead is
in logits, so that few picks are in doubt, however many tokens there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from drift.policies.base import Sampling

# How far a difference of two logits may be off in float32, as a share of the largest: several times what was measured.
TOLERANCE = 1e-5
_LEAST_LOGIT = 8.0
_STRIDE = np.uint64(0x9E3779B97F4A7C15)


def gumbel_noise(seeds_B: Any, positions_B: Any, attempt: int, heat: int, count: int) -> Any:
    """Standard Gumbel variables, each a function of (seed, position, attempt, heat, index) alone.

    A SplitMix64 stream for each row (Steele et al. 2014), started where the row's five numbers say.

    Args:
        seeds_B: ``(B,)`` 64-bit seeds.
        positions_B: ``(B,)`` place of the token in its reply.
        attempt: how often this token was drawn before.
        heat: 0 among the blocks, 1 within one.
        count: N, numbers wanted for each row.

    Returns:
        ``(B, N)`` float64.
    """
    state_B = np.asarray(seeds_B, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in (positions_B, attempt, heat):
            state_B = _mixed(state_B + (np.asarray(part, dtype=np.uint64) + np.uint64(1)) * _STRIDE)
        bits_BN = _mixed(state_B[:, None] + np.arange(1, count + 1, dtype=np.uint64) * _STRIDE)
    # 52 bits, so that the largest is still below 1.
    uniform_BN = ((bits_BN >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return -np.log(-np.log(uniform_BN))


def _mixed(state: Any) -> Any:
    """The output function of SplitMix64."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def pick(
    logits_BV: torch.Tensor, seeds: Sequence[int], positions: Sequence[int], sampling: Sampling
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Choose one token per row.

    Greedy takes the largest logit. Otherwise a token is drawn from the softmax of ``logits / temperature``, and drawn
    again until it is one of those that ``top_k``, ``top_p`` and ``min_p`` keep.

    Args:
        logits_BV: ``(B, V)`` raw logits of the policy.
        seeds: of each row's reply.
        positions: place in its reply of each row's token.
        sampling: temperature and truncation.

    Returns:
        ``(B,)`` token ids, ``(B,)`` their log-probabilities under the policy at temperature 1 and without truncation,
        and ``(B,)`` whether any logits within ``TOLERANCE`` of these give the same id. A log-probability is NaN where
        there is no distribution: with NaN or +∞ among the logits, or nothing but −∞.
    """
    logits_BV = logits_BV if logits_BV.dtype == torch.float64 else logits_BV.float()
    tolerance_B = TOLERANCE * logits_BV.amax(dim=-1).abs().clamp(min=_LEAST_LOGIT)
    if sampling.greedy:
        top = logits_BV.topk(min(2, logits_BV.shape[-1]), dim=-1)
        token_B, sure_B = top.indices[:, 0], top.values[:, 0] - top.values[:, -1] > tolerance_B
        total_B = logits_BV.logsumexp(dim=-1)
    else:
        race = _Race(logits_BV if sampling.temperature == 1 else logits_BV / sampling.temperature)
        token_B, sure_B = race.run(seeds, positions, sampling, tolerance_B / sampling.temperature)
        total_B = race.total_B if sampling.temperature == 1 else logits_BV.logsumexp(dim=-1)
    logprob_B = logits_BV.gather(-1, token_B.unsqueeze(-1)).squeeze(-1) - total_B
    return token_B, torch.where(torch.isfinite(total_B), logprob_B, torch.nan), sure_B


class _Race:
    """Draws from the softmax of ``scores_BV``, two heats each."""

    def __init__(self, scores_BV: torch.Tensor) -> None:
        rows, vocabulary = scores_BV.shape
        width = math.isqrt(vocabulary - 1) + 1
        padding = -vocabulary % width
        self._scores_BV = scores_BV
        self._blocks_BKW = torch.nn.functional.pad(scores_BV, (0, padding), value=-torch.inf).view(rows, -1, width)
        self._masses_BK = self._blocks_BKW.logsumexp(dim=-1)
        self.total_B = self._masses_BK.logsumexp(dim=-1)

    def run(
        self, seeds: Sequence[int], positions: Sequence[int], sampling: Sampling, slack_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``(B,)`` tokens, and whether scores off by ``slack_B`` would give the same ones."""
        device, width = self._scores_BV.device, self._blocks_BKW.shape[-1]
        seeds_B, positions_B = np.array(seeds, dtype=np.uint64), np.array(positions, dtype=np.uint64)
        token_B = torch.zeros(len(seeds_B), dtype=torch.long, device=device)
        sure_B = torch.ones_like(token_B, dtype=torch.bool)
        # Rows without a distribution are the caller's to refuse.
        open_R = torch.isfinite(self.total_B).nonzero().flatten()
        attempt = 0
        while len(open_R):
            drawn = seeds_B[open_R.cpu().numpy()], positions_B[open_R.cpu().numpy()], attempt
            block_R, ahead_R = _winner(self._masses_BK[open_R], gumbel_noise(*drawn, 0, self._masses_BK.shape[1]))
            place_R, lead_R = _winner(self._blocks_BKW[open_R, block_R], gumbel_noise(*drawn, 1, width))
            token_B[open_R] = block_R * width + place_R
            kept_R, clear_R = kept(self._scores_BV[open_R], token_B[open_R], sampling, slack_B[open_R])
            sure_B[open_R] &= clear_R & (torch.minimum(ahead_R, lead_R) > slack_B[open_R])
            open_R, attempt = open_R[~kept_R], attempt + 1
        return token_B, sure_B


def _winner(scores_BN: torch.Tensor, noise_BN: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """``(B,)`` where score and noise add up to most, and by how much more than anywhere else."""
    total_BN = scores_BN.double() + torch.from_numpy(noise_BN).to(scores_BN.device)
    if total_BN.shape[-1] == 1:
        return torch.zeros_like(total_BN[:, 0], dtype=torch.long), torch.full_like(total_BN[:, 0], torch.inf)
    top = total_BN.topk(2, dim=-1)
    return top.indices[:, 0], top.values[:, 0] - top.values[:, 1]


def kept(
    scores_BV: torch.Tensor, token_B: torch.Tensor, sampling: Sampling, slack_B: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether truncation keeps a token, ``(B,)``, and whether scores off by ``slack_B`` would decide alike, ``(B,)``.

    ``top_k`` keeps the k largest; ``top_p`` of these those that less than p of their sum comes before; ``min_p`` those
    with at least that share of the largest's probability.
    """
    own_B = scores_BV.gather(-1, token_B.unsqueeze(-1)).squeeze(-1)
    if not sampling.truncates:
        return (yes_B := torch.ones_like(own_B, dtype=torch.bool)), yes_B
    largest_B = scores_BV.amax(dim=-1)
    # What top_k leaves, the least of it, and what comes next.
    left_BN, least_B = scores_BV, torch.full_like(own_B, -torch.inf)
    next_B = least_B
    if 0 < sampling.top_k < scores_BV.shape[-1]:
        top_BN = scores_BV.topk(sampling.top_k + 1, dim=-1).values
        left_BN, least_B, next_B = top_BN[:, :-1], top_BN[:, -2], top_BN[:, -1]
    masses_BN = torch.exp(left_BN - largest_B.unsqueeze(-1))
    share_B = largest_B + math.log(sampling.min_p) if sampling.min_p > 0 else torch.full_like(own_B, -torch.inf)

    def keeps(favour_B: torch.Tensor) -> torch.Tensor:
        """Whether it is kept where its score is that much larger, and so much less comes before it."""
        changed_B = own_B + favour_B
        found_B = (changed_B >= torch.where(favour_B < 0, next_B, least_B)) & (changed_B >= share_B)
        if sampling.top_p < 1:
            before_B = torch.where(left_BN > changed_B.unsqueeze(-1), masses_BN, 0.0).sum(dim=-1)
            before_B -= torch.where(favour_B < 0, torch.exp(own_B - largest_B), 0.0)
            found_B &= before_B * torch.exp(-favour_B) < sampling.top_p * masses_BN.sum(dim=-1)
        return found_B

    surely_B, perhaps_B = keeps(-slack_B), keeps(slack_B)
    clear_B = surely_B == perhaps_B
    return surely_B if clear_B.all() else keeps(torch.zeros_like(slack_B)), clear_B


def decide(
    logits_BV: torch.Tensor,
    seeds: Sequence[int],
    positions: Sequence[int],
    sampling: Sampling,
    alone: Callable[[int], torch.Tensor] | None,
) -> tuple[list[int], list[float], list[int]]:
    """Choose one token per row, whatever the last bits of the logits.

    Args:
        logits_BV: as for ``pick``.
        seeds: as for ``pick``.
        positions: as for ``pick``.
        sampling: as for ``pick``.
        alone: ``row -> (V,)`` logits computed for that row alone, or ``None`` where arithmetic is too coarse for exact
            decisions (16-bit floats).

    Returns:
        Token ids and log-probabilities, as of ``pick``, and which rows were decided again.
    """
    token_B, logprob_B, sure_B = pick(logits_BV, seeds, positions, sampling)
    tokens, logprobs = token_B.tolist(), logprob_B.tolist()
    again = [] if alone is None else [row for row, sure in enumerate(sure_B.tolist()) if not sure]
    for row in again:
        assert alone is not None
        if math.isfinite(logprobs[row]):
            found = pick(alone(row).unsqueeze(0), seeds[row : row + 1], positions[row : row + 1], sampling)
            tokens[row], logprobs[row] = int(found[0]), float(found[1])
    return tokens, logprobs, again
