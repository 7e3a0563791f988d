"""The only turn loop: one policy, one environment, one conversation. Collection and evaluation both run it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from drift.environments.base import EnvironmentFactory
from drift.policies.base import Policy, Sampling, derive_seed
from drift.types import Message, Step, StopReason, Task, Trajectory, Turn


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """One conversation to be held: sample ``sample`` of ``task``, seeded by ``seed``."""

    task: Task
    sample: int
    seed: int

    @property
    def trajectory_id(self) -> str:
        """The id its trajectory will have."""
        return f"{self.task.id}#{self.sample}"


Counts = dict[str, dict[str, int]]


def counts_of(policy: object, factory: object) -> Counts:
    """What policy and environment counted on the way, such as requests that were sent again, for the manifest."""
    found = {"policy_errors": getattr(policy, "counts", None)}
    return {key: dict(counts) for key, counts in found.items() if counts is not None}


class _EnvironmentFailure(Exception):
    """What an environment raised, kept apart from what a policy raises."""


async def episode(
    assignment: Assignment, factory: EnvironmentFactory, policy: Policy, sampling: Sampling
) -> Trajectory:
    """Hold one conversation and record it.

    An exception from the environment ends the conversation and is recorded in ``Trajectory.error`` with the turns so
    far. An exception from the policy is a fault of the run and is raised.

    Turn t is sampled with ``derive_seed(assignment.seed, t)``.
    """
    messages: list[Message] = []
    turns: list[Turn] = []
    reason: StopReason
    error: str | None = None
    try:
        environment = _guard("start", lambda: factory.start(assignment.task))
        messages += _guard("opening", environment.opening)
        prompt = policy.chat.first(messages)
        while True:
            limit = policy.context_length
            if limit is not None and len(prompt) + sampling.max_new_tokens > limit:
                reason = "context"
                break
            seed = derive_seed(assignment.seed, len(turns))
            completion = await policy.complete(prompt, sampling=sampling, seed=seed)
            messages.append({"role": "assistant", "content": completion.text})
            step = await _step(environment, completion.text)
            turns.append(Turn(prompt_ids=prompt, completion=completion, step=step))
            messages += step.messages
            if step.done:
                reason = "success" if step.success else "turns"
                break
            prompt = policy.chat.next(messages, turns[-1])
    except _EnvironmentFailure as failure:
        reason, error = "error", str(failure)
    return Trajectory(
        id=assignment.trajectory_id,
        task_id=assignment.task.id,
        group_id=assignment.task.group_id,
        sample=assignment.sample,
        policy=policy.fingerprint,
        seed=assignment.seed,
        messages=tuple(messages),
        turns=tuple(turns),
        stop_reason=reason,
        error=error,
    )


def _guard(call: str, run: Any) -> Any:
    try:
        return run()
    except Exception as error:
        raise _EnvironmentFailure(f"environment.{call} raised {type(error).__name__}: {error}") from error


async def _step(environment: Any, reply: str) -> Step:
    try:
        step = await environment.step(reply)
    except Exception as error:
        raise _EnvironmentFailure(f"environment.step raised {type(error).__name__}: {error}") from error
    if not isinstance(step, Step):
        raise _EnvironmentFailure(f"environment.step returned {type(step).__name__}, expected drift.types.Step")
    if not step.done and not step.messages:
        raise _EnvironmentFailure("environment.step returned no messages although the episode is not done")
    return step
