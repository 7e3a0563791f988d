"""How many rollouts: what K samples of a prompt told, what fewer would have told, and what more would."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from drift.errors import require
from drift.weights.groups import Floats, Indices, group_max, group_mean, group_sum
from drift.weights.temperature import exponents

# Relative errors of Ẑ for which the report says how many rollouts they take, and how sure its bound is.
ERRORS = (0.5, 0.25, 0.1)
CONFIDENCE = 0.95


def mixed_share_at(success_G: Sequence[int], size_G: Sequence[int], k: int) -> float | None:
    """Expected share of prompts whose rollouts hold both successes and failures, had k been drawn of the K there are.

    Without replacement: ``1 − C(s, k)/C(K, k) − C(K−s, k)/C(K, k)`` for a prompt with s successes, so it is exact and
    needs no resampling. Prompts with fewer than k rollouts are left out; ``None`` if all are.

    Args:
        success_G: ``(G,)`` successes s of each prompt.
        size_G: ``(G,)`` rollouts K of each.
        k: at least 1.
    """
    return _mixed_share(Counter(zip(success_G, size_G, strict=True)), k)


def _mixed_share(prompts: Counter[tuple[int, int]], k: int) -> float | None:
    require(k >= 1, "k", k, "a whole number ≥ 1")
    kept = [(s, size, count) for (s, size), count in prompts.items() if size >= k]
    if not kept:
        return None

    def mixed(s: int, size: int) -> float:
        return 1 - (math.comb(s, k) + math.comb(size - s, k)) / math.comb(size, k)

    return math.fsum(count * mixed(s, size) for s, size, count in kept) / sum(count for *_, count in kept)


def partition_error(variation_G: ArrayLike, k: float) -> Floats:
    """``(G,)`` relative standard error of Ẑ from k rollouts: ``cv/√k``.

    It is that of the bootstrap over a prompt's rollouts, whose variance of a mean is the rollouts' own over k. Like
    every bootstrap it knows only what was sampled: where no rollout succeeded it says nothing about a rare success.

    Args:
        variation_G: ``(G,)`` cv, the standard deviation of ``e^{R/β}`` over its mean in each prompt; it is
            ``√(K/ESS − 1)``, ESS being Kish's of DRIFT's weights.
        k: rollouts of a prompt.
    """
    errors_G: Floats = np.asarray(variation_G, float) / math.sqrt(k)
    return errors_G


def partition_bound(spread_G: ArrayLike, k: float, confidence: float = CONFIDENCE) -> Floats:
    """``(G,)`` what the error of Ẑ from k rollouts exceeds with a chance of at most 1 − ``confidence`` (DRIFT Prop. 7).

    ``ε = Δ_β √(log(2/δ) / 2k)``, in the units of ``spread_G``: ``Δ_β = e^{R_max/β} − e^{R_min/β}``, or that over Z.
    """
    require(0 < confidence < 1, "confidence", confidence, "a number above 0 and below 1")
    bounds_G: Floats = np.asarray(spread_G, float) * math.sqrt(math.log(2 / (1 - confidence)) / (2 * k))
    return bounds_G


def rollouts_for_error(variation_G: ArrayLike, error: float) -> Floats:
    """``(G,)`` the fewest rollouts with a relative standard error of Ẑ of at most ``error``: ``⌈cv²/error²⌉ ≥ 1``."""
    require(error > 0, "error", error, "a number > 0")
    needed_G: Floats = np.maximum(np.ceil((np.asarray(variation_G, float) / error) ** 2 * (1 - 1e-12)), 1.0)
    return needed_G


def rollouts_for_bound(spread_G: ArrayLike, error: float, confidence: float = CONFIDENCE) -> Floats:
    """``(G,)`` the K of DRIFT's Prop. 7: ``⌈Δ_β² log(2/δ) / 2ε²⌉``, enough whatever the returns are."""
    require(error > 0, "error", error, "a number > 0")
    needed_G: Floats = np.ceil((partition_bound(spread_G, 1, confidence) / error) ** 2 * (1 - 1e-12))
    return needed_G


