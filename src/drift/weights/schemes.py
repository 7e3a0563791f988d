"""Weightings by name: one pure function each, returns in, weights out. The trainer knows none of them.

Every function takes ``returns_N`` and ``group_N`` first; further arguments are keyword-only and given by name from
what the data set holds (``success_N``, …) and what the configuration says (``beta``, ``w_max``, …).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drift.errors import ConfigError, unknown_name
from drift.weights.exponential import awr_weights, bolt_weights, drift_weights, rwr_weights, survey_rwr
from drift.weights.groups import Floats, Parts
from drift.weights.linear import group_relative_weights, refit_weights, survey_refit, swift_weights
from drift.weights.selection import rft_weights, sft_weights, star_gate_weights, star_weights

__all__ = [
    "SCHEMES",
    "SchemeInfo",
    "apply_scheme",
    "awr_weights",
    "bolt_weights",
    "drift_weights",
    "get_scheme",
    "group_relative_weights",
    "refit_weights",
    "rft_weights",
    "rwr_weights",
    "sft_weights",
    "star_gate_weights",
    "star_weights",
    "survey_scheme",
    "swift_weights",
]
Scheme = Callable[..., Floats]


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
        partitioned: it divides ``e^{R/β}`` by the prompt's Ẑ, so that β can be found from the data and Ẑ be shrunk.
        exponential: it is in proportion to ``e^{R/β}``, with a factor that no single return decides.
        first_turn: return and success are those of the first reply alone, which is all that may be trained.
    """

    function: Scheme
    grouped: bool
    repetition: float
    local: bool = True
    survey: Callable[..., dict[str, Any]] | None = None
    partitioned: bool = False
    exponential: bool = False
    first_turn: bool = False


SCHEMES: dict[str, SchemeInfo] = {
    "drift": SchemeInfo(function=drift_weights, grouped=True, repetition=0.5, partitioned=True, exponential=True),
    "bolt": SchemeInfo(
        function=bolt_weights, grouped=True, repetition=0.0, partitioned=True, exponential=True, first_turn=True
    ),
    "sft": SchemeInfo(function=sft_weights, grouped=False, repetition=0.0),
    "rft": SchemeInfo(function=rft_weights, grouped=False, repetition=0.0),
    "star": SchemeInfo(function=star_weights, grouped=False, repetition=0.0),
    "star_gate": SchemeInfo(function=star_gate_weights, grouped=True, repetition=0.0),
    "refit": SchemeInfo(function=refit_weights, grouped=False, repetition=0.0, survey=survey_refit),
    "swift": SchemeInfo(function=swift_weights, grouped=True, repetition=0.0),
    "group_relative": SchemeInfo(function=group_relative_weights, grouped=True, repetition=0.0),
    "rwr": SchemeInfo(function=rwr_weights, grouped=False, repetition=0.0, survey=survey_rwr, exponential=True),
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
    return survey(parts, **{key: named[key] for key in wanted if key in named})


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
