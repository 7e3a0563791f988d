"""Arithmetic with the DRIFT protocol: unary feedback, stop on success, at most T turns (method.md, section 1)."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from drift.environments.answers import AnswerEpisode, check_whole_number, filled, require_texts
from drift.environments.base import SPLITS, TEST_SHARE, split_of
from drift.errors import ConfigError, require
from drift.problems.base import Problem, ProblemSet
from drift.types import Task
from drift.verifiers.base import Verification

KINDS = ("add", "sub", "mul")
_SIGN = {"add": "+", "sub": "-", "mul": "*"}


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """Sums, differences and products, checked exactly; every wrong answer gets the same feedback.

    Args:
        max_turns: T, the most replies in an episode.
        digits: how many digits each number has; the second factor of a product has one.
        kinds: which problems to draw, a subset of ``add``, ``sub`` and ``mul``, drawn equally often.
        prompt: the opening message, ``{question}`` standing for the problem. As it is it suits the built-in policy;
            tell a model of your own what you want: ``{question} Reply with <answer>number</answer>.``
        feedback: what the environment says to a wrong answer; of a list, one text after each reply, the last ever
            after. ``{turn}`` in it is the turn to come, ``{left}`` the replies left, ``{reward}`` what the last earned.
        format_feedback: what it says to a reply without a readable answer, likewise.
        false_positive: how often a wrong answer to a training problem counts as right, by chance and anew each time.
        false_negative: how often a right one is refused. With these two one can try what an unreliable verifier does to
            training; held-out problems are always judged exactly.
    """

    max_turns: int = 5
    digits: int = 2
    kinds: tuple[str, ...] = ("add", "sub")
    prompt: str = "{question}"
    feedback: str | tuple[str, ...] = "Incorrect. Please think again."
    format_feedback: str | tuple[str, ...] = "No answer found. Please reply with <answer>number</answer>."
    false_positive: float = 0.0
    false_negative: float = 0.0

    def __post_init__(self) -> None:
        require(self.max_turns >= 1, "environment.max_turns", self.max_turns, "a whole number ≥ 1")
        for name in ("feedback", "format_feedback"):
            require_texts(f"environment.{name}", getattr(self, name))
        require(1 <= self.digits <= 8, "environment.digits", self.digits, "a whole number from 1 to 8")
        require("{question}" in self.prompt, "environment.prompt", self.prompt, "a text that holds {question}")
        require(bool(self.kinds), "environment.kinds", self.kinds, f"some of {', '.join(KINDS)}")
        for kind in self.kinds:
            require(kind in KINDS, "environment.kinds", kind, f"one of {', '.join(KINDS)}")
        for name in ("false_positive", "false_negative"):
            rate = getattr(self, name)
            require(0 <= rate < 1, f"environment.{name}", rate, "a chance of at least 0 and below 1")

    def tasks(self, split: str, count: int, seed: int) -> list[Task]:
        """Distinct problems; a problem's split depends on its operands alone, so no seed can mix the splits."""
        require(split in SPLITS, "split", split, " or ".join(SPLITS))
        most = int(self._problems() * (TEST_SHARE if split == "test" else 1 - TEST_SHARE))
        if count > most:
            raise self._too_many(f"about {most}", split, count)
        rng = random.Random(f"arithmetic/{split}/{seed}")
        seen: dict[str, Task] = {}
        tries, last_new = 0, 0
        while len(seen) < count:
            tries += 1
            # By then the chance that any problem is still to be found is tiny.
            if tries - last_new > 50 * len(seen) + 10_000:
                raise self._too_many(str(len(seen)), split, count)
            task = problem(self.kinds[tries % len(self.kinds)], self.digits, rng)
            if task.split == split and task.id not in seen:
                seen[task.id] = task
                last_new = tries
        return list(seen.values())

    def _problems(self) -> int:
        """How many distinct problems there are, both splits together."""
        numbers = 9 * 10 ** (self.digits - 1)
        each = {"add": numbers**2, "sub": numbers * (numbers + 1) // 2, "mul": numbers * 8}
        return sum(each[kind] for kind in set(self.kinds))

    def _too_many(self, there_are: str, split: str, count: int) -> ConfigError:
        return ConfigError(
            f"arithmetic has {there_are} distinct {split} problems of {self.digits} digits and kinds "
            f"{', '.join(self.kinds)}; {count} were asked for. Ask for fewer tasks, more kinds or more digits."
        )

    def reference(self, task: Task) -> str:
        """The right number."""
        return str(task.payload["answer"])

    def start(self, task: Task, *, seed: int = 0) -> AnswerEpisode:
        """A fresh episode of ``task``; ``seed`` decides which verdicts on a training problem are wrong."""
        answer = int(task.payload["answer"])
        noisy = task.split == "train" and (self.false_positive or self.false_negative)
        chance = random.Random(seed) if noisy else None

        def accept(number: int) -> bool:
            right = number == answer
            if chance is None:
                return right
            return right ^ (chance.random() < (self.false_negative if right else self.false_positive))

        async def check(reply: str) -> Verification:
            return check_whole_number(reply, accept)

        def feedback(number: str | None) -> str | tuple[str, ...]:
            return self.format_feedback if number is None else self.feedback

        asked = filled(self.prompt, turn=1, turns=self.max_turns)
        opening = asked.replace("{question}", str(task.payload["question"]))
        return AnswerEpisode(opening, self.max_turns, check, feedback)


def problem(kind: str, digits: int, rng: random.Random) -> Task:
    """Draw one problem of two numbers; a difference is never negative, and a product's second factor is 2 to 9."""
    low, high = 10 ** (digits - 1), 10**digits - 1
    a, b = rng.randint(low, high), rng.randint(*((2, 9) if kind == "mul" else (low, high)))
    if kind == "sub" and b > a:
        a, b = b, a
    return _task(kind, a, b)


def problem_set() -> ProblemSet:
    """Every sum and difference of two digits as questions for ``math``, ``reasoning`` and ``clarify``; no hub needed.

    A row has ``kind``, ``a`` and ``b``. Its split is that of the environment ``arithmetic``, whose training problems
    are what the default policy was made with.
    """

    def rows(split: str) -> Iterator[Mapping[str, Any]]:
        for kind, a, b in itertools.product(("add", "sub"), range(10, 100), range(10, 100)):
            if (kind == "add" or a >= b) and _task(kind, a, b).split == split:
                yield {"kind": kind, "a": a, "b": b}

    def read(row: Mapping[str, Any]) -> Problem:
        payload = _task(str(row["kind"]), int(row["a"]), int(row["b"])).payload
        return Problem(question=payload["question"], gold=str(payload["answer"]), verifier="numeric")

    return ProblemSet(hub="arithmetic", splits={split: split for split in SPLITS}, read=read, make_rows=rows)


def _task(kind: str, a: int, b: int) -> Task:
    result = {"add": a + b, "sub": a - b, "mul": a * b}[kind]
    task_id = f"{kind}-{a}-{b}"
    # Commuted operands are the same problem to a verifier, so they share a split.
    key = (kind, *sorted((a, b)))
    return Task(
        id=task_id,
        group_id=task_id,
        split=split_of("arithmetic", *key),
        payload={"kind": kind, "a": a, "b": b, "question": f"What is {a} {_SIGN[kind]} {b}?", "answer": result},
    )
