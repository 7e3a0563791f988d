"""The evaluation stage: the rollout loop on held-out tasks, for each policy, greedy and sampled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from drift.checksums import sum_of
from drift.dataset.lock import DirectoryLock
from drift.dataset.store import read_tasks, read_trajectories
from drift.environments.base import EnvironmentFactory, content_hash, options_of, reference_of, task_hash
from drift.errors import ConfigError, EnvironmentFault, PolicyError, require
from drift.evaluation.config import SPLIT, TASKS, EvaluationConfig
from drift.evaluation.divergences import check_divergence, measure_divergence
from drift.evaluation.estimates import GREEDY, SAMPLED, estimate_all, estimate_measured
from drift.evaluation.judging import judge_policies, make_judge
from drift.evaluation.metrics import Runs, has_outcome, runs_of
from drift.files import check_folder_name
from drift.manifest import MANIFEST, check_out, write_json, write_manifest
from drift.policies import check_policy, kind_of, model_name, settings_for
from drift.policies.base import AnyPolicy, Sampling
from drift.rollouts.cluster import sampler
from drift.rollouts.collect import Executor, collect
from drift.rollouts.config import CONCURRENCY, ClusterConfig
from drift.rollouts.run import draw_tasks
from drift.rollouts.setup import Setup
from drift.types import Estimate, Task, Trajectory

KIND = "evaluation"
ESTIMATES = "estimates.json"


def check_unseen(tasks: Sequence[Task], seen: Path) -> dict[str, int]:
    """Refuse to measure on tasks that the rollouts in ``seen`` were made of, under whatever name.

    A task is a rolled-out one if it has its id, its prompt's, or its content (``content_hash``). Contents that several
    ids of one list share, or that are empty, tell nothing and are passed over: such tasks are known by their ids alone.

    Returns:
        For the manifest: how many tasks were compared, and how many of them by content too.

    Raises:
        ConfigError: some were.
        DatasetError: ``seen`` holds no rollouts.
    """
    before = read_tasks(seen)
    names = {task.id for task in before} | {task.group_id for task in before}
    known, own = _contents(before), _contents(tasks)
    same = {task.id: task.id for task in tasks if task.id in names or task.group_id in names}
    same |= {own[content]: known[content] for content in own.keys() & known.keys()}
    if same:
        first = min(same)
        alias = f", there called {same[first]!r}" if same[first] != first else ""
        raise ConfigError(
            f"{len(same)} of {len(tasks)} evaluation tasks were also rolled out for training (for example "
            f"{first!r}{alias}). Evaluate on another split."
        )
    return {"tasks": len(tasks), "by_content": len(own) if known else 0}


def _contents(tasks: Sequence[Task]) -> dict[str, str]:
    """Task id by content, where the content tells tasks apart."""
    ids: dict[str | None, set[str]] = {}
    for task in tasks:
        ids.setdefault(content_hash(task), set()).add(task.id)
    return {content: min(of) for content, of in ids.items() if content is not None and len(of) == 1}


def modes_of(config: EvaluationConfig, sampling: Sampling) -> dict[str, tuple[int, Sampling]]:
    """Conversations per task and how replies are drawn, by mode; greedy takes its length and stop strings."""
    modes = {GREEDY: (1, replace(sampling, temperature=0.0, top_p=1.0, top_k=0, min_p=0.0))}
    return {**modes, SAMPLED: (config.samples, sampling)} if config.samples else modes


def held_out_tasks(factory: EnvironmentFactory, config: EvaluationConfig, seed: int) -> list[Task]:
    """The tasks that policies are measured on."""
    return draw_tasks(factory, SPLIT, config.tasks, seed, default=TASKS)


def hold_modes(
    tasks: Sequence[Task],
    factory: EnvironmentFactory,
    policy: AnyPolicy | Executor,
    modes: Mapping[str, tuple[int, Sampling]],
    places: Mapping[str, Path],
    environment: Mapping[str, Any],
    *,
    seed: int,
    concurrency: int,
    label: str,
) -> dict[str, dict[str, Any]]:
    """Hold the conversations of every mode with one policy; returns what each cost, and what failed by kind.

    Args:
        tasks: the held-out tasks.
        factory: the environment.
        policy: what replies.
        modes: as ``modes_of`` has them.
        places: directory of the conversations by mode.
        environment: name and settings, for the record.
        seed: decides the samples.
        concurrency: the most conversations open at once.
        label: of the policy, shown while it runs.
    """
    costs = {}
    for mode, (samples, sampling) in modes.items():
        manifest = collect(
            tasks,
            factory,
            policy,
            places[mode],
            environment=environment,
            samples=samples,
            seed=seed,
            sampling=sampling,
            concurrency=concurrency,
            label=f"{label}, {mode}",
        )
        costs[mode] = manifest["cost"] | ({"failures": found} if (found := manifest["failures"]) else {})
    return costs


def evaluate_policies(
    setup: Setup,
    models: Mapping[str, Any],
    config: EvaluationConfig,
    sampling: Sampling,
    out: Path,
    *,
    seed: int,
    seen: Path | None = None,
    concurrency: int = CONCURRENCY,
    cluster: ClusterConfig | None = None,
) -> dict[str, Any]:
    """Measure each policy on the same tasks and write ``estimates.json`` and a manifest to ``out``.

    Args:
        setup: the environment, and settings of the policies, as ``settings_for`` takes them; its own model is not
            looked at.
        models: as for ``make_policy``, by name; the first is the baseline of the paired differences.
        config: what to measure on.
        sampling: how replies are drawn in the sampled mode.
        out: where; conversations go to ``out/<mode>/<name>``.
        seed: decides tasks and samples.
        seen: rollouts whose tasks must not be measured on.
        concurrency: the most conversations open at once.
        cluster: workers on many machines that hold the conversations.

    Raises:
        ConfigError: no policies, or tasks that were rolled out for training.
        DatasetError: another process writes to ``out``, or it holds another evaluation.
    """
    _check_names(models)
    check_out(out, KIND)
    factory, modes = setup.make_environment(), modes_of(config, sampling)
    tasks = held_out_tasks(factory, config, seed)
    settings = _checked_settings(setup, models)
    check_quality(models, settings, config, sampling)
    unseen = {"unseen": check_unseen(tasks, seen)} if seen is not None else {}
    # A second process would open again what this one is about to read.
    with DirectoryLock(out):
        costs: dict[str, dict[str, Any]] = {}
        for name, model in models.items():
            # An engine that takes a minute to start serves all modes.
            opened = sampler(cluster or ClusterConfig(), replace(setup, model=model, policy=settings[name]))
            with opened as policy, getattr(policy, "keep_running", nullcontext)():
                places = {mode: out / mode / name for mode in modes}
                more: dict[str, Any] = {"seed": seed, "concurrency": concurrency, "label": name}
                found = hold_modes(tasks, factory, policy, modes, places, setup.record, **more)
                costs |= {f"{mode}/{name}": cost for mode, cost in found.items()}
        rows = _estimates(tasks, factory, list(models), list(modes), out)
        references = {task.id: reference_of(factory, task) for task in tasks} if config.judge else {}
        better, quality = measure_quality(models, settings, config, sampling, out, setup.device, references=references)
        write_json(out / ESTIMATES, [asdict(row) for row in [*rows, *better]])
        content = {
            "environment": setup.record,
            "policies": {name: settings[name].get("adapter") or model_name(models[name]) for name in models},
            "modes": list(modes),
            "max_turns": factory.max_turns,
            "tasks": len(tasks),
            "task_hash": task_hash(tasks),
            "split": SPLIT,
            "seed": seed,
            "estimates_sum": sum_of(out / ESTIMATES),
            "cost": costs,
            **unseen,
            **({"quality": quality} if quality else {}),
        }
        sources = {f"{mode}/{name}": out / mode / name for mode in modes for name in models}
        sources |= tuned_folders(models) | ({"seen": seen} if seen is not None else {})
        write_manifest(out, KIND, content, sources=sources)
        return content


def _check_names(models: Mapping[str, Any]) -> None:
    require(bool(models), "models", dict(models), "at least one model by name, like base=default")
    for name in models:
        check_folder_name(name, "models")


def tuned_folders(models: Mapping[str, Any]) -> dict[str, Path]:
    """The folders of those models that drift trained, by what they are to a measurement."""
    kinds = {name: kind_of(model) for name, model in models.items()}
    named = ((name, Path(str(folder))) for name, (kind, folder) in kinds.items() if kind == "hf")
    return {f"models/{name}": path for name, path in named if (path / MANIFEST).is_file()}


def _checked_settings(setup: Setup, models: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings of each policy by name, all of them checked; an error names the policy."""
    settings = {name: settings_for(name, setup.policy, models) for name in models}
    for name, model in models.items():
        try:
            check_policy(model, settings[name], device=setup.device)
        except (ConfigError, PolicyError) as error:
            raise type(error)(f"model {name!r}: {error}") from error
    return settings


