"""A policy that says what a script says: for tests, dry runs and trying out an environment by hand."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence

from drift.chat import ByteChat, Chat
from drift.errors import require
from drift.policies.base import Sampling
from drift.types import Completion


class ScriptedPolicy:
    """Replies from a list, picked by the request's seed, or from a function of the conversation so far.

    Args:
        replies: texts to pick from, each equally likely; under greedy sampling the first one is taken.
        rule: ``rule(conversation text, seed) -> reply``, instead of ``replies``.
        name: goes into the fingerprint, to distinguish one rule from another.
    """

    context_length: int | None = None

    def __init__(
        self,
        replies: Sequence[str] = (),
        *,
        rule: Callable[[str, int], str] | None = None,
        name: str = "scripted",
    ) -> None:
        require(bool(replies) != (rule is not None), "policy.replies", list(replies), "a list of texts, or a rule")
        self._replies = tuple(replies)
        self._rule = rule
        self.chat: Chat = ByteChat()
        self.fingerprint = "scripted-" + hashlib.sha256(repr((name, self._replies)).encode()).hexdigest()[:16]

    async def complete(self, prompt_ids: tuple[int, ...], *, sampling: Sampling, seed: int) -> Completion:
        """Pick a reply; its ids are its UTF-8 bytes, cut at ``max_new_tokens``."""
        if self._rule is not None:
            text = self._rule(bytes(prompt_ids).decode(), seed)
        elif sampling.greedy:
            text = self._replies[0]
        else:
            text = random.Random(seed).choice(self._replies)
        raw = text.encode()
        kept = raw[: sampling.max_new_tokens].decode(errors="ignore")
        return Completion(
            text=kept,
            token_ids=tuple(kept.encode()),
            logprobs=None,
            finish_reason="stop" if kept == text else "length",
        )
