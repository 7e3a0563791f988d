"""The rollout stage: tasks of an environment and a policy in, conversations out."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from drift.dataset.store import KIND
from drift.environments.base import EnvironmentFactory
from drift.manifest import check_out
from drift.policies.base import Sampling
from drift.rollouts.cluster import sampler
from drift.rollouts.collect import collect
from drift.rollouts.config import CONCURRENCY, TASKS, ClusterConfig, RolloutConfig
from drift.rollouts.setup import Setup
from drift.types import Task


def roll_out(
    setup: Setup,
    config: RolloutConfig,
    sampling: Sampling,
    out: Path,
    *,
    split: str = "train",
    seed: int,
    sample_seed: int | None = None,
    concurrency: int = CONCURRENCY,
    cluster: ClusterConfig | None = None,
    source: Any = None,
) -> dict[str, Any]:
    """Hold the conversations that ``out`` lacks, and return its manifest; raises what ``collect`` raises.

    Args:
        setup: environment and policy.
        config: how many conversations.
        sampling: how replies are drawn.
        out: directory of the trajectories.
        split: split of the tasks.
        seed: decides tasks and samples.
        sample_seed: decides the samples alone, for other conversations about the same tasks; ``seed`` unless given.
        concurrency: the most conversations open at once.
        cluster: workers on many machines that hold the conversations.
        source: the policy itself, or a cluster, where the caller keeps one open that was made of ``setup``.
    """
    check_out(out, KIND)
    factory = setup.make_environment()
    tasks = draw_tasks(factory, split, config.tasks, seed, default=TASKS)
    opened = sampler(cluster or ClusterConfig(), setup) if source is None else nullcontext(source)
    with opened as policy:
        return collect(
            tasks,
            factory,
            policy,
            out,
            environment={**setup.record, "split": split},
            samples=config.samples,
            seed=seed if sample_seed is None else sample_seed,
            sampling=sampling,
            first=config.first,
            concurrency=concurrency,
            prompts=setup.prompts,
        )


def draw_tasks(factory: EnvironmentFactory, split: str, count: int | None, seed: int, *, default: int) -> list[Task]:
    """``count`` tasks, or where that is ``None`` ``default`` of them, or all there are where those are fewer.

    Raises:
        ConfigError: ``count`` are more than there are.
    """
    if count is not None:
        return factory.tasks(split, count, seed)
    try:
        return factory.tasks(split, default, seed)
    except ValueError:
        # Nothing but its tasks says how many an environment has: halve what lies between.
        found, too_many = factory.tasks(split, 1, seed), default
    while too_many - len(found) > 1:
        middle = (len(found) + too_many) // 2
        try:
            found = factory.tasks(split, middle, seed)
        except ValueError:
            too_many = middle
    return found
