"""Many estimates drawn together: a prompt counts alike in whatever methods, seeds and metrics it belongs to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from drift.evaluation.intervals import RESAMPLES, Floats, bootstrap
from drift.evaluation.metrics import Ratio


def draw_together(cells: Sequence[tuple[Sequence[str], Ratio]], seed: int, resamples: int = RESAMPLES) -> Floats:
    """Bootstrap values of ratios that need not be over the same prompts.

    Prompts are drawn with replacement from all there are; one that is drawn twice counts twice in every ratio it
    belongs to. So whatever prompts have in common is kept: two methods on the same prompts are paired, seeds with the
    same held-out prompts go up and down together, seeds with prompts of their own go apart, and seeds that share some
    of them lie between.

    Args:
        cells: of each of the M ratios, its distinct prompts in the order of its arrays, and the ratio.
        seed: of the draws.
        resamples: B.

    Returns:
        ``(B, M)`` values; NaN where a draw left a ratio nothing to divide by.
    """
    index = {prompt: at for at, prompt in enumerate(sorted({prompt for prompts, _ in cells for prompt in prompts}))}
    placed = []
    for prompts, ratio in cells:
        place_P = np.array([index[prompt] for prompt in prompts], np.intp)
        top, bottom = np.zeros(len(index)), np.zeros(len(index))
        top[place_P], bottom[place_P] = ratio.numerator_P, ratio.denominator_P
        placed.append(Ratio(numerator_P=top, denominator_P=bottom))
    return bootstrap(placed, seed, resamples) if placed else np.empty((resamples, 0))
