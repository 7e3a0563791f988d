"""What a policy is: token ids in, sampled token ids with log-probabilities out."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from drift.chat import Chat
from drift.errors import PolicyError, require
from drift.types import Completion, Message, Turn

if TYPE_CHECKING:
    from typing_extensions import TypeIs

_TEMPLATE = "+template-"
DEFAULT_MODEL = Path(__file__).parent / "default_model"


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a reply is drawn.

    Args:
        temperature: logits are divided by it; 0 means greedy.
        top_p: sample from the smallest set of tokens whose probabilities sum to at least this.
        top_k: sample from so many of the likeliest tokens, among which ``top_p`` chooses; 0 from all.
        min_p: sample from tokens that are at least this share as likely as the likeliest.
        max_new_tokens: the longest reply, in tokens.
        stop: strings that end a reply; the string itself stays in it.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_new_tokens: int = 512
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(self.temperature >= 0, "sampling.temperature", self.temperature, "a number ≥ 0 (0 is greedy)")
        require(0 < self.top_p <= 1, "sampling.top_p", self.top_p, "a number in (0, 1]")
        require(self.top_k >= 0, "sampling.top_k", self.top_k, "a whole number ≥ 0 (0 is all tokens)")
        require(0 <= self.min_p <= 1, "sampling.min_p", self.min_p, "a number in [0, 1]")
        require(self.max_new_tokens >= 1, "sampling.max_new_tokens", self.max_new_tokens, "a whole number ≥ 1")
        require(all(self.stop), "sampling.stop", self.stop, "strings that are not empty")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0 or self.top_k == 1

    @property
    def truncates(self) -> bool:
        """Whether some tokens are never drawn."""
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0


@runtime_checkable
class Policy(Protocol):
    """A way to sample replies. Many ``complete`` calls may be awaited at once; the policy batches them as it likes,
    and the batch must not change what any of them returns.

    A policy may have ``counts``, a ``Counter`` of what went wrong and was tried again, and ``usage``, one of the tokens
    that a server says it read and wrote, which both go into the manifest; ``max_failed``, the share of conversations
    that may fail with ``RequestFailed``; and ``async aclose()``, called when a collection ends. Where that is costly to
    undo it may have ``keep_running()``, a context within which ``aclose`` waits for the context's end.
    """

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides what the policy says: weights, configuration, chat template."""
        ...

    @property
    def chat(self) -> Chat:
        """How conversations become this policy's ids."""
        ...

    @property
    def context_length(self) -> int | None:
        """The most tokens a prompt and its reply may have together, where there is a limit."""
        ...

    async def complete(self, prompt_ids: tuple[int, ...], *, sampling: Sampling, seed: int) -> Completion:
        """Sample one reply to ``prompt_ids``; the same arguments give the same reply."""
        ...


@runtime_checkable
class TextPolicy(Protocol):
    """A policy that is given text and returns text, because nobody says which ids it saw and sampled.

    What it says can be judged, measured and logged. To be trained it must be tokenized first (``drift import``).
    ``counts``, ``usage``, ``max_failed`` and ``aclose`` are as in ``Policy``.
    """

    @property
    def fingerprint(self) -> str:
        """Hash of what is known to decide what the policy says."""
        ...

    async def reply(self, messages: Sequence[Message], *, sampling: Sampling, seed: int) -> Completion:
        """Sample one reply to a conversation; its ``token_ids`` are empty."""
        ...


AnyPolicy = Policy | TextPolicy


def is_text_only(policy: AnyPolicy) -> TypeIs[TextPolicy]:
    """Which kind ``policy`` is. Asked at every turn, where ``isinstance`` of a protocol costs as much as the turn."""
    return hasattr(policy, "reply")


class ContextExceeded(PolicyError):
    """A conversation has become too long for the policy, which may be a server that says so; it ends there."""


class RequestFailed(PolicyError):
    """One request got no reply, while others may get theirs: its conversation fails, and the run goes on.

    Args:
        kind: under which it is counted, such as ``content_filter`` or ``http_500``.
        words: why; a server's own.
    """

    def __init__(self, kind: str, words: str) -> None:
        super().__init__(f"{kind}: {words}")
        self.kind, self.words = kind, words


