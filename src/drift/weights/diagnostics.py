"""What a set of weights will do: effective sample size, concentration, prompts that teach nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drift.weights.groups import Floats, group_max, group_min, group_sum, index_groups


def effective_sample_size(weights_N: ArrayLike) -> float:
    """Kish's ``(Σ|w|)² / Σw²``: how many equally weighted trajectories these are worth; 0 if all weights are 0."""
    weights = np.abs(np.asarray(weights_N, float))
    total = float((weights**2).sum())
    return float(weights.sum() ** 2 / total) if total > 0 else 0.0


def group_effective_sample_size(weights_N: ArrayLike, group_N: ArrayLike) -> Floats:
    """``(G,)`` the same per prompt, between 1 and K; 0 for a prompt whose weights are all 0."""
    weights = np.abs(np.asarray(weights_N, float))
    index_N, groups = index_groups(group_N)
    squares_G = group_sum(weights**2, index_N, groups)
    sums_G = group_sum(weights, index_N, groups)
    return np.where(squares_G > 0, sums_G**2 / np.where(squares_G > 0, squares_G, 1), 0.0)


def mixed_share(success_N: ArrayLike, group_N: ArrayLike) -> float:
    """Share of prompts whose trajectories hold both successes and failures (DRIFT's Table on K)."""
    index_N, groups = index_groups(group_N)
    success = np.asarray(success_N, float)
    return float(np.mean(group_max(success, index_N, groups) > group_min(success, index_N, groups)))


def diagnose(weights_N: ArrayLike, returns_N: ArrayLike, group_N: ArrayLike, success_N: ArrayLike) -> dict[str, Any]:
    """Everything worth knowing about a weighting before training on it, for the manifest and the report.

    Args:
        weights_N: ``(N,)``.
        returns_N: ``(N,)``.
        group_N: ``(N,)`` prompt of each.
        success_N: ``(N,)`` whether each solved its task.

    Returns:
        ``ess`` overall; ``ess_per_group`` as quartiles; ``largest_share`` of a prompt's absolute weight on one
        trajectory (mean over prompts); ``mixed_share``; counts of prompts without success, with equal returns and
        with one trajectory; ``histogram`` of weights and ``return_histogram`` (edges and counts).
    """
    weights, returns = np.asarray(weights_N, float), np.asarray(returns_N, float)
    index_N, groups = index_groups(group_N)
    success = np.asarray(success_N, float)
    absolute = np.abs(weights)
    sums_G = group_sum(absolute, index_N, groups)
    live_G = sums_G > 0
    share_G = group_max(absolute, index_N, groups)[live_G] / sums_G[live_G]
    ess_G = group_effective_sample_size(weights, group_N)
    return {
        "trajectories": len(weights),
        "groups": groups,
        "ess": effective_sample_size(weights),
        "ess_per_group": [float(q) for q in np.quantile(ess_G, [0, 0.25, 0.5, 0.75, 1])],
        "largest_share": float(share_G.mean()) if share_G.size else 0.0,
        "zero_weights": int((weights == 0).sum()),
        "negative_weights": int((weights < 0).sum()),
        "mixed_share": mixed_share(success, group_N),
        "groups_without_success": int((group_max(success, index_N, groups) == 0).sum()),
        "groups_with_equal_returns": int(equal_returns(returns, group_N).sum()),
        "groups_of_one": int((np.bincount(index_N) == 1).sum()),
        "histogram": _histogram(weights),
        "return_histogram": _histogram(returns),
    }


def equal_returns(returns_N: ArrayLike, group_N: ArrayLike) -> NDArray[np.bool_]:
    """``(G,)`` whether all returns of a prompt are the same."""
    returns = np.asarray(returns_N, float)
    index_N, groups = index_groups(group_N)
    equal_G: NDArray[np.bool_] = group_max(returns, index_N, groups) == group_min(returns, index_N, groups)
    return equal_G


def _histogram(values: Floats, bins: int = 20) -> dict[str, list[float]]:
    counts, edges = np.histogram(values, bins=bins)
    return {"edges": edges.tolist(), "counts": counts.tolist()}
