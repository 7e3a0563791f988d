"""A check that any environment can be put through before hours are spent on rollouts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from drift.environments.base import (
    SPLITS,
    EnvironmentFactory,
    close_episode,
    describe,
    fault_of_messages,
    fault_of_step,
    open_episode,
    options_of,
    start_episode,
)
from drift.event_loop import run_to_end
from drift.types import Message, Step, Task

# An environment that holds one episode at a time would wait for ever for the second.
SIDE_BY_SIDE_S = 60.0
ANSWER = "<answer>1</answer>"
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
    """One check: what it was, whether it passed, and what was seen."""

    check: str
    passed: bool
    detail: str = ""


class _Broken(Exception):
    """The environment broke its protocol; the message says how."""


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
        except _Broken as broken:
            findings.append(Finding(check=name, passed=False, detail=str(broken)))
        except Exception as error:
            findings.append(Finding(check=name, passed=False, detail=f"{type(error).__name__}: {error}"))

    run("max_turns is at least 1", lambda: _check_max_turns(factory))
    run("tasks are distinct, repeatable and JSON", lambda: _check_tasks(factory, tasks, seed))
    run("splits share no task", lambda: _check_splits(factory, tasks, seed))
    run("options, where given, are whole numbers", lambda: _check_options(factory, tasks, seed))
    run("openings are messages, and the last is not the assistant's", lambda: _check_openings(factory, tasks, seed))
    for reply in REPLIES:
        shown = ascii(reply if len(reply) < 40 else reply[:37] + "...")
        check = partial(_check_reply, factory, tasks, seed, reply)
        run(f"episodes end within max_turns on {shown}", check)
    run("the same replies give the same steps", lambda: _check_repeatable(factory, tasks, seed))
    run("episodes do not share state", lambda: _check_separate(factory, tasks, seed))
    run_to_end(close_episode(factory))
    return findings


def _expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise _Broken(otherwise)


def _tasks(factory: EnvironmentFactory, count: int, seed: int) -> list[Task]:
    return [task for split in SPLITS for task in factory.tasks(split, count, seed)]


def _check_max_turns(factory: EnvironmentFactory) -> str:
    _expect(factory.max_turns >= 1, f"it is {factory.max_turns}")
    return str(factory.max_turns)


def _check_tasks(factory: EnvironmentFactory, count: int, seed: int) -> str:
    for split in SPLITS:
        tasks = factory.tasks(split, count, seed)
        ids = [task.id for task in tasks]
        again = [task.id for task in factory.tasks(split, count, seed)]
        _expect(ids == again, f"two calls of tasks({split!r}, {count}, {seed}) returned different tasks")
        distinct = len(set(ids))
        _expect(
            distinct == len(ids) == count,
            f"tasks({split!r}, {count}, {seed}) returned {len(ids)} tasks, {distinct} of them distinct",
        )
        for task in tasks:
            _expect(task.split == split, f"task {task.id} of the split {split!r} says that its split is {task.split!r}")
            json.dumps({"group": task.group_id, **task.payload})
    source_counts = getattr(factory, "source_counts", None)
    sources = [f"; {split} from {describe(source_counts(split))}" for split in SPLITS] if source_counts else []
    return f"{count} per split{''.join(sources)}"


def _check_splits(factory: EnvironmentFactory, count: int, seed: int) -> str:
    train, test = (
        {task.id for offset in range(5) for task in factory.tasks(split, count, seed + offset)} for split in SPLITS
    )
    shared = sorted(train & test)
    _expect(not shared, f"{len(shared)} tasks are in both splits, for example {shared[:1]}")
    return f"{len(train)} and {len(test)} tasks"


def _check_options(factory: EnvironmentFactory, count: int, seed: int) -> str:
    given = [options_of(factory, task) for task in _tasks(factory, count, seed)]
    numbers = [number for number in given if number is not None]
    return f"{min(numbers)} to {max(numbers)}" if numbers else "not given"


def _check_messages(messages: Sequence[Message], whose: str) -> None:
    fault = fault_of_messages(messages)
    _expect(not fault, f"{whose}: {fault}")
    _expect(all(message["content"] for message in messages), f"{whose}: a message with no text: {messages!r}")


def _check_openings(factory: EnvironmentFactory, count: int, seed: int) -> str:
    async def opening_of(task: Task) -> list[Message]:
        environment = start_episode(factory, task, seed)
        try:
            return await open_episode(environment)
        finally:
            await close_episode(environment)

    for task in _tasks(factory, count, seed):
        opening = run_to_end(opening_of(task))
        _check_messages(opening, f"opening of task {task.id}")
        _expect(bool(opening), f"opening of task {task.id}: no messages")
        _expect(opening[-1]["role"] != "assistant", f"opening of task {task.id}: its last message is the assistant's")
    return "ok"


def _play(factory: EnvironmentFactory, task: Task, seed: int, reply: str, *, beside: bool = False) -> list[Step]:
    """The steps of one episode that is given ``reply`` again and again.

    With ``beside``, another episode of the same task is open all the while, and a turn ahead.
    """

    async def run() -> list[Step]:
        ahead = start_episode(factory, task, seed) if beside else None
        environment = start_episode(factory, task, seed)
        both = [environment] if ahead is None else [ahead, environment]
        try:
            async with asyncio.timeout(SIDE_BY_SIDE_S if beside else None):
                for each in both:
                    await open_episode(each)
            steps: list[Step] = []
            while not steps or not steps[-1].done:
                _expect(len(steps) < factory.max_turns, f"task {task.id}: not done after {factory.max_turns} turns")
                if ahead is not None and (await ahead.step(reply)).done:
                    ahead = None
                steps.append(await environment.step(reply))
                _check_step(steps[-1], f"task {task.id}, turn {len(steps)}")
            return steps
        finally:
            for each in both:
                await close_episode(each)

    return run_to_end(run())


def _check_step(step: Step, whose: str) -> None:
    fault = fault_of_step(step)
    _expect(not fault, f"{whose}: step returned {fault}")
    _check_messages(step.messages, whose)
    _expect(step.graded or step.answer is None, f"{whose}: the answer {step.answer!r} although none was asked for")


def _check_reply(factory: EnvironmentFactory, count: int, seed: int, reply: str) -> str:
    solved = sum(bool(_play(factory, task, seed, reply)[-1].success) for task in _tasks(factory, count, seed))
    return f"{solved} solved"


def _check_repeatable(factory: EnvironmentFactory, count: int, seed: int) -> str:
    for task in _tasks(factory, count, seed):
        first, again = (_play(factory, task, seed, ANSWER) for _ in range(2))
        _expect(first == again, f"task {task.id}: the same replies gave different steps")
    return "ok"


def _check_separate(factory: EnvironmentFactory, count: int, seed: int) -> str:
    for task in _tasks(factory, count, seed):
        alone, beside = (_play(factory, task, seed, ANSWER, beside=beside) for beside in (False, True))
        _expect(alone == beside, f"task {task.id}: an episode changed another one of the same task")
    return "ok"
