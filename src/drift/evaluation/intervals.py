"""Intervals over prompts: the conversations of a prompt are not independent, prompts are.

``Σ numerator / Σ denominator`` is linearised: to first order its error is the sum over prompts of independent parts
``e_P = (numerator_P − value · denominator_P) / Σ denominator``, so that ``Σ e_P²`` is its variance whatever happens
within a prompt. Where a value has bounds that variance fails near them, and prompts that were never seen are added, as
Agresti and Coull do for a share and Bonett and Price for a difference of two (docs/method.md, with the coverage).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from drift.evaluation.metrics import Ratio

Floats = NDArray[np.float64]
LEVEL = 0.95
# How many prompts' worth of complete agreement within a prompt the design effect is drawn toward.
_AGREEING = 0.5


def ratio_value(ratio: Ratio) -> float | None:
    """``Σ numerator / Σ denominator``, or ``None`` where the denominator is 0."""
    total = float(ratio.denominator_P.sum())
    return float(ratio.numerator_P.sum()) / total if total > 0 else None


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How a value lies about the truth over other draws of prompts.

    Attributes:
        value: mean over seeds of the ratio, or of its paired difference.
        centre: of the interval; nearer to the middle than a share or a difference of shares.
        variance: of the centre; NaN where one prompt can't tell.
        freedom: degrees of freedom of Student's distribution; infinity for shares.
        least, largest: what the value can't pass.
        between: variance of the ``S`` seeds' values about each other that prompts explain.
        shares: where each policy's mean over seeds lies between its bounds, from 0 to 1; none for what is no share.
        weight: of one observation in a share; 0 for what is no share.
    """

    value: float
    centre: float
    variance: float
    freedom: float
    least: float
    largest: float
    between: float
    shares: tuple[float, ...] = ()
    weight: float = 0.0

    def ends(self) -> tuple[float | None, float | None]:
        """The 95 % interval over prompts, ``None`` where one prompt can't tell."""
        if math.isnan(self.variance):
            return None, None
        half = student_quantile(self.freedom) * math.sqrt(self.variance)
        return self.bounded(self.centre - half, self.centre + half)

    def bounded(self, low: float, high: float) -> tuple[float, float]:
        """An interval within the bounds that holds the value."""
        return min(max(low, self.least), self.value), max(min(high, self.largest), self.value)

    def p_value(self) -> float | None:
        """Two-sided p-value of "it is 0": below 0.05 where the interval leaves out 0."""
        if math.isnan(self.variance):
            return None
        if self.centre == 0:
            return 1.0
        return student_tails(abs(self.centre) / math.sqrt(self.variance), self.freedom) if self.variance > 0 else 0.0


