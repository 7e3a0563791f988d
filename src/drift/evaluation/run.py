"""The evaluation stage: the rollout loop on held-out tasks, for each policy, greedy and sampled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from drift.checksums import sum_of
from drift.dataset.lock import DirectoryLock
from drift.dataset.store import read_tasks, read_trajectories
from drift.environments.base import EnvironmentFactory, content_hash, options_of, reference_of, task_hash
from drift.errors import ConfigError, EnvironmentFault, require
from drift.evaluation.config import QualitySettings
from drift.evaluation.divergences import check_divergence, measure_divergence
from drift.evaluation.estimates import GREEDY, SAMPLED, estimate_all, estimate_measured
from drift.evaluation.judging import judge_policies, make_judge
from drift.evaluation.metrics import Runs, has_outcome, runs_of
from drift.manifest import write_json, write_manifest
from drift.policies.base import AnyPolicy, Sampling
from drift.rollouts.cluster import sampler
from drift.rollouts.collect import Collection, Executor, collect
from drift.rollouts.config import ClusterSettings
from drift.rollouts.worker import Making
from drift.types import Estimate, Task, Trajectory

KIND = "evaluation"
ESTIMATES = "estimates.json"


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How policies are measured.

    Args:
        tasks: number of held-out tasks.
        split: which split they come from.
        samples: conversations per task under sampling; 0 measures greedy alone. Greedy is always measured.
        sampling: how replies are drawn in the sampled mode; greedy uses its length and stop strings.
        concurrency: the most conversations open at once.
        quality: what of the replies' language is measured beyond what is counted anyway.
    """

    tasks: int = 500
    split: str = "test"
    samples: int = 1
    sampling: Sampling
    concurrency: int = 512
    quality: QualitySettings = field(default_factory=QualitySettings)

    def __post_init__(self) -> None:
        require(self.tasks >= 1, "evaluation.tasks", self.tasks, "a whole number ≥ 1")
        require(self.samples >= 0, "evaluation.samples", self.samples, "a whole number ≥ 0")


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


def modes_of(config: EvaluationConfig) -> dict[str, tuple[int, Sampling]]:
    """Conversations per task and how replies are drawn, by mode."""
    modes = {GREEDY: (1, replace(config.sampling, temperature=0.0, top_p=1.0))}
    return {**modes, SAMPLED: (config.samples, config.sampling)} if config.samples else modes


def hold_modes(
    tasks: Sequence[Task],
    factory: EnvironmentFactory,
    policy: AnyPolicy | Executor,
    config: EvaluationConfig,
    places: Mapping[str, Path],
    environment: Mapping[str, Any],
    *,
    seed: int,
    label: str,
) -> dict[str, dict[str, Any]]:
    """Hold the conversations of every mode with one policy; returns what each cost.

    Args:
        tasks: the held-out tasks.
        factory: the environment.
        policy: what replies.
        config: how to measure.
        places: directory of the conversations by mode.
        environment: name and settings, for the record.
        seed: decides the samples.
        label: of the policy, shown while it runs.
    """
    costs = {}
    for mode, (samples, sampling) in modes_of(config).items():
        collection = Collection(
            environment=dict(environment),
            samples=samples,
            seed=seed,
            sampling=sampling,
            concurrency=config.concurrency,
            label=f"{label}, {mode}",
        )
        costs[mode] = collect(tasks, factory, policy, collection, places[mode])["cost"]
    return costs


