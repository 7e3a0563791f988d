"""Weighing trajectories a part at a time: what each is worth, its weight, and what all weights together will do."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from drift.dataset.outcomes import Outcomes
from drift.errors import ConfigError
from drift.weights.choosing import RolloutReport
from drift.weights.config import WeightConfig
from drift.weights.diagnostics import Tally, equal_returns
from drift.weights.groups import Floats, group_max, group_mean, group_sum
from drift.weights.luck import averaged_weights
from drift.weights.noise import chance_right, equivalent_return
from drift.weights.returns import discounted_return
from drift.weights.schemes import apply_scheme, get_scheme, survey_scheme
from drift.weights.stopping import stopping_factors
from drift.weights.tempering import Shrinkage, Tempering

# Squares of what is larger could not be added up.
LARGEST = 1e100


class Weigher:
    """Weighs trajectories a part at a time, each prompt whole in one part.

    Args:
        config: the settings.
        parts: gives all trajectories, always in the same parts and order. Schemes that need it look at them before.
        first: with adaptive sampling, how many samples of a task came first; weights undo what that does.

    Raises:
        ConfigError: the settings don't fit the data.
    """

    def __init__(self, config: WeightConfig, parts: Callable[[], Iterable[Outcomes]], *, first: int = 0) -> None:
        self._first, self._continued = first, 0
        self._config, self._info = config, get_scheme(config.scheme)
        self._tally, self._rollouts, self._done, self._dropped, self._largest = Tally(), RolloutReport(), 0, 0, 0
        self._pooled = 0
        config.check_adaptive(first)
        self._named: dict[str, Any] = {"w_max": config.w_max, "refit_shift": config.refit_shift, **config.parameters}
        if config.beta != "auto":
            self._named = {"beta": config.beta, **self._named}

        def returns() -> Iterator[tuple[Floats, NDArray[np.intp], NDArray[np.bool_]]]:
            return ((self._returns(part), part.group_index(), part.success_N) for part in map(self._seen, parts()))

        self._named |= survey_scheme(config.scheme, lambda: (each for each, *_ in returns()), self._named)
        self._tempering = Tempering(config, returns) if self._info.partitioned else None
        self._shrinkage: Shrinkage | None = None
        if self._tempering and config.no_success == "shrink":
            self._shrinkage = Shrinkage(config.shrink_prior, self._tempering, returns)
        self._whole_N = None if self._info.local else self._weigh_whole(parts())

    def weigh(self, found: Outcomes) -> tuple[Floats, Floats]:
        """Returns and weights of the next part."""
        whole, config = found, self._config
        found = self._seen(whole)
        returns_N, index_N = self._returns(found), found.group_index()
        _check_size("return", returns_N, whole.ids)
        named = self._data(found)
        if self._tempering:
            named["beta"] = self._tempering.beta(returns_N, index_N)
        if config.luck == "average":
            weights_N = self._averaged(found, returns_N, index_N)
        elif self._whole_N is None:
            weights_N = apply_scheme(config.scheme, returns_N, index_N, named)
        else:
            weights_N = self._whole_N[self._done : self._done + len(index_N)]
        sizes_G = np.bincount(index_N)
        unsolved_G = group_max(self._success(found).astype(float), index_N, len(sizes_G)) == 0
        dropped_G = unsolved_G if config.no_success == "drop" else np.zeros(len(sizes_G), bool)
        if config.equal_returns == "drop":
            dropped_G = dropped_G | equal_returns(returns_N, index_N)
        if self._shrinkage:
            shrunken_N = self._shrinkage.weights(returns_N, index_N)
            weights_N = np.where(unsolved_G[index_N], shrunken_N, weights_N)
        if self._first:
            first_N = whole.sample_N < self._first
            weights_N = self._undo(weights_N, stopping_factors(whole.success_N, first_N, index_N), index_N)
            self._continued += int(group_max((~first_N).astype(float), index_N, len(sizes_G)).sum())
        weights_N = np.where(dropped_G[index_N], 0.0, weights_N)
        _check_size("weight", weights_N, whole.ids)
        self._tally.add(weights_N, returns_N, index_N, found.success_N)
        fair_N = whole.sample_N < self._first if self._first else None
        beta = named["beta"] if self._tempering else None
        self._rollouts.add(returns_N, index_N, found.success_N, beta, fair_N=fair_N)
        self._done += len(index_N)
        self._dropped += int(dropped_G.sum())
        self._largest = max(self._largest, int(sizes_G.max(initial=0)))
        return returns_N, weights_N

    def _averaged(self, found: Outcomes, returns_N: Floats, index_N: NDArray[np.intp]) -> Floats:
        if found.paths is None:
            raise ConfigError("luck: average needs to know what was said; read the outcomes with paths=True.")
        assert isinstance(self._config.beta, float | int), "the settings ask for a number"
        weights_N, pooled_N = averaged_weights(returns_N, index_N, found.paths, beta=self._config.beta)
        self._pooled += int(pooled_N.sum())
        return weights_N

    def _undo(self, weights_N: Floats, factors_N: Floats, index_N: NDArray[np.intp]) -> Floats:
        """Weights as if every prompt had been sampled alike; those that divide by Ẑ divide by an unbiased one."""
        corrected_N = weights_N * factors_N
        if not self._info.partitioned:
            return corrected_N
        groups = int(index_N.max(initial=-1)) + 1
        # Ẑ is the mean of what weights are in proportion to: before, that of weights was the group's total over K.
        total_G, mean_G = group_sum(corrected_N, index_N, groups), group_mean(weights_N, index_N, groups)
        scale_G = np.divide(
            mean_G * group_sum(factors_N, index_N, groups), total_G, out=np.ones(groups), where=total_G > 0
        )
        return corrected_N * scale_G[index_N]

    def _seen(self, found: Outcomes) -> Outcomes:
        return found.first_turn() if self._info.first_turn else found

    def _data(self, found: Outcomes) -> dict[str, Any]:
        """What a weighting can ask for by name."""
        wrong_N = found.first_graded_N & ~found.first_success_N
        return {"success_N": self._success(found), "turns_N": found.turns_N, "first_wrong_N": wrong_N, **self._named}

    def report(self, weights: Callable[[], Iterable[Floats]], returns: Callable[[], Iterable[Floats]]) -> Any:
        """The diagnostics of all parts; both arguments give all values once more, a part at a time.

        Raises:
            ConfigError: a grouped scheme and fewer than two trajectories per prompt, or all weights 0.
        """
        scheme = self._config.scheme
        if self._info.grouped and self._largest < 2:
            raise ConfigError(
                f"weighting {scheme!r} compares conversations of one prompt, and no prompt has more than one. "
                "Sample at least two per task (--samples 16 is published), or use sft, rft, refit or rwr."
            )
        found = self._tally.report(weights, returns)
        if found["zero_weights"] == found["trajectories"]:
            raise ConfigError(
                f"weighting {scheme!r} leaves every weight 0: {found['groups_without_success']} of {found['groups']} "
                f"prompts have no success, {found['groups_with_equal_returns']} have equal returns. Sample more, or "
                "set no_success / equal_returns to keep."
            )
        found["dropped_groups"] = self._dropped
        if self._config.luck == "average":
            found["averaged_trajectories"] = self._pooled
        found["rollouts"] = self._rollouts.report()
        if self._first:
            found["undone_sampling"] = {"first": self._first, "prompts": self._continued}
        return {**found, **(self._tempering.report() if self._tempering else {})}

    def _returns(self, found: Outcomes) -> Floats:
        config = self._config
        shaped = functools.partial(
            Outcomes.returns,
            base=config.base,
            gamma=config.gamma,
            repetition=self._info.repetition if config.repetition is None else config.repetition,
            format_failure=config.format_failure,
        )
        if not config.unsure:
            return shaped(found)
        low_N = shaped(replace(found, success_N=np.zeros_like(found.success_N)))
        gain_N, chance_N = discounted_return(np.ones(len(low_N)), found.turns_N, config.gamma), self._success(found)
        if not self._info.exponential:
            return low_N + chance_N * gain_N
        assert isinstance(config.beta, float | int), "the settings ask for a number"
        return equivalent_return(low_N, gain_N, chance_N, config.beta)

    def _success(self, found: Outcomes) -> NDArray[np.bool_] | Floats:
        """Whether each succeeded; where the verifier errs, the chance that it really did."""
        config = self._config
        if not config.unsure:
            return found.success_N
        return chance_right(
            found.success_N,
            found.graded_N,
            found.group_index(),
            false_positive=config.false_positive,
            false_negative=config.false_negative,
        )

    def _weigh_whole(self, parts: Iterable[Outcomes]) -> Floats:
        """All weights at once, for a scheme of another package that does not say that it is local."""
        groups, columns, data = 0, [], []
        for part in parts:
            index_N = part.group_index()
            columns.append((self._returns(part), index_N + groups))
            data.append(self._data(part))
            groups += int(index_N.max(initial=-1)) + 1
        returns_N, index_N = (np.concatenate(each) for each in zip(*columns, strict=True))
        named = {key: np.concatenate([each[key] for each in data]) for key in data[0] if key.endswith("_N")}
        return apply_scheme(self._config.scheme, returns_N, index_N, {**named, **self._named})


def _check_size(name: str, values_N: Floats, ids: pa.Array) -> None:
    """Refuse what is finite and yet too large for sums of squares; raises ``ConfigError``."""
    at = int(np.argmax(np.abs(values_N))) if len(values_N) else 0
    if len(values_N) and not abs(values_N[at]) <= LARGEST:
        raise ConfigError(
            f"the {name} of trajectory {ids[at].as_py()!r} is {values_N[at]:g}, expected at most {LARGEST:g} in size. "
            "Look at its rewards, or scale them."
        )


def compute_weights(found: Outcomes, config: WeightConfig, *, first: int = 0) -> tuple[Floats, Floats, dict[str, Any]]:
    """Returns and weights of all trajectories, and the diagnostics; ``first`` as of ``Weigher``.

    Raises:
        ConfigError: a grouped scheme and fewer than two trajectories per prompt, or all weights 0.
    """
    weigher = Weigher(config, lambda: [found], first=first)
    returns_N, weights_N = weigher.weigh(found)
    return returns_N, weights_N, weigher.report(lambda: [weights_N], lambda: [returns_N])
