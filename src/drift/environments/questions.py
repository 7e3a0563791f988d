"""Questions from a problem set under the DRIFT protocol: unary feedback, stop on success, at most T turns."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drift.environments.answers import extract_answer
from drift.environments.base import SPLITS, describe
from drift.errors import ConfigError, require
from drift.problems import Loaded, Problem, get_problem_set, load_split
from drift.problems.base import LETTERS
from drift.types import Message, Step, Task
from drift.verifiers import Verification, Verifier, make_verifier
from drift.verifiers.base import boxed, unparseable
from drift.verifiers.choice import Choice


@dataclass(frozen=True, kw_only=True)
class QuestionSource:
    """Where an environment's questions come from, and how their answers are checked.

    Args:
        train: problem set to train on.
        test: problem set to test on.
        train_file: local file of the training set's schema, instead of the hub.
        test_file: local file of the test set's schema, instead of the hub.
        verifier_settings: settings of the usual verifier.
    """

    train: str = "gsm8k"
    test: str = "gsm8k"
    train_file: str = ""
    test_file: str = ""
    verifier_settings: dict[str, Any] = field(default_factory=dict)

    usual_verifier = "math"

    def __post_init__(self) -> None:
        where = "environment.settings"
        for split in SPLITS:
            get_problem_set(getattr(self, split))
            file = getattr(self, f"{split}_file")
            if file and not Path(file).expanduser().is_file():
                raise ConfigError(f"{where}.{split}_file: no file {file!r}. Give a file, or leave it out for the hub.")

    def tasks(self, split: str, count: int, seed: int) -> list[Task]:
        """Distinct problems; one that is in both sets counts as a test problem only."""
        require(split in SPLITS, "split", split, " or ".join(SPLITS))
        problems = self._problems(split)
        if split == "train":
            held_out = {problem.id for problem in self._problems("test")} if self._test_is_at_hand() else set()
            problems = [problem for problem in problems if problem.id not in held_out]
        if count > len(problems):
            raise ConfigError(
                f"{getattr(self, split)} has {len(problems)} {split} problems that can be used; {count} were asked "
                f"for. Ask for at most {len(problems)}. Its source: {describe(self.source_counts(split))}."
            )
        drawn = random.Random(f"questions/{split}/{seed}").sample(problems, count)
        return [_task(problem, split) for problem in drawn]

    def options(self, task: Task) -> int | None:
        """How many options the question has; ``None`` for an open one."""
        return len(task.payload["options"]) or None

    def reference(self, task: Task) -> str:
        """The right answer: of an option, its letter and text."""
        return right_answer(str(task.payload["gold"]), task.payload["options"])

    def verifier(self, name: str) -> Verifier:
        """The verifier called ``name``, or the usual one."""
        usual = name in ("", self.usual_verifier)
        return make_verifier(name or self.usual_verifier, self.verifier_settings if usual else {})

    def _test_is_at_hand(self) -> bool:
        """Whether the test set can be read where the training set is: whoever gives local files may be offline."""
        return bool(self.test_file) or (not self.train_file and "test" in get_problem_set(self.test).splits)

    def source_counts(self, split: str) -> dict[str, int]:
        """How many rows the source of ``split`` has, and what became of them; see ``drift.problems.Loaded``."""
        return dict(self._source(split).counts)

    def _problems(self, split: str) -> list[Problem]:
        return list(self._source(split).problems)

    def _source(self, split: str) -> Loaded:
        return _load(getattr(self, split), split, getattr(self, f"{split}_file"))


@dataclass(frozen=True, kw_only=True)
class Questions(QuestionSource):
    """What ``math`` and ``choice`` share; a subclass says which verifier is usual and how a question is asked.

    Args:
        train: problem set to train on.
        test: problem set to test on.
        train_file: local file of the training set's schema, instead of the hub.
        test_file: local file of the test set's schema, instead of the hub.
        max_turns: T, the most replies in an episode.
        prompt: the opening message, ``{question}`` standing for the question (and its options).
        feedback: what the environment says to a wrong answer.
        format_feedback: what it says to a reply without a readable answer.
        verifier_settings: settings of the usual verifier.
    """

    max_turns: int = 5
    prompt: str = "{question}\n\nThink step by step and end with <answer>your answer</answer>."
    feedback: str = "Incorrect. Please think again."
    format_feedback: str = "No answer found. Please end with <answer>your answer</answer>."

    def __post_init__(self) -> None:
        where = "environment.settings"
        require(self.max_turns >= 1, f"{where}.max_turns", self.max_turns, "a whole number ≥ 1")
        require("{question}" in self.prompt, f"{where}.prompt", self.prompt, "a text that holds {question}")
        for name in ("feedback", "format_feedback"):
            require(bool(getattr(self, name)), f"{where}.{name}", getattr(self, name), "a text")
        self.verifier("")
        super().__post_init__()

    def start(self, task: Task) -> QuestionEpisode:
        """A fresh episode of ``task``."""
        options = tuple(task.payload["options"])
        verifier = self.verifier(str(task.payload["verifier"]))
        return QuestionEpisode(self, str(task.payload["question"]), str(task.payload["gold"]), options, verifier)


@functools.lru_cache(maxsize=8)
def _load(name: str, split: str, file: str) -> Loaded:
    return load_split(get_problem_set(name), split, file)


def _task(problem: Problem, split: str) -> Task:
    payload = {
        "question": problem.question,
        "gold": problem.gold,
        "options": list(problem.options),
        "verifier": problem.verifier,
    }
    return Task(id=problem.id, group_id=problem.id, split=split, payload=payload)


class QuestionEpisode:
    """One conversation about one question."""

    def __init__(
        self, settings: Questions, question: str, gold: str, options: tuple[str, ...], verifier: Verifier
    ) -> None:
        self._settings, self._verifier = settings, verifier
        self._question, self._gold, self._options = question, gold, options
        self._turn = 0

    def opening(self) -> list[Message]:
        """The question and its options, as one user message."""
        return [{"role": "user", "content": asked(self._settings.prompt, self._question, self._options)}]

    async def step(self, reply: str) -> Step:
        """Reward 1 for the right answer, else 0; format failures get feedback of their own."""
        self._turn += 1
        found = await check_answer(self._verifier, reply, self._gold, self._options)
        done = found.right or self._turn >= self._settings.max_turns
        feedback = self._settings.feedback if found.answer is not None else self._settings.format_feedback
        return Step(
            messages=() if done else ({"role": "user", "content": feedback},),
            reward=float(found.right),
            done=done,
            success=found.right,
            answer=found.answer,
            info={"reason": found.reason} if found.reason else {},
        )


def asked(prompt: str, question: str, options: Sequence[str]) -> str:
    """``prompt`` with the question, and its options by letter, in place of ``{question}``."""
    listed = (f"\n{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False))
    # Replaced and not formatted: a question may hold braces of its own.
    return prompt.replace("{question}", question + "".join(listed))


def right_answer(gold: str, options: Sequence[str]) -> str:
    """The right answer as a judge or a user is told it: of an option, its letter and text."""
    return f"{gold}. {options[LETTERS.index(gold)]}" if options else gold


async def check_answer(verifier: Verifier, reply: str, gold: str, options: Sequence[str]) -> Verification:
    """The tagged answer counts, else a boxed one; a choice is also read from the reply's own words."""
    answer = extract_answer(reply)
    if isinstance(verifier, Choice):
        return await verifier.verify_async(reply if answer is None else answer, gold, options=options)
    if answer is None:
        answer = boxed(reply)
    if answer is None:
        return unparseable("no answer tag")
    return await verifier.verify_async(answer, gold)
