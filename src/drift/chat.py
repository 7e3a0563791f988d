"""Messages to token ids: the one place where a chat template meets the ids that a policy sampled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from drift.errors import PolicyError
from drift.types import Message, Turn


class Chat(Protocol):
    """Turns a conversation into the ids a policy is asked to continue."""

    def first(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Ids of the opening messages, ready for the assistant's first reply."""
        ...

    def next(self, messages: Sequence[Message], previous: Turn) -> tuple[int, ...]:
        """Ids ready for the assistant's next reply.

        Args:
            messages: the whole conversation so far: what ``previous`` was prompted with, its reply, the feedback.
            previous: the last turn, whose ids are kept as they were sampled.
        """
        ...


class TemplateChat:
    """A Hugging Face tokenizer's own chat template.

    Sampled ids are never tokenized again. Where the template leaves earlier text as it is, the next prompt is::

        prompt_ids + completion.token_ids + ids of what the template puts after the reply

    Where it rewrites history (dropping earlier thinking, say), the next prompt is the template's new rendering, and
    the turn becomes a training row of its own, since it no longer extends the turn before.

    Raises:
        PolicyError: the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Any, *, source: str) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise PolicyError(
                f"the tokenizer of {source!r} has no chat template, which multi-turn conversation needs. "
                "Use an instruction-tuned model, or set tokenizer.chat_template and save the tokenizer with the model."
            )
        self._tokenizer = tokenizer

    def _render(self, messages: Sequence[Message]) -> str:
        text: str = self._tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
        return text

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def first(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Ids of the opening messages, ready for the assistant's first reply."""
        return self._ids(self._render(messages))

    def next(self, messages: Sequence[Message], previous: Turn) -> tuple[int, ...]:
        """Ids ready for the next reply; extends the sampled ids wherever the template allows it."""
        reply_at = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
        before = self._render(messages[:reply_at])
        after = self._render(messages)
        reply = messages[reply_at]["content"]
        # Many templates trim replies; the ids keep the whitespace that was sampled.
        for shown in (reply, reply.strip()):
            if after.startswith(before + shown):
                break
        else:
            return self._ids(after)
        sampled = previous.completion.token_ids
        suffix = self._ids(after[len(before) + len(shown) :])
        # An end-of-turn token that the policy sampled is not repeated by the template's own.
        if sampled and suffix and sampled[-1] == suffix[0] and sampled[-1] in self._tokenizer.all_special_ids:
            suffix = suffix[1:]
        return previous.prompt_ids + sampled + suffix


class ByteChat:
    """A plain chat format over UTF-8 bytes, for policies that have no tokenizer: ``role: content`` lines."""

    def first(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Bytes of the opening messages and of the assistant's label."""
        return tuple("".join(f"{m['role']}: {m['content']}\n" for m in messages).encode() + b"assistant: ")

    def next(self, messages: Sequence[Message], previous: Turn) -> tuple[int, ...]:
        """Bytes of the conversation so far; always extends the previous prompt and reply."""
        reply_at = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
        return previous.prompt_ids + previous.completion.token_ids + (10, *self.first(messages[reply_at + 1 :]))


def extends(previous: Turn, following: Turn) -> bool:
    """Whether ``following`` was prompted with exactly what ``previous`` saw and sampled, and something after it."""
    seen = previous.prompt_ids + previous.completion.token_ids
    return following.prompt_ids[: len(seen)] == seen