def spread(ours_S: Sequence[Ratio], theirs_S: Sequence[Ratio] = ()) -> Spread:
    """Value and variance over prompts of one metric, or of its paired difference; a mean over seeds where there are S.

    With e_P and ω_P, the means over seeds of ``e_sP`` (ours less theirs) and of ``denominator_sP / Σ denominator_s``,
    P prompts, values from ``a`` to 1 and ``s = 1 − a``:

    - ``w = (Σ e_P² + s² h²/2) / (v + s² h/2)`` is the weight of one observation, where ``h = Σ ω_P²`` is that of one
      prompt and ``v`` the mean of ``(value − a)(1 − value)``; over the weight of a conversation it is the design
      effect, drawn toward that of prompts in complete agreement with themselves, for which ``w = h``. For a difference
      ``Σ e_P²`` and ``v`` are sums over both policies.
    - Observations z of weight w are added: ``1, 1, a, a`` to a share, ``s, −s`` to a difference of shares.
      ``centre = (value + w Σz) / (1 + w #z)`` and, with ``C = max(1, (1 − w) P/(P − 1))``,
      ``variance = (C Σ (e_P + (value − centre) ω_P)² + w² Σ (z − centre)²) / (1 + w #z)²``.

    With one conversation a prompt that is Agresti and Coull (1998), and Bonett and Price (2012), exactly. What is no
    share gets ``P/(P − 1) Σ e_P²`` and Student's distribution with P − 1 degrees of freedom.

    Args:
        ours_S: S ratios over the same P prompts, 0 over 0 at a prompt that is none of theirs, each with a value.
        theirs_S: as many, or none.
    """
    both = [ratios for ratios in (ours_S, theirs_S) if ratios]
    parts = [_parts(ratios) for ratios in both]
    values = [_values(ratios) for ratios in both]
    error_SP = parts[0] - parts[1] if theirs_S else parts[0]
    value_S = values[0] - values[1] if theirs_S else values[0]
    error_P, value = error_SP.mean(axis=0), float(value_S.mean())
    between = float(error_SP.var(axis=0, ddof=1).sum()) if len(ours_S) > 1 else 0.0
    every = [ratio for ratios in both for ratio in ratios]
    weight_P = np.mean([ratio.denominator_P / ratio.denominator_P.sum() for ratio in every], axis=0)
    prompts = int(np.count_nonzero(weight_P))
    bounds = [ratio.least for ratio in every if ratio.least is not None]
    corrected = prompts / max(prompts - 1, 1)
    if len(bounds) < len(every):
        return Spread(
            value=value,
            centre=value,
            variance=corrected * float((error_P**2).sum()) if prompts > 1 else math.nan,
            freedom=prompts - 1,
            least=-math.inf,
            largest=math.inf,
            between=corrected * between,
        )
    bound, one_prompt = float(np.mean(bounds)), float((weight_P**2).sum())
    scale = 1 - bound
    agreeing = _AGREEING * scale**2 * one_prompt
    middle = sum(float(np.maximum(0.0, (each_S - bound) * (1 - each_S)).mean()) for each_S in values)
    clustered = sum(float((each_SP.mean(axis=0) ** 2).sum()) for each_SP in parts)
    weight = (clustered + agreeing * one_prompt) / (middle + agreeing)
    corrected = max(1.0, (1 - weight) * corrected)
    added = np.array([scale, -scale] if theirs_S else [1.0, 1.0, bound, bound])
    whole = 1 + weight * len(added)
    centre = (value + weight * float(added.sum())) / whole
    moved_P = error_P + (value - centre) * weight_P
    squares = corrected * float((moved_P**2).sum()) + weight**2 * float(((added - centre) ** 2).sum())
    return Spread(
        value=value,
        centre=centre,
        variance=squares / whole**2,
        freedom=math.inf,
        least=-scale if theirs_S else bound,
        largest=scale if theirs_S else 1.0,
        between=corrected * between,
        shares=tuple(min(max(float(each_S.mean() - bound) / scale, 0.0), 1.0) for each_S in values),
        weight=weight,
    )


def _values(ratios: Sequence[Ratio]) -> Floats:
    return np.array([ratio.numerator_P.sum() / ratio.denominator_P.sum() for ratio in ratios])


def _parts(ratios: Sequence[Ratio]) -> Floats:
    """``(S, P)`` part of each prompt in the error of each ratio."""
    tops = np.stack([ratio.numerator_P for ratio in ratios])
    bottoms = np.stack([ratio.denominator_P for ratio in ratios])
    return np.asarray((tops - _values(ratios)[:, None] * bottoms) / bottoms.sum(axis=1, keepdims=True))


def student_tails(t: float, freedom: float) -> float:
    """Chance that Student's t lies beyond ±t, in closed form (Abramowitz and Stegun 26.7.3–4).

    Args:
        t: from 0.
        freedom: a whole number from 1, or infinity for the normal distribution.
    """
    if math.isinf(freedom):
        return math.erfc(t / math.sqrt(2))
    angle, odd = math.atan(t / math.sqrt(freedom)), int(freedom) % 2
    sine, cosine = math.sin(angle), math.cos(angle)
    j = np.arange(1, (int(freedom) - odd) // 2)
    series = 1 + float(np.cumprod((2 * j - 1 + odd) / (2 * j + odd) * cosine**2).sum())
    if not odd:
        return max(0.0, 1 - sine * series)
    within = angle + (sine * cosine * series if freedom > 1 else 0.0)
    return max(0.0, 1 - 2 / math.pi * within)


@functools.cache
def student_quantile(freedom: float) -> float:
    """The t beyond whose ± 5 % lie, to 1e-9."""
    if math.isinf(freedom):
        return NormalDist().inv_cdf((1 + LEVEL) / 2)
    low, high = 1.9, 12.8
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if student_tails(middle, freedom) > 1 - LEVEL else (low, middle)
    return high
