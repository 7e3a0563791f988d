"""Bootstrap over prompts: the K conversations of a prompt are not independent, prompts are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from drift.evaluation.metrics import Ratio

Floats = NDArray[np.float64]
LEVEL = 0.95
RESAMPLES = 2000
_CHUNK = 100


def ratio_value(ratio: Ratio) -> float | None:
    """``Σ numerator / Σ denominator``, or ``None`` where the denominator is 0."""
    total = float(ratio.denominator_P.sum())
    return float(ratio.numerator_P.sum()) / total if total > 0 else None


def bootstrap(ratios: list[Ratio], seed: int, resamples: int = RESAMPLES) -> Floats:
    """Values of each ratio on prompts drawn with replacement, the same draws for all of them.

    Args:
        ratios: M metrics over the same P prompts, in the same order.
        seed: of the draws.
        resamples: B.

    Returns:
        ``(B, M)`` values; NaN where a resample left nothing to divide by, or where there are no prompts.
    """
    prompts = len(ratios[0].numerator_P)
    if not prompts:
        return np.full((resamples, len(ratios)), np.nan)
    top_PM = np.stack([ratio.numerator_P for ratio in ratios], axis=1)
    bottom_PM = np.stack([ratio.denominator_P for ratio in ratios], axis=1)
    rng = np.random.default_rng(seed)
    rows = []
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        times_BP = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=size).astype(float)
        with np.errstate(invalid="ignore", divide="ignore"):
            rows.append((times_BP @ top_PM) / (times_BP @ bottom_PM))
    return np.concatenate(rows)


def interval(values_B: Floats) -> tuple[float | None, float | None]:
    """The middle 95 % of bootstrap values (percentile method); ``None`` where there are none."""
    finite_B = values_B[np.isfinite(values_B)]
    if not finite_B.size:
        return None, None
    low, high = np.quantile(finite_B, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
