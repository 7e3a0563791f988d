"""Questions from a problem set; ``math`` and ``choice`` ask them under the DRIFT protocol."""

from __future__ import annotations

import functools
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from drift.environments.answers import AnswerEpisode, filled, require_texts
from drift.environments.base import SPLITS, describe
from drift.errors import ConfigError, require
from drift.problems import Loaded, get_problem_set, load_split
from drift.problems.base import LETTERS, Problem
from drift.types import Message, Task
from drift.verifiers import Verification, Verifier, make_verifier
from drift.verifiers.base import unparseable
from drift.verifiers.choice import Choice
from drift.verifiers.exact import Exact
from drift.verifiers.math import Math
from drift.verifiers.numeric import Numeric
from drift.verifiers.reading import FALLBACKS, read, spoken


@dataclass(frozen=True, kw_only=True)
class QuestionSource:
    """Where an environment's questions come from, and how they are asked and checked; subclasses describe the settings.

    ``default_verifier`` checks answers for which the problem set names no other one; if it is empty, that is ``choice``
    for questions with options and ``math`` for others.
    """

    train: str | Mapping[str, Any] = "gsm8k"
    test: str | Mapping[str, Any] = "gsm8k"
    train_file: str = ""
    test_file: str = ""
    verifier_settings: dict[str, Any] = field(default_factory=dict)
    prompt: str = "{question}"
    strict: bool = False
    fallback: str = ""

    default_verifier: ClassVar[str] = ""

    def __post_init__(self) -> None:
        where = "environment"
        require("{question}" in self.prompt, f"{where}.prompt", self.prompt, "a text that holds {question}")
        require(self.fallback in FALLBACKS, f"{where}.fallback", self.fallback, "last_number, or nothing")
        for split in SPLITS:
            file, given = getattr(self, f"{split}_file"), getattr(self, split)
            get_problem_set(given, split)
            part = given.get("split") if isinstance(given, Mapping) else None
            require(not (file and part), f"{where}.{split}.split", part, f"none with {split}_file, which is used whole")
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

    def question(self, task: Task, prompt: str = "") -> str:
        """``prompt`` with the question of ``task``, and its options by letter, in place of ``{question}``."""
        options = zip(LETTERS, task.payload["options"], strict=False)
        listed = "".join(f"\n{letter}. {text}" for letter, text in options)
        # Replaced and not formatted: a question may hold braces of its own.
        return (prompt or self.prompt).replace("{question}", f"{task.payload['question']}{listed}")

    def verifier_of(self, payload: Mapping[str, Any]) -> Verifier:
        """The verifier that suits the answer of a task with this payload."""
        return _verifier(self.default_verifier, self.verifier_settings, str(payload["verifier"]), payload["options"])

    def source_counts(self, split: str) -> dict[str, int]:
        """How many rows the source of ``split`` has, and what became of them; see ``drift.problems.Loaded``."""
        return dict(self._load(split).counts)

    def _can_read_test_set(self) -> bool:
        """Whether the test set can be read where the training set is: whoever gives local files may be offline."""
        return bool(self.test_file) or (not self.train_file and "test" in get_problem_set(self.test, "test").splits)

    def _load(self, split: str) -> Loaded:
        settings = json.dumps(self.verifier_settings, sort_keys=True, default=str)
        given = json.dumps(getattr(self, split), sort_keys=True)
        return _load(self.default_verifier, given, split, getattr(self, f"{split}_file"), settings)


def _verifier(default: str, settings: Mapping[str, Any], problem_verifier: str, options: Sequence[str]) -> Verifier:
    default = default or ("choice" if options else "math")
    name = problem_verifier or default
    return make_verifier(name, settings if name == default else {})


@functools.lru_cache(maxsize=8)
def _load(default: str, given: str, split: str, file: str, settings: str) -> Loaded:
    """The problems whose answers can be checked; the others are counted by what is wrong with them."""
    loaded = load_split(get_problem_set(json.loads(given), split), split, file)
    kept: list[Problem] = []
    left_out: Counter[str] = Counter()
    for problem in loaded.problems:
        fault = gold_fault(_verifier(default, json.loads(settings), problem.verifier, problem.options), problem)
        if fault:
            left_out[f"left_out_{fault}"] += 1
        else:
            kept.append(problem)
    return Loaded(problems=tuple(kept), counts=dict(loaded.counts) | {"problems": len(kept)} | dict(left_out))


def gold_fault(verifier: Verifier, problem: Problem) -> str:
    """Why the answer of ``problem`` can't be checked: it can't be read, or isn't equal to itself; else empty."""
    try:
        if isinstance(verifier, Choice):
            right = verifier.verify(problem.gold, problem.gold, options=problem.options).right
        elif isinstance(verifier, (Math, Numeric, Exact)):
            right = verifier.verify(problem.gold, problem.gold).right
        else:
            right = True
    except ConfigError:
        return "unreadable_gold"
    return "" if right else "gold_unlike_itself"