def evaluate_policies(
    environment: Mapping[str, Any],
    factory: EnvironmentFactory,
    policies: Mapping[str, str],
    config: EvaluationConfig,
    out: Path,
    *,
    seed: int,
    seen: Path | None = None,
    cluster: ClusterSettings | None = None,
    settings: Mapping[str, Any] | None = None,
    **usual: Any,
) -> dict[str, Any]:
    """Measure each policy on the same tasks and write ``estimates.json`` and a manifest to ``out``.

    Args:
        environment: name and settings, for the record.
        factory: the environment.
        policies: model by name; the first is the baseline of the paired differences.
        config: how to measure.
        out: where; conversations go to ``out/<mode>/<name>``.
        seed: decides tasks, samples and bootstrap.
        seen: rollouts whose tasks must not be measured on.
        cluster: workers on many machines that hold the conversations.
        settings: of the policies, for ``make_policy``.
        usual: what else ``make_policy`` takes.

    Raises:
        ConfigError: no policies, or tasks that were rolled out for training.
        DatasetError: another process writes to ``out``, or it holds another evaluation.
    """
    require(bool(policies), "policies", dict(policies), "at least one model by name, like base=default")
    tasks = factory.tasks(config.split, config.tasks, seed)
    check_quality(policies, config)
    unseen = {"unseen": check_unseen(tasks, seen)} if seen is not None else {}
    # A second process would open again what this one is about to read.
    with DirectoryLock(out):
        costs: dict[str, dict[str, Any]] = {}
        for name, model in policies.items():
            making = Making(environment=environment, model=model, settings=settings or {}, usual=usual)
            # An engine that takes a minute to start serves all modes.
            with sampler(cluster, making) as policy, getattr(policy, "keep_running", nullcontext)():
                places = {mode: out / mode / name for mode in modes_of(config)}
                found = hold_modes(tasks, factory, policy, config, places, environment, seed=seed, label=name)
                costs |= {f"{mode}/{name}": cost for mode, cost in found.items()}
        rows = _estimates(tasks, factory, list(policies), config, out, seed=seed)
        references = {task.id: reference_of(factory, task) for task in tasks} if config.quality.judge else {}
        better, quality = measure_quality(policies, config, out, references=references, seed=seed, **usual)
        rows += better
        write_json(out / ESTIMATES, [asdict(row) for row in rows])
        content = {
            "environment": dict(environment),
            "policies": dict(policies),
            "modes": list(modes_of(config)),
            "max_turns": factory.max_turns,
            "tasks": len(tasks),
            "task_hash": task_hash(tasks),
            "split": config.split,
            "seed": seed,
            "estimates_sum": sum_of(out / ESTIMATES),
            "cost": costs,
            **unseen,
            **({"quality": quality} if quality else {}),
        }
        write_manifest(out, KIND, content)
        return content


def _estimates(
    tasks: Sequence[Task],
    factory: EnvironmentFactory,
    names: Sequence[str],
    config: EvaluationConfig,
    out: Path,
    *,
    seed: int,
) -> list[Estimate]:
    """What the conversations in ``out`` say of the named policies, the baseline first, in every mode."""
    options = {task.id: options_of(factory, task) for task in tasks}
    return [
        estimate
        for mode in modes_of(config)
        for estimate in estimate_all(
            on_common_prompts({name: read_trajectories(out / mode / name) for name in names}, options),
            mode=mode,
            max_turns=factory.max_turns,
            baseline=names[0],
            seed=seed,
        )
    ]


def check_quality(policies: Mapping[str, str], config: EvaluationConfig) -> None:
    """Find settings of ``config.quality`` that can't be, before anything is sampled."""
    if config.quality.kl:
        check_divergence(policies, config.quality, config.sampling, config.samples)
    if config.quality.judge:
        make_judge(config.quality)


def measure_quality(
    policies: Mapping[str, str],
    config: EvaluationConfig,
    out: Path,
    *,
    references: Mapping[str, str],
    seed: int,
    dtype: str = "auto",
    device: str = "auto",
    **_: Any,
) -> tuple[list[Estimate], dict[str, Any]]:
    """Divergence from the first policy and a judge's grades, from the conversations in ``out``, as far as asked for.

    Returns:
        The rows, and what was done, for the manifest.
    """
    rows: list[Estimate] = []
    facts: dict[str, Any] = {}
    quality = config.quality
    if quality.kl:
        paths = check_divergence(policies, quality, config.sampling, config.samples)
        held = {name: read_trajectories(out / SAMPLED / name) for name in policies}
        measured, facts["kl"] = measure_divergence(held, paths, quality, dtype=dtype, device=device)
        rows += estimate_measured(measured, mode=SAMPLED, seed=seed, baseline=None)
    if quality.judge:
        held = {name: read_trajectories(out / GREEDY / name) for name in policies}
        measured, facts["judge"] = judge_policies(held, references, quality, out)
        rows += estimate_measured(measured, mode=GREEDY, seed=seed, baseline=next(iter(policies)))
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
