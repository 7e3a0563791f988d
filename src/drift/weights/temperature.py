"""β without guessing: the temperature at which weights keep a wanted share of the trajectories effective."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drift.errors import require
from drift.weights.groups import Floats, Indices, group_max, group_min, group_sum, index_groups

# Halvings of an interval of log β: what is left is below 1e-9 for any returns that floats can hold.
HALVINGS = 40
# e^-750 is 0, and 1e9 spans make weights that differ from 1 by less than a float shows.
_COLD, _HOT = 750.0, 1e9
_SMALLEST = float(np.finfo(float).smallest_subnormal)


def exponents(gap_N: Floats, beta: float | Floats) -> Floats:
    """``gap/β`` for gaps ≤ 0 to the largest return, with its limits: β = 0 gives 0 and −∞, β = ∞ gives 0."""
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        return np.where(gap_N == 0, 0.0, gap_N / beta)


@dataclass(frozen=True, kw_only=True)
class Target:
    """How much of a prompt's K trajectories is to stay effective.

    Both measures are Hill numbers of the weights over K, fall as β falls, and run from 1 (β → ∞) to the share of
    trajectories with the largest return (β → 0).

    Attributes:
        share: in (0, 1).
        order: 2 is Kish's effective sample size ``(Σw)²/Σw²``; 1 is the perplexity ``e^{H(w/Σw)}``, whose share is
            ``e^{−KL}``, KL being that of the weights from uniform ones in nats.
    """

    share: float
    order: Literal[1, 2] = 2

    def __post_init__(self) -> None:
        require(0 < self.share < 1, "share", self.share, "a share above 0 and below 1")

    @classmethod
    def of_ess(cls, share: float) -> Target:
        """Kish's effective sample size, as a share of K."""
        return cls(share=share)

    @classmethod
    def of_kl(cls, nats: float) -> Target:
        """A KL divergence of the weights from uniform ones, in nats."""
        return cls(share=math.exp(-nats), order=1)

    def measure(self, exponent_N: Floats, index_N: Indices, size_G: Floats) -> Floats:
        """``(G,)`` effective share of each prompt under weights ``∝ e^exponent``; the largest exponent of each is 0."""
        groups = len(size_G)
        # What is below e^-300 of the largest changes no sum, and without it no number gets slow or loses digits.
        exponent_N = np.maximum(exponent_N, -300.0)
        tilted_N = np.exp(exponent_N)
        total_G = group_sum(tilted_N, index_N, groups)
        if self.order == 2:
            return total_G**2 / group_sum(tilted_N**2, index_N, groups) / size_G
        # H = log S − (Σ t log t)/S.
        mean_log_G = group_sum(tilted_N * exponent_N, index_N, groups) / total_G
        perplexity_G: Floats = np.exp(np.log(total_G) - mean_log_G) / size_G
        return perplexity_G


@dataclass(frozen=True, kw_only=True)
class Temperatures:
    """What β was found.

    Attributes:
        beta_G: ``(G,)`` β of each prompt, in the units of the return: 0 where even the smallest leaves more than the
            target effective (trajectories tie for the best), ∞ where all returns are equal.
        clamped_G: ``(G,)`` where the target is out of reach.
        equal_G: ``(G,)`` where all returns are equal, so that every β gives weight 1.
    """

    beta_G: Floats
    clamped_G: NDArray[np.bool_]
    equal_G: NDArray[np.bool_]


