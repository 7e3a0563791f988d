"""The settings of a weighting, checked before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from drift.errors import require
from drift.weights.noise import check_rates
from drift.weights.schemes import SCHEMES
from drift.weights.temperature import Target

Treatment = Literal["keep", "drop"]
GroupBy = Literal["task", "opening"]


@dataclass(frozen=True, kw_only=True)
class WeightConfig:
    """How conversations are weighed.

    Args:
        scheme: drift, bolt, sft, rft, star, star_gate, refit, swift, group_relative, rwr, awr, or one that another
            package declares.
        beta: temperature β of drift, bolt, rwr and awr; it divides the return. auto, for drift and bolt, finds it.
        beta_per: what auto finds a β for: the dataset, so that all prompts share one temperature as in Eq. 3 and their
            mean hits the target, or each group, so that every prompt does.
        ess_target: with auto, the effective sample size of a prompt's weights as a share of K, in (0, 1); or success,
            the share that succeeds, so that as many count as rejection sampling would keep.
        kl_target: with auto, the KL divergence of a prompt's weights from uniform ones in nats, instead of ess_target.
        base: what counts as the outcome: success (1 or 0), or reward (the sum of the environment's rewards).
        gamma: discount γ per turn.
        repetition: λ, what repeating oneself costs; null takes 0.5 for drift and 0 for the others.
        format_failure: cost of each reply without a readable answer; 0 in the paper, 0.1 in its published code.
        no_success: prompts without any success: keep (as published: they still weigh K in all), drop, or, for drift
            and bolt, shrink (divide by a Ẑ that is mixed with that of all prompts, so that they weigh less).
        shrink_prior: with shrink, for how many rollouts of the prompt the shared Z counts.
        equal_returns: prompts whose returns are all the same: keep (every weight 1 under drift) or drop.
        group_by: what a prompt is: a task, or whatever opens alike for the policy (opening), so that tasks that differ
            only in what the policy can't see are weighed together.
        luck: what chance in the environment does to weights of drift and bolt: keep (as published, a reply that was
            lucky once weighs its luck), or average over conversations of the prompt in which the same was said.
        false_positive: how often the verifier accepts a wrong reply; with false_negative, successes and failures weigh
            what they are worth on average, given how often the prompt's replies are accepted.
        false_negative: how often the verifier refuses a right reply.
        refit_shift: refit takes a prompt's smallest return off where it is negative, instead of refusing.
        w_max: largest weight of awr.
        parameters: further arguments of a weighting from another package.
    """

    scheme: str = "drift"
    beta: float | Literal["auto"] = 0.1
    beta_per: Literal["dataset", "group"] = "dataset"
    ess_target: float | Literal["success"] = "success"
    kl_target: float | None = None
    base: Literal["success", "reward"] = "success"
    gamma: float = 0.9
    repetition: float | None = None
    format_failure: float = 0.0
    no_success: Literal["keep", "drop", "shrink"] = "keep"
    shrink_prior: float = 16.0
    equal_returns: Treatment = "keep"
    group_by: GroupBy = "task"
    luck: Literal["keep", "average"] = "keep"
    false_positive: float = 0.0
    false_negative: float = 0.0
    refit_shift: bool = False
    w_max: float = 20.0
    parameters: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_beta()
        require(0 < self.gamma <= 1, "weights.gamma", self.gamma, "a number in (0, 1]")
        require(self.repetition is None or self.repetition >= 0, "weights.repetition", self.repetition, "a number ≥ 0")
        require(self.format_failure >= 0, "weights.format_failure", self.format_failure, "a number ≥ 0")
        require(self.w_max > 0, "weights.w_max", self.w_max, "a number > 0")
        require(self.shrink_prior >= 0, "weights.shrink_prior", self.shrink_prior, "a number ≥ 0")
        known = ("keep", "drop", "shrink")
        require(self.no_success in known, "weights.no_success", self.no_success, "keep, drop or shrink")
        require(self.equal_returns in known[:2], "weights.equal_returns", self.equal_returns, "keep or drop")
        require(self.base in ("success", "reward"), "weights.base", self.base, "success or reward")
        require(self.group_by in ("task", "opening"), "weights.group_by", self.group_by, "task or opening")
        self._check_chance()
        if self.no_success == "shrink":
            require(self._partitioned, "weights.no_success", "shrink", f"keep or drop with the scheme {self.scheme}")
            common = self.beta != "auto" or self.beta_per == "dataset"
            require(
                common, "weights.no_success", "shrink", "keep or drop with a β per prompt", "Or set beta_per: dataset."
            )

    def _check_beta(self) -> None:
        beta = self.beta
        sound = beta == "auto" or (isinstance(beta, float | int) and beta > 0)
        require(sound, "weights.beta", beta, "a number > 0, or auto", "β divides the return; 0.1 is published.")
        require(self.beta_per in ("group", "dataset"), "weights.beta_per", self.beta_per, "group or dataset")
        share = self.ess_target
        sound = share == "success" or (isinstance(share, float | int) and 0 < share < 1)
        require(sound, "weights.ess_target", share, "success, or a share above 0 and below 1")
        require(self.kl_target is None or 0 < self.kl_target < 700, "weights.kl_target", self.kl_target, "nats above 0")
        fits = beta != "auto" or self.beta_per == "dataset" or self.target is not None
        advice = "A β per prompt needs one number for all of them: 0.1, say, or a kl_target."
        require(fits, "weights.ess_target", share, "a share above 0 and below 1 with beta_per: group", advice)
        fits = beta != "auto" or self.scheme not in ("rwr", "awr")
        require(fits, "weights.beta", beta, f"a number with the scheme {self.scheme}", "auto is for drift and bolt.")

    def _check_chance(self) -> None:
        require(self.luck in ("keep", "average"), "weights.luck", self.luck, "keep or average")
        check_rates(self.false_positive, self.false_negative)
        if self.unsure:
            require(self.base == "success", "weights.base", self.base, "success with false_positive or false_negative")
            advice = "What a verdict is worth on average depends on β."
            require(
                self.beta != "auto", "weights.beta", "auto", "a number with false_positive or false_negative", advice
            )
        if self.luck == "average":
            require(self._partitioned, "weights.luck", "average", f"keep with the scheme {self.scheme}")
            require(self.beta != "auto", "weights.beta", "auto", "a number with luck: average")
            require(self.no_success != "shrink", "weights.no_success", "shrink", "keep or drop with luck: average")
            advice = "Wrong verdicts that come by chance are luck already; one of the two is enough."
            require(not self.unsure, "weights.luck", "average", "keep with false_positive or false_negative", advice)

    def check_adaptive(self, first: int) -> None:
        """Refuse what adaptive sampling can't be undone with.

        Args:
            first: how many samples of a task came first; 0 where every prompt was sampled alike.

        Raises:
            ConfigError: prompts of several tasks, or averages over conversations, with some left out by their outcomes.
        """
        fits = not first or (self.group_by == "task" and self.luck == "keep")
        expected = f"0 with weights.group_by: {self.group_by} and weights.luck: {self.luck}"
        advice = "Adaptive sampling can be undone with task and keep alone; or sample every prompt alike."
        require(fits, "rollouts.first", first, expected, advice)

    @property
    def unsure(self) -> bool:
        """Whether verdicts may be wrong."""
        return self.false_positive > 0 or self.false_negative > 0

    @property
    def _partitioned(self) -> bool:
        return self.scheme in SCHEMES and SCHEMES[self.scheme].partitioned

    @property
    def target(self) -> Target | None:
        """What ``beta: auto`` is to reach; ``None`` where the data say it, by the share that succeeds."""
        if self.kl_target is not None:
            return Target.of_kl(self.kl_target)
        return None if self.ess_target == "success" else Target.of_ess(self.ess_target)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, for manifests."""
        return dict(vars(self))
