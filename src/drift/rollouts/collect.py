"""K conversations for each task: scheduled, seeded, written as they finish, resumed where they were."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from drift.dataset.store import TrajectoryWriter
from drift.environments.base import EnvironmentFactory, source_of, task_hash
from drift.errors import ConfigError, EnvironmentFault, Interrupted, PolicyError, require
from drift.event_loop import run_to_end
from drift.policies.base import AnyPolicy, Sampling, derive_seed, is_text_only
from drift.progress import Progress
from drift.rollouts.adaptive import undecided
from drift.rollouts.config import CONCURRENCY
from drift.rollouts.episode import Assignment, Counts, counts_of, episode
from drift.rollouts.failures import MAX_FAILED, Failures
from drift.rollouts.meter import Meter
from drift.types import Task, Trajectory


@runtime_checkable
class Executor(Protocol):
    """Whoever holds conversations elsewhere than in this process; see ``cluster``."""

    @property
    def fingerprint(self) -> str:
        """The policy's."""
        ...

    @property
    def text_only(self) -> bool:
        """Whether the policy tells no token ids."""
        ...

    def hold(
        self,
        todo: Sequence[Assignment],
        deliver: Callable[[Trajectory], None],
        *,
        sampling: Sampling,
        concurrency: int,
    ) -> None:
        """Have every conversation held and ``deliver`` each once."""
        ...

    def record(self) -> dict[str, Any]:
        """What the manifest says beside the spec."""
        ...


def collect(
    tasks: Sequence[Task],
    factory: EnvironmentFactory,
    policy: AnyPolicy | Executor,
    out: Path,
    *,
    environment: Mapping[str, Any],
    samples: int,
    seed: int,
    sampling: Sampling,
    first: int = 0,
    concurrency: int = CONCURRENCY,
    prompts: Mapping[str, Any] | None = None,
    label: str = "rollouts",
) -> dict[str, Any]:
    """Hold every conversation that ``out`` does not hold yet, and return the manifest.

    Args:
        tasks: the tasks.
        factory: starts an episode of each, unless ``policy`` is an executor, whose workers have their own.
        policy: what replies, or an executor.
        out: where; whether an executor held them is no part of its ``spec``: either can go on with the other's.
        environment: name and settings of the environment, for the record.
        samples: K, conversations per task.
        seed: the run's seed; a trajectory's own is ``derive_seed(seed, task id, sample)``.
        sampling: how replies are drawn.
        first: conversations per task that come first, the rest only where these hold successes and failures; 0 is all.
        concurrency: the most conversations open at once.
        prompts: what the policy's prompts have beside the conversations, for the record.
        label: shown while it runs.

    Raises:
        ConfigError: no tasks, two tasks with one id, ``concurrency`` below 1, or replies as long as the context.
        DatasetError: ``out`` was begun with other settings, tasks or policy.
        EnvironmentFault: every conversation failed there.
        PolicyError: the policy or a model that the environment asks can't be used, or more than ``max_failed`` failed.
        Interrupted: Ctrl-C; what was finished is on disk.
    """
    _check(tasks, policy, sampling, concurrency)
    planned = len(tasks) * samples
    spec = _spec_of(tasks, factory, policy, environment, samples=samples, seed=seed, sampling=sampling, first=first)
    spec |= {"prompts": dict(prompts)} if prompts else {}
    before = counts_of(policy, factory)
    with TrajectoryWriter(out, spec, tasks) as writer:
        rounds = _Rounds(tasks, samples, first, seed, out, writer)
        failures = Failures(writer, planned, getattr(policy, "max_failed", MAX_FAILED))
        with Progress(label, planned, done=len(writer.done), unit="conversations") as progress:

            def deliver(trajectory: Trajectory) -> None:
                failures.deliver(trajectory)
                progress.advance()

            try:
                if isinstance(policy, Executor):
                    for todo in rounds:
                        policy.hold(todo, deliver, sampling=sampling, concurrency=concurrency)
                else:
                    meter = Meter(policy, progress, planned - len(writer.done), factory.max_turns)
                    run_to_end(_hold_all(rounds, factory, policy, deliver, meter, sampling, concurrency))
            except KeyboardInterrupt as stop:
                writer.flush()
                message = f"stopped: {writer.count} of {'at most ' * bool(first)}{planned} conversations are in {out}. "
                raise Interrupted(message + "Run the same command again to go on.") from stop
        failures.settle()
        record = policy.record() if isinstance(policy, Executor) else _since(before, counts_of(policy, factory))
        # Where nothing was left to do, what was counted when it was done stays.
        kept = {} if failures.delivered else {key: writer.before[key] for key in record if key in writer.before}
        manifest = writer.finish({**record, **kept, **rounds.record(), **source_of(factory, tasks)})
    _check_any_outcome(manifest, environment.get("name"), out)
    return manifest


