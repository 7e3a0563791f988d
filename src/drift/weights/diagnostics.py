"""What weights will do: how many conversations count, and which prompts teach nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from drift.weights.groups import Floats, group_max, group_min, index_groups


def effective_sample_size(weights_N: ArrayLike) -> float:
    """Kish's ``(Σ|w|)² / Σw²``: how many equally weighted conversations these are worth; 0 if all weights are 0."""
    weights = np.abs(np.asarray(weights_N, float))
    total = float((weights**2).sum())
    return float(weights.sum() ** 2 / total) if total > 0 else 0.0


def diagnose(weights_N: ArrayLike, returns_N: ArrayLike, group_N: ArrayLike, success_N: ArrayLike) -> dict[str, Any]:
    """Everything worth knowing about weights before training on them; docs/artifacts.md says what each field is.

    Args:
        weights_N: ``(N,)`` of each conversation, that of its reply with the largest in absolute value.
        returns_N: ``(N,)``.
        group_N: ``(N,)`` prompt of each.
        success_N: ``(N,)`` whether each solved its task.
    """
    weights, returns, success = (np.asarray(each, float) for each in (weights_N, returns_N, success_N))
    index_N = index_groups(group_N)
    best_G = group_max(success, index_N)
    return {
        "trajectories": len(weights),
        "groups": len(best_G),
        "successes": int(success.sum()),
        "ess": effective_sample_size(weights),
        "zero_weights": int((weights == 0).sum()),
        "negative_weights": int((weights < 0).sum()),
        "mixed_share": float((best_G > group_min(success, index_N)).mean()),
        "groups_without_success": int((best_G == 0).sum()),
        "groups_with_equal_returns": int((group_max(returns, index_N) == group_min(returns, index_N)).sum()),
        "groups_of_one": int((np.bincount(index_N) == 1).sum()),
        "histogram": histogram(weights),
        "return_histogram": histogram(returns),
    }


def histogram(values_N: Floats) -> dict[str, Any]:
    """Edges and counts of 20 equal bins between the extremes of all values."""
    low, high = float(values_N.min()), float(values_N.max())
    # Values that differ by rounding alone lie in one bin, in the middle.
    same = 1e-9 * max(abs(low), abs(high))
    span = (low, high) if high - low > same else (low - max(0.5, same), high + max(0.5, same))
    counts, edges = np.histogram(values_N, bins=20, range=span)
    return {"edges": edges.tolist(), "counts": counts.tolist()}
