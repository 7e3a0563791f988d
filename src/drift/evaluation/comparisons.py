"""From one comparison to many, and from one training to several: p-values, Holm's correction, seeds beside prompts."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from drift.errors import require
from drift.evaluation.intervals import LEVEL, Floats, Spread, ratio_value, spread
from drift.evaluation.metrics import Ratio

# Draws of an interval over seeds.
DRAWS = 10_000


def holm(p_values: ArrayLike) -> Floats:
    """Holm's step-down correction: adjusted p-values that bound the chance of any false claim among M comparisons.

    ``p̃_(i) = max_{j ≤ i} min(1, (M − j + 1) · p_(j))`` with ``p_(1) ≤ … ≤ p_(M)`` (Holm 1979). It holds whatever the
    dependence of the comparisons, and is never weaker than Bonferroni's. A comparison that could not be made (NaN) is
    none of the M and stays NaN.

    Args:
        p_values: ``(M,)`` from 0 to 1, or NaN.

    Returns:
        ``(M,)`` adjusted p-values, in the order given.

    Raises:
        ConfigError: a value is not a probability.
    """
    given_M = np.asarray(p_values, float)
    made_M = ~np.isnan(given_M)
    made = given_M[made_M]
    require(bool(((made >= 0) & (made <= 1)).all()), "p_values", made.tolist(), "numbers from 0 to 1, or NaN")
    order = np.argsort(made, kind="stable")
    steps = np.minimum(1.0, made[order] * np.arange(len(made), 0, -1))
    adjusted = np.empty_like(made)
    adjusted[order] = np.maximum.accumulate(steps)
    found_M = np.full_like(given_M, np.nan)
    found_M[made_M] = adjusted
    return found_M


@dataclass(frozen=True, kw_only=True)
class TwoLevel:
    """An estimate over several trainings (seeds), each measured on held-out prompts.

    Attributes:
        value: mean over seeds; ``None`` if no seed has one.
        low, high: its 95 % interval, over seeds and prompts; over prompts alone where there is one seed.
        p_value: of "the value is 0", two-sided: for differences.
        from_seeds: part of the variance of ``value`` that other seeds would cause, beyond what prompts explain;
            ``None`` with one seed, which can't tell.
        from_prompts: part that other prompts would cause, with these seeds.
        seeds: how many seeds it rests on.
    """

    value: float | None
    low: float | None
    high: float | None
    p_value: float | None
    from_seeds: float | None
    from_prompts: float | None
    seeds: int


def over_seeds(ours_S: Sequence[Ratio], theirs_S: Sequence[Ratio] | None = None) -> TwoLevel:
    """One metric of a method over its seeds, or its paired difference from another method's with the same seeds.

    With x_s the value of seed s and e_sP what prompt P adds to its error (``intervals.spread``):

    - prompts: the variance of ``spread``, of the mean over seeds. A prompt counts in every seed that has it, so what
      it does to all of them adds up;
    - seeds: ``max(0, Var_s(x_s) − Σ_P Var_s(e_sP)) / S``, both with S − 1 below. What a prompt does to all seeds
      cancels in it.

    The interval is the middle 95 % of ``centre + t_b √variance + z_b √(σ²_b / S)``, where t is normal (Student's for
    what is no share), z is normal and ``σ²_b = max(0, (S − 1) V / χ²_b − Σ_P Var_s(e_sP))`` with ``V = Var_s(x_s)`` and
    χ² of S − 1 degrees of freedom: a generalized confidence interval (Weerahandi 1993), Student's where prompts explain
    nothing.

    Where values are shares p, seeds move their logits, each policy's by a z_b of its own times
    ``√(σ²_b / (S Σ (p (1 − p))²))``, the sum over the policies: near 0 and 1 seeds' values are skewed, their logits
    less. With q_s the share of a seed and one success and one failure of weight w_s more (Laplace's rule), and q their
    mean, ``V = Var_s(Σ ± q (1 − q) logit q_s) + Σ mean_s(w_s²) / 12``, sums over the policies; w²/12 is the variance of
    what is known in steps of w (Sheppard 1898), without which two seeds that agree would be sure of all others.
    Drawing seeds with replacement instead would promise far too much: three seeds have ten samples.

    Args:
        ours_S: the metric by seed, over the same prompts (``align``); a seed without a value is left out.
        theirs_S: the same of what it is compared with.

    Raises:
        ConfigError: other numbers of seeds or of prompts than there should be.
    """
    theirs = ours_S if theirs_S is None else theirs_S
    require(len(theirs) == len(ours_S), "theirs_S", len(theirs), f"{len(ours_S)} seeds")
    sizes = sorted({len(ratio.numerator_P) for ratio in (*ours_S, *theirs)})
    require(len(sizes) <= 1, "ours_S", sizes, "the same prompts for all")
    pairs = [pair for pair in zip(ours_S, theirs, strict=True) if None not in map(ratio_value, pair)]
    seeds = len(pairs)
    if not seeds:
        return TwoLevel(value=None, low=None, high=None, p_value=None, from_seeds=None, from_prompts=None, seeds=0)
    ours, others = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    found = spread(ours, others if theirs_S is not None else ())
    low, high = found.ends()
    p_value, from_seeds = found.p_value(), None
    if seeds > 1:
        singly = [[spread([ratio]) for ratio in side] for side in ([ours, others] if theirs_S is not None else [ours])]
        value_KS = np.array([[each.value for each in side] for side in singly])
        between = float(np.var(value_KS[0] - value_KS[1:].sum(axis=0), ddof=1))
        from_seeds = max(0.0, between - found.between) / seeds
        if low is not None:
            drawn_B = _draws(found, _in_logits(singly) if found.shares else between, seeds)
            low, high = found.bounded(*np.quantile(drawn_B, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist())
            tail = min(int((drawn_B <= 0).sum()), int((drawn_B >= 0).sum()))
            p_value = min(1.0, 2 * (1 + tail) / (DRAWS + 1))
    return TwoLevel(
        value=found.value,
        low=low,
        high=high,
        p_value=p_value,
        from_seeds=from_seeds,
        from_prompts=None if low is None else found.variance,
        seeds=seeds,
    )


def _in_logits(singly: Sequence[Sequence[Spread]]) -> float:
    """V of ``over_seeds`` for shares."""
    moved, rounding = [], 0.0
    for each_S in singly:
        scale = each_S[0].largest - each_S[0].least
        weight_S = np.array([each.weight for each in each_S])
        share_S = (np.array([each.shares[0] for each in each_S]) + weight_S) / (1 + 2 * weight_S)
        mean = float(share_S.mean())
        moved.append(scale * mean * (1 - mean) * np.log(share_S / (1 - share_S)))
        rounding += scale**2 * float((weight_S**2).mean()) / 12
    return float(np.var(moved[0] - sum(moved[1:]), ddof=1)) + rounding


def _draws(found: Spread, between: float, seeds: int) -> Floats:
    """``(B,)`` draws of the interval of ``over_seeds``."""
    prompts_B, seeds_KB, chi_B = _standard_draws(seeds, found.freedom)
    deviation_B = np.sqrt(np.maximum(0.0, (seeds - 1) * between / chi_B - found.between) / seeds)
    moved_B = seeds_KB[0] * deviation_B
    rooms = [share * (1 - share) for share in found.shares]
    if any(rooms):
        scale, moved_B = (found.largest - found.least) / len(rooms), np.zeros(DRAWS)
        deviation_B = deviation_B / (scale * np.linalg.norm(rooms))
        for share, normal_B, sign in zip(found.shares, seeds_KB, (1, -1), strict=False):
            odds_B = np.exp(np.clip(normal_B * deviation_B, -50, 50))
            moved_B += sign * scale * (share * odds_B / (1 - share + share * odds_B) - share)
    return np.asarray(found.centre + prompts_B * np.sqrt(found.variance) + moved_B)


@functools.lru_cache(maxsize=8)
def _standard_draws(seeds: int, freedom: float) -> tuple[Floats, Floats, Floats]:
    """Always the same: Student's t, two normals, and χ² of S − 1 degrees of freedom; each draw and its mirror image."""
    rng, half = np.random.default_rng(0), DRAWS // 2
    t_B = rng.standard_normal(half) if np.isinf(freedom) else rng.standard_t(freedom, half)
    normal_KB, chi_B = rng.standard_normal((2, half)), np.maximum(rng.chisquare(seeds - 1, half), 1e-300)
    return np.append(t_B, -t_B), np.append(normal_KB, -normal_KB, axis=1), np.append(chi_B, chi_B)


def align(cells: Sequence[tuple[Sequence[str], Ratio]]) -> list[Ratio]:
    """Ratios that need not be over the same prompts, over all there are: 0 over 0 where a prompt is none of theirs.

    Two methods on the same prompts are then paired, seeds with the same held-out prompts go up and down together,
    seeds with prompts of their own apart, and seeds that share some of them lie between.

    Args:
        cells: of each ratio, its distinct prompts in the order of its arrays, and the ratio.
    """
    index = {prompt: at for at, prompt in enumerate(sorted({prompt for prompts, _ in cells for prompt in prompts}))}
    placed = []
    for prompts, ratio in cells:
        place_P = np.array([index[prompt] for prompt in prompts], np.intp)
        top, bottom = np.zeros(len(index)), np.zeros(len(index))
        top[place_P], bottom[place_P] = ratio.numerator_P, ratio.denominator_P
        placed.append(replace(ratio, numerator_P=top, denominator_P=bottom))
    return placed
