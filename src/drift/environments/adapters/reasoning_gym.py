"""Problems of reasoning-gym: a hundred generators, answers scored between 0 and 1, no hub."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from drift.environments.adapters.base import ActionEnvironment, ActionEpisode, as_text, digest, load, name_with_hash
from drift.environments.base import SPLITS, split_of
from drift.errors import ConfigError, require, unknown_name
from drift.types import Task
from drift.verifiers.math_pool import WorkerPool, shared_pool

_WORKER = "drift.environments.adapters.reasoning_gym_worker"
# Address space of a process that scores; numbers without end stop there.
_MEMORY_MB = 4096


@dataclass(frozen=True, kw_only=True)
class ReasoningGym(ActionEnvironment):
    """A problem of reasoning-gym with retries (extra ``reasoning-gym``).

    The reward of a reply is how much better its answer scores than the best before, so that a conversation's rewards
    sum to its best score: ``outcome: reward`` weighs graded answers, ``success`` is a score of ``right``. Answers are
    scored in processes of their own, in which nothing that they say is run; one that takes too long scores 0.

    Args:
        generator: a name such as ``countdown``; ``reasoning_gym.factory.DATASETS`` has them all.
        arguments: settings of the generator by its own names, such as difficulty.
        right: the score from which an answer is right, and the conversation over.
        deadline_s: seconds that scoring one answer may take.
        workers: processes that score.
        max_turns: T, the most replies in an episode; one that cannot be read counts as well.
        action: where in a reply the answer stands: in its last ``<answer>…</answer>`` (``answer``), where ``pattern``
            last matches (``pattern``), or the whole reply (``text``).
        pattern: regular expression whose first group, or whole match, is the answer; it should take linear time.
        success_reward: a right answer that improves the best score by less is no success; 0 asks for nothing more.
        opening: the first message, ``{observation}`` standing for the question.
        feedback: what is said to an answer that is not right, ``{observation}`` standing for how good it is.
        format_feedback: what is said to a reply without a readable answer.
        seeds: problems are numbered below this.
    """

    generator: str
    seeds: int = 20_000
    arguments: dict[str, Any] = field(default_factory=dict)
    right: float = 1.0
    deadline_s: float = 5.0
    workers: int = 2
    max_turns: int = 3
    success_reward: float = 0.0
    opening: str = "{observation}\n\nReply with <answer>your answer</answer>."
    feedback: str = "{observation} Please try again."
    format_feedback: str = "No answer found. Please reply with <answer>your answer</answer>."

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.right <= 1, "environment.right", self.right, "a score above 0, at most 1")
        require(self.deadline_s > 0, "environment.deadline_s", self.deadline_s, "a number > 0")
        require(self.workers >= 1, "environment.workers", self.workers, "a whole number ≥ 1")
        known = load("reasoning_gym.factory", "reasoning-gym").DATASETS
        if self.generator not in known:
            raise unknown_name("generator", self.generator, known, where="reasoning-gym")
        fixed = sorted({"seed", "size"} & set(self.arguments))
        require(not fixed, f"environment.arguments.{'/'.join(fixed)}", self.arguments, "no seed or size of problems")
        self.question(0)

    def name(self) -> str:
        """The generator, and a hash of its arguments if there are any."""
        return name_with_hash(f"reasoning-gym-{self.generator}", self.arguments)

    def problem(self, index: int) -> str:
        """What the processes that score are told of problem ``index``."""
        return json.dumps([self.generator, self.arguments, self.seeds, index])

    def question(self, index: int) -> str:
        """Problem ``index``; raises ``ConfigError`` where the generator can't be made with its arguments."""
        outcome = self.pool().run("", self.problem(index))
        if "question" not in outcome:
            where = f"environment.arguments of the generator {self.generator}"
            raise ConfigError(f"{where}: {outcome['reason']} (got {self.arguments}).")
        return outcome["question"]

    def tasks(self, split: str, count: int, seed: int) -> list[Task]:
        """Problems of different questions; the split of a question depends on it and the generator alone."""
        require(split in SPLITS, "split", split, " or ".join(SPLITS))
        found: dict[str, Task] = {}
        for at, question in self._problems(split, count, seed):
            task_id = f"{self.name()}-{digest(question)}"
            payload = {"index": at, "question": question}
            found.setdefault(task_id, Task(id=task_id, group_id=task_id, split=split, payload=payload))
            if len(found) == count:
                return list(found.values())
        raise ConfigError(
            f"{self.name()} has {len(found)} different {split} problems among those tried; {count} were asked for. "
            "Ask for fewer tasks, or set environment.arguments so that there are more."
        )

    def _problems(self, split: str, count: int, seed: int) -> Iterator[tuple[int, str]]:
        """Numbers of problems of a split, and their questions."""
        numbers = random.Random(f"{self.name()}/{split}/{seed}")
        # One in five is for testing, and a generator of few problems repeats itself.
        for at in numbers.sample(range(self.seeds), min(self.seeds, 40 * count + 400)):
            question = self.question(at)
            if split_of(self.name(), digest(question)) == split:
                yield at, question

    def pool(self) -> WorkerPool:
        """The processes that score, shared by all environments of these settings."""
        return shared_pool(self.workers, self.deadline_s, _MEMORY_MB, _WORKER)

    def start(self, task: Task) -> ReasoningGymEpisode:
        """A fresh episode of ``task``."""
        return ReasoningGymEpisode(self, int(task.payload["index"]), str(task.payload["question"]))


class ReasoningGymEpisode(ActionEpisode):
    """One conversation about one problem."""

    _settings: ReasoningGym

    def __init__(self, settings: ReasoningGym, index: int, question: str) -> None:
        super().__init__(settings)
        self._index, self._question, self._best = index, question, 0.0

    async def reset(self) -> str:
        """The question."""
        return as_text(self._question)

    def action(self, text: str) -> tuple[str, str]:
        """The answer, as it is."""
        return text, text

    async def take(self, action: str) -> tuple[str, float, bool]:
        """Score an answer: what is said to it, how much better it is than the best before, and whether it is right."""
        settings = self._settings
        outcome = await settings.pool().run_async(action, settings.problem(self._index))
        if outcome.get("question", self._question) != self._question:
            raise ValueError(
                f"problem {self._index} of {settings.generator} has changed: another version, or arguments"
            )
        score = float(outcome.get("score", 0.0))
        better, self._best = max(0.0, score - self._best), max(score, self._best)
        observation = "That is not right." if score == 0 else f"That is partly right: {score:.2f} of 1."
        return observation, better, score >= settings.right
