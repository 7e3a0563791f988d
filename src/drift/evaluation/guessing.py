"""What guessing, and asking again, would score: the two things that success within k turns must be read beside."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from drift.evaluation.metrics import Ratio, Runs, per_prompt_ratio

Floats = NDArray[np.float64]


def floors(runs: Runs, multi: Mapping[str, Ratio], max_turns: int) -> dict[str, Ratio]:
    """multi@k of a guesser who knows nothing but the options and never repeats itself, and multi@k corrected for it.

    ``floor@k``
        mean over prompts of ``min(1, a_k / options)``, a_k being the answers asked for up to turn k; 0 for a prompt
        without a number of options.
    ``above_floor@k``
        ``(multi@k − floor@k) / (1 − floor@k)``: 0 is guessing, 1 is all solved; nothing where the floor is 1.

    Args:
        runs: the conversations.
        multi: their ``multi@k``.
        max_turns: T.

    Returns:
        Nothing where no prompt has a number of options.
    """
    if not np.isfinite(runs.options_P).any():
        return {}
    graded_NT = runs.graded_NT[:, :max_turns]
    reached_NT = np.arange(graded_NT.shape[1]) < runs.turns_N[:, None]
    # Not asked: everybody who got to that turn was asked something else than an answer.
    asked_T = np.ones(max_turns, bool)
    asked_T[: graded_NT.shape[1]] = np.any(graded_NT, axis=0) | ~np.any(reached_NT, axis=0)
    found: dict[str, Ratio] = {}
    for k in range(1, max_turns + 1):
        ratio = multi[f"multi@{k}"]
        floor_P = np.minimum(1.0, asked_T[:k].sum() / runs.options_P) * ratio.denominator_P
        found[f"floor@{k}"] = Ratio(numerator_P=floor_P, denominator_P=ratio.denominator_P)
        above_P = ratio.denominator_P - floor_P
        # What a policy gets that solves nothing.
        least = -float(floor_P.sum()) / float(above_P.sum()) if above_P.sum() > 0 else None
        found[f"above_floor@{k}"] = Ratio(numerator_P=ratio.numerator_P - floor_P, denominator_P=above_P, least=least)
    return found


def resampling(runs: Runs, max_turns: int) -> dict[str, Ratio]:
    """What asking again in a new conversation would do, from several sampled conversations of each prompt.

    With n conversations of a prompt, c of them right in their first reply, ``pass@k = 1 − C(n−c, k) / C(n, k)`` is the
    unbiased estimate of the chance that one of k first replies is right (Chen et al., arXiv 2107.03374), for k up to
    the largest n; prompts with fewer than k are left out of it.

    ``pass@k``
        mean over prompts.
    ``feedback_gain@k``
        multi@k − pass@k at as many replies, both as means over the same prompts (k ≥ 2): what feedback is worth.

    Returns:
        Nothing where no prompt has two conversations that were asked for an answer at turn 1.
    """
    first_N = runs.graded_NT[:, 0] if runs.graded_NT.shape[1] else np.zeros(len(runs.turns_N), bool)
    right = per_prompt_ratio(runs, first_N & (runs.solved_at_N == 1), first_N)
    c_P, n_P = right.numerator_P, right.denominator_P
    most = int(n_P.max(initial=0))
    if most < 2:
        return {}
    found: dict[str, Ratio] = {}
    missed_P = np.ones(len(n_P))
    for k in range(1, most + 1):
        enough_P = (n_P >= k).astype(float)
        # C(n−c, k) / C(n, k), a factor at a time: the chance that k draws without replacement are all wrong.
        missed_P = missed_P * np.maximum(0.0, n_P - c_P - k + 1) / np.maximum(n_P - k + 1, 1.0)
        pass_P = (1 - missed_P) * enough_P
        found[f"pass@{k}"] = Ratio(numerator_P=pass_P, denominator_P=enough_P, least=0.0)
        if 2 <= k <= max_turns:
            within_N = first_N & (runs.solved_at_N > 0) & (runs.solved_at_N <= k)
            solved_P = per_prompt_ratio(runs, within_N, first_N).numerator_P
            multi_P = solved_P / np.maximum(n_P, 1) * enough_P
            found[f"feedback_gain@{k}"] = Ratio(numerator_P=multi_P - pass_P, denominator_P=enough_P, least=-1.0)
    return found
