"""A whole recipe as one call: sample, weigh, fine-tune (in one round or several), measure, report."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from drift.api import evaluate, report, rollout, train, weigh
from drift.environments import make_environment
from drift.errors import ConfigError, require
from drift.policies.base import derive_seed
from drift.recipe import Recipe, to_dict
from drift.training.config import TrainingConfig


def run_recipe(recipe: Recipe, out: str | Path) -> Path:
    """Run every stage of ``recipe`` into ``out``; stages that are finished are not run again.

    Writes ``recipe.yaml`` (resolved), ``rollouts/``, ``weights/``, ``model/``, ``evaluation/`` and ``report.html``.
    Where there are several rounds, ``weights`` and ``model`` of each, and its ``rollouts`` from the second on, lie in
    ``round-1/``, ``round-2/``, …

    Raises:
        ConfigError: ``out`` was begun with another recipe, or torchrun started this process as one of several.
    """
    one_process()
    out = Path(out)
    check_recipe(recipe)
    claim(to_dict(recipe), out)
    environment, choice = recipe.environment, recipe.policy
    data = roll_out(recipe, out / "rollouts")
    model = tune(recipe, data, out)
    evaluate(
        environment.name,
        policies={"base": choice.model, "tuned": str(model)},
        out=out / "evaluation",
        settings=recipe.evaluation,
        sampling=recipe.rollouts.sampling,
        environment_settings=environment.settings,
        policy=choice,
        cluster=recipe.rollouts.cluster,
        seen=data,
        seed=recipe.seed,
    )
    report(out)
    return out


def one_process() -> None:
    """Raise ``ConfigError`` where torchrun started this process as one of several."""
    require(
        os.environ.get("WORLD_SIZE", "1") == "1" or "LOCAL_RANK" not in os.environ,
        "WORLD_SIZE",
        os.environ.get("WORLD_SIZE"),
        "a single process for a whole recipe",
        "Start it without torchrun and give training.num_processes: it starts them for the training.",
    )


def roll_out(recipe: Recipe, out: Path, *, model: str = "", round: int = 1, source: Any = None) -> Path:
    """Sample the conversations of one round of ``recipe`` into ``out``.

    Args:
        recipe: what to sample.
        out: directory of the trajectories.
        model: whose replies; the recipe's unless given.
        round: from 1. Every round has the same tasks; samples are seeded apart.
        source: see ``rollout``.
    """
    return rollout(
        recipe.environment.name,
        out=out,
        policy=replace(recipe.policy, model=model or recipe.policy.model),
        settings=recipe.rollouts,
        environment_settings=recipe.environment.settings,
        seed=recipe.seed,
        sample_seed=derive_seed(recipe.seed, "round", round) if round > 1 else None,
        source=source,
    )


def tune(recipe: Recipe, data: Path, out: Path) -> Path:
    """Weigh ``data`` and fine-tune on it, in as many rounds as ``recipe`` says; returns the model folder.

    Round r has ``weights`` and ``model``, and from the second on ``rollouts``, in ``stage_folder(out, r, rounds)``.

    Args:
        recipe: how to weigh and train.
        data: conversations of the recipe's own model, for the first round.
        out: where to.
    """
    model = recipe.policy.model
    for number, config in enumerate(split_steps(recipe.training, recipe.rounds), 1):
        folder = stage_folder(out, number, recipe.rounds)
        if number > 1:
            data = roll_out(recipe, folder / "rollouts", model=model, round=number)
        weights = weigh(data, out=folder / "weights", config=recipe.weights)
        model = str(
            train(
                data,
                weights,
                out=folder / "model",
                base=model,
                config=config,
                seed=recipe.seed,
                device=recipe.policy.device,
            )
        )
    return Path(model)


def stage_folder(out: Path, number: int, rounds: int) -> Path:
    """Where round ``number`` of ``rounds`` lies: ``out`` itself where there is one round only."""
    return out if rounds == 1 else out / f"round-{number}"


def split_steps(config: TrainingConfig, rounds: int) -> list[TrainingConfig]:
    """The training of each round: the steps (or epochs) shared out, what is left over going to the first rounds."""
    if config.epochs:
        return [replace(config, epochs=config.epochs / rounds)] * rounds
    each, over = divmod(config.max_steps, rounds)
    return [replace(config, max_steps=each + (number < over)) for number in range(rounds)]


def check_recipe(recipe: Recipe) -> None:
    """Find what can be found wrong without long work: the environment, its tasks of both splits, the model folder."""
    from drift.policies import DEFAULT_MODEL

    factory = make_environment(recipe.environment.name, recipe.environment.settings)
    factory.tasks("train", recipe.rollouts.tasks, recipe.seed)
    factory.tasks("test", recipe.evaluation.tasks, recipe.seed)
    model = recipe.policy.model
    require(bool(model) and ":" not in model, "policy.model", model, "default, a model folder, or a hub id")
    folder = DEFAULT_MODEL if model == "default" else Path(model).expanduser()
    if (model == "default" or model.startswith((".", "/", "~"))) and not (folder / "config.json").is_file():
        raise ConfigError(f"policy.model: no model in {folder}. Give a folder that holds config.json, or a hub id.")


def claim(values: Mapping[str, Any], out: Path) -> None:
    """Write a resolved recipe to ``out``; raises ``ConfigError`` where another is there."""
    import yaml

    from drift.manifest import write_atomic

    check_claim(values, out)
    write_atomic(out / "recipe.yaml", yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True).encode())


def check_claim(values: Mapping[str, Any], out: Path) -> None:
    """Raise ``ConfigError`` where ``out`` was begun with another recipe.

    A key that the recipe there lacks is newer than it, and had what is now the default.
    """
    import yaml

    from drift.manifest import differing_keys

    path = out / "recipe.yaml"
    if not path.is_file():
        return
    changed = [
        key
        for key in differing_keys(_filled(yaml.safe_load(path.read_text()) or {}, to_dict(Recipe())), values)
        # Where conversations are held changes none of them, nor do several processes change what is trained.
        if not key.startswith(("rollouts.cluster", "training.num_processes"))
    ]
    if changed:
        raise ConfigError(
            f"{out} was begun with another recipe: {'; '.join(changed)}. "
            "Give another --out, or run the recipe.yaml in it."
        )


def _filled(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` and, where they lack a key, the default, at every level; settings of others' choice stay whole."""
    filled = {**defaults, **values}
    for key, value in values.items():
        inner = defaults.get(key)
        if key not in ("settings", "turns") and isinstance(value, Mapping) and isinstance(inner, Mapping):
            filled[key] = _filled(value, inner)
    return filled
