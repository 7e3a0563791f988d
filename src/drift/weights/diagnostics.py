"""What a set of weights will do: effective sample size, concentration, prompts that teach nothing."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drift.weights.groups import Floats, Parts, group_max, group_min, group_sum, index_groups


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
    tally = Tally()
    tally.add(weights_N, returns_N, group_N, success_N)
    return tally.report(lambda: [np.asarray(weights_N, float)], lambda: [np.asarray(returns_N, float)])


class Tally:
    """The diagnostics of ``diagnose`` where trajectories come a part at a time, each prompt whole in one part.

    It holds 8 bytes for each prompt, for the exact quartiles, and nothing for each trajectory.
    """

    def __init__(self) -> None:
        self._count: Counter[str] = Counter()
        self._ess: list[Floats] = []
        self._sum = self._squares = self._shares = 0.0

    def add(self, weights_N: ArrayLike, returns_N: ArrayLike, group_N: ArrayLike, success_N: ArrayLike) -> None:
        """Count a part; arguments as of ``diagnose``."""
        weights, success = np.asarray(weights_N, float), np.asarray(success_N, float)
        index_N, groups = index_groups(group_N)
        absolute = np.abs(weights)
        sums_G = group_sum(absolute, index_N, groups)
        live_G = sums_G > 0
        self._shares += float((group_max(absolute, index_N, groups)[live_G] / sums_G[live_G]).sum())
        self._sum += float(absolute.sum())
        self._squares += float((weights**2).sum())
        self._ess.append(group_effective_sample_size(weights, index_N))
        best_G = group_max(success, index_N, groups)
        self._count.update(
            trajectories=len(weights),
            groups=groups,
            live=int(live_G.sum()),
            zero_weights=int((weights == 0).sum()),
            negative_weights=int((weights < 0).sum()),
            mixed=int((best_G > group_min(success, index_N, groups)).sum()),
            groups_without_success=int((best_G == 0).sum()),
            groups_with_equal_returns=int(equal_returns(returns_N, index_N).sum()),
            groups_of_one=int((np.bincount(index_N) == 1).sum()),
        )

    def report(self, weights: Parts, returns: Parts) -> dict[str, Any]:
        """What ``diagnose`` returns; both arguments give all values again, a part at a time, for the histograms."""
        count, ess_G = self._count, np.concatenate(self._ess)
        return {
            "trajectories": count["trajectories"],
            "groups": count["groups"],
            "ess": self._sum**2 / self._squares if self._squares > 0 else 0.0,
            "ess_per_group": [float(q) for q in np.quantile(ess_G, [0, 0.25, 0.5, 0.75, 1])],
            "largest_share": self._shares / count["live"] if count["live"] else 0.0,
            "zero_weights": count["zero_weights"],
            "negative_weights": count["negative_weights"],
            "mixed_share": count["mixed"] / count["groups"],
            "groups_without_success": count["groups_without_success"],
            "groups_with_equal_returns": count["groups_with_equal_returns"],
            "groups_of_one": count["groups_of_one"],
            "histogram": histogram(weights),
            "return_histogram": histogram(returns),
        }


def equal_returns(returns_N: ArrayLike, group_N: ArrayLike) -> NDArray[np.bool_]:
    """``(G,)`` whether all returns of a prompt are the same."""
    returns = np.asarray(returns_N, float)
    index_N, groups = index_groups(group_N)
    equal_G: NDArray[np.bool_] = group_max(returns, index_N, groups) == group_min(returns, index_N, groups)
    return equal_G


def histogram(parts: Parts, bins: int = 20) -> dict[str, Any]:
    """Edges and counts of equal bins between the extremes of all values, which ``parts()`` gives a part at a time."""
    ends = [(float(values.min()), float(values.max())) for values in parts() if len(values)]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    # Values that differ by rounding alone lie in one bin, in the middle.
    same = 1e-9 * max(abs(low), abs(high))
    span = (low, high) if high - low > same else (low - max(0.5, same), high + max(0.5, same))
    counts, edges = np.zeros(bins, np.int64), np.zeros(bins + 1)
    for values in parts():
        found, edges = np.histogram(values, bins=bins, range=span)
        counts += found
    return {"edges": edges.tolist(), "counts": counts.tolist()}
