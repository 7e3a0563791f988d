"""Messages to token ids: the one place where a chat template meets the ids that a policy sampled."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from drift.errors import PolicyError, require
from drift.types import Message, Role, Turn


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

    What a message says stays text: a control token's name in it (``<|im_end|>``) is tokenized as letters, so that
    nobody ends a turn, or speaks for another role, by writing so. Tokenizers that put a space before every text they
    are given put one before and after such a name. Nor does a template that takes something out of messages put a name
    together from what is left: where it renders other control tokens than for a conversation of the same roles without
    any content, the texts are parted wherever a name could begin.

    Args:
        tokenizer: with a chat template.
        source: how messages name the model.
        arguments: what the template is given beside the messages.

    Raises:
        ConfigError: the template reads no such argument.
        PolicyError: the tokenizer has no chat template, or the template refuses a conversation.
    """

    def __init__(self, tokenizer: Any, *, source: str, arguments: Mapping[str, Any] | None = None) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise PolicyError(
                f"the tokenizer of {source!r} has no chat template, which multi-turn conversation needs. "
                "Use an instruction-tuned model, or set tokenizer.chat_template and save the tokenizer with the model."
            )
        for key in arguments or {}:
            require(
                key not in _GIVEN and key in str(tokenizer.chat_template),
                "policy.chat_template_kwargs",
                key,
                f"arguments that the chat template of {source!r} reads",
            )
        self._tokenizer = tokenizer
        self._source = source
        self._arguments = dict(arguments or {})
        added = getattr(tokenizer, "added_tokens_decoder", {}).items()
        names = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        names |= {token.content: token_id for token_id, token in added if token.special}
        # What a tokenizer has no letters for is an ordinary id in ordinary text.
        self._control_ids = frozenset(names.values()) - {getattr(tokenizer, "unk_token_id", None)}
        longest_first = sorted(filter(None, names), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        # A name, or a character that a name begins with.
        begins = "".join(sorted({re.escape(name[0]) for name in longest_first}))
        self._begins = re.compile(f"(?P<name>{self._control.pattern})" + (f"|[{begins}]" if begins else ""))
        # Samples of one task open alike, and feedback repeats; each call of a tokenizer costs a fraction of a
        # millisecond, which every open conversation waits for.
        self._remembered = functools.lru_cache(maxsize=4096)(self._encoded)
        self._usual_controls = functools.lru_cache(maxsize=256)(self._controls_without_content)

    def first(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Ids of the opening messages, ready for the assistant's first reply."""
        return self._ids(self._sealed(messages)[1])

    def next(self, messages: Sequence[Message], previous: Turn) -> tuple[int, ...]:
        """Ids ready for the next reply; extends the sampled ids wherever the template allows it."""
        messages, after = self._sealed(messages)
        reply_at = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
        before = self._render(messages[:reply_at])
        cut = _end_of_reply(before, messages[reply_at]["content"], after)
        if cut is None:
            return self._ids(after)
        sampled = previous.completion.token_ids
        # An end-of-turn token that the policy sampled is not repeated by the template's own.
        for suffix in map(self._ids, (after[cut:], after[cut:].lstrip())):
            if sampled and suffix and sampled[-1] == suffix[0] and sampled[-1] in self._tokenizer.all_special_ids:
                return previous.prompt_ids + sampled + suffix[1:]
        return previous.prompt_ids + sampled + self._ids(after[cut:])

    def text_ids(self, text: str) -> tuple[int, ...]:
        """Ids of ``text`` on its own, with no control token among them whatever it says.

        Raises:
            PolicyError: the tokenizer can't write a control token's name as letters.
        """
        ids = tuple(self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
        if not self._control_ids.isdisjoint(ids):
            raise PolicyError(
                f"the tokenizer of {self._source!r} makes control tokens of the text {text[:80]!r}, expected letters. "
                "Take the control tokens' names out of the text, or use the model's fast tokenizer."
            )
        return ids

    def end_of_turn(self, end_ids: Collection[int]) -> int:
        """The id that ends a reply: that of ``end_ids`` which the template puts after one, or else the tokenizer's."""
        probe = "drift-probe"
        asked: list[Message] = [{"role": "user", "content": "?"}, {"role": "assistant", "content": probe}]
        after = self._render(asked, add_generation_prompt=False).rpartition(probe)[2]
        own = self._tokenizer.eos_token_id
        return next((i for i in self._ids(after) if i in end_ids), own if own is not None else min(end_ids))

    def _sealed(self, messages: Sequence[Message]) -> tuple[list[Message], str]:
        """The messages with marks, and the template's text of them, in which no control token is of their making."""
        marked = _marked(messages, self._control, _around)
        text = self._render(marked)
        found = self._controls(text)
        if found == self._usual_controls(tuple(message["role"] for message in messages)):
            return marked, text
        parted = _marked(messages, self._begins, _around_or_after)
        other = self._render(parted)
        return (marked, text) if self._controls(other) == found else (parted, other)

    def _controls(self, text: str) -> tuple[str, ...]:
        """The control tokens of a rendered text that no mark stands around, in their order."""
        unmarked = (part for piece in _BETWEEN_MARKS.split(text)[::2] for part in _MARKS.split(piece))
        return tuple(name for part in unmarked for name in self._control.findall(part))

    def _controls_without_content(self, roles: tuple[Role, ...]) -> tuple[str, ...] | None:
        try:
            return self._controls(self._render([{"role": role, "content": "x"} for role in roles]))
        except PolicyError:
            return None

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        from jinja2 import TemplateError

        try:
            text: str = self._tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=add_generation_prompt, tokenize=False, **self._arguments
            )
        except TemplateError as error:
            raise PolicyError(self._refusal(messages, str(error))) from error
        return text

    def _refusal(self, messages: Sequence[Message], reason: str) -> str:
        roles = [message["role"] for message in messages]
        hint = "Give the messages in the order that it takes, or use another model."
        if "system" in roles:
            hint = (
                "If it takes no system message, put what that says at the start of the first user message; "
                "if that is not it, give the messages in the order that the template takes."
            )
        return (
            f"the chat template of {self._source!r} refuses a conversation of the roles {', '.join(roles) or 'none'}: "
            f"{reason.rstrip('.')}. {hint}"
        )

    def _ids(self, text: str) -> tuple[int, ...]:
        ids: list[int] = []
        # Odd pieces lie between marks: names of control tokens that a message wrote.
        for at, piece in enumerate(_BETWEEN_MARKS.split(text)):
            if at % 2:
                ids += self.text_ids(piece)
            else:
                # A mark can be left alone by a template that cuts; what it parted must not grow together.
                for part in filter(None, _MARKS.split(piece)):
                    ids += self._remembered(part) if len(part) <= _REMEMBERED_CHARACTERS else self._encoded(part)
        return tuple(ids)

    def _encoded(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])


_REMEMBERED_CHARACTERS = 4096
# What a template is always given, and its caller's own arguments.
_GIVEN = ("messages", "add_generation_prompt", "tokenize", "conversation", "chat_template", "tools", "documents")
# Code points that Unicode reserves for use inside a program; no text that is meant for others holds them.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_MARKS = re.compile(f"[{_OPEN}{_CLOSE}]")
_BETWEEN_MARKS = re.compile(f"{_OPEN}([^{_OPEN}{_CLOSE}]*){_CLOSE}")


def _marked(messages: Sequence[Message], found: re.Pattern[str], mark: Callable[[re.Match[str]], str]) -> list[Message]:
    return [{**message, "content": found.sub(mark, message["content"])} for message in messages]


def _around(name: re.Match[str]) -> str:
    """Marks around what reads like a control token, which the template carries into its text."""
    return _OPEN + name[0] + _CLOSE


def _around_or_after(found: re.Match[str]) -> str:
    """The same, and a mark after what a name could begin with, so that none begins there."""
    return _around(found) if found["name"] else found[0] + _CLOSE


def _end_of_reply(before: str, reply: str, after: str) -> int | None:
    """Where in ``after`` the reply that follows ``before`` ends; ``None`` if it is not there as it was said.

    Many templates trim replies, and some put a space before them. Either way the ids keep the whitespace that was
    sampled.
    """
    if not after.startswith(before):
        return None
    start = len(before)
    if after.startswith(reply, start):
        return start + len(reply)
    start = len(after) - len(after[start:].lstrip())
    return start + len(reply.strip()) if after.startswith(reply.strip(), start) else None


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
