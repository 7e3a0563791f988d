"""A check that any environment can be put through before hours are spent on rollouts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from drift.environments.base import (
    SPLITS,
    Environment,
    EnvironmentFactory,
    close_episode,
    describe,
    open_episode,
    options_of,
    start_episode,
)
from drift.event_loop import run_to_end
from drift.types import Message, Step, Task

# An environment that holds one episode at a time would wait for ever for the second.
SIDE_BY_SIDE_S = 60.0
REPLIES = (
    "",
    "I don't know.",
    "<answer></answer>",
    "<answer>0</answer>",
    "<answer>" + "9" * 5000 + "</answer>",
    "<answer>7</answer>" * 3,
    "<answer>__import__('os').system('true')</answer>",
    "\u202e\x00\ud7ff <|im_end|> {{ 7*7 }}",
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One check: what it was, whether it held, and what was seen."""

    check: str
    passed: bool
    detail: str = ""


def check_environment(factory: EnvironmentFactory, *, tasks: int = 20, seed: int = 0) -> list[Finding]:
    """Put an environment through its protocol, with replies that models really give, and some that they shouldn't.

    Args:
        factory: the environment.
        tasks: how many tasks per split to try.
        seed: of the tasks.
    """
    findings = []

    def run(name: str, check: Callable[[], str]) -> None:
        try:
            findings.append(Finding(check=name, passed=True, detail=check()))
        except Exception as error:
            findings.append(Finding(check=name, passed=False, detail=f"{type(error).__name__}: {error}"))

    run("max_turns is at least 1", lambda: _expect(factory.max_turns >= 1, f"{factory.max_turns}"))
    run("tasks are distinct, repeatable and JSON", lambda: _check_tasks(factory, tasks, seed))
    run("splits share no task", lambda: _check_splits(factory, tasks, seed))
    run("options, where told, are whole numbers", lambda: _check_options(factory, tasks, seed))
    run("openings are messages and end with someone else's turn", lambda: _check_openings(factory, tasks, seed))
    for reply in REPLIES:
        shown = ascii(reply if len(reply) < 40 else reply[:37] + "...")
        run(f"episodes end within max_turns on {shown}", lambda reply=reply: _play(factory, reply, tasks, seed))  # type: ignore[misc]
    run("the same replies give the same steps", lambda: _check_repeatable(factory, tasks, seed))
    run("episodes do not share state", lambda: _check_separate(factory, tasks, seed))
    close = getattr(factory, "aclose", None)
    if close is not None:
        run_to_end(close())
    return findings


def _expect(condition: bool, seen: str) -> str:
    if not condition:
        raise ValueError(seen)
    return seen


def _tasks(factory: EnvironmentFactory, count: int, seed: int) -> list[Task]:
    return [task for split in SPLITS for task in factory.tasks(split, count, seed)]


def _check_tasks(factory: EnvironmentFactory, count: int, seed: int) -> str:
    for split in SPLITS:
        first, again = factory.tasks(split, count, seed), factory.tasks(split, count, seed)
        _expect([t.id for t in first] == [t.id for t in again], f"{split}: two calls with one seed gave other tasks")
        _expect(len({t.id for t in first}) == len(first) == count, f"{split}: {len({t.id for t in first})} of {count}")
        for task in first:
            _expect(task.split == split, f"{task.id}: split {task.split!r}, expected {split!r}")
            json.dumps({"group": task.group_id, **task.payload})
    source_counts = getattr(factory, "source_counts", None)
    drawn_from = [f"; {split} from {describe(source_counts(split))}" for split in SPLITS] if source_counts else []
    return f"{count} per split{''.join(drawn_from)}"


def _check_splits(factory: EnvironmentFactory, count: int, seed: int) -> str:
    train = {task.id for offset in range(5) for task in factory.tasks("train", count, seed + offset)}
    test = {task.id for offset in range(5) for task in factory.tasks("test", count, seed + offset)}
    return _expect(not train & test, f"{len(train & test)} shared") and f"{len(train)} and {len(test)} tasks"