def group_temperatures(returns_N: ArrayLike, group_N: ArrayLike, target: Target) -> Temperatures:
    """A β for each prompt, at which the effective share of its weights ``e^{R/β}`` is the target's.

    By bisection in log β, over all prompts at once. Unchanged by a constant added to the returns of a prompt, and β
    scales with them. A prompt's β depends on its own returns alone.

    Args:
        returns_N: ``(N,)`` finite R.
        group_N: ``(N,)`` prompt of each.
        target: what to reach.
    """
    returns = np.asarray(returns_N, float)
    index_N, groups = index_groups(group_N)
    # Powers of two bring each prompt's returns below 1 without rounding: differences then can't overflow.
    exponent_G = np.frexp(group_max(np.abs(returns), index_N, groups))[1]
    scaled_N = np.ldexp(returns, -exponent_G[index_N])
    gap_N = scaled_N - group_max(scaled_N, index_N, groups)[index_N]
    span_G = -group_min(gap_N, index_N, groups)
    equal_G = span_G == 0
    gap_N = np.divide(gap_N, span_G[index_N], out=np.zeros_like(gap_N), where=span_G[index_N] > 0)
    size_G = np.bincount(index_N, minlength=groups).astype(float)
    ties_G = group_sum((gap_N == 0).astype(float), index_N, groups)
    clamped_G = ~equal_G & (ties_G >= target.share * size_G)
    beta_G = np.where(equal_G, np.inf, 0.0)
    sought_G = ~equal_G & ~clamped_G
    if sought_G.any():
        kept_N = sought_G[index_N]
        place_G = np.cumsum(sought_G) - 1
        gap_M, index_M, size_S = gap_N[kept_N], place_G[index_N[kept_N]], size_G[sought_G]
        second_S = group_max(np.where(gap_M < 0, gap_M, -1.0), index_M, len(size_S))
        low_S, high_S = np.log(np.maximum(-second_S / _COLD, _SMALLEST)), np.full(len(size_S), math.log(_HOT))
        for _ in range(HALVINGS):
            middle_S = (low_S + high_S) / 2
            exponent_M = exponents(gap_M, np.exp(middle_S)[index_M])
            too_flat_S = target.measure(exponent_M, index_M, size_S) > target.share
            high_S, low_S = np.where(too_flat_S, middle_S, high_S), np.where(too_flat_S, low_S, middle_S)
        found_S = np.exp((low_S + high_S) / 2) * span_G[sought_G]
        beta_G[sought_G] = np.ldexp(found_S, exponent_G[sought_G])
    return Temperatures(beta_G=beta_G, clamped_G=clamped_G, equal_G=equal_G)


class SharedTemperature:
    """One β for a whole data set, at which the mean effective share of its prompts is the target's.

    The mean is over prompts whose returns differ; the others have weight 1 at any β. With ``order`` 1 it is the mean
    of KL that is held to its budget. Trajectories come a part at a time, each prompt whole in one part; 16 bytes are
    kept for each of those that count.

    Args:
        target: what to reach.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._parts: list[tuple[Floats, Indices, Floats]] = []
        self._least: list[float] = []
        self._low, self._high = math.inf, 0.0

    def add(self, returns_N: ArrayLike, group_N: ArrayLike) -> None:
        """Take in a part."""
        returns = np.asarray(returns_N, float)
        index_N, groups = index_groups(group_N)
        with np.errstate(over="ignore"):
            gap_N = returns - group_max(returns, index_N, groups)[index_N]
        differs_G = group_min(gap_N, index_N, groups) < 0
        if not differs_G.any():
            return
        kept_N = differs_G[index_N]
        place_G = np.cumsum(differs_G) - 1
        gap_M, index_M = gap_N[kept_N], place_G[index_N[kept_N]]
        size_S = np.bincount(index_M).astype(float)
        self._parts.append((gap_M, index_M, size_S))
        self._least += self._shares(gap_M, index_M, size_S, 0.0).tolist()
        finite = -gap_M[(gap_M < 0) & np.isfinite(gap_M)]
        self._low = min(self._low, float(finite.min(initial=math.inf)))
        self._high = max(self._high, float(finite.max(initial=0.0)))

    def find(self) -> tuple[float, bool]:
        """β, and whether the target is out of reach (β is then 0); ∞ where no prompt has returns that differ."""
        if not self._parts:
            return math.inf, False
        wanted = self._scale(self._target.share)
        if math.fsum(self._least) / len(self._least) >= wanted:
            return 0.0, True
        low = math.log(max(self._low / _COLD, _SMALLEST))
        high = math.log(self._high) + math.log(_HOT)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            beta = math.exp(min(middle, 709.0))
            # Sums are correctly rounded, so that β does not depend on how trajectories are parted.
            total = math.fsum(share for part in self._parts for share in self._shares(*part, beta).tolist())
            low, high = (low, middle) if total / len(self._least) > wanted else (middle, high)
        return math.exp(min((low + high) / 2, 709.0)), False

    def _shares(self, gap_M: Floats, index_M: Indices, size_S: Floats, beta: float) -> Floats:
        shares_S = self._target.measure(exponents(gap_M, beta), index_M, size_S)
        return np.log(shares_S) if self._target.order == 1 else shares_S

    def _scale(self, share: float) -> float:
        return math.log(share) if self._target.order == 1 else share
