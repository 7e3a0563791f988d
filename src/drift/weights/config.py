"""The chain of weights as settings: which scheme, which turns, which steps; checked before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal

import numpy as np

from drift.dataset.outcomes import check_outcome, noted_names
from drift.errors import ConfigError, require
from drift.registry import Link, check_settings, complete, data_of, is_own, link, name_of, plain, settings_of, try_once
from drift.weights.schemes import AUTO, Scheme, find_scheme
from drift.weights.steps import REGISTRY as STEPS
from drift.weights.turns import REGISTRY as TURNS
from drift.weights.turns import Conversations

BASELINES = ("task", "leave_one_out", "dataset", "fitted")


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A resolved configuration: nothing is left to default; ``beta`` is ``auto`` where it is to be found."""

    scheme: Scheme
    settings: Mapping[str, Any]
    gamma: float
    repetition: float
    turns: Link
    steps: tuple[Link, ...]

    @cached_property
    def asked(self) -> list[str]:
        """What the scheme asks for by name."""
        return data_of(self.scheme.function)

    def asks_what_was_said(self) -> bool:
        """Whether scheme or turns ask for replies or feedback."""
        return "reply_T" in self.asked or "feedback_T" in self.asked or self.turns.name == "advantage"

    def try_settings(self) -> None:
        """Run what is built in on one conversation, so that a setting is refused before anything is sampled."""
        zero: Any = np.zeros(1, np.intp)
        of_each = {each.name: zero for each in fields(Conversations) if each.name.endswith(("_N", "_T"))}
        of_each |= {"returns_N": zero + 0.0, "turns_N": zero + 1}
        one = Conversations(**of_each, beta=1.0, partitioned=self.scheme.partitioned, first=1)
        named = {name: of_each.get(name) for name in self.asked}
        numbers = {name: 1.0 if value == "auto" else value for name, value in self.settings.items()}
        try_once(self.scheme.function, zero + 0.0, zero, **named, **numbers)
        for each in (self.turns, *self.steps):
            try_once(each.function, np.ones(1), one, **each.settings)