async def check_answer(
    verifier: Verifier, reply: str, gold: str, options: Sequence[str], *, strict: bool = False, fallback: str = ""
) -> Verification:
    """What ``reply`` gives as its answer (see ``drift.verifiers.reading.read``) against ``gold``.

    A choice is read in all words of the reply, unless ``strict``.
    """
    if isinstance(verifier, Choice) and not strict:
        return await verifier.verify_async(spoken(reply), gold, options=options)
    found = read(reply, strict=strict, fallback=fallback)
    if found is None:
        return unparseable("no answer")
    if isinstance(verifier, Choice):
        return await verifier.verify_async(found.answer, gold, options=options)
    return await verifier.verify_async(found.answer, gold)


@dataclass(frozen=True, kw_only=True)
class MathQuestions(QuestionSource):
    """GSM8K, MATH-500, MetaMathQA or TheoremQA under the DRIFT protocol, checked for equality and not for spelling.

    Args:
        train: problem set to train on, by name or as {name: metamath, type: MATH_*} with settings; split among them is
            one of the hub, or a part of it such as train[:90%].
        test: problem set to test on, likewise.
        train_file: local file of the training set's schema, instead of the hub.
        test_file: local file of the test set's schema, instead of the hub.
        max_turns: T, the most replies in an episode.
        prompt: the opening message, ``{question}`` standing for the question (and its options).
        example: a question and a reply as it should look, said as user and assistant before the question.
        feedback: what the environment says to a wrong answer; of a list, one text after each reply, the last ever
            after. ``{turn}`` in it, and in prompt, is the turn to come, ``{left}`` the replies left, ``{reward}`` what
            the last one earned.
        format_feedback: what it says to a reply without a readable answer, likewise.
        verifier_settings: settings of the verifier ``math``.
        strict: read answers from a tag or a box alone, and not from what a reply says in words.
        fallback: ``last_number`` takes the last number of a reply that gives no answer; nothing by default.
    """

    max_turns: int = 5
    prompt: str = "{question}\n\nThink step by step and end with <answer>your answer</answer>."
    example: tuple[str, ...] = ()
    feedback: str | tuple[str, ...] = "Incorrect. Please think again."
    format_feedback: str | tuple[str, ...] = "No answer found. Please end with <answer>your answer</answer>."

    default_verifier = "math"

    def __post_init__(self) -> None:
        where = "environment"
        require(self.max_turns >= 1, f"{where}.max_turns", self.max_turns, "a whole number ≥ 1")
        require(len(self.example) in (0, 2), f"{where}.example", self.example, "a question and a reply, or nothing")
        for name in ("feedback", "format_feedback"):
            require_texts(f"{where}.{name}", getattr(self, name))
        make_verifier(self.default_verifier, self.verifier_settings)
        super().__post_init__()

    def opening_of(self, asked: str) -> list[Message]:
        """All messages before the first reply: the example, if there is one, and ``asked``."""
        before: list[Message] = []
        if self.example:
            question, reply = self.example
            asked_before = filled(self.prompt, turn=1, turns=self.max_turns).replace("{question}", question)
            before = [{"role": "user", "content": asked_before}, {"role": "assistant", "content": reply}]
        return [*before, {"role": "user", "content": asked}]

    def start(self, task: Task) -> AnswerEpisode:
        """A fresh episode of ``task``."""
        verifier = self.verifier_of(task.payload)
        gold, options = str(task.payload["gold"]), tuple(task.payload["options"])
        return AnswerEpisode(
            self.opening_of(self.question(task, filled(self.prompt, turn=1, turns=self.max_turns))),
            self.max_turns,
            check=lambda reply: check_answer(
                verifier, reply, gold, options, strict=self.strict, fallback=self.fallback
            ),
            feedback=lambda answer: self.format_feedback if answer is None else self.feedback,
        )


@dataclass(frozen=True, kw_only=True)
class ChoiceQuestions(MathQuestions):
    """MMLU, ARC, OpenBookQA, SciQ or GPQA under the DRIFT protocol: options by letter, of which a reply claims one.

    Who never repeats a letter is right within as many turns as there are options, whatever it knows: read multi@k
    beside ``min(1, k / options)``.

    Args:
        train: problem set to train on, by name or as {name: metamath, type: MATH_*} with settings; split among them is
            one of the hub, or a part of it such as train[:90%].
        test: problem set to test on, likewise.
        train_file: local file of the training set's schema, instead of the hub.
        test_file: local file of the test set's schema, instead of the hub.
        max_turns: T, the most replies in an episode.
        prompt: the opening message, ``{question}`` standing for the question and its options.
        example: a question and a reply as it should look, said as user and assistant before the question.
        feedback: what the environment says to a wrong answer; of a list, one text after each reply, the last ever
            after. ``{turn}`` in it, and in prompt, is the turn to come, ``{left}`` the replies left, ``{reward}`` what
            the last one earned.
        format_feedback: what it says to a reply without a readable answer, likewise.
        verifier_settings: settings of the verifier ``choice``.
        strict: read answers from a tag or a box alone, and not from what a reply says in words.
        fallback: has no effect on a choice.
    """

    train: str | Mapping[str, Any] = "mmlu"
    test: str | Mapping[str, Any] = "mmlu"
    prompt: str = "{question}\n\nThink step by step and end with <answer>letter</answer>."
    format_feedback: str | tuple[str, ...] = "No answer found. Please end with <answer>letter</answer>."

    default_verifier = "choice"
