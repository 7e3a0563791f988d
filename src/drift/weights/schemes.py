"""Schemes: what a conversation weighs, one pure function each, returns in, weights out.

Every function takes ``returns_N`` and ``group_N``. Further arguments are keyword-only: those that end in ``_N`` or
``_T`` are filled by name from the data (``drift.weights.turns.Conversations``), the others are the scheme's settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from drift.errors import ConfigError, require
from drift.registry import Registry, path_of
from drift.weights.groups import Floats, Indices, group_max, group_mean, group_min, index_groups
from drift.weights.luck import averaged_weights
from drift.weights.signed import asymre_weights, topr_weights
from drift.weights.temperature import exponents

# Standard deviations below this share of a prompt's largest return are rounding noise of equal returns.
FLAT = 1e-12


def drift_weights(returns_N: ArrayLike, group_N: ArrayLike, *, beta: float | Floats = 0.1) -> Floats:
    """Importance weights toward the optimum of the KL-regularised objective (DRIFT Eq. 13).

    ``w_k = e^{R_k/β} / Ẑ`` with ``Ẑ = (1/K) Σ_j e^{R_j/β}`` over the K conversations of the prompt, in log space.
    Group mean 1, largest possible value K, unchanged by a constant added to a group's returns.

    Fails quietly where a prompt has no success: its total weight is K all the same (see ``drop_unsolved``).

    Args:
        returns_N: ``(N,)`` R.
        group_N: ``(N,)`` which prompt each belongs to.
        beta: temperature β > 0, in the units of R. An array ``(N,)`` of each conversation's, the same within a prompt,
            may hold the limits 0 (the best alone) and ∞ (all alike); see ``temperature``.

    Returns:
        ``(N,)`` weights ≥ 0.

    Raises:
        ConfigError: β is not above 0.
    """
    _check_beta(beta)
    returns = np.asarray(returns_N, float)
    index_N, groups = index_groups(group_N)
    # The subtraction comes first: returns/β may overflow where their differences do not.
    with np.errstate(over="ignore"):
        gap_N = returns - group_max(returns, index_N, groups)[index_N]
    tilted_N = np.exp(exponents(gap_N, beta))
    weights: Floats = tilted_N / group_mean(tilted_N, index_N, groups)[index_N]
    return weights


def bolt_weights(returns_N: ArrayLike, group_N: ArrayLike, *, beta: float | Floats = 0.1) -> Floats:
    """The prompt-normalised Boltzmann weight of single replies, ``e^{r(x,y_1)/β}/Ẑ(x)`` (BOLT, arXiv 2605.02469).

    It is DRIFT's weight of conversations that end after one reply: ``returns_N`` are those of the first replies alone,
    and the first replies alone are trained.
    """
    return drift_weights(returns_N, group_N, beta=beta)


def sft_weights(returns_N: ArrayLike, group_N: ArrayLike) -> Floats:
    """Plain supervised fine-tuning on every conversation: ``w = 1`` (SFT-5turn of the DRIFT paper)."""
    return np.ones(len(np.asarray(returns_N)))


def rft_weights(returns_N: ArrayLike, group_N: ArrayLike, *, success_N: ArrayLike) -> Floats:
    """Rejection sampling: ``w = 1[success]`` (RFT, arXiv 2304.06767 and 2308.01825). Blind to how long it took."""
    return np.asarray(success_N, float)


def star_weights(
    returns_N: ArrayLike, group_N: ArrayLike, *, success_N: ArrayLike, turns_N: ArrayLike, first_wrong_N: ArrayLike
) -> Floats:
    """Corrections alone: ``w = 1[L = 2, y_1 wrong, y_2 right]`` (STaR-2turn, App. D.1 of the DRIFT paper).

    Where no conversation has two turns, or the first reply was a question rather than an answer, nothing is kept:
    ``first_wrong_N`` says whether an answer was asked for at turn 1 and the reply was not right.
    """
    second_N = np.asarray(first_wrong_N, bool) & (np.asarray(turns_N) == 2)
    return np.where(second_N, np.asarray(success_N, float), 0.0)


def star_gate_weights(returns_N: ArrayLike, group_N: ArrayLike) -> Floats:
    """The best conversation of each prompt alone: ``w = 1[k = argmax_j R_j]`` (STaR-GATE, arXiv 2403.19154).

    Of those that tie for the best it is the first in the order of the arrays, which for a data set is that of tasks
    and samples: one row for each prompt, as published. A prompt that was never solved keeps its best failure unless
    ``drop_unsolved`` takes it.
    """
    returns = np.asarray(returns_N, float)
    index_N, groups = index_groups(group_N)
    best = np.flatnonzero(returns == group_max(returns, index_N, groups)[index_N])
    _, first = np.unique(index_N[best], return_index=True)
    weights = np.zeros(len(returns))
    weights[best[first]] = 1.0
    return weights


def refit_weights(returns_N: ArrayLike, group_N: ArrayLike, *, shift: bool = False) -> Floats:
    """The return itself: ``w = r`` (Refit, arXiv 2506.06964, Lemma 1).

    The bound that it maximises holds for r ≥ 0 only; with r < 0 the loss has no lower bound. ``shift`` takes a prompt's
    smallest return off where that is negative, ``w = r − min(0, min r)``, instead of refusing. Refit is not blind to
    such a constant: it adds plain fine-tuning.

    Raises:
        ConfigError: some return is negative, and ``shift`` is false.
    """
    returns = np.asarray(returns_N, float)
    if shift:
        index_N, groups = index_groups(group_N)
        shifted_N: Floats = returns - np.minimum(group_min(returns, index_N, groups), 0.0)[index_N]
        return shifted_N
    negative = int((returns < 0).sum())
    if negative:
        raise ConfigError(
            f"refit needs returns ≥ 0: {negative} of {len(returns)} are negative, the smallest {returns.min():.4g}. "
            "Set repetition and format_failure to 0, scheme to {refit: {shift: true}}, or scheme to swift."
        )
    return returns.copy()


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


def rwr_weights(returns_N: ArrayLike, group_N: ArrayLike, *, beta: float = 0.1) -> Floats:
    """Reward-weighted regression: ``w ∝ e^{r/β}`` with one constant for the whole data set, here mean weight 1.

    Unlike ``drift`` it favours easy prompts, whose returns are high.
    """
    _check_beta(beta)
    returns = np.asarray(returns_N, float)
    top, mean = shared_partition(returns, beta)
    with np.errstate(over="ignore"):
        weights: Floats = np.exp(exponents(returns - top, beta)) / mean
    return weights


def shared_partition(returns_N: Floats, beta: float | Floats) -> tuple[float, float]:
    """The largest return R⁺ of all, and the mean over all of ``e^{(r − R⁺)/β}``, correctly rounded."""
    top = float(returns_N.max(initial=-np.inf))
    with np.errstate(over="ignore"):
        tilted_N = np.exp(exponents(returns_N - top, beta))
    parts = (tilted_N[at : at + 65_536].tolist() for at in range(0, len(tilted_N), 65_536))
    return top, math.fsum(value for part in parts for value in part) / max(len(tilted_N), 1)


def awr_weights(returns_N: ArrayLike, group_N: ArrayLike, *, beta: float = 0.1, w_max: float = 20.0) -> Floats:
    """Advantage-weighted regression: ``w = min(e^{A/β}, w_max)``, ``A = r − μ̂`` of the prompt (arXiv 1910.00177)."""
    _check_beta(beta)
    require(w_max > 0, "weights.scheme.awr.w_max", w_max, "a number > 0")
    returns = np.asarray(returns_N, float)
    index_N, groups = index_groups(group_N)
    with np.errstate(over="ignore"):
        # Less the largest first: the mean of equal returns would differ from them in the last bit, and β may be small.
        gap_N = returns - group_max(returns, index_N, groups)[index_N]
        advantage_N = gap_N - group_mean(gap_N, index_N, groups)[index_N]
        weights: Floats = np.exp(np.minimum(advantage_N / beta, np.log(w_max)))
    return weights


def _check_beta(beta: float | Floats) -> None:
    if isinstance(beta, np.ndarray):
        require(bool((beta >= 0).all()), "weights.beta", beta, "numbers ≥ 0, or ∞")
    else:
        require(beta > 0, "weights.beta", beta, "a number > 0", "β divides the return; 0.1 is the published value.")


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A scheme and what its paper brings with it; a function of one's own has attributes of these names instead.

    Attributes:
        function: ``(returns_N, group_N, *, …) -> weights_N``.
        name: what it is called; ``module:function`` for one of one's own.
        turns: which replies get the weight.
        gamma: discount γ per turn.
        repetition: λ, what repeating oneself costs.
        grouped: it compares conversations of one prompt, so a prompt needs at least two.
        centred: it does so by returns alone, and can compare ``R − b`` of all prompts where b is a baseline.
        signed: its weights can be negative, and nothing of its own bounds them: the step bound_negative follows.
        partitioned: it divides ``e^{R/β}`` by the prompt's Ẑ, so that β can be found from the data and Ẑ be shrunk.
        first_turn: return and success are those of the first reply, which is all that may be trained.
    """

    function: Callable[..., Floats]
    name: str = ""
    turns: str = "terminal"
    gamma: float = 1.0
    repetition: float = 0.0
    grouped: bool = False
    centred: bool = False
    signed: bool = True
    partitioned: bool = False
    first_turn: bool = False

    @classmethod
    def of(cls, function: Callable[..., Floats]) -> Scheme:
        """A function of one's own, with what its attributes say."""
        said: dict[str, Any] = {each.name: getattr(function, each.name, each.default) for each in fields(cls)[2:]}
        return cls(function=function, name=path_of(function), **said)