@dataclass(frozen=True, kw_only=True)
class WeightConfig:
    """What replies weigh: outcome, return, scheme, turns, steps. What is null is as in the scheme's paper.

    Args:
        scheme: drift, drift_averaged, bolt, sft, rft, star, star_gate, refit, swift, group_relative, rwr, awr, topr,
            asymre, auto (the data decide), another package's or module:function; {awr: {w_max: 20}} sets w_max.
        beta: temperature β of drift, bolt, rwr and awr, which divides the return; null is 0.1. auto, for drift and
            bolt, finds it, so that as many conversations of a prompt count as succeed.
        outcome: what counts: success (1 or 0), or reward (the sum of the rewards); null is success, or reward where no
            success is known. Or a sum, of numbers too that a log notes: {reward: 1, success: 0.5}, with clip: [0, 5],
            normalize: true (less the mean, over the deviation) or above: 3 (1 where it is more, which is then success).
        gamma: discount γ per turn; null is 0.9 for drift, where success is what counts, and 1 else.
        repetition: λ, what repeating oneself costs; null is 0.5 for drift and 0 for the others.
        repetition_over: what distinct answers are a share of: turns (the paper) or answers (its published code, which
            counts those that could be read).
        format_failure: cost of each reply without a readable answer; 0 in the paper, 0.1 in its published code.
        turns: replies that get the weight: terminal (the last), all, first, credited (all but rejected ones),
            advantage (each what it was worth, from the tree of the prompt's conversations), own (each is weighed alone,
            by its own reward; {own: 0.9} adds later ones, discounted), or module:function; null is all for refit,
            swift, group_relative and star_gate, first for bolt, else terminal.
        steps: what is done then, in order: hold_out, drop_unsolved, shrink_unsolved, bound_negative, skip_small,
            resample, or module:function; {name: setting} sets it. bound_negative (for negative weights) and skip_small
            come last unless named; {skip_small: null} leaves one out.
        baseline: what a conversation is measured against: the others of its task (task). Where there are few, with
            drift, bolt, swift, group_relative, awr and asymre: leave_one_out (the mean of the others, or of all),
            dataset (the mean of all), {column: NAME} (of what the log notes alike), or fitted (what the words of the
            prompt and its others let one expect). null is task, or fitted for a log with few conversations of most
            prompts.
    """

    scheme: str | dict[str, Any] = "drift"
    beta: float | Literal["auto"] | None = None
    outcome: str | dict[str, Any] | None = None
    gamma: float | None = None
    repetition: float | None = None
    repetition_over: Literal["turns", "answers"] = "turns"
    format_failure: float = 0.0
    turns: str | dict[str, Any] | None = None
    steps: list[str | dict[str, Any]] = field(default_factory=list)
    baseline: str | dict[str, str] | None = None

    def __post_init__(self) -> None:
        beta, over = self.beta, self.repetition_over
        fits = beta in (None, "auto") or (isinstance(beta, float | int) and beta > 0)
        require(fits, "weights.beta", beta, "a number > 0, or auto", "β divides the return; 0.1 is published.")
        require(self.gamma is None or 0 < self.gamma <= 1, "weights.gamma", self.gamma, "a number in (0, 1]")
        require((self.repetition or 0) >= 0, "weights.repetition", self.repetition, "a number ≥ 0")
        require(over in ("turns", "answers"), "weights.repetition_over", over, "turns or answers")
        require(self.format_failure >= 0, "weights.format_failure", self.format_failure, "a number ≥ 0")
        check_outcome(self.outcome)
        known = self.baseline in (None, *BASELINES) or bool(self.column)
        require(known, "weights.baseline", self.baseline, f"{', '.join(BASELINES)}, or {{column: NAME}}")
        scheme = self.chain.scheme
        fits = scheme.centred or self.baseline in (None, "task")
        advice = "Others need drift, bolt, swift, group_relative, awr or asymre."
        require(fits, "weights.baseline", self.baseline, f"task with the scheme {scheme.name}", advice)

    @property
    def column(self) -> str | None:
        """What a log must note alike of conversations that are measured against one another."""
        given = self.baseline
        return given["column"] if isinstance(given, Mapping) and list(given) == ["column"] else None

    def asked(self) -> dict[str, Any]:
        """What is to be read of each conversation beside what all have: fields of ``Asked``."""
        return {
            "spoken": self.chain.asks_what_was_said(),
            "replies": self.chain.turns.name == "own" or self.chain.scheme is AUTO,
            "first": self.chain.scheme.first_turn,
            "notes": tuple(dict.fromkeys([*noted_names(self.outcome or ()), *([self.column] if self.column else [])])),
            "words": self.baseline == "fitted",
            "openings": "hold_out" in [each.name for each in self.chain.steps],
        }

    @cached_property
    def chain(self) -> Chain:
        """The configuration with nothing left to default; raises ``ConfigError`` where it makes no sense."""
        schemes: Any = self.scheme if isinstance(self.scheme, Mapping) else {self.scheme: {}}
        one = len(schemes) == 1 and isinstance(next(iter(schemes.values())), Mapping)
        require(one, "weights.scheme", self.scheme, "one scheme with its settings, such as {awr: {w_max: 20}}")
        ((name, given),) = schemes.items()
        scheme = find_scheme(name)
        turns = link(self.turns or scheme.turns, TURNS, "weights.turns")
        fits = not scheme.first_turn or turns.name == "first"
        require(fits, "weights.turns", turns.name, "first", f"The weights of {scheme.name} judge first replies alone.")
        # Of turns of one's own nobody knows what they give; rejected replies are pushed away.
        pushes = not is_own(turns.function) or turns.name == "advantage" or bool(turns.settings.get("rejected"))
        # What counts is a success, as far as that is settled.
        counts_success = self.outcome in (None, "success") or "above" in (self.outcome or ())
        chain = Chain(
            scheme=scheme,
            settings=self._scheme_settings(scheme, given),
            gamma=self.gamma or (scheme.gamma if counts_success else 1.0),
            repetition=scheme.repetition if self.repetition is None else self.repetition,
            turns=turns,
            steps=self._links(scheme.signed or pushes),
        )
        chain.try_settings()
        return chain

    def _scheme_settings(self, scheme: Scheme, settings: Mapping[str, Any]) -> dict[str, Any]:
        known, where = settings_of(scheme.function), f"weights.scheme.{scheme.name}"
        if self.beta is not None and "beta" not in known:
            raise ConfigError(f"weights.beta: got {self.beta!r}, and the scheme {scheme.name} has no β. Leave it out.")
        fits = self.beta != "auto" or scheme.partitioned
        require(fits, "weights.beta", "auto", f"a number with the scheme {scheme.name}", "auto is for drift and bolt.")
        require("beta" not in settings, f"{where}.beta", settings.get("beta"), "weights.beta instead")
        check_settings(scheme.function, settings, where=where)
        beta = {} if self.beta is None else {"beta": self.beta}
        return complete({**known, **beta, **settings}, where)

    def _links(self, signed: bool) -> tuple[Link, ...]:
        require(not isinstance(self.steps, str), "weights.steps", self.steps, "a list, [drop_unsolved] say")
        named = [name_of(step) for step in self.steps]
        for name in {name for name in named if named.count(name) > 1}:
            raise ConfigError(f"weights.steps: {name} is there twice. Give it once.")
        last = [name for name in (["bound_negative"] if signed else []) + ["skip_small"] if name not in named]
        left_out = [step for step in self.steps if isinstance(step, Mapping) and list(step.values()) == [None]]
        for step in left_out:
            STEPS.find(next(iter(step)))
        given = [step for step in self.steps if step not in left_out]
        return tuple(link(step, STEPS, "weights.steps") for step in [*given, *last])

    def check_adaptive(self, first: int) -> None:
        """Raise ``ConfigError`` where sampling ``first`` conversations before the rest can't be undone; 0 is none."""
        replies = self.chain.asks_what_was_said() or self.chain.turns.name == "own"
        fits = not first or (self.baseline in (None, "task") and not replies)
        expected = f"0 with weights.baseline {self.baseline} and weights.scheme {self.chain.scheme.name}"
        advice = "Adaptive sampling can't be undone with them; sample every prompt alike."
        require(fits, "rollouts.first", first, expected, advice)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, for manifests."""
        return {each.name: plain(getattr(self, each.name)) for each in fields(self)}
