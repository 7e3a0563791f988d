"""The stages as Python calls; the command line calls the same. Each returns the directory it wrote."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drift.environments import make_environment
from drift.errors import ConfigError, require
from drift.policies.base import Sampling
from drift.recipe import EvaluationSettings, PolicyChoice, Recipe, RolloutSettings, to_dict
from drift.rollouts.config import ClusterSettings
from drift.training.config import TrainingConfig
from drift.weights.config import WeightConfig


def rollout(
    environment: str = "arithmetic",
    *,
    out: str | Path,
    policy: str | PolicyChoice = "default",
    settings: RolloutSettings | None = None,
    environment_settings: Mapping[str, Any] | None = None,
    split: str = "train",
    seed: int = 1,
) -> Path:
    """Hold K conversations for each task and write them to ``out``; go on where an earlier call stopped.

    Args:
        environment: name of a registered environment.
        out: directory of the trajectories.
        policy: ``default``, a model folder, a hub id, or a ``PolicyChoice``.
        settings: tasks, samples, sampling, concurrency, cluster.
        environment_settings: the environment's own settings.
        split: split of the tasks.
        seed: decides tasks and samples.
    """
    from drift.rollouts.cluster import sampler
    from drift.rollouts.collect import Collection, collect
    from drift.rollouts.worker import Making

    settings = settings or RolloutSettings()
    choice = PolicyChoice(model=policy) if isinstance(policy, str) else policy
    factory = make_environment(environment, environment_settings)
    collection = Collection(
        environment={"name": environment, "settings": dict(environment_settings or {}), "split": split},
        samples=settings.samples,
        seed=seed,
        sampling=settings.sampling,
        concurrency=settings.concurrency,
        first=settings.first,
    )
    tasks = factory.tasks(split, settings.tasks, seed)
    usual = {"dtype": choice.dtype, "device": choice.device, "batch_size": choice.batch_size}
    making = Making(environment=collection.environment, model=choice.model, settings=choice.settings, usual=usual)
    with sampler(settings.cluster, making) as source:
        collect(tasks, factory, source, collection, Path(out))
    return Path(out)


def import_conversations(
    file: str | Path,
    *,
    out: str | Path,
    format: str = "messages",
    settings: Mapping[str, Any] | None = None,
    model: str = "default",
    max_length: int = 0,
    strict: bool = False,
) -> Path:
    """Turn logged conversations with rewards into a data set of trajectories in ``out``.

    Args:
        file: JSON Lines or Parquet, one conversation per row.
        out: directory of the trajectories; an import that was interrupted there goes on.
        format: ``messages``, ``drift``, ``mathdial``, or one that another package registers.
        settings: the format's own settings (``{"reward": "score"}``).
        model: the model to be trained, whose chat template makes the ids: ``default``, a folder or a hub id.
        max_length: the most tokens a prompt and its reply may hold; 0 takes the model's limit.
        strict: fail, before anything is written, if any row is bad.
    """
    from drift.dataset.imports.run import import_file

    import_file(
        Path(file),
        Path(out),
        format=format,
        settings=settings or {},
        model=model,
        max_length=max_length,
        strict=strict,
    )
    return Path(out)


def weigh(data: str | Path, *, out: str | Path, config: WeightConfig | None = None, **settings: Any) -> Path:
    """Weigh the conversations in ``data`` and write the weights to ``out``.

    Args:
        data: directory of trajectories.
        out: directory of the weights.
        config: how to weigh; or give its fields as ``settings`` (``scheme="drift", beta=0.1``).
        settings: fields of ``WeightConfig``.
    """
    from drift.dataset.weighing import weigh_dataset

    weigh_dataset(Path(data), config or WeightConfig(**settings), Path(out))
    return Path(out)


def train(
    data: str | Path,
    weights: str | Path,
    *,
    out: str | Path,
    base: str = "default",
    config: TrainingConfig | None = None,
    seed: int = 1,
    device: str = "auto",
    any_policy: bool = False,
    **settings: Any,
) -> Path:
    """Fine-tune ``base`` on weighted conversations and write a model folder to ``out``.

    Args:
        data: directory of trajectories.
        weights: directory of their weights.
        out: the model folder; a run that was interrupted there goes on.
        base: the model that sampled the conversations.
        config: how to train; or give its fields as ``settings``.
        seed: decides the order of the rows.
        device: where to train.
        any_policy: accept conversations that another model sampled.
        settings: fields of ``TrainingConfig``.
    """
    from drift.training.launch import needs_launch, train_in_processes
    from drift.training.run import train_model

    config = config or TrainingConfig(**settings)
    more: dict[str, Any] = {"base": base, "seed": seed, "device": device, "any_policy": any_policy}
    if needs_launch(config):
        places = {"data": str(data), "weights": str(weights), "out": str(out)}
        train_in_processes({**places, "config": config.to_dict(), **more}, config.num_processes)
    else:
        train_model(Path(data), Path(weights), config, Path(out), **more)
    return Path(out)


def evaluate(
    environment: str = "arithmetic",
    *,
    policies: Mapping[str, str],
    out: str | Path,
    settings: EvaluationSettings | None = None,
    sampling: Sampling | None = None,
    environment_settings: Mapping[str, Any] | None = None,
    policy: PolicyChoice | None = None,
    cluster: ClusterSettings | None = None,
    seen: str | Path | None = None,
    seed: int = 1,
) -> Path:
    """Measure policies on the same held-out tasks and write estimates to ``out``.

    Args:
        environment: name of a registered environment.
        policies: model by name; the first is what the others are compared with.
        out: directory of the evaluation.
        settings: number of tasks and samples.
        sampling: how replies are drawn in the sampled mode.
        environment_settings: the environment's own settings.
        policy: dtype, device and batch size for all of them.
        cluster: workers on many machines that hold the conversations.
        seen: rollouts whose tasks must not be measured on.
        seed: decides tasks, samples and bootstrap.
    """
    from drift.evaluation.run import EvaluationConfig, evaluate_policies

    settings, choice = settings or EvaluationSettings(), policy or PolicyChoice()
    evaluate_policies(
        {"name": environment, "settings": dict(environment_settings or {})},
        make_environment(environment, environment_settings),
        policies,
        EvaluationConfig(tasks=settings.tasks, samples=settings.samples, sampling=sampling or Sampling()),
        Path(out),
        seed=seed,
        seen=None if seen is None else Path(seen),
        cluster=cluster,
        settings=choice.settings,
        dtype=choice.dtype,
        device=choice.device,
        batch_size=choice.batch_size,
    )
    return Path(out)


def report(run: str | Path, *, out: str | Path | None = None) -> Path:
    """Write one self-contained HTML page about a run directory, and return its path.

    Args:
        run: a directory made by ``run_recipe``, or any that holds ``evaluation``.
        out: the page; ``report.html`` in ``run`` unless given.
    """
    from drift.reporting.page import write_report

    return write_report(Path(run), Path(out) if out is not None else Path(run) / "report.html")


def run_recipe(recipe: Recipe, out: str | Path) -> Path:
    """Run every stage of ``recipe`` into ``out``; stages that are finished are not run again.

    Writes ``recipe.yaml`` (resolved), ``rollouts/``, ``weights/``, ``model/``, ``evaluation/`` and ``report.html``.

    Raises:
        ConfigError: ``out`` was begun with another recipe, or torchrun started this process as one of several.
    """
    require(
        os.environ.get("WORLD_SIZE", "1") == "1" or "LOCAL_RANK" not in os.environ,
        "WORLD_SIZE",
        os.environ.get("WORLD_SIZE"),
        "a single process for a whole recipe",
        "Start it without torchrun and give training.num_processes: it starts them for the training.",
    )
    out = Path(out)
    check_recipe(recipe)
    _claim(recipe, out)
    environment, choice = recipe.environment, recipe.policy
    data = rollout(
        environment.name,
        out=out / "rollouts",
        policy=choice,
        settings=recipe.rollouts,
        environment_settings=environment.settings,
        seed=recipe.seed,
    )
    weights = weigh(data, out=out / "weights", config=recipe.weights)
    model = train(
        data,
        weights,
        out=out / "model",
        base=choice.model,
        config=recipe.training,
        seed=recipe.seed,
        device=choice.device,
    )
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


def _claim(recipe: Recipe, out: Path) -> None:
    import yaml

    from drift.manifest import differing_keys, write_atomic

    path = out / "recipe.yaml"
    values = to_dict(recipe)
    if path.is_file():
        changed = [
            key
            for key in differing_keys(yaml.safe_load(path.read_text()) or {}, values)
            # Where conversations are held changes none of them, nor do several processes change what is trained.
            if not key.startswith(("rollouts.cluster", "training.num_processes"))
        ]
        if changed:
            raise ConfigError(
                f"{out} was begun with another recipe: {'; '.join(changed)}. "
                "Give another --out, or run the recipe.yaml in it."
            )
    write_atomic(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode())