class RolloutReport:
    """Counts what the functions above need, a part of the prompts at a time; some 40 bytes for each prompt."""

    def __init__(self) -> None:
        self._prompts: Counter[tuple[int, int]] = Counter()
        self._columns: list[tuple[Floats, ...]] = []
        self._low, self._high = math.inf, -math.inf

    def add(
        self,
        returns_N: Floats,
        index_N: Indices,
        success_N: ArrayLike,
        beta: float | Floats | None,
        *,
        fair_N: ArrayLike | None = None,
    ) -> None:
        """Take in a part, each prompt whole.

        Args:
            returns_N: ``(N,)`` R.
            index_N: ``(N,)`` group of each, 0…G−1.
            success_N: ``(N,)``.
            beta: ``None`` where no Ẑ is estimated.
            fair_N: ``(N,)`` which rollouts there are whatever the outcomes were, as the first ones of adaptive
                sampling; the share of mixed prompts is counted on these alone.
        """
        size_G = np.bincount(index_N)
        groups = len(size_G)
        success = np.asarray(success_N, float)
        success_G = group_sum(success, index_N, groups)
        fair = np.ones(len(success)) if fair_N is None else np.asarray(fair_N, float)
        fair_success_G = group_sum(success * fair, index_N, groups).astype(np.int64)
        fair_size_G = group_sum(fair, index_N, groups).astype(np.int64)
        # Pairs as single numbers: sorting those is much faster than sorting rows.
        base = int(fair_size_G.max(initial=0)) + 1
        pairs, counts = np.unique(fair_success_G * base + fair_size_G, return_counts=True)
        for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
            self._prompts[divmod(pair, base)] += count
        if beta is None:
            return
        self._low = min(self._low, float(returns_N.min(initial=math.inf)))
        self._high = max(self._high, float(returns_N.max(initial=-math.inf)))
        best_G = group_max(returns_N, index_N, groups)
        with np.errstate(over="ignore"):
            tilted_N = np.exp(exponents(returns_N - best_G[index_N], beta))
        mean_G = group_mean(tilted_N, index_N, groups)
        variance_G = group_mean((tilted_N - mean_G[index_N]) ** 2, index_N, groups)
        beta_G = np.full(groups, 0.0)
        beta_G[index_N] = beta
        mixed_G = (success_G > 0) & (success_G < size_G)
        columns = (np.sqrt(variance_G) / mean_G, mean_G, best_G, beta_G, size_G.astype(float), mixed_G.astype(float))
        self._columns.append(columns)

    def report(self) -> dict[str, Any]:
        """``k`` (powers of two up to the largest K, and that K) and at each of them ``mixed_share``.

        Where Ẑ is estimated also ``error``, the median over mixed prompts of its relative standard error;
        ``bound``, the median over prompts of Prop. 7's relative error; and ``needed``, for each of ``ERRORS``: the
        ``median`` and the ninth decile (``most``) of the rollouts that mixed prompts need for it, and how many ``more``
        conversations that is in all beyond those there are. Null where there is no such prompt, or no finite number.
        """
        largest = max(size for _, size in self._prompts)
        ks = sorted({2**power for power in range(largest.bit_length()) if 2**power <= largest} | {largest} - {0})
        found: dict[str, Any] = {"k": ks, "mixed_share": [_mixed_share(self._prompts, k) for k in ks]}
        if not self._columns:
            return found
        cv_G, mean_G, best_G, beta_G, size_G, mixed_G = (
            np.concatenate(each) for each in zip(*self._columns, strict=True)
        )
        mixed = mixed_G > 0
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            whole_G = np.exp((self._high - best_G) / beta_G) / mean_G
            spread_G = -np.expm1((self._low - self._high) / beta_G) * whole_G
        needed = {}
        for error in ERRORS:
            need_G = rollouts_for_error(cv_G[mixed], error)
            more = float(np.maximum(need_G - size_G[mixed], 0).sum())
            needed[str(error)] = {"median": _quantile(need_G, 0.5), "most": _quantile(need_G, 0.9), "more": more}
        return {
            **found,
            "error": [_quantile(partition_error(cv_G[mixed], k), 0.5) for k in ks],
            "bound": [_quantile(partition_bound(spread_G, k), 0.5) for k in ks],
            "needed": needed,
        }


def _quantile(values_G: Floats, share: float) -> float | None:
    # A limit of β leaves bounds that are no number; they say nothing about the others.
    known = values_G[np.isfinite(values_G)]
    return float(np.quantile(known, share)) if len(known) else None