class UnusableReply(RequestFailed):
    """A reply that a conversation can't go on from, such as a thought without an answer; it is recorded as it is.

    Args:
        kind: under which it is counted.
        words: why.
        completion: the reply.

    Attributes:
        prompt_ids: what the policy was prompted with; empty for text alone.
    """

    def __init__(self, kind: str, words: str, completion: Completion) -> None:
        super().__init__(kind, words)
        self.completion = completion
        self.prompt_ids: tuple[int, ...] = ()


async def next_reply(
    policy: AnyPolicy, messages: Sequence[Message], previous: Turn | None, *, sampling: Sampling, seed: int
) -> tuple[tuple[int, ...], Completion]:
    """The prompt ids and the reply of ``policy`` to a conversation, whichever kind of policy it is.

    Args:
        policy: with ids or text alone.
        messages: the conversation so far; the last message is not the assistant's.
        previous: the assistant's last turn; ``None`` if this is its first.
        sampling: how the reply is drawn.
        seed: of this reply.

    Returns:
        What the policy was prompted with (empty for text alone), and its reply.

    Raises:
        ContextExceeded: prompt and reply would not fit the policy's context.
        RequestFailed: this request gets no reply that the conversation can go on from; others may.
        PolicyError: a log-probability of the reply is not finite.
    """
    if is_text_only(policy):
        reply = await policy.reply(messages, sampling=sampling, seed=seed)
        check_finite(policy, messages, reply)
        return (), reply
    prompt = policy.chat.first(messages) if previous is None else policy.chat.next(messages, previous)
    limit = policy.context_length
    if limit is not None and len(prompt) + sampling.max_new_tokens > limit:
        raise ContextExceeded(
            f"a prompt of {len(prompt)} tokens and a reply of up to {sampling.max_new_tokens} don't fit the policy's "
            f"context of {limit}. Shorten the conversation or lower sampling.max_new_tokens."
        )
    try:
        reply = await policy.complete(prompt, sampling=sampling, seed=seed)
    except UnusableReply as failure:
        failure.prompt_ids = prompt
        raise
    check_finite(policy, messages, reply)
    return prompt, reply


def check_finite(policy: AnyPolicy, messages: Sequence[Message], reply: Completion) -> None:
    """Raise ``PolicyError`` where a log-probability of a reply is NaN or infinite: it was not sampled from anything."""
    bad = next((value for value in reply.logprobs or () if not math.isfinite(value)), None)
    if bad is not None:
        raise PolicyError(
            f"the policy {policy.fingerprint} replied to {messages[-1]['content'][:200]!r} "
            f"with a log-probability of {bad}, expected a finite number. Look at the model's weights and precision."
        )


def with_template_arguments(own: str, arguments: Mapping[str, Any], *texts: str) -> str:
    """The fingerprint of a policy whose prompts have more to them than the conversation; without it, that of the model.

    Args:
        own: the model's.
        arguments: what its chat template is given.
        texts: what prompts hold besides: a system message, a prefill.
    """
    given = [dict(arguments), *texts] if any(texts) else dict(arguments)
    if not given:
        return own
    return own + _TEMPLATE + hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:8]


def model_part(fingerprint: str) -> str:
    """A policy's fingerprint without what its chat template was given: which model it is."""
    return fingerprint.partition(_TEMPLATE)[0]


def old_note(fingerprint: str) -> str:
    """A sentence to say of a fingerprint that an earlier version made; empty for one of this version."""
    if not fingerprint.startswith(("hf-", "files-")):
        return ""
    return (
        f" {fingerprint} was made by an earlier version of drift, whose fingerprints covered neither the configuration "
        "nor all weights, and can't be compared with one of this version."
    )


def derive_seed(*parts: object) -> int:
    """A 63-bit seed that depends on ``parts`` alone. Distinct parts give distinct seeds for all practical purposes.

    Trajectories use ``derive_seed(run seed, task id, sample)`` and their turns ``derive_seed(that, turn)``, so that
    neither batch nor order changes what a trajectory is, and no two requests ever share a seed.
    """
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