def _scheme(name: str, function: Callable[..., Floats], **more: Any) -> Scheme:
    return Scheme(function=function, name=name, **{"signed": False, **more})


_COMPARED: dict[str, Any] = {"grouped": True, "centred": True}
_DRIFT: dict[str, Any] = {"gamma": 0.9, "repetition": 0.5, "grouped": True}
SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        _scheme("drift", drift_weights, partitioned=True, centred=True, **_DRIFT),
        _scheme("drift_averaged", averaged_weights, **_DRIFT),
        _scheme("bolt", bolt_weights, **_COMPARED, partitioned=True, first_turn=True, turns="first"),
        _scheme("sft", sft_weights),
        _scheme("rft", rft_weights),
        _scheme("star", star_weights),
        _scheme("star_gate", star_gate_weights, grouped=True, turns="all"),
        _scheme("refit", refit_weights, turns="all"),
        _scheme("swift", swift_weights, **_COMPARED, turns="all", signed=True),
        _scheme("group_relative", group_relative_weights, **_COMPARED, turns="all", signed=True),
        _scheme("rwr", rwr_weights),
        _scheme("awr", awr_weights, **_COMPARED),
        # What they push away is bounded on purpose: by a share, and by δ.
        _scheme("topr", topr_weights),
        _scheme("asymre", asymre_weights, **_COMPARED),
    )
}
REGISTRY = Registry("scheme", "drift.schemes", {**SCHEMES, "auto": "drift.weights.auto:AUTO"})


def find_scheme(scheme: str | Callable[..., Floats]) -> Scheme:
    """The scheme of a name, ``module:function`` or function; raises ``ConfigError`` with the nearest known name."""
    found = REGISTRY.find(scheme)
    return found if isinstance(found, Scheme) else Scheme.of(found)
