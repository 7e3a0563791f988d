"""Weightings that are linear in the return: Refit, Swift and its kin. All but Refit's can be negative."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from drift.errors import ConfigError
from drift.weights.groups import Floats, Indices, Parts, group_max, group_mean, group_min, index_groups

# Standard deviations below this share of a prompt's largest return are rounding noise of equal returns.
FLAT = 1e-12


def refit_weights(returns_N: ArrayLike, group_N: ArrayLike, *, refit_shift: bool = False) -> Floats:
    """The return itself: ``w = r`` (Refit, arXiv 2506.06964, Lemma 1).

    The bound that it maximises holds for r ≥ 0 only; with r < 0 the loss has no lower bound.

    Args:
        returns_N: ``(N,)`` r.
        group_N: ``(N,)`` prompt of each.
        refit_shift: take the smallest return of a prompt off its returns where that is negative, so that ``w =
            r − min(0, min r)``, instead of refusing. Refit is not blind to such a constant: it adds plain fine-tuning.

    Raises:
        ConfigError: some return is negative, and ``refit_shift`` is false.
    """
    returns = np.asarray(returns_N, float)
    survey_refit(lambda: [returns], refit_shift=refit_shift)
    if not refit_shift:
        return returns.copy()
    index_N, groups = index_groups(group_N)
    shifted_N: Floats = returns - np.minimum(group_min(returns, index_N, groups), 0.0)[index_N]
    return shifted_N


def survey_refit(parts: Parts, *, refit_shift: bool = False) -> dict[str, Any]:
    """Refuse negative returns, counting those of all parts, unless they are shifted; there is nothing else to know."""
    if refit_shift:
        return {}
    count = negative = 0
    smallest = 0.0
    for returns in parts():
        count, negative = count + len(returns), negative + int((returns < 0).sum())
        smallest = min(smallest, float(returns.min(initial=0.0)))
    if negative:
        raise ConfigError(
            f"refit needs returns ≥ 0: {negative} of {count} are negative, the smallest {smallest:.4g}. "
            "Use --repetition 0 --format_failure 0, --refit_shift true, or the scheme swift."
        )
    return {}


def swift_weights(returns_N: ArrayLike, group_N: ArrayLike) -> Floats:
    """The return, standardised within its prompt: ``w = (r − μ̂) / σ̂`` (Swift, arXiv 2506.06964).

    σ̂ is the population standard deviation of the group. The paper leaves σ̂ = 0 open: such groups get 0 and are
    counted by ``diagnostics``. Weights can be negative, and then nothing bounds the loss from below.
    """
    index_N, groups = index_groups(group_N)
    centred_N, sigma_N, _ = _centred(np.asarray(returns_N, float), index_N, groups)
    flat_N = sigma_N <= FLAT
    return np.where(flat_N, 0.0, centred_N / np.where(flat_N, 1.0, sigma_N))


def group_relative_weights(returns_N: ArrayLike, group_N: ArrayLike) -> Floats:
    """The return less its prompt's mean: ``w = r − μ̂``, the advantage of group-relative policy gradients, offline.

    Swift without σ̂: a prompt counts the more the further its returns lie apart, and rescaling the returns rescales
    the step. Weights can be negative, and then nothing bounds the loss from below. Equal returns give 0.
    """
    index_N, groups = index_groups(group_N)
    centred_N, sigma_N, scale_N = _centred(np.asarray(returns_N, float), index_N, groups)
    return np.where(sigma_N <= FLAT, 0.0, centred_N * scale_N)


def _centred(returns_N: Floats, index_N: Indices, groups: int) -> tuple[Floats, Floats, Floats]:
    """``(N,)`` returns less their prompt's mean, its deviation, and the unit of both: its largest absolute return."""
    # In that unit squares neither overflow nor vanish.
    scale_N = group_max(np.abs(returns_N), index_N, groups)[index_N]
    scaled_N = returns_N / np.where(scale_N > 0, scale_N, 1.0)
    centred_N = scaled_N - group_mean(scaled_N, index_N, groups)[index_N]
    return centred_N, np.sqrt(group_mean(centred_N**2, index_N, groups))[index_N], scale_N
