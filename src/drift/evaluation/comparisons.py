"""From one comparison to many, and from one training to several: p-values, Holm's correction, seeds beside prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drift.errors import require
from drift.evaluation.intervals import RESAMPLES, bootstrap, interval, ratio_value
from drift.evaluation.metrics import Ratio

Floats = NDArray[np.float64]


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


def bootstrap_p_value(differences_B: Floats) -> float | None:
    """Two-sided p-value of "the difference is 0", by inverting the percentile interval of its bootstrap draws.

    ``p = min(1, 2 · (1 + min(#{d* ≤ 0}, #{d* ≥ 0})) / (B + 1))``: below 0.05 where the 95 % interval leaves out 0, and
    never below ``2 / (B + 1)``. Draws of 0 count on both sides, so two policies that never differ have p = 1.

    Args:
        differences_B: ``(B,)`` draws of a paired difference; those that are not finite are left out.

    Returns:
        The p-value; ``None`` without draws.
    """
    drawn = differences_B[np.isfinite(differences_B)]
    if not drawn.size:
        return None
    tail = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return min(1.0, 2 * (1 + tail) / (len(drawn) + 1))


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


def two_level(point_S: ArrayLike, drawn_BS: Floats, *, seed: int) -> TwoLevel:
    """Mean over S trainings with an interval over seeds and prompts.

    With x_s the estimate of seed s, x*_bs its bootstrap draws over prompts and e_bs = x*_bs − x_s:

    - prompts: ``Var_b(mean_s x*_bs)``;
    - seeds: ``max(0, Var_s(x_s) − mean_b Var_s(e_bs)) / S``, both variances over s with S − 1 below. Where all seeds
      are measured on the same prompts and drawn together, what a prompt does to all of them cancels in the second.

    The interval is the middle 95 % of ``mean_s x*_bs + z_b √(σ²_b / S)``, where z is normal and
    ``σ²_b = max(0, (S − 1) Var_s(x_s) / χ²_b − mean_b Var_s(e_bs))`` with χ² of S − 1 degrees of freedom: a generalized
    confidence interval (Weerahandi 1993), Student's where prompts explain nothing. Drawing seeds with replacement
    instead would promise far too much: three seeds have ten samples.

    Args:
        point_S: ``(S,)`` estimates, one for each seed; a seed whose estimate is not finite is left out.
        drawn_BS: ``(B, S)`` bootstrap draws of each over prompts: with the same draws for all seeds where they share
            their prompts, and separate ones where they don't.
        seed: of the draws made here.
    """
    points = np.asarray(point_S, float)
    require(drawn_BS.ndim == 2 and drawn_BS.shape[1:] == points.shape, "drawn_BS", drawn_BS.shape, "a column per seed")
    known_S = np.isfinite(points)
    points, drawn = points[known_S], drawn_BS[:, known_S]
    drawn = drawn[np.isfinite(drawn).all(axis=1)]
    seeds = len(points)
    if not seeds or not len(drawn):
        value = float(points.mean()) if seeds else None
        return TwoLevel(value=value, low=None, high=None, p_value=None, from_seeds=None, from_prompts=None, seeds=seeds)
    mean_B = drawn.mean(axis=1)
    from_seeds = None
    spread_B = mean_B
    if seeds > 1:
        between, explained = points.var(ddof=1), (drawn - points).var(axis=1, ddof=1).mean()
        from_seeds = max(0.0, float(between - explained)) / seeds
        rng = np.random.default_rng(seed)
        chi_B = rng.chisquare(seeds - 1, len(drawn))
        variance_B = np.maximum(0.0, (seeds - 1) * between / np.maximum(chi_B, 1e-300) - explained)
        spread_B = mean_B + rng.standard_normal(len(drawn)) * np.sqrt(variance_B / seeds)
    low, high = interval(spread_B)
    return TwoLevel(
        value=float(points.mean()),
        low=low,
        high=high,
        p_value=bootstrap_p_value(spread_B),
        from_seeds=from_seeds,
        from_prompts=float(mean_B.var()),
        seeds=seeds,
    )


def over_seeds(
    ours_S: Sequence[Ratio], theirs_S: Sequence[Ratio] | None = None, *, seed: int, shared_prompts: bool = True
) -> TwoLevel:
    """One metric of a method over its seeds, or its paired difference from another method's with the same seeds.

    Args:
        ours_S: the metric by seed.
        theirs_S: the same of what it is compared with, each on the prompts of its counterpart.
        seed: of the bootstrap.
        shared_prompts: all seeds were measured on the same prompts, in the same order. Where false each seed has
            prompts of its own.

    Raises:
        ConfigError: other numbers of seeds or of prompts than there should be.
    """
    theirs = list(theirs_S) if theirs_S is not None else []
    require(theirs_S is None or len(theirs) == len(ours_S), "theirs_S", len(theirs), f"{len(ours_S)} seeds")
    pairs = [(one, *theirs[at : at + 1]) for at, one in enumerate(ours_S)]
    sizes = [{len(ratio.numerator_P) for ratio in pair} for pair in pairs]
    alike = len(set().union(*sizes)) <= 1 if shared_prompts else all(len(size) == 1 for size in sizes)
    require(alike, "ours_S", [sorted(size) for size in sizes], "the same prompts for whatever is drawn together")
    points, columns = [], []
    for at, pair in enumerate(pairs):
        # The same seed draws the same prompts for every ratio of as many prompts.
        drawn_BM = bootstrap(list(pair), seed if shared_prompts else _own(seed, at))
        values = [ratio_value(ratio) for ratio in pair]
        known = [float("nan") if value is None else value for value in values]
        points.append(known[0] - known[1] if theirs else known[0])
        columns.append(drawn_BM[:, 0] - drawn_BM[:, 1] if theirs else drawn_BM[:, 0])
    drawn_BS = np.stack(columns, axis=1) if columns else np.empty((RESAMPLES, 0))
    return two_level(points, drawn_BS, seed=_own(seed, -1))


def _own(seed: int, at: int) -> int:
    """A seed of its own for each stream of draws."""
    return int(np.random.SeedSequence([seed, at + 1]).generate_state(1)[0])
