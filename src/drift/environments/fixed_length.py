"""Conversations of fixed length about one question: some turns of talk, then the final answer, then one reward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from drift.environments.questions import QuestionSource, check_answer
from drift.errors import EnvironmentFault, require
from drift.types import Message, Step, Task
from drift.verifiers import Verification, make_verifier
from drift.verifiers.judge import CONVERSATION_RUBRIC, CRITERIA, HIGHEST, Judge


@dataclass(frozen=True, kw_only=True)
class FixedLengthConversation(QuestionSource, ABC):
    """What ``clarify`` and ``reasoning`` share (Refit / Swift, arXiv 2506.06964): the end of the conversation.

    Only the last reply is asked for an answer. The reward of the conversation comes with it: 1 or 0 from the verifier,
    or a judge's score of the whole conversation divided by 10. Success is the verifier's either way. A conversation
    that the judge could not score has no reward: it ends with an error, is counted, and gets no weight.

    The judge is asked for a score of the whole conversation by criteria, unless ``judge`` gives another rubric.
    """

    train: str | Mapping[str, Any] = "arc"
    test: str | Mapping[str, Any] = "arc"
    final: str = "Now give your final answer. End with <answer>your answer</answer>."
    judge: dict[str, Any] = field(default_factory=dict)
    _judge: Judge | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require(bool(self.final), "environment.final", self.final, "a text")
        super().__post_init__()
        if self.judge:
            rubric = {} if "rubric" in self.judge else {"rubric": CONVERSATION_RUBRIC, "criteria": CRITERIA}
            object.__setattr__(self, "_judge", make_verifier("judge", {**rubric, **self.judge}))

    @property
    @abstractmethod
    def max_turns(self) -> int:
        """Number of replies in every episode."""

    @abstractmethod
    def start(self, task: Task) -> FixedLengthEpisode:
        """A fresh episode of ``task``."""

    def tasks(self, split: str, count: int, seed: int) -> list[Task]:
        """As ``QuestionSource.tasks``; raises ``ConfigError`` if an answer's verifier can't be made."""
        tasks = super().tasks(split, count, seed)
        for payload in {(t.payload["verifier"], bool(t.payload["options"])): t.payload for t in tasks}.values():
            self.verifier_of(payload)
        return tasks

    @property
    def counts(self) -> Counter[str]:
        """What happened to the judge; see ``Judge.counts``."""
        return Counter({f"judge_{kind}": n for kind, n in self._judge.counts.items()} if self._judge else {})

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Fingerprint of the judge, which loads its model; empty without one."""
        return {"judge": self._judge.fingerprint} if self._judge else {}

    async def aclose(self) -> None:
        """Close the judge's connections."""
        if self._judge:
            await self._judge.aclose()

    async def score(self, messages: list[Message], reference: str) -> tuple[float, dict[str, Any]] | None:
        """The judge's reward of a whole conversation and its scores; ``None`` without a judge.

        Raises:
            EnvironmentFault: the judge gave no score that could be read.
        """
        if self._judge is None:
            return None
        judged = await self._judge.judge(messages, reference)
        if judged.score is None:
            raise EnvironmentFault(
                f"the judge gave no score ({judged.reason}), expected <score>N</score>. "
                "Use a stronger judge, a shorter rubric or more retries (environment.judge)."
            )
        return judged.score / HIGHEST, {"score": judged.score, "scores": dict(judged.scores)}


class FixedLengthEpisode(ABC):
    """One conversation; a subclass says what the environment says before the final answer."""

    def __init__(self, settings: FixedLengthConversation, task: Task) -> None:
        self._conversation = settings
        self._question = settings.question(task)
        self.gold, self.options = str(task.payload["gold"]), tuple(map(str, task.payload["options"]))
        self.reference = settings.reference(task)
        self.verifier = settings.verifier_of(task.payload)
        self.turn = 0
        self.messages: list[Message] = []

    def opening(self) -> list[Message]:
        """The question and its options, as one user message."""
        self.messages = [{"role": "user", "content": self._question}]
        return list(self.messages)

    @abstractmethod
    async def answer(self, reply: str) -> tuple[str, dict[str, Any]]:
        """What the environment says to a reply before the last one, and what is worth keeping of it."""

    async def step(self, reply: str) -> Step:
        """Go on with the conversation, or judge its end."""
        self.turn += 1
        self.messages.append({"role": "assistant", "content": reply})
        if self.turn == self._conversation.max_turns:
            return await self._end(reply)
        text, info = await self.answer(reply)
        if self.turn == self._conversation.max_turns - 1:
            text = f"{text}\n\n{self._conversation.final}" if text else self._conversation.final
        message: Message = {"role": "user", "content": text}
        self.messages.append(message)
        return Step(messages=(message,), reward=0.0, done=False, success=False, answer=None, graded=False, info=info)

    async def check(self, reply: str) -> Verification:
        """The answer that a reply gives against the right one."""
        settings = self._conversation
        return await check_answer(
            self.verifier, reply, self.gold, self.options, strict=settings.strict, fallback=settings.fallback
        )

    async def _end(self, reply: str) -> Step:
        checked = await self.check(reply)
        reward, info = float(checked.right), {"reason": checked.reason} if checked.reason else {}
        judged = await self._conversation.score(self.messages, self.reference)
        if judged is not None:
            reward, info = judged[0], {**info, **judged[1]}
        return Step(messages=(), reward=reward, done=True, success=checked.right, answer=checked.answer, info=info)


@dataclass(frozen=True, kw_only=True)
class Reasoning(FixedLengthConversation):
    """A scripted teacher asks for an answer, then in turn each of ``followups``, then for the final answer (Refit).

    There are n = 3 turns as published. The same is said whatever the replies are. What the first reply answered is kept
    in the step's ``info`` (``answer``, ``right``) and decides nothing.

    Args:
        train: problem set to train on.
        test: problem set to test on.
        train_file: local file of the training set's schema, instead of the hub.
        test_file: local file of the test set's schema, instead of the hub.
        verifier_settings: settings of the default verifier: ``choice`` if there are options, else ``math``.
        strict: read answers from a tag or a box alone, and not from what a reply says in words.
        fallback: ``last_number`` takes the last number of a reply that gives no answer; nothing by default.
        prompt: the opening message, ``{question}`` standing for the question (and its options).
        followups: what the teacher says before it asks for the final answer.
        final: what asks for the final answer.
        judge: settings of the verifier ``judge``, if the reward is to come from one.
    """

    prompt: str = "{question}\n\nWhich answer do you think is right, and why? End with <answer>your answer</answer>."
    followups: tuple[str, ...] = (
        "What speaks against the other answers? Go through your reasoning again, and say if you change your mind.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(all(self.followups), "environment.followups", self.followups, "texts that are not empty")

    @property
    def max_turns(self) -> int:
        """One reply to the question, one to each of ``followups`` and one to ``final``."""
        return 2 + len(self.followups)

    def start(self, task: Task) -> FixedLengthEpisode:
        """A fresh episode of ``task``."""
        return _ReasoningEpisode(self, task)


class _ReasoningEpisode(FixedLengthEpisode):
    """One conversation with the teacher."""

    def __init__(self, settings: Reasoning, task: Task) -> None:
        super().__init__(settings, task)
        self._followups = settings.followups

    async def answer(self, reply: str) -> tuple[str, dict[str, Any]]:
        """The next line of the script."""
        info: dict[str, Any] = {}
        if self.turn == 1:
            first = await self.check(reply)
            info = {"answer": first.answer, "right": first.right}
        return self._followups[self.turn - 1] if self.turn <= len(self._followups) else "", info