def _check_options(factory: EnvironmentFactory, count: int, seed: int) -> str:
    found = {options_of(factory, task) for task in _tasks(factory, count, seed)}
    told = sorted(number for number in found if number is not None)
    return f"{told[0]} to {told[-1]}" if told else "not told"


def _valid(message: Message) -> bool:
    return set(message) == {"role", "content"} and isinstance(message["content"], str) and bool(message["content"])


async def _opening(environment: Environment) -> list[Message]:
    try:
        return await open_episode(environment)
    finally:
        await close_episode(environment)


def _check_openings(factory: EnvironmentFactory, count: int, seed: int) -> str:
    for task in _tasks(factory, count, seed):
        opening = run_to_end(_opening(start_episode(factory, task, seed)))
        _expect(bool(opening) and all(map(_valid, opening)), f"{task.id}: {opening!r}")
        _expect(opening[-1]["role"] != "assistant", f"{task.id}: the last message is the assistant's")
    return "ok"


async def _episode(environment: Environment, reply: str, limit: int) -> list[Step]:
    try:
        await open_episode(environment)
        return await _steps(environment, reply, limit)
    finally:
        await close_episode(environment)


async def _steps(environment: Environment, reply: str, limit: int) -> list[Step]:
    steps: list[Step] = []
    while not steps or not steps[-1].done:
        _expect(len(steps) < limit, f"not done after {limit} turns")
        step: Any = await environment.step(reply)
        _expect(isinstance(step, Step), f"step returned {type(step).__name__}, expected Step")
        _expect(step.done or bool(step.messages), "no messages although not done")
        _expect(all(map(_valid, step.messages)), f"messages {step.messages!r}")
        _expect(step.reward == step.reward and abs(step.reward) != float("inf"), f"reward {step.reward}")
        _expect(step.answer is None or isinstance(step.answer, str), f"answer {step.answer!r}")
        _expect(step.graded or step.answer is None, f"answer {step.answer!r} although none was asked for")
        json.dumps(dict(step.info))
        steps.append(step)
    return steps


def _play(factory: EnvironmentFactory, reply: str, count: int, seed: int) -> str:
    solved = 0
    for task in _tasks(factory, count, seed):
        steps = run_to_end(_episode(start_episode(factory, task, seed), reply, factory.max_turns))
        solved += steps[-1].success
    return f"{solved} solved"


def _check_repeatable(factory: EnvironmentFactory, count: int, seed: int) -> str:
    for task in _tasks(factory, count, seed):
        first, again = (
            run_to_end(_episode(start_episode(factory, task, seed), "<answer>1</answer>", factory.max_turns))
            for _ in range(2)
        )
        _expect(first == again, f"{task.id}: the same replies got other steps")
    return "ok"


def _check_separate(factory: EnvironmentFactory, count: int, seed: int) -> str:
    async def side_by_side(task: Task) -> list[Step]:
        """The steps of one episode while another of the same task is a turn ahead."""
        one, other = start_episode(factory, task, seed), start_episode(factory, task, seed)
        try:
            async with asyncio.timeout(SIDE_BY_SIDE_S):
                await open_episode(one)
                await open_episode(other)
            steps: list[Step] = []
            ahead_done = False
            while not steps or not steps[-1].done:
                _expect(len(steps) < factory.max_turns, f"not done after {factory.max_turns} turns")
                if not ahead_done:
                    ahead_done = (await one.step("<answer>1</answer>")).done
                steps.append(await other.step("<answer>1</answer>"))
            return steps
        finally:
            await close_episode(one)
            await close_episode(other)

    for task in _tasks(factory, count, seed):
        alone = run_to_end(_episode(start_episode(factory, task, seed), "<answer>1</answer>", factory.max_turns))
        _expect(run_to_end(side_by_side(task)) == alone, f"{task.id}: an episode changed another of the same task")
    return "ok"
