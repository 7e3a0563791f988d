"""What weights will do: how many conversations count, and which prompts teach nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from drift.weights.groups import Floats, group_max, group_min
from drift.weights.turns import Conversations


def effective_sample_size(weights_N: ArrayLike) -> float:
    """Kish's ``(Σ|w|)² / Σw²``: how many equally weighted conversations these are worth; 0 if all weights are 0."""
    weights = np.abs(np.asarray(weights_N, float))
    total = float((weights**2).sum())
    return float(weights.sum() ** 2 / total) if total > 0 else 0.0


def diagnose(weights_T: Floats, data: Conversations) -> dict[str, Any]:
    """Everything worth knowing about weights before training on them; docs/artifacts.md says what each field is."""
    # Of a conversation that of its reply with the largest. In place: there may be very many.
    weights_N, down_N = np.maximum.reduceat(weights_T, data.start_N), np.minimum.reduceat(weights_T, data.start_N)
    np.copyto(weights_N, down_N, where=-down_N > weights_N)
    del down_N
    returns_N, success_N, index_N = data.returns_N, data.success_N.astype(float), data.group_N
    best_G = group_max(success_N, index_N)
    found = {
        "trajectories": len(weights_N),
        "groups": len(best_G),
        "successes": int(success_N.sum()),
        "ess": effective_sample_size(weights_N),
        "zero_weights": int((weights_N == 0).sum()),
        "negative_weights": int((weights_N < 0).sum()),
        "mixed_share": float((best_G > group_min(success_N, index_N)).mean()),
        "groups_without_success": int((best_G == 0).sum()),
        "groups_with_equal_returns": int((group_max(returns_N, index_N) == group_min(returns_N, index_N)).sum()),
        "groups_of_one": int((np.bincount(index_N) == 1).sum()),
        "histogram": histogram(weights_N),
        "return_histogram": histogram(returns_N),
    }
    if data.baseline_N is not None:
        spread = float(np.var(returns_N))
        found["explained"] = 1 - float(np.var(data.advantage_N)) / spread if spread > 0 else 0.0
    return found


def histogram(values_N: Floats) -> dict[str, Any]:
    """Edges and counts of 20 equal bins between the extremes of all values."""
    low, high = float(values_N.min()), float(values_N.max())
    # Values that differ by rounding alone lie in one bin, in the middle.
    same = 1e-9 * max(abs(low), abs(high))
    span = (low, high) if high - low > same else (low - max(0.5, same), high + max(0.5, same))
    counts, edges = np.histogram(values_N, bins=20, range=span)
    return {"edges": edges.tolist(), "counts": counts.tolist()}