def _estimates(
    tasks: Sequence[Task],
    factory: EnvironmentFactory,
    names: Sequence[str],
    modes: Sequence[str],
    out: Path,
) -> list[Estimate]:
    """What the conversations in ``out`` say of the named policies, the baseline first, in every mode."""
    options = {task.id: options_of(factory, task) for task in tasks}
    return [
        estimate
        for mode in modes
        for estimate in estimate_all(
            on_common_prompts({name: read_trajectories(out / mode / name) for name in names}, options),
            mode=mode,
            max_turns=factory.max_turns,
            baseline=names[0],
        )
    ]


def check_quality(
    models: Mapping[str, Any],
    settings: Mapping[str, Mapping[str, Any]],
    config: EvaluationConfig,
    sampling: Sampling,
) -> None:
    """Find wrong what of ``kl`` and ``judge`` can't be, before anything is sampled."""
    if config.kl:
        check_divergence(models, settings, config, sampling)
    if config.judge:
        make_judge(config)


def measure_quality(
    models: Mapping[str, Any],
    settings: Mapping[str, Mapping[str, Any]],
    config: EvaluationConfig,
    sampling: Sampling,
    out: Path,
    device: str,
    *,
    references: Mapping[str, str],
) -> tuple[list[Estimate], dict[str, Any]]:
    """Divergence from the first policy and a judge's grades, from the conversations in ``out``, as far as asked for.

    Returns:
        The rows, and what was done, for the manifest.
    """
    rows: list[Estimate] = []
    facts: dict[str, Any] = {}
    if config.kl:
        paths = check_divergence(models, settings, config, sampling)
        dtype = str(settings[next(iter(models))].get("dtype", "auto"))
        held = {name: read_trajectories(out / SAMPLED / name) for name in models}
        measured, facts["kl"] = measure_divergence(held, paths, config, dtype=dtype, device=device)
        rows += estimate_measured(measured, mode=SAMPLED, baseline=None)
    if config.judge:
        held = {name: read_trajectories(out / GREEDY / name) for name in models}
        measured, facts["judge"] = judge_policies(held, references, config, out)
        rows += estimate_measured(measured, mode=GREEDY, baseline=next(iter(models)))
    return rows, facts


def on_common_prompts(
    held: Mapping[str, Sequence[Trajectory]], options: Mapping[str, int | None] | None = None
) -> dict[str, Runs]:
    """Runs of every policy on the prompts that all of them have: a judge may fail on one of them alone."""
    common = set.intersection(*({t.task_id for t in found if has_outcome(t)} for found in held.values()))
    if not common:
        raise EnvironmentFault(
            f"there is no task on which every policy ({', '.join(held)}) has a conversation that did not fail; "
            "look at the error column of their trajectories."
        )
    return {name: runs_of(found, common, options) for name, found in held.items()}
