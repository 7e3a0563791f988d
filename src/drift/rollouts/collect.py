"""K conversations for each task: scheduled, seeded, written as they finish, resumed where they were."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from drift.dataset.store import TrajectoryWriter
from drift.environments.base import EnvironmentFactory, source_of, task_hash
from drift.errors import ConfigError, EnvironmentFault, Interrupted, require
from drift.policies.base import AnyPolicy, Sampling, TextPolicy, derive_seed
from drift.progress import Progress
from drift.rollouts.episode import Assignment, episode
from drift.types import Task


@dataclass(frozen=True, kw_only=True)
class Collection:
    """What to collect.

    Args:
        environment: name and settings of the environment, for the record.
        samples: K, conversations per task.
        seed: the run's seed; a trajectory's own is ``derive_seed(seed, task id, sample)``.
        sampling: how replies are drawn.
        concurrency: the most conversations open at once.
        label: shown while it runs.
    """

    environment: dict[str, Any]
    samples: int
    seed: int
    sampling: Sampling
    concurrency: int = 512
    label: str = "rollouts"

    def __post_init__(self) -> None:
        require(self.samples >= 1, "rollouts.samples", self.samples, "a whole number ≥ 1")
        require(self.concurrency >= 1, "rollouts.concurrency", self.concurrency, "a whole number ≥ 1")


def collect(
    tasks: Sequence[Task], factory: EnvironmentFactory, policy: AnyPolicy, collection: Collection, out: Path
) -> dict[str, Any]:
    """Hold every conversation that ``out`` does not hold yet, and return the manifest.

    Raises:
        ConfigError: no tasks, or two tasks with one id.
        DatasetError: ``out`` was begun with other settings, tasks or policy.
        EnvironmentFault: every conversation failed in the environment.
        PolicyError: the policy, or a model that the environment asks, can't be used.
        Interrupted: Ctrl-C; what was finished is on disk.
        StorageError: the disk refuses.
    """
    if not tasks:
        raise ConfigError("there are no tasks to roll out. Ask for at least one.")
    if len({task.id for task in tasks}) != len(tasks):
        raise ConfigError("two tasks have the same id; ids must be unique. Mend the environment's tasks().")
    planned = len(tasks) * collection.samples
    spec: dict[str, Any] = {
        "environment": collection.environment,
        "tasks": len(tasks),
        "task_hash": task_hash(tasks),
        "samples": collection.samples,
        "trajectories": planned,
        "seed": collection.seed,
        "sampling": {**asdict(collection.sampling), "stop": list(collection.sampling.stop)},
        "policy": policy.fingerprint,
        "ids": "none" if isinstance(policy, TextPolicy) else "sampled",
    }
    # A judge or a simulated user decides the data as much as the policy does.
    asked = getattr(factory, "fingerprints", None)
    if asked:
        spec["environment_policies"] = dict(asked)
    before = Counter(getattr(factory, "counts", None) or {})
    with TrajectoryWriter(out, spec, tasks) as writer:
        todo = [
            assignment
            for task in tasks
            for sample in range(collection.samples)
            if (
                assignment := Assignment(task=task, sample=sample, seed=derive_seed(collection.seed, task.id, sample))
            ).trajectory_id
            not in writer.done
        ]
        with Progress(collection.label, planned, done=len(writer.done), unit="conversations") as progress:
            try:
                asyncio.run(_hold_all(todo, factory, policy, collection, writer, progress))
            except KeyboardInterrupt as stop:
                writer.flush()
                raise Interrupted(
                    f"stopped: {len(writer.done)} of {planned} conversations are in {out}. "
                    "Run the same command again to go on."
                ) from stop
        # What went wrong on the way to a policy, and was tried again.
        retried = getattr(policy, "counts", None)
        more: dict[str, Any] = {} if retried is None else {"policy_errors": dict(retried)}
        happened = getattr(factory, "counts", None)
        if happened is not None:
            # The same factory may serve several collections.
            more["environment_counts"] = dict(sorted((Counter(happened) - before).items()))
        manifest = writer.finish({**more, **source_of(factory, tasks)})
    if manifest["counts"].get("stop_error", 0) == planned:
        name = collection.environment.get("name")
        told = ", ".join(f"{kind} {count}" for kind, count in manifest.get("environment_counts", {}).items())
        raise EnvironmentFault(
            f"every conversation failed in the environment {name!r}{f' ({told})' if told else ''}; "
            f"look at the error column in {out}, or run `drift check {name}`."
        )
    return manifest


async def _hold_all(
    todo: Sequence[Assignment],
    factory: EnvironmentFactory,
    policy: AnyPolicy,
    collection: Collection,
    writer: TrajectoryWriter,
    progress: Progress,
) -> None:
    """Keep up to ``concurrency`` conversations open; each goes to its next turn as soon as its reply is there."""
    queue = iter(todo)

    async def work() -> None:
        for assignment in queue:
            writer.append(await episode(assignment, factory, policy, collection.sampling))
            progress.advance()

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(collection.concurrency, len(todo))):
                group.create_task(work())
    except BaseExceptionGroup as failures:
        # One cause stops all conversations at once; the first is the one to tell the user.
        raise failures.exceptions[0] from failures
    finally:
        for owner in (policy, factory):
            close = getattr(owner, "aclose", None)
            if close is not None:
                await close()
