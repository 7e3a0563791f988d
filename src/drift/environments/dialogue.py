"""Conversations of fixed length about one question: some turns of talk, then the final answer, then one reward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from drift.environments.questions import QuestionSource, asked, check_answer, right_answer
from drift.errors import EnvironmentFault, require
from drift.types import Message, Step, Task
from drift.verifiers import Verifier, make_verifier
from drift.verifiers.judge import CONVERSATION_RUBRIC, CRITERIA, HIGHEST, Judge


@dataclass(frozen=True, kw_only=True)
class Dialogue(QuestionSource, ABC):
    """What ``clarify`` and ``reasoning`` share (Refit / Swift, arXiv 2506.06964): the end of the conversation.

    Only the last reply is asked for an answer. The reward of the conversation comes with it: 1 or 0 from the verifier,
    or a judge's score of the whole conversation divided by 10. Success is the verifier's either way. A conversation
    that the judge could not score has no reward: it ends with an error, is counted, and gets no weight.

    Args:
        train: problem set to train on.
        test: problem set to test on.
        train_file: local file of the training set's schema, instead of the hub.
        test_file: local file of the test set's schema, instead of the hub.
        verifier_settings: settings of the usual verifier: ``choice`` if there are options, else ``math``.
        prompt: the opening message, ``{question}`` standing for the question (and its options).
        final: what asks for the final answer.
        judge: settings of the verifier ``judge``, if the reward is to come from one; its usual rubric is that of a
            whole conversation, with criteria.
    """

    train: str = "arc"
    test: str = "arc"
    prompt: str = "{question}"
    final: str = "Now give your final answer. End with <answer>your answer</answer>."
    judge: dict[str, Any] = field(default_factory=dict)
    _judge: Judge | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        where = "environment.settings"
        require("{question}" in self.prompt, f"{where}.prompt", self.prompt, "a text that holds {question}")
        require(bool(self.final), f"{where}.final", self.final, "a text")
        super().__post_init__()
        if self.judge:
            usual = {} if "rubric" in self.judge else {"rubric": CONVERSATION_RUBRIC, "criteria": CRITERIA}
            made = make_verifier("judge", {**usual, **self.judge})
            assert isinstance(made, Judge)
            object.__setattr__(self, "_judge", made)

    @property
    @abstractmethod
    def max_turns(self) -> int:
        """Number of replies in every episode."""

    @abstractmethod
    def start(self, task: Task) -> DialogueEpisode:
        """A fresh episode of ``task``."""

    def tasks(self, split: str, count: int, seed: int) -> list[Task]:
        """As ``QuestionSource.tasks``; raises ``ConfigError`` if an answer's verifier can't be made."""
        found = super().tasks(split, count, seed)
        for task in {(task.payload["verifier"], not task.payload["options"]): task for task in found}.values():
            self.verifier_of(task)
        return found

    @property
    def counts(self) -> Counter[str]:
        """What happened to the judge; see ``Judge.counts``."""
        return _prefixed("judge", self._judge.counts) if self._judge else Counter()

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Fingerprint of the judge, which loads its model; empty without one."""
        return {"judge": self._judge.fingerprint} if self._judge else {}

    async def aclose(self) -> None:
        """Close the judge's connections."""
        if self._judge:
            await self._judge.aclose()

    def verifier_of(self, task: Task) -> Verifier:
        """The verifier that fits the answer of ``task``."""
        usual = "choice" if task.payload["options"] else "math"
        name = str(task.payload["verifier"]) or usual
        return make_verifier(name, self.verifier_settings if name == usual else {})

    async def score(self, messages: list[Message], reference: str) -> tuple[float, dict[str, Any]] | None:
        """The judge's reward of a whole conversation and its scores; ``None`` without a judge.

        Raises:
            EnvironmentFault: the judge gave no score that could be read.
        """
        if self._judge is None:
            return None
        found = await self._judge.judge(messages, reference)
        if found.score is None:
            raise EnvironmentFault(
                f"the judge gave no score ({found.reason}), expected <score>N</score>. "
                "Use a stronger judge, a shorter rubric or more retries (environment.settings.judge)."
            )
        return found.score / HIGHEST, {"score": found.score, "scores": dict(found.scores)}


class DialogueEpisode(ABC):
    """One conversation; a subclass says what the environment says before the final answer."""

    def __init__(self, settings: Dialogue, task: Task) -> None:
        self._dialogue, self.task = settings, task
        self.question, self.gold = str(task.payload["question"]), str(task.payload["gold"])
        self.options = tuple(map(str, task.payload["options"]))
        self.verifier = settings.verifier_of(task)
        self.turn = 0
        self.messages: list[Message] = []

    def opening(self) -> list[Message]:
        """The question and its options, as one user message."""
        self.messages = [{"role": "user", "content": asked(self._dialogue.prompt, self.question, self.options)}]
        return list(self.messages)

    @abstractmethod
    async def answer(self, reply: str) -> tuple[str, dict[str, Any]]:
        """What the environment says to a reply before the last one, and what is worth keeping of it."""

    async def step(self, reply: str) -> Step:
        """Go on with the conversation, or judge its end."""
        self.turn += 1
        self.messages.append({"role": "assistant", "content": reply})
        if self.turn == self._dialogue.max_turns:
            return await self._end(reply)
        said, info = await self.answer(reply)
        if self.turn == self._dialogue.max_turns - 1:
            said = f"{said}\n\n{self._dialogue.final}" if said else self._dialogue.final
        message: Message = {"role": "user", "content": said}
        self.messages.append(message)
        return Step(messages=(message,), reward=0.0, done=False, success=False, answer=None, graded=False, info=info)

    async def _end(self, reply: str) -> Step:
        found = await check_answer(self.verifier, reply, self.gold, self.options)
        reward, info = float(found.right), {"reason": found.reason} if found.reason else {}
        judged = await self._dialogue.score(self.messages, self.reference)
        if judged is not None:
            reward, info = judged[0], {**info, **judged[1]}
        return Step(messages=(), reward=reward, done=True, success=found.right, answer=found.answer, info=info)

    @property
    def reference(self) -> str:
        """The right answer as a judge or a user is told it: of an option, its letter and text."""
        return right_answer(self.gold, self.options)


def _prefixed(role: str, counts: Counter[str]) -> Counter[str]:
    return Counter({f"{role}_{kind}": count for kind, count in counts.items()})
