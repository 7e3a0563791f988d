"""Questions from a problem set; ``math`` and ``choice`` ask them under the DRIFT protocol."""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from drift.environments.answers import AnswerEpisode, extract_answer
from drift.environments.base import SPLITS, describe
from drift.errors import ConfigError, require
from drift.problems import Loaded, get_problem_set, load_split
from drift.problems.base import LETTERS
from drift.types import Task
from drift.verifiers import Verification, Verifier, make_verifier
from drift.verifiers.base import boxed, unparseable
from drift.verifiers.choice import Choice


@dataclass(frozen=True, kw_only=True)
class QuestionSource:
    """Where an environment's questions come from, and how they are asked and checked; subclasses describe the settings.

    ``default_verifier`` checks answers for which the problem set names no other one; if it is empty, that is ``choice``
    for questions with options and ``math`` for others.
    """

    train: str = "gsm8k"
    test: str = "gsm8k"
    train_file: str = ""
    test_file: str = ""
    verifier_settings: dict[str, Any] = field(default_factory=dict)
    prompt: str = "{question}"

    default_verifier: ClassVar[str] = ""

    def __post_init__(self) -> None:
        where = "environment"
        require("{question}" in self.prompt, f"{where}.prompt", self.prompt, "a text that holds {question}")
        for split in SPLITS:
            get_problem_set(getattr(self, split))
            file = getattr(self, f"{split}_file")
            if file and not Path(file).expanduser().is_file():
                raise ConfigError(f"{where}.{split}_file: no file {file!r}. Give a file, or leave it out for the hub.")

    def tasks(self, split: str, count: int, seed: int) -> list[Task]:
        """Distinct problems; one that is in both sets counts as a test problem only."""
        require(split in SPLITS, "split", split, " or ".join(SPLITS))
        problems = list(self._load(split).problems)
        if split == "train" and self._can_read_test_set():
            held_out = {problem.id for problem in self._load("test").problems}
            problems = [problem for problem in problems if problem.id not in held_out]
        if count > len(problems):
            raise ConfigError(
                f"{getattr(self, split)} has {len(problems)} {split} problems that can be used; {count} were asked "
                f"for. Ask for at most {len(problems)}. Its source: {describe(self.source_counts(split))}."
            )
        tasks = []
        for problem in random.Random(f"questions/{split}/{seed}").sample(problems, count):
            payload = {
                "question": problem.question,
                "gold": problem.gold,
                "options": list(problem.options),
                "verifier": problem.verifier,
            }
            tasks.append(Task(id=problem.id, group_id=problem.id, split=split, payload=payload))
        return tasks

    def options(self, task: Task) -> int | None:
        """How many options the question has; ``None`` for an open one."""
        return len(task.payload["options"]) or None

    def reference(self, task: Task) -> str:
        """The right answer: of an option, its letter and text."""
        gold, options = str(task.payload["gold"]), task.payload["options"]
        return f"{gold}. {options[LETTERS.index(gold)]}" if options else gold

    def question(self, task: Task) -> str:
        """``prompt`` with the question of ``task``, and its options by letter, in place of ``{question}``."""
        options = zip(LETTERS, task.payload["options"], strict=False)
        listed = "".join(f"\n{letter}. {text}" for letter, text in options)
        # Replaced and not formatted: a question may hold braces of its own.
        return self.prompt.replace("{question}", f"{task.payload['question']}{listed}")

    def verifier_of(self, payload: Mapping[str, Any]) -> Verifier:
        """The verifier that suits the answer of a task with this payload."""
        default = self.default_verifier or ("choice" if payload["options"] else "math")
        name = str(payload["verifier"]) or default
        return make_verifier(name, self.verifier_settings if name == default else {})

    def source_counts(self, split: str) -> dict[str, int]:
        """How many rows the source of ``split`` has, and what became of them; see ``drift.problems.Loaded``."""
        return dict(self._load(split).counts)

    def _can_read_test_set(self) -> bool:
        """Whether the test set can be read where the training set is: whoever gives local files may be offline."""
        return bool(self.test_file) or (not self.train_file and "test" in get_problem_set(self.test).splits)

    def _load(self, split: str) -> Loaded:
        return _load(getattr(self, split), split, getattr(self, f"{split}_file"))


@functools.lru_cache(maxsize=8)
def _load(name: str, split: str, file: str) -> Loaded:
    return load_split(get_problem_set(name), split, file)


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


@dataclass(frozen=True, kw_only=True)
class MathQuestions(QuestionSource):
    """GSM8K, MATH-500, MetaMathQA or TheoremQA under the DRIFT protocol, checked for equality and not for spelling.

    Args:
        train: problem set to train on.
        test: problem set to test on.
        train_file: local file of the training set's schema, instead of the hub.
        test_file: local file of the test set's schema, instead of the hub.
        max_turns: T, the most replies in an episode.
        prompt: the opening message, ``{question}`` standing for the question (and its options).
        feedback: what the environment says to a wrong answer.
        format_feedback: what it says to a reply without a readable answer.
        verifier_settings: settings of the verifier ``math``.
    """

    max_turns: int = 5
    prompt: str = "{question}\n\nThink step by step and end with <answer>your answer</answer>."
    feedback: str = "Incorrect. Please think again."
    format_feedback: str = "No answer found. Please end with <answer>your answer</answer>."

    default_verifier = "math"

    def __post_init__(self) -> None:
        where = "environment"
        require(self.max_turns >= 1, f"{where}.max_turns", self.max_turns, "a whole number ≥ 1")
        for name in ("feedback", "format_feedback"):
            require(bool(getattr(self, name)), f"{where}.{name}", getattr(self, name), "a text")
        make_verifier(self.default_verifier, self.verifier_settings)
        super().__post_init__()

    def start(self, task: Task) -> AnswerEpisode:
        """A fresh episode of ``task``."""
        verifier = self.verifier_of(task.payload)
        gold, options = str(task.payload["gold"]), tuple(task.payload["options"])
        return AnswerEpisode(
            self.question(task),
            self.max_turns,
            check=lambda reply: check_answer(verifier, reply, gold, options),
            feedback=lambda answer: self.format_feedback if answer is None else self.feedback,
        )


@dataclass(frozen=True, kw_only=True)
class ChoiceQuestions(MathQuestions):
    """MMLU, ARC, OpenBookQA, SciQ or GPQA under the DRIFT protocol: options by letter, of which a reply claims one.

    Who never repeats a letter is right within as many turns as there are options, whatever it knows: read multi@k
    beside ``min(1, k / options)``.

    Args:
        train: problem set to train on.
        test: problem set to test on.
        train_file: local file of the training set's schema, instead of the hub.
        test_file: local file of the test set's schema, instead of the hub.
        max_turns: T, the most replies in an episode.
        prompt: the opening message, ``{question}`` standing for the question and its options.
        feedback: what the environment says to a wrong answer.
        format_feedback: what it says to a reply without a readable answer.
        verifier_settings: settings of the verifier ``choice``.
    """

    train: str = "mmlu"
    test: str = "mmlu"
    prompt: str = "{question}\n\nThink step by step and end with <answer>letter</answer>."
    format_feedback: str = "No answer found. Please end with <answer>letter</answer>."

    default_verifier = "choice"
