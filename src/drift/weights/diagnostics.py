"""What weights will do: how many conversations count, and which prompts teach nothing."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from drift.weights.groups import Bools, Floats, Indices, group_max, group_min, group_sum, index_groups, quotients


def effective_sample_size(weights_N: ArrayLike) -> float:
    """Kish's ``(Σ|w|)² / Σw²``: how many equally weighted conversations these are worth; 0 if all weights are 0."""
    weights = np.abs(np.asarray(weights_N, float))
    total = float((weights**2).sum())
    return float(weights.sum() ** 2 / total) if total > 0 else 0.0


def group_effective_sample_size(weights_N: ArrayLike, group_N: ArrayLike) -> Floats:
    """``(G,)`` the same per prompt, between 1 and K; 0 for a prompt whose weights are all 0."""
    weights, index_N = np.asarray(weights_N, float), index_groups(group_N)
    return quotients(group_sum(np.abs(weights), index_N) ** 2, group_sum(weights**2, index_N))


def diagnose(weights_N: ArrayLike, returns_N: ArrayLike, group_N: ArrayLike, success_N: ArrayLike) -> dict[str, Any]:
    """Everything worth knowing about weights before training on them; docs/artifacts.md says what each field is.

    Args:
        weights_N: ``(N,)`` of each conversation, that of its reply with the largest in absolute value.
        returns_N: ``(N,)``.
        group_N: ``(N,)`` prompt of each.
        success_N: ``(N,)`` whether each solved its task.
    """
    weights, returns, success = (np.asarray(each, float) for each in (weights_N, returns_N, success_N))
    index_N, absolute = index_groups(group_N), np.abs(weights)
    sums_G, best_G = group_sum(absolute, index_N), group_max(success, index_N)
    live_G = sums_G > 0
    shares_G = group_max(absolute, index_N)[live_G] / sums_G[live_G]
    ess_G = group_effective_sample_size(weights, index_N)
    return {
        "trajectories": len(weights),
        "groups": len(sums_G),
        "successes": int(success.sum()),
        "ess": effective_sample_size(weights),
        "ess_per_group": [float(q) for q in np.quantile(ess_G, [0, 0.25, 0.5, 0.75, 1])],
        "largest_share": float(shares_G.mean()) if live_G.any() else 0.0,
        "zero_weights": int((weights == 0).sum()),
        "negative_weights": int((weights < 0).sum()),
        "mixed_share": float((best_G > group_min(success, index_N)).mean()),
        "groups_without_success": int((best_G == 0).sum()),
        "groups_with_equal_returns": int((group_max(returns, index_N) == group_min(returns, index_N)).sum()),
        "groups_of_one": int((np.bincount(index_N) == 1).sum()),
        "histogram": histogram(weights),
        "return_histogram": histogram(returns),
    }


def histogram(values_N: Floats, bins: int = 20) -> dict[str, Any]:
    """Edges and counts of equal bins between the extremes of all values."""
    low, high = float(values_N.min()), float(values_N.max())
    # Values that differ by rounding alone lie in one bin, in the middle.
    same = 1e-9 * max(abs(low), abs(high))
    span = (low, high) if high - low > same else (low - max(0.5, same), high + max(0.5, same))
    counts, edges = np.histogram(values_N, bins=bins, range=span)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def mixed_shares(success_N: Bools, index_N: Indices) -> dict[str, list[Any]]:
    """Expected share of prompts whose samples hold both successes and failures, had k been drawn of the K there are.

    Without replacement: ``1 − C(s, k)/C(K, k) − C(K−s, k)/C(K, k)`` for a prompt with s successes, so it is exact and
    needs no resampling. Prompts, 0…G−1 in ``index_N``, with fewer than k samples are left out.

    Returns:
        ``k``, powers of two up to the largest K, and that K; and at each of them ``share``.
    """
    size_G, success_G = np.bincount(index_N), np.bincount(index_N, weights=success_N).astype(np.int64)
    prompts = Counter(zip(success_G.tolist(), size_G.tolist(), strict=True))
    largest = int(size_G.max(initial=0))
    # None where adaptive sampling has lost all that came first.
    ks = sorted({*(2**power for power in range(largest.bit_length())), largest}) if largest else []
    shares = []
    for k in ks:
        kept = [(s, size, count) for (s, size), count in prompts.items() if size >= k]
        mixed = ((1 - (math.comb(s, k) + math.comb(n - s, k)) / math.comb(n, k)) * count for s, n, count in kept)
        shares.append(math.fsum(mixed) / sum(count for *_, count in kept))
    return {"k": ks, "share": shares}
