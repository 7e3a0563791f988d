"""What an environment is: a source of tasks, and one single-use conversation partner for each."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, get_args, runtime_checkable

from drift.errors import EnvironmentFault
from drift.types import Message, Role, Step, Task

SPLITS = ("train", "test")
# Share of the problems that are held out, where an environment draws its own.
TEST_SHARE = 0.2


@runtime_checkable
class Environment(Protocol):
    """One conversation partner for one episode, thrown away after it. It sees text, never tokens.

    An environment that holds something open (a connection, a process) may have ``async aclose()``, which is awaited
    once when its conversation ends, however that is.
    """

    def opening(self) -> list[Message] | Awaitable[list[Message]]:
        """The messages that open the conversation; the last one is not the assistant's.

        It may be ``async``, for an environment that has to wait before it can speak.
        """
        ...

    async def step(self, reply: str) -> Step:
        """Judge one reply and answer it. Called once per turn until it returns ``done``."""
        ...


@runtime_checkable
class EnvironmentFactory(Protocol):
    """A kind of environment: its settings, its tasks, and how to start an episode of one.

    Register a class (or a function returning one) under the entry-point group ``drift.environments``. Its keyword
    arguments are the settings a recipe may give under ``environment``. One that reads its tasks from elsewhere
    may have ``source_counts(split) -> dict[str, int]``, which ``drift check`` and the manifest show.

    One whose tasks have a finite number of answers may have ``options(task) -> int | None``, how many there are, so
    that multi@k can be read beside what a guesser scores who never repeats itself. One that knows what a right answer
    looks like may have ``reference(task) -> str``, which a judge of conversations is given.

    One whose episodes depend on chance may have ``start(task, *, seed)``. It is then given a number that is another for
    each conversation and the same whenever that conversation is repeated; all chance must come from it.

    A factory that asks models of its own, a judge or a simulated user, may have ``fingerprints``, the fingerprint of
    each by its role, which become part of what decides the data; ``counts``, a ``Counter`` of what happened on the way,
    which goes into the manifest as ``environment_counts``; and ``async aclose()``, called when a collection ends, after
    which it can be used again.
    """

    @property
    def max_turns(self) -> int:
        """The most replies one episode can hold, T."""
        ...

    def tasks(self, split: str, count: int, seed: int) -> list[Task]:
        """``count`` distinct tasks of ``split``, the same for the same arguments; the splits never share a problem."""
        ...

    def start(self, task: Task) -> Environment:
        """A fresh environment for one episode of ``task``."""
        ...


def start_episode(factory: EnvironmentFactory, task: Task, seed: int) -> Environment:
    """A fresh environment for one episode of ``task``, which gets ``seed`` if its factory takes one."""
    start: Callable[..., Environment] = factory.start
    return start(task, seed=seed) if "seed" in inspect.signature(start).parameters else start(task)


async def open_episode(environment: Environment) -> list[Message]:
    """The opening of ``environment``, awaited where it has to be."""
    opening = environment.opening()
    return await opening if inspect.isawaitable(opening) else opening


async def close_episode(environment: object) -> None:
    """Await ``aclose`` of an environment or a factory, if it has one."""
    close = getattr(environment, "aclose", None)
    if close is not None:
        await close()


def fault_of_messages(messages: object) -> str:
    """What keeps ``messages`` from being sent to a policy and stored; empty if nothing does."""
    if not isinstance(messages, list | tuple):
        return f"messages of the type {type(messages).__name__}, expected a list"
    for at, message in enumerate(messages):
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            return f"message {at}: {str(message)[:80]!r}, expected an object of role and content"
        if message["role"] not in get_args(Role):
            return f"message {at}: the role {message['role']!r}, expected one of {', '.join(get_args(Role))}"
        fault = _fault_of_text(message["content"])
        if fault:
            return f"message {at}: {fault}"
    return ""


def fault_of_step(step: object) -> str:
    """What keeps ``step`` from being sent to a policy, weighed and stored; empty if nothing does."""
    if not isinstance(step, Step):
        return f"{type(step).__name__}, expected drift.types.Step"
    if not step.done and not step.messages:
        return "no messages although the episode is not done"
    fault = fault_of_messages(step.messages)
    if fault:
        return fault
    # Whole numbers may be larger than any float, and none that is no number is at most something.
    if not isinstance(step.reward, int | float) or not abs(step.reward) <= sys.float_info.max:
        return f"the reward {step.reward!r}, expected a finite number"
    if step.answer is not None and (fault := _fault_of_text(step.answer)):
        return f"answer: {fault}"
    try:
        json.dumps(dict(step.info), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        return f"info that is no JSON ({error})"
    return ""


def _fault_of_text(text: object) -> str:
    if not isinstance(text, str):
        return f"text of the type {type(text).__name__}, expected a string"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"half of a UTF-16 pair at character {error.start}, which no file and no tokenizer takes"
    return ""


def stable_unit(*parts: object) -> float:
    """A number in [0, 1) that depends on ``parts`` alone, not on process, platform or hash seed."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_of(*parts: object, test_share: float = TEST_SHARE) -> str:
    """The split of the problem that ``parts`` describe, which depends on them alone: no seed can mix the splits."""
    return "test" if stable_unit(*parts) < test_share else "train"


def task_hash(tasks: Iterable[Task]) -> str:
    """Order-free hash of a set of tasks, to tell whether two runs were given the same ones."""
    digest = hashlib.sha256()
    for task_id in sorted(task.id for task in tasks):
        digest.update(task_id.encode() + b"\n")
    return digest.hexdigest()[:16]


def source_of(factory: EnvironmentFactory, tasks: Sequence[Task]) -> dict[str, dict[str, int]]:
    """For the manifest: what ``tasks``, of one split, were drawn from, and what of that was left out; else nothing."""
    source_counts = getattr(factory, "source_counts", None)
    return {"source": dict(source_counts(tasks[0].split))} if source_counts is not None and tasks else {}


def options_of(factory: EnvironmentFactory, task: Task) -> int | None:
    """How many answers ``task`` has to choose from; ``None`` where their number is unknown or without limit.

    Raises:
        EnvironmentFault: the factory's ``options`` says something else than a whole number of at least 1, or ``None``.
    """
    options = getattr(factory, "options", None)
    count = options(task) if options is not None else None
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
        raise EnvironmentFault(f"options of task {task.id}: got {count!r}, expected a whole number ≥ 1, or None.")
    return count


def reference_of(factory: EnvironmentFactory, task: Task) -> str:
    """The right answer of ``task`` as a judge is given it; empty where the factory does not say."""
    reference = getattr(factory, "reference", None)
    return str(reference(task)) if reference is not None else ""


def content_hash(task: Task) -> str | None:
    """Hash of what ``task`` asks, whatever it is called: of its payload alone; ``None`` where that is empty.

    The opening is left out, since it also depends on settings: the same problem in other words is not a new one.
    """
    if not task.payload:
        return None
    payload = json.dumps(task.payload, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(payload.encode()).hexdigest()


def describe(settings: Mapping[str, Any]) -> str:
    """Settings as ``a=1, b=2`` for messages and reports."""
    return ", ".join(f"{key}={value}" for key, value in settings.items())
