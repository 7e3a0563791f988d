"""What weights of a part need to know of the rest: the β that was given or found, and Ẑ of all prompts together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from drift.weights.config import WeightConfig
from drift.weights.exponential import shrunken_weights, survey_rwr
from drift.weights.groups import Floats, Indices
from drift.weights.temperature import SharedTemperature, group_temperatures

# Returns and prompts of all trajectories, a part at a time, each prompt whole in one part.
Returns = Callable[[], Iterable[tuple[Floats, Indices]]]


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
        if config.beta == "auto" and config.beta_per == "dataset":
            shared = SharedTemperature(config.target)
            for returns_N, index_N in parts():
                shared.add(returns_N, index_N)
            self._beta, clamped = shared.find()
            self._clamped = int(clamped)

    def beta(self, returns_N: Floats, index_N: Indices) -> float | Floats:
        """The β of trajectories: a number, or ``(N,)`` where it may be 0 or ∞."""
        if self._beta != "auto":
            # An array may hold the limits, a setting may not.
            return self._beta if self._config.beta != "auto" else np.full(len(returns_N), self._beta)
        found = group_temperatures(returns_N, index_N, self._config.target)
        self._clamped += int(found.clamped_G.sum())
        self._equal += int(found.equal_G.sum())
        self._found.append(found.beta_G[~found.clamped_G & ~found.equal_G])
        return found.beta_G[index_N]

    def report(self) -> dict[str, Any]:
        """``{}`` where β was given. Else ``beta``: found for ``per``, with ``clamped`` and ``equal_returns`` counted.

        ``quantiles`` are of the βs that reach the target: smallest, quartiles, largest; null where there is none.
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
        counts = {} if self._config.beta_per == "dataset" else {"equal_returns": self._equal}
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
        self._normalizer = survey_rwr(lambda: (returns_N for returns_N, _ in parts()), beta=beta)["normalizer"]

    def weights(self, returns_N: Floats, index_N: Indices) -> Floats:
        """``(N,)`` weights of a part."""
        beta = self._tempering.beta(returns_N, index_N)
        return shrunken_weights(returns_N, index_N, beta=beta, prior=self._prior, normalizer=self._normalizer)
