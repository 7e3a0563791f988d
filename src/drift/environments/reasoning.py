"""A scripted teacher: an answer, then why it and not another, then the final answer (Refit, arXiv 2506.06964)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from drift.environments.dialogue import Dialogue, DialogueEpisode
from drift.environments.questions import check_answer
from drift.errors import require
from drift.types import Task


@dataclass(frozen=True, kw_only=True)
class Reasoning(Dialogue):
    """Asks for an answer, then in turn each of ``followups``, then for the final answer: n = 3 turns as published.

    The same is said whatever the replies are. What the first reply answered is kept in the step's ``info`` (``answer``,
    ``right``) and decides nothing.

    Args:
        train: problem set to train on.
        test: problem set to test on.
        train_file: local file of the training set's schema, instead of the hub.
        test_file: local file of the test set's schema, instead of the hub.
        verifier_settings: settings of the usual verifier: ``choice`` if there are options, else ``math``.
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
        require(all(self.followups), "environment.settings.followups", self.followups, "texts that are not empty")

    @property
    def max_turns(self) -> int:
        """One reply to the question, one to each of ``followups`` and one to ``final``."""
        return 2 + len(self.followups)

    def start(self, task: Task) -> DialogueEpisode:
        """A fresh episode of ``task``."""
        return _Lesson(self, task)


class _Lesson(DialogueEpisode):
    """One conversation with the teacher."""

    def __init__(self, settings: Reasoning, task: Task) -> None:
        super().__init__(settings, task)
        self._followups = settings.followups

    async def answer(self, reply: str) -> tuple[str, dict[str, Any]]:
        """The next line of the script."""
        info: dict[str, Any] = {}
        if self.turn == 1:
            first = await check_answer(self.verifier, reply, self.gold, self.options)
            info = {"answer": first.answer, "right": first.right}
        return self._followups[self.turn - 1] if self.turn <= len(self._followups) else "", info
