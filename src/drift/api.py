"""The stages as Python calls; the command line calls the same. Each returns the directory it wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

from drift.baselines.config import OnlineConfig, PreferenceConfig
from drift.environments import make_environment
from drift.errors import unknown_name
from drift.exports.config import ExportConfig
from drift.policies.base import Sampling
from drift.recipe import EvaluationSettings, PolicyChoice, RolloutSettings
from drift.registry import settings_of
from drift.rollouts.config import ClusterSettings
from drift.training.config import TrainingConfig
from drift.weights.config import WeightConfig
from drift.weights.schemes import find_scheme


def rollout(
    environment: str = "arithmetic",
    *,
    out: str | Path,
    policy: str | PolicyChoice = "default",
    settings: RolloutSettings | None = None,
    environment_settings: Mapping[str, Any] | None = None,
    split: str = "train",
    seed: int = 1,
    sample_seed: int | None = None,
    source: Any = None,
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
        sample_seed: decides the samples alone, for other conversations about the same tasks; ``seed`` unless given.
        source: the policy itself, or a cluster, where the caller keeps one open that was made of ``policy``.
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
        seed=seed if sample_seed is None else sample_seed,
        sampling=settings.sampling,
        concurrency=settings.concurrency,
        first=settings.first,
    )
    tasks = factory.tasks(split, settings.tasks, seed)
    usual = {"dtype": choice.dtype, "device": choice.device, "batch_size": choice.batch_size}
    making = Making(environment=collection.environment, model=choice.model, settings=choice.settings, usual=usual)
    with sampler(settings.cluster, making) if source is None else nullcontext(source) as opened:
        collect(tasks, factory, opened, collection, Path(out))
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


def weigh(
    data: str | Path,
    scheme: str | Callable[..., Any] = "drift",
    *,
    out: str | Path,
    config: WeightConfig | None = None,
    **settings: Any,
) -> Path:
    """Weigh the conversations in ``data`` and write the weights to ``out``.

    Args:
        data: directory of trajectories.
        scheme: the name of a scheme, ``module:function``, or a function ``(returns_N, group_N, *, …) -> weights_N``.
        out: directory of the weights.
        config: how to weigh, instead of ``scheme`` and ``settings``.
        settings: fields of ``WeightConfig`` (``beta=0.1, steps=["drop_unsolved"]``) and settings of the scheme.

    Raises:
        ConfigError: an unknown scheme, step or setting; names the nearest known one.
    """
    from drift.weights.stage import weigh_dataset

    weigh_dataset(Path(data), config or weight_config(scheme, settings), Path(out))
    return Path(out)


def weight_config(scheme: str | Callable[..., Any], settings: Mapping[str, Any]) -> WeightConfig:
    """Settings by keyword as a ``WeightConfig``: what is none of its fields is the scheme's own."""
    known = {each.name for each in fields(WeightConfig)} - {"scheme"}
    own = {key: value for key, value in settings.items() if key not in known}
    theirs = settings_of(find_scheme(scheme).function)
    for key in own:
        if key not in theirs:
            raise unknown_name("setting", key, [*known, *theirs], where=f"weigh with the scheme {scheme!r}")
    given = {key: value for key, value in settings.items() if key in known}
    if own:
        given["settings"] = {**given.get("settings", {}), **own}
    return WeightConfig(scheme=cast(str, scheme), **given)


def export(
    data: str | Path, *, out: str | Path, config: ExportConfig | None = None, model: str = "", **settings: Any
) -> dict[str, Any]:
    """Write conversations as rows for preference trainers (DPO, KTO) to ``out``; returns the rows' manifest.

    Args:
        data: directory of trajectories.
        out: the file, JSON Lines in TRL's schema; its manifest lies beside it.
        config: what to make; or give its fields as ``settings`` (``format="dpo-step", pairs=2``).
        model: the model to be trained, to count where rendering the rows gives other ids than were sampled.
        settings: fields of ``ExportConfig``.
    """
    from drift.exports.run import export_dataset

    tokenizer = None
    if model:
        from drift.policies import model_path
        from drift.policies.hf import load_tokenizer

        tokenizer = load_tokenizer(model_path(model))
    return export_dataset(Path(data), Path(out), config or ExportConfig(**settings), tokenizer=tokenizer)


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
        weights: directory of their weights, or a Parquet file with the columns ``id`` and ``weights`` made by anything.
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
    more: dict[str, Any] = {"model": base, "seed": seed, "device": device, "any_policy": any_policy}
    if needs_launch(config):
        places = {"data": str(data), "weights": str(weights), "out": str(out)}
        train_in_processes({**places, "config": config.to_dict(), **more}, config.num_processes)
    else:
        train_model(Path(data), Path(weights), config, Path(out), **more)
    return Path(out)


def train_preference(
    data: str | Path,
    *,
    out: str | Path,
    base: str = "default",
    config: PreferenceConfig | None = None,
    seed: int = 1,
    device: str = "auto",
    any_policy: bool = False,
    **settings: Any,
) -> Path:
    """Train ``base`` with DPO or KTO on the conversations in ``data`` and write a model folder to ``out``.

    Args:
        data: directory of trajectories.
        out: the model folder.
        base: the model that sampled the conversations.
        config: which rows and how; ``format`` decides the objective. Or give its fields as ``settings``.
        seed: decides the order of the rows.
        device: where to train.
        any_policy: accept conversations that another model sampled.
        settings: fields of ``PreferenceConfig``.
    """
    from drift.baselines.preference import train_preference

    config = config or PreferenceConfig(**settings)
    train_preference(Path(data), Path(out), model=base, config=config, seed=seed, device=device, any_policy=any_policy)
    return Path(out)


def train_online(
    environment: str = "arithmetic",
    *,
    out: str | Path,
    start: str = "default",
    config: OnlineConfig | None = None,
    environment_settings: Mapping[str, Any] | None = None,
    seed: int = 1,
    device: str = "auto",
    **settings: Any,
) -> Path:
    """Train a model with GRPO on conversations that are held meanwhile, and write a model folder to ``out``.

    Args:
        environment: name of a registered environment.
        out: the model folder.
        start: the model to start from: ``default``, a folder (one that ``train`` wrote, say) or a hub id.
        config: how; or give its fields as ``settings``.
        environment_settings: the environment's own settings.
        seed: decides tasks, their order and the conversations.
        device: where to sample and train.
        settings: fields of ``OnlineConfig``.
    """
    from drift.baselines.online import train_online

    train_online(
        {"name": environment, "settings": dict(environment_settings or {})},
        make_environment(environment, environment_settings),
        Path(out),
        model=start,
        config=config or OnlineConfig(**settings),
        seed=seed,
        device=device,
    )
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
        settings: number of tasks and samples, and what of the language of replies is measured.
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
        EvaluationConfig(
            tasks=settings.tasks, samples=settings.samples, sampling=sampling or Sampling(), quality=settings.quality
        ),
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
