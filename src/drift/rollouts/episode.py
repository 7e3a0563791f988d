"""The only turn loop: one policy, one environment, one conversation. Collection and evaluation both run it."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from drift.environments.base import (
    EnvironmentFactory,
    close_episode,
    fault_of_messages,
    fault_of_step,
    open_episode,
    start_episode,
)
from drift.errors import ConfigError, PolicyError, in_short
from drift.policies.base import (
    AnyPolicy,
    ContextExceeded,
    RequestFailed,
    Sampling,
    UnusableReply,
    derive_seed,
    is_text_only,
    next_reply,
)
from drift.secrets import scrubbed
from drift.types import Completion, Message, Step, StopReason, Task, Trajectory, Turn

# What stands in for the environment's word on a reply that it was not shown.
_NOT_SHOWN = Step(messages=(), reward=0.0, done=True, success=False, answer=None, graded=False)


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
    found = {
        "policy_errors": getattr(policy, "counts", None),
        "policy_usage": getattr(policy, "usage", None),
        "environment_counts": getattr(factory, "counts", None),
    }
    return {key: dict(counts) for key, counts in found.items() if counts is not None}


class _EnvironmentFailure(Exception):
    """What an environment raised, kept apart from what a policy raises."""


async def episode(
    assignment: Assignment,
    factory: EnvironmentFactory,
    policy: AnyPolicy,
    sampling: Sampling,
    replied: Callable[[Completion], None] = lambda reply: None,
) -> Trajectory:
    """Hold one conversation and record it.

    An exception from the environment ends the conversation and is recorded in ``Trajectory.error`` with the turns so
    far; so is ``RequestFailed``, which is of one prompt. Any other exception from the policy is a fault of the run and
    is raised; so is the ``PolicyError`` of a model that the environment asks, its judge or its simulated user, and the
    ``ConfigError`` of a verifier that can't run: without it no other conversation would fare better.

    Turn t is sampled with ``derive_seed(assignment.seed, t)``; what is chance in the environment comes from
    ``derive_seed(assignment.seed, "environment")``. ``replied`` is called with each reply as it comes.
    """
    messages: list[Message] = []
    # The same with the thinking, which neither the environment nor the record's messages have.
    history: list[Message] = []
    turns: list[Turn] = []
    reason: StopReason
    error: str | None = None
    environment: Any = None
    try:
        environment = _start(factory, assignment)
        messages += await _opening(environment)
        history += messages
        while True:
            seed, previous = derive_seed(assignment.seed, len(turns)), turns[-1] if turns else None
            prompt, completion = await next_reply(policy, history, previous, sampling=sampling, seed=seed)
            replied(completion)
            messages.append(_said(completion))
            history.append(
                {**messages[-1], "reasoning_content": completion.thinking} if completion.thinking else messages[-1]
            )
            step = await _step(environment, completion.text)
            turns.append(Turn(prompt_ids=prompt, completion=completion, step=step))
            messages += step.messages
            history += step.messages
            if step.done:
                reason = "success" if step.success else "turns"
                break
            if len(turns) >= factory.max_turns:
                raise _EnvironmentFailure(f"environment.step is not done after its max_turns, {factory.max_turns}")
    except ContextExceeded as failure:
        reason, error = "context", None if turns else f"context: {scrubbed(str(failure))}"
    except UnusableReply as failure:
        reason, error = "error", scrubbed(f"reply {failure}")
        messages.append(_said(failure.completion))
        turns.append(Turn(prompt_ids=failure.prompt_ids, completion=failure.completion, step=_NOT_SHOWN))
    except RequestFailed as failure:
        reason, error = "error", scrubbed(f"server {failure}")
    except _EnvironmentFailure as failure:
        reason, error = "error", scrubbed(str(failure))
    finally:
        await _close(environment, assignment.trajectory_id)
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
        text_only=is_text_only(policy),
    )


def _said(completion: Completion) -> Message:
    return {"role": "assistant", "content": completion.text}


def _start(factory: EnvironmentFactory, assignment: Assignment) -> Any:
    try:
        return start_episode(factory, assignment.task, derive_seed(assignment.seed, "environment"))
    except Exception as error:
        raise _EnvironmentFailure(f"environment.start raised {in_short(error)}") from error


async def _opening(environment: Any) -> list[Message]:
    try:
        messages = await open_episode(environment)
    except Exception as error:
        raise _EnvironmentFailure(f"environment.opening raised {in_short(error)}") from error
    fault = fault_of_messages(messages) or ("" if messages else "no messages")
    if fault:
        raise _EnvironmentFailure(f"environment.opening returned {fault}")
    return messages


async def _close(environment: Any, trajectory_id: str) -> None:
    """Let the environment go. What it said stays valid, so a failure here is a warning and no error of the episode.

    Other conversations' failures may cancel this one while it closes; it closes all the same.
    """
    closing = asyncio.ensure_future(close_episode(environment))
    try:
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            await closing
            raise
    except Exception as error:
        said = scrubbed(in_short(error))
        warnings.warn(f"{trajectory_id}: environment.aclose raised {said}", stacklevel=2)


async def _step(environment: Any, reply: str) -> Step:
    try:
        step: Step = await environment.step(reply)
    except (PolicyError, ConfigError):
        raise
    except Exception as error:
        raise _EnvironmentFailure(f"environment.step raised {in_short(error)}") from error
    fault = fault_of_step(step)
    if fault:
        raise _EnvironmentFailure(f"environment.step returned {fault}")
    return step
