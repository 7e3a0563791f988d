"""What weights of a part need to know of the rest: the β that was given or found, and Ẑ of all prompts together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift.weights.config import WeightConfig
from drift.weights.diagnostics import equal_returns
from drift.weights.exponential import shrunken_weights, survey_rwr
from drift.weights.groups import Floats, Indices, group_mean
from drift.weights.temperature import SharedTemperature, Target, group_temperatures

# Returns, prompts and success of all trajectories, a part at a time, each prompt whole in one part.
Returns = Callable[[], Iterable[tuple[Floats, Indices, NDArray[np.bool_]]]]


def success_share(parts: Returns) -> float | None:
    """The mean share of successes of a prompt, over prompts whose returns differ; ``None`` where none do."""
    shares: list[float] = []
    for returns_N, index_N, success_N in parts():
        differ_G = ~equal_returns(returns_N, index_N)
        shares += group_mean(success_N.astype(float), index_N, len(differ_G))[differ_G].tolist()
    return math.fsum(shares) / len(shares) if shares else None


class Tempering:
    """Gives β to trajectories that come a part at a time, and keeps 8 bytes of each prompt for the diagnostics.

    Args:
        config: the settings.
        parts: all trajectories; looked at before any is weighed if one β is sought for all of them.
    """

    def __init__(self, config: WeightConfig, parts: Returns) -> None:
        self._config, self._beta = config, config.beta
        self._found: list[Floats] = []
        self._clamped = self._equal = 0
        self._share: float | None = None
        if config.beta == "auto" and config.beta_per == "dataset":
            self._beta, clamped = self._find(parts)
            self._clamped = int(clamped)

    def _find(self, parts: Returns) -> tuple[float, bool]:
        """One β for all, and whether its target is out of reach."""
        target = self._config.target
        if target is None:
            self._share = success_share(parts)
            # The limits, for data without failures or without successes: all alike, or the best alone.
            if self._share is None or self._share == 1:
                return math.inf, False
            if self._share == 0:
                return 0.0, True
            target = Target.of_ess(self._share)
        shared = SharedTemperature(target)
        for returns_N, index_N, _ in parts():
            shared.add(returns_N, index_N)
        return shared.find()

    def beta(self, returns_N: Floats, index_N: Indices) -> float | Floats:
        """The β of trajectories: a number, or ``(N,)`` where it may be 0 or ∞."""
        if self._beta != "auto":
            # An array may hold the limits, a setting may not.
            return self._beta if self._config.beta != "auto" else np.full(len(returns_N), self._beta)
        target = self._config.target
        assert target is not None, "the settings ask for a number with a β per prompt"
        found = group_temperatures(returns_N, index_N, target)
        self._clamped += int(found.clamped_G.sum())
        self._equal += int(found.equal_G.sum())
        self._found.append(found.beta_G[~found.clamped_G & ~found.equal_G])
        return found.beta_G[index_N]

    def report(self) -> dict[str, Any]:
        """``{}`` where β was given. Else ``beta``: found for ``per``, with ``clamped`` and ``equal_returns`` counted.

        ``quantiles`` are of the βs that reach the target: smallest, quartiles, largest; null where there is none.
        ``success_share`` is there where that was the target.
        """
        if self._config.beta != "auto":
            return {}
        if self._config.beta_per == "dataset":
            value = float(self._beta)
            found = [np.array([value])] if 0 < value < np.inf else []
        else:
            found = self._found
        beta_G = np.concatenate(found) if found else np.zeros(0)
        quantiles = np.quantile(beta_G, [0, 0.25, 0.5, 0.75, 1]).tolist() if len(beta_G) else None
        counts: dict[str, Any] = {} if self._config.beta_per == "dataset" else {"equal_returns": self._equal}
        if self._config.target is None:
            counts["success_share"] = self._share
        per = {"per": self._config.beta_per, "quantiles": quantiles, "clamped": self._clamped}
        return {"beta": {**per, **counts}}


class Shrinkage:
    """Weights of prompts whose Ẑ is mixed with that of all prompts; see ``shrunken_weights``.

    Args:
        prior: for how many rollouts of the prompt the shared Z counts.
        tempering: gives β, the same to all trajectories.
        parts: all trajectories.
    """

    def __init__(self, prior: float, tempering: Tempering, parts: Returns) -> None:
        self._prior, self._tempering = prior, tempering
        beta = tempering.beta(np.zeros(1), np.zeros(1, np.intp))
        self._normalizer = survey_rwr(lambda: (returns_N for returns_N, *_ in parts()), beta=beta)["normalizer"]

    def weights(self, returns_N: Floats, index_N: Indices) -> Floats:
        """``(N,)`` weights of a part."""
        beta = self._tempering.beta(returns_N, index_N)
        return shrunken_weights(returns_N, index_N, beta=beta, prior=self._prior, normalizer=self._normalizer)