def _spec_of(
    tasks: Sequence[Task],
    factory: EnvironmentFactory,
    policy: AnyPolicy | Executor,
    environment: Mapping[str, Any],
    *,
    samples: int,
    seed: int,
    sampling: Sampling,
    first: int,
) -> dict[str, Any]:
    """What decides the conversations: a directory begun with another one is refused."""
    spec: dict[str, Any] = {
        "environment": dict(environment),
        "tasks": len(tasks),
        "task_hash": task_hash(tasks),
        "samples": samples,
        "trajectories": len(tasks) * samples,
        "seed": seed,
        "sampling": {**asdict(sampling), "stop": list(sampling.stop)},
        "policy": policy.fingerprint,
        "ids": "none" if _text_only(policy) else "sampled",
    }
    if first:
        spec["first"] = first
    # A judge or a simulated user decides the data as much as the policy does.
    if asked := getattr(factory, "fingerprints", None):
        spec["environment_policies"] = dict(asked)
    return spec


def _check(tasks: Sequence[Task], policy: AnyPolicy | Executor, sampling: Sampling, concurrency: int) -> None:
    if not tasks:
        raise ConfigError("there are no tasks to roll out. Ask for at least one.")
    if len({task.id for task in tasks}) != len(tasks):
        raise ConfigError("two tasks have the same id; ids must be unique. Fix the environment's tasks().")
    require(concurrency >= 1, "concurrency", concurrency, "a whole number ≥ 1")
    limit = getattr(policy, "context_length", None)
    require(
        limit is None or sampling.max_new_tokens < limit,
        "sampling.max_new_tokens",
        sampling.max_new_tokens,
        f"less than the policy's context of {limit} tokens, which the prompt must fit in too",
    )


def _check_any_outcome(manifest: Mapping[str, Any], name: object, out: Path) -> None:
    failures = manifest["failures"]
    if sum(failures.values()) < manifest["counts"]["trajectories"]:
        return
    told = ", ".join(f"{kind} {count:,}" for kind, count in failures.items())
    first = next(iter(manifest["failure_words"].values()))
    if not any(kind.startswith("environment") for kind in failures):
        raise PolicyError(f"every conversation failed ({told}); they are in {out}. The first: {first}")
    told = ", ".join(f"{kind} {count}" for kind, count in manifest.get("environment_counts", {}).items())
    raise EnvironmentFault(
        f"every conversation failed in the environment {name!r}{f' ({told})' if told else ''}; "
        f"look at the error column in {out}, or run `drift check {name}`."
    )


class _Rounds:
    """The conversations that are still to be held, a round at a time: the second is known when the first is on disk."""

    def __init__(
        self, tasks: Sequence[Task], samples: int, first: int, seed: int, out: Path, writer: TrajectoryWriter
    ) -> None:
        self._tasks, self._samples, self._first, self._seed = tasks, samples, first, seed
        self._out, self._writer = out, writer
        self._undecided: Sequence[Task] = tasks

    def __iter__(self) -> Iterator[list[Assignment]]:
        yield self._missing(self._tasks, range(self._first or self._samples))
        if self._first:
            self._writer.flush()
            self._undecided = undecided(self._out, self._tasks, self._first)
            yield self._missing(self._undecided, range(self._first, self._samples))

    def record(self) -> dict[str, Any]:
        """What the manifest says: tasks by what became of them, and conversations that were not held."""
        if not self._first:
            return {}
        count = len(self._undecided)
        saved = (len(self._tasks) - count) * (self._samples - self._first)
        return {"adaptive": {"decided": len(self._tasks) - count, "undecided": count, "saved": saved}}

    def _missing(self, tasks: Sequence[Task], samples: range) -> list[Assignment]:
        wanted = (
            Assignment(task=task, sample=sample, seed=derive_seed(self._seed, task.id, sample))
            for task in tasks
            for sample in samples
        )
        return [assignment for assignment in wanted if assignment.trajectory_id not in self._writer.done]


def _text_only(policy: AnyPolicy | Executor) -> bool:
    return policy.text_only if isinstance(policy, Executor) else is_text_only(policy)


def _since(before: Counts, after: Counts) -> Counts:
    """What was counted after ``before``: a policy or an environment may serve several collections."""
    return {kind: dict(sorted((Counter(found) - Counter(before.get(kind))).items())) for kind, found in after.items()}


async def _hold_all(
    rounds: Iterable[Sequence[Assignment]],
    factory: EnvironmentFactory,
    policy: AnyPolicy,
    deliver: Callable[[Trajectory], None],
    meter: Meter,
    sampling: Sampling,
    concurrency: int,
) -> None:
    """Keep up to ``concurrency`` conversations open; each goes to its next turn as soon as its reply is there."""

    async def work(queue: Iterator[Assignment]) -> None:
        for assignment in queue:
            deliver(await episode(assignment, factory, policy, sampling, meter.replied))

    watching = asyncio.create_task(meter.watch())
    try:
        for todo in rounds:
            queue = iter(todo)
            async with asyncio.TaskGroup() as group:
                for _ in range(min(concurrency, len(todo))):
                    group.create_task(work(queue))
    except BaseExceptionGroup as failures:
        # One cause stops all conversations at once; the first is the one to tell the user.
        raise failures.exceptions[0] from failures
    finally:
        watching.cancel()
        for owner in (policy, factory):
            close = getattr(owner, "aclose", None)
            if close is not None:
                await close()
