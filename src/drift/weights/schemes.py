"""Weightings: one pure function each, returns in, weights out. The trainer knows none of them.

Every function takes ``returns_N`` and ``group_N`` first; further arguments are keyword-only and given by name from
what the data set holds (``success_N``) and what the configuration says (``beta``, ``w_max``, …).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drift.errors import ConfigError, require, unknown_name
from drift.weights.groups import Floats, Parts, group_max, group_mean, index_groups

Scheme = Callable[..., Floats]


def drift_weights(returns_N: ArrayLike, group_N: ArrayLike, *, beta: float) -> Floats:
    """Importance weights toward the optimum of the KL-regularised objective (DRIFT Eq. 13).

    ``w_k = e^{R_k/β} / Ẑ`` with ``Ẑ = (1/K) Σ_j e^{R_j/β}`` over the K trajectories of the prompt, in log space.
    Group mean 1, largest possible value K, unchanged by a constant added to a group's returns.

    Fails quietly where a group has no success: its total weight is K all the same (see ``no_success``).

    Args:
        returns_N: ``(N,)`` R.
        group_N: ``(N,)`` which prompt each belongs to.
        beta: temperature β > 0, in the units of R.

    Returns:
        ``(N,)`` weights ≥ 0.
    """
    require(beta > 0, "weights.beta", beta, "a number > 0", "β divides the return; 0.1 is the published value.")
    returns = np.asarray(returns_N, float)
    index_N, groups = index_groups(group_N)
    # The subtraction comes first: returns/β may overflow where their differences do not.
    tilted_N = np.exp((returns - group_max(returns, index_N, groups)[index_N]) / beta)
    weights: Floats = tilted_N / group_mean(tilted_N, index_N, groups)[index_N]
    return weights


def sft_weights(returns_N: ArrayLike, group_N: ArrayLike) -> Floats:
    """Plain supervised fine-tuning on every trajectory: ``w = 1`` (SFT-5turn of the DRIFT paper)."""
    return np.ones(len(np.asarray(returns_N)))


def rft_weights(returns_N: ArrayLike, group_N: ArrayLike, *, success_N: ArrayLike) -> Floats:
    """Rejection sampling: ``w = 1[success]`` (RFT, arXiv 2304.06767 and 2308.01825). Blind to how long it took."""
    return np.asarray(success_N, float)


def refit_weights(returns_N: ArrayLike, group_N: ArrayLike) -> Floats:
    """The return itself: ``w = r`` (Refit, arXiv 2506.06964, Lemma 1).

    The bound that it maximises holds for r ≥ 0 only; with r < 0 the loss has no lower bound.

    Raises:
        ConfigError: some return is negative.
    """
    returns = np.asarray(returns_N, float)
    survey_refit(lambda: [returns])
    return returns.copy()


def survey_refit(parts: Parts) -> dict[str, Any]:
    """Refuse negative returns, counting those of all parts; there is nothing to know beyond."""
    count = negative = 0
    smallest = 0.0
    for returns in parts():
        count, negative = count + len(returns), negative + int((returns < 0).sum())
        smallest = min(smallest, float(returns.min(initial=0.0)))
    if negative:
        raise ConfigError(
            f"refit needs returns ≥ 0: {negative} of {count} are negative, "
            f"the smallest {smallest:.4g}. Use --repetition 0 --format_failure 0, or the scheme swift."
        )
    return {}


def swift_weights(returns_N: ArrayLike, group_N: ArrayLike) -> Floats:
    """The return, standardised within its prompt: ``w = (r − μ̂) / σ̂`` (Swift, arXiv 2506.06964).

    σ̂ is the population standard deviation of the group. The paper leaves σ̂ = 0 open: such groups get 0 and are
    counted by ``diagnostics``. Weights can be negative, and then nothing bounds the loss from below.
    """
    returns = np.asarray(returns_N, float)
    index_N, groups = index_groups(group_N)
    # In units of the largest return, squares neither overflow nor vanish.
    scale_N = group_max(np.abs(returns), index_N, groups)[index_N]
    scaled_N = returns / np.where(scale_N > 0, scale_N, 1.0)
    centred_N = scaled_N - group_mean(scaled_N, index_N, groups)[index_N]
    sigma_N = np.sqrt(group_mean(centred_N**2, index_N, groups))[index_N]
    # Equal returns leave rounding noise in σ̂.
    flat_N = sigma_N <= 1e-12
    return np.where(flat_N, 0.0, centred_N / np.where(flat_N, 1.0, sigma_N))


def rwr_weights(
    returns_N: ArrayLike, group_N: ArrayLike, *, beta: float, normalizer: tuple[float, float] | None = None
) -> Floats:
    """Reward-weighted regression: ``w ∝ e^{r/β}`` with one constant for the whole data set, here mean weight 1.

    Unlike ``drift`` it favours easy prompts, whose returns are high. ``normalizer`` is what ``survey_rwr`` found in
    the whole data set, of which ``returns_N`` may then be a part.
    """
    require(beta > 0, "weights.beta", beta, "a number > 0")
    returns = np.asarray(returns_N, float)
    top, mean = normalizer or survey_rwr(lambda: [returns], beta=beta)["normalizer"]
    weights: Floats = np.exp((returns - top) / beta) / mean
    return weights


def survey_rwr(parts: Parts, *, beta: float) -> dict[str, Any]:
    """The largest return R⁺ of all parts and the mean of ``e^{(r − R⁺)/β}``, correctly rounded in whatever order."""
    top = max((float(returns.max(initial=-np.inf)) for returns in parts()), default=-np.inf)
    count = 0

    def tilted() -> Iterator[float]:
        nonlocal count
        for returns in parts():
            count += len(returns)
            yield from np.exp((returns - top) / beta).tolist()

    total = math.fsum(tilted())
    return {"normalizer": (top, total / max(count, 1))}


def awr_weights(returns_N: ArrayLike, group_N: ArrayLike, *, beta: float, w_max: float) -> Floats:
    """Advantage-weighted regression: ``w = min(e^{A/β}, w_max)``, ``A = r − μ̂`` of the prompt (arXiv 1910.00177)."""
    require(beta > 0, "weights.beta", beta, "a number > 0")
    require(w_max > 0, "weights.w_max", w_max, "a number > 0")
    returns = np.asarray(returns_N, float)
    index_N, groups = index_groups(group_N)
    advantage_N = returns - group_mean(returns, index_N, groups)[index_N]
    weights: Floats = np.exp(np.minimum(advantage_N / beta, np.log(w_max)))
    return weights


@dataclass(frozen=True, kw_only=True)
class SchemeInfo:
    """A weighting and what its paper goes with it.

    Attributes:
        function: ``(returns_N, group_N, **named) -> weights_N``.
        grouped: it compares trajectories of one prompt, so each prompt needs at least two.
        repetition: λ of the return unless the configuration says otherwise.
        local: the weights of a prompt depend on that prompt and on what ``survey`` found, so that whole prompts can
            be weighed apart. Where false, it must be called once with all trajectories.
        survey: what it must know of all returns: ``(parts, **named) -> more named``, ``parts()`` giving them all.
    """

    function: Scheme
    grouped: bool
    repetition: float
    local: bool = True
    survey: Callable[..., dict[str, Any]] | None = None


SCHEMES: dict[str, SchemeInfo] = {
    "drift": SchemeInfo(function=drift_weights, grouped=True, repetition=0.5),
    "sft": SchemeInfo(function=sft_weights, grouped=False, repetition=0.0),
    "rft": SchemeInfo(function=rft_weights, grouped=False, repetition=0.0),
    "refit": SchemeInfo(function=refit_weights, grouped=False, repetition=0.0, survey=survey_refit),
    "swift": SchemeInfo(function=swift_weights, grouped=True, repetition=0.0),
    "rwr": SchemeInfo(function=rwr_weights, grouped=False, repetition=0.0, survey=survey_rwr),
    "awr": SchemeInfo(function=awr_weights, grouped=True, repetition=0.0),
}
ENTRY_POINTS = "drift.weightings"


def get_scheme(name: str) -> SchemeInfo:
    """The weighting called ``name``, built in or declared by another package under ``drift.weightings``.

    Other packages declare the bare function; it counts as grouped if it says ``function.grouped = True``, and gets a
    part of the prompts at a time if it says ``function.local = True``.
    """
    if name in SCHEMES:
        return SCHEMES[name]
    declared = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in declared:
        raise unknown_name("weighting", name, [*SCHEMES, *declared], where="weights.scheme")
    try:
        function: Scheme = declared[name].load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"weighting {name!r} is declared by {declared[name].value!r}, which can't be imported: {error}. "
            "Reinstall the package that declares it."
        ) from error
    grouped, local = (bool(getattr(function, name, False)) for name in ("grouped", "local"))
    return SchemeInfo(function=function, grouped=grouped, repetition=0.0, local=local)


def survey_scheme(name: str, parts: Parts, named: Mapping[str, Any]) -> dict[str, Any]:
    """What a weighting must know of all returns before it can weigh a part, as further named arguments.

    Args:
        name: of the weighting.
        parts: gives the returns of all trajectories, a part at a time; may be called more than once.
        named: as for ``apply_scheme``.

    Raises:
        ConfigError: the returns don't suit the weighting.
    """
    survey = get_scheme(name).survey
    if survey is None:
        return {}
    wanted = [p.name for p in inspect.signature(survey).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return survey(parts, **{key: named[key] for key in wanted})


def apply_scheme(name: str, returns_N: ArrayLike, group_N: ArrayLike, named: Mapping[str, Any]) -> NDArray[np.float64]:
    """Call a weighting with those of ``named`` that it takes.

    Raises:
        ConfigError: it needs something that ``named`` does not hold, or its weights are not finite or not ``(N,)``.
    """
    function = get_scheme(name).function
    wanted = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    missing = [p.name for p in wanted if p.default is p.empty and p.name not in named]
    if missing:
        raise ConfigError(f"weighting {name!r} needs {', '.join(missing)}. Give them under weights.parameters.")
    given = {p.name: named[p.name] for p in wanted if p.name in named}
    weights_N = np.asarray(function(returns_N, group_N, **given), float)
    if weights_N.shape != np.asarray(returns_N).shape or not np.isfinite(weights_N).all():
        raise ConfigError(
            f"weighting {name!r} gave weights of shape {weights_N.shape}, "
            f"{int((~np.isfinite(weights_N)).sum())} of them not finite; expected {np.asarray(returns_N).shape} finite "
            "numbers. Mend the weighting, or its parameters."
        )
    return weights_N
