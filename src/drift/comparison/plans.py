"""One method with one seed, resolved, and how it makes its model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drift.api import train_online, train_preference
from drift.baselines.config import BUILT_IN, BUILT_IN_RATE, OnlineConfig, PreferenceConfig
from drift.comparison.methods import ONLINE, PREFERENCE, Method, own_overrides
from drift.manifest import read_manifest
from drift.own_process import call_apart
from drift.pipeline import stage_folder, tune
from drift.recipe import Recipe, change
from drift.registry import name_of, settings_of
from drift.rollouts.config import TASKS
from drift.serving import needs_own_process, unseen_weights
from drift.weights.schemes import SCHEMES, find_scheme

# The most rows of one forward pass of TRL's trainers.
MICRO = 32
# GRPO holds as many prompts in a round, and conversations of each: the best of the sweep in docs/LOG.md.
PROMPTS, GROUP = 16, 4


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that decides the model of a method with a seed.

    Attributes:
        recipe: with that seed; of the weighted trainer with the method's changes.
        settings: of another trainer.
    """

    recipe: Recipe
    settings: PreferenceConfig | OnlineConfig | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the record."""
        values = self.recipe.to_dict()
        if self.settings is not None:
            key = PREFERENCE if isinstance(self.settings, PreferenceConfig) else ONLINE
            values[key] = self.settings.to_dict()
        return values

    def train(self, data: Path, out: Path) -> Path:
        """Make the model from the shared rollouts, or from conversations of its own; go on where it was stopped."""
        recipe, model = self.recipe, out / "model"
        more: dict[str, Any] = {"model": recipe.model, "seed": recipe.seed, "device": recipe.device, "out": model}
        if self.settings is None:
            return tune(recipe, data, out)
        more["config"] = self.settings
        function: Callable[..., Any] = train_preference
        if isinstance(self.settings, PreferenceConfig):
            more |= {"data": data, "any_policy": unseen_weights(recipe)}
        else:
            function = train_online
            more |= {"environment": recipe.environment, "sampling": self.settings.sampling}
        if needs_own_process(recipe):
            call_apart(f"drift.api:{function.__name__}", **more)
        else:
            function(**more)
        return model

    def costs(self, out: Path) -> dict[str, Any]:
        """Steps, and tokens beside those of the shared rollouts; null where a trainer counted none."""
        rounds = self.recipe.rounds if self.settings is None else 1
        stages = [stage_folder(out, number, rounds) for number in range(1, rounds + 1)]
        models = [read_manifest(stage / "model", "model") for stage in stages]
        sampled = [read_manifest(stage / "rollouts", "trajectories")["cost"]["tokens_sampled"] for stage in stages[1:]]
        if isinstance(self.settings, OnlineConfig):
            sampled = [models[0]["cost"]["tokens_sampled"]]
        return {
            "shared_rollouts": not isinstance(self.settings, OnlineConfig),
            "steps": sum(model["steps"] for model in models),
            "tokens_sampled": _sum(sampled),
            "tokens_trained": _sum([model["cost"]["tokens_trained"] for model in models]),
        }


def _sum(counts: list[int | None]) -> int | None:
    return None if None in counts else sum(count for count in counts if count is not None)


def plan_of(recipe: Recipe, method: Method, seed: int) -> Plan:
    """``method`` with ``seed``: what it says, and else what ``recipe`` says or comes nearest to it.

    DPO and KTO get the optimizer, steps and conversations per step of ``training``, and the shaped return of
    ``weights``; online GRPO holds as many conversations in all as there are rollouts, 16 prompts × 4 for each of its
    steps, and trains the built-in policy with the learning rate that was found best for it, 3e-4.

    Raises:
        ConfigError: the outcome makes no sense.
    """
    recipe = dataclasses.replace(recipe, seed=seed)
    if method.trainer == PREFERENCE:
        usual: Any = _preference(recipe, method.overrides.get("preference.format", "dpo"))
        return Plan(recipe=recipe, settings=change(usual, own_overrides(method, PREFERENCE)))
    if method.trainer == ONLINE:
        return Plan(recipe=recipe, settings=change(_online(recipe), own_overrides(method, ONLINE)))
    return Plan(recipe=change(recipe, _overrides(recipe, method)))


def _overrides(recipe: Recipe, method: Method) -> dict[str, Any]:
    """What ``method`` changes: with another scheme also what of the recipe's weights belongs to its own scheme."""
    overrides, old = dict(method.overrides), recipe.weights.scheme
    given = overrides.get("weights.scheme", old)
    if name_of(given) == name_of(old):
        # A scheme by its name alone leaves the recipe's settings of it as they are.
        return {**overrides, "weights.scheme": old if isinstance(given, str) else given}
    scheme = find_scheme(next(iter(given)) if isinstance(given, Mapping) else given)
    takes_beta = "beta" in settings_of(scheme.function) and recipe.weights.beta != "auto"
    return {"weights.turns": None, **({} if takes_beta else {"weights.beta": None}), **overrides}


def _shared(recipe: Recipe) -> dict[str, Any]:
    """How the weights are moved, and the return that DRIFT is given."""
    training, weights, arguments = recipe.training, recipe.weights, dict(recipe.training.arguments)
    return {
        "learning_rate": training.learning_rate,
        "warmup": training.warmup,
        "dtype": training.dtype,
        **({"schedule": arguments.pop("lr_scheduler_type")} if "lr_scheduler_type" in arguments else {}),
        "arguments": arguments,
        "outcome": weights.outcome,
        "gamma": SCHEMES["drift"].gamma if weights.gamma is None else weights.gamma,
        "repetition": SCHEMES["drift"].repetition if weights.repetition is None else weights.repetition,
        "repetition_over": weights.repetition_over,
        "format_failure": weights.format_failure,
    }


def _preference(recipe: Recipe, format: Any) -> PreferenceConfig:
    # A row of DPO is two conversations.
    batch = recipe.training.batch_size if format == "kto" else max(1, recipe.training.batch_size // 2)
    return PreferenceConfig(
        format=format,
        batch_size=batch,
        micro_batch_size=math.gcd(batch, MICRO),
        max_steps=0 if recipe.training.epochs else recipe.training.max_steps,
        epochs=recipe.training.epochs or 1.0,
        **_shared(recipe),
    )


def _online(recipe: Recipe) -> OnlineConfig:
    rollouts, shared = recipe.rollouts, _shared(recipe)
    tasks = rollouts.tasks or TASKS
    prompts = min(tasks, PROMPTS)
    if recipe.model == BUILT_IN:
        shared["learning_rate"] = BUILT_IN_RATE
    return OnlineConfig(
        tasks=tasks,
        rounds=max(1, round(tasks * rollouts.samples / (prompts * GROUP))),
        prompts=prompts,
        samples=GROUP,
        micro_batch_size=math.gcd(prompts * GROUP, MICRO),
        sampling=recipe.sampling,
        **shared,
    )
