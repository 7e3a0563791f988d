"""Messages to token ids: the one place where a chat template meets the ids that a policy sampled."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from drift.errors import PolicyError, require
from drift.template_limits import MOST_TEXT, MOST_TEXT_PER_CHARACTER, check_template
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
        system: stands first in every conversation, before the conversation's own system message.
        prefill: how every reply begins: part of the prompt's ids and of the reply's text. Names of control tokens in
            it are control tokens.

    Attributes:
        takes_thinking: the template has a place for what the assistant thought, beside what it said.
        takes_calls: it has one for the assistant's calls of tools.
        takes_tools: it has one for the list of tools.

    Raises:
        ConfigError: the template reads no such argument.
        PolicyError: the tokenizer has no chat template, or the template refuses a conversation.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        source: str,
        arguments: Mapping[str, Any] | None = None,
        system: str = "",
        prefill: str = "",
    ) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise PolicyError(
                f"the tokenizer of {source!r} has no chat template, which multi-turn conversation needs. "
                "Use an instruction-tuned model, or set tokenizer.chat_template and save the tokenizer with the model."
            )
        for template in _texts_of(tokenizer.chat_template):
            check_template(template, source)
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
        self._system, self._prefill = system, prefill
        added = getattr(tokenizer, "added_tokens_decoder", {}).items()
        names = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        names |= {token.content: token_id for token_id, token in added if token.special}
        self._names = names
        # What a tokenizer has no letters for is an ordinary id in ordinary text.
        self._control_ids = frozenset(names.values()) - {getattr(tokenizer, "unk_token_id", None)}
        longest_first = sorted(filter(None, names), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        # A name, or a character that a name begins with.
        begins = "".join(sorted({re.escape(name[0]) for name in longest_first}))
        self._begins = re.compile(f"(?P<name>{self._control.pattern})" + (f"|[{begins}]" if begins else ""))
        # Samples of one task open alike, feedback repeats, and every prompt of a conversation holds those before it.
        # Each call of a tokenizer costs a fraction of a millisecond, which every open conversation waits for.
        self._fast = self._fast_one()
        self._remembered = functools.lru_cache(maxsize=4096)(self._tokenized)
        self._between_names = re.compile(f"({self._control.pattern})") if self._parts_at(longest_first) else None
        self._remember_structures()
        self._for_tools = functools.lru_cache(maxsize=64)(self._given_tools)
        # A template that knows thinking in the text alone is given both as one.
        self._joins = False
        self._thinking = self._marks_of_thinking()
        self._joins = self._thinking is _IN_THE_TEXT
        self._has_parts = self._thinking is not None or self._has_template_of_replies()
        asked = self._sealed([{"role": "user", "content": "?"}])[1] if system else ""
        if system.strip() not in _MARKS.sub("", asked):
            raise PolicyError(
                f"the chat template of {source!r} leaves out what the system message says. "
                "Take policy.system away, and let the environment's first message say it."
            )
        beside = self._thinking is not None or self._writes(_THOUGHT, reasoning_content=_THOUGHT)
        self.takes_thinking = beside and not self._joins
        self.takes_calls = self._writes(_PROBE, content="", tool_calls=[_call(_PROBE)])
        self.takes_tools = self._for_tools(json.dumps([_tool(_THOUGHT)]))._writes(_THOUGHT, content="")

    def first(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Ids of the opening messages, ready for the assistant's first reply."""
        return self._ids(self._sealed(messages)[1] + self._prefill)

    def next(self, messages: Sequence[Message], previous: Turn) -> tuple[int, ...]:
        """Ids ready for the next reply; extends the sampled ids wherever the template allows it."""
        messages, after = self._sealed(messages)
        reply_at = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
        before = self._render(messages[:reply_at])
        sampled = previous.completion.token_ids
        after += self._prefill
        in_parts = self._has_parts and self._text(previous.prompt_ids, sampled, plain=True) != previous.completion.text
        if in_parts:
            cut = self._end_of_parts(before, previous, after)
        else:
            cut = _end_of_reply(before, messages[reply_at]["content"], after)
        if cut is None:
            return self._ids(after)
        # An end-of-turn token that the policy sampled is not repeated by the template's own.
        for suffix in map(self._ids, (after[cut:], after[cut:].lstrip())):
            if sampled and suffix and sampled[-1] == suffix[0] and sampled[-1] in self._tokenizer.all_special_ids:
                return previous.prompt_ids + sampled + suffix[1:]
        return previous.prompt_ids + sampled + self._ids(after[cut:])

    def parts(
        self, prompt_ids: Sequence[int], token_ids: Sequence[int], end_ids: Collection[int] = ()
    ) -> tuple[str, str]:
        """Text and thinking of a sampled reply, without the token that ends it.

        They are told apart by the tokenizer's response template, where it has one, or else by what the chat template
        writes around a reply's thinking: ``<think>`` and ``</think>``, or gpt-oss's channels. With a template that
        knows no thinking, all of a reply is text. A thought that never ends leaves no text.

        Args:
            prompt_ids: what was sampled after; some templates open the thought there.
            token_ids: what was sampled.
            end_ids: every id that ends a reply.
        """
        kept = len(token_ids)
        while kept and token_ids[kept - 1] in end_ids:
            kept -= 1
        ids = list(token_ids[:kept])
        text, raw = (self._text(prompt_ids, ids, plain=plain) for plain in (True, False))
        if self._has_template_of_replies():
            parsed = _parsed(self._tokenizer, self._decoded(token_ids), self._decoded(prompt_ids))
            if parsed is not None:
                return parsed
        if self._thinking is None:
            return text, ""
        opening, closing, header = self._thinking
        thought, closed, said = raw.partition(closing)
        asked = self._decoded(self._end_of_prompt(prompt_ids)).removesuffix(self._prefill)
        opened = asked.rstrip().endswith(opening)
        if not closed and not opened and not raw.lstrip().startswith(opening):
            if not header or not raw.lstrip().startswith(header):
                return text, ""
            thought, said = "", raw.lstrip().removeprefix(header)
        thought = thought.strip().removeprefix(opening)
        return self._control.sub("", said).strip(), self._control.sub("", thought).strip()

    def _remember_structures(self) -> None:
        self._usual_controls = functools.lru_cache(maxsize=256)(self._controls_without_content)
        self._usual_tail = functools.lru_cache(maxsize=256)(self._after_any_reply)

    def _given_tools(self, tools: str) -> TemplateChat:
        """The same where the assistant can call ``tools``, a JSON list; what they say stays text."""
        other = copy.copy(self)
        marked = _each_text(json.loads(tools), lambda text: self._control.sub(_around, text))
        other._arguments = {**self._arguments, "tools": marked}
        other._remember_structures()
        return other

    def _writes(self, needle: str, **fields: Any) -> bool:
        """Whether the template writes ``needle`` of a reply with these fields."""
        reply: Any = {"role": "assistant", "content": "?", **fields}
        try:
            return needle in self._render([{"role": "user", "content": "?"}, reply], add_generation_prompt=False)
        except (PolicyError, TypeError, ValueError):
            return False

    def _has_template_of_replies(self) -> bool:
        return bool(getattr(self._tokenizer, "response_template", None))

    def _text(self, prompt_ids: Sequence[int], ids: Sequence[int], *, plain: bool) -> str:
        """A reply's text from its prefill on, with the names of its control tokens or, if ``plain``, without them."""
        if not self._prefill:
            return self._decoded(ids, plain=plain)
        # In one piece: some tokenizers write a word's space only after another word.
        before = self._end_of_prompt(prompt_ids)
        continued = self._decoded([*before, *ids], plain=plain)[len(self._decoded(before, plain=plain)) :]
        return (self._control.sub("", self._prefill) if plain else self._prefill) + continued

    def _end_of_prompt(self, prompt_ids: Sequence[int]) -> Sequence[int]:
        """As much of a prompt as holds the prefill and what the template opens a thought with before it."""
        return prompt_ids[-_OPENING_IDS - len(self._prefill.encode()) :]

    def _decoded(self, ids: Sequence[int], *, plain: bool = False) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=plain, clean_up_tokenization_spaces=False)
        return text

    def _marks_of_thinking(self) -> tuple[str, str, str] | None:
        """What the template puts before a thought, between it and the text, and before a text without a thought.

        Returns:
            ``None`` where it knows no thinking.
        """
        asked: list[Message] = [{"role": "user", "content": "?"}]
        thoughtful: Message = {"role": "assistant", "content": _PROBE, "reasoning_content": _THOUGHT}
        try:
            before = self._render(asked)
            text = self._render([*asked, thoughtful], add_generation_prompt=False)
            plain = self._render([*asked, {"role": "assistant", "content": _PROBE}], add_generation_prompt=False)
        except (PolicyError, TypeError):
            return None
        lead, written, rest = text.partition(_THOUGHT)
        closing = rest.partition(_PROBE)[0].strip()
        if not written or not closing or _PROBE not in rest:
            template = str(self._tokenizer.chat_template)
            return _IN_THE_TEXT if _END_OF_THINKING in template else None
        opening = lead.removeprefix(before).strip() if lead.startswith(before) else ""
        if not opening:
            # Opened by the prompt: <think> for </think>, [THINK] for [/THINK].
            opening = closing.replace("/", "", 1)
            if not before.rstrip().endswith(opening):
                return None
        header = plain.removeprefix(before).partition(_PROBE)[0].strip() if plain.startswith(before) else ""
        return opening, closing, header

    def _end_of_parts(self, before: str, previous: Turn, after: str) -> int | None:
        """As ``_end_of_reply``, of a reply with thinking or a header: the whole of what was sampled must be there."""
        sampled = previous.completion.token_ids
        kept = len(sampled)
        while kept and sampled[kept - 1] in self._control_ids:
            kept -= 1
        words = map(re.escape, self._text(previous.prompt_ids, sampled[:kept], plain=False).split())
        found = re.compile(r"\s*" + r"\s*".join(words)).match(after, len(before)) if after.startswith(before) else None
        if found is None:
            return None
        # Another end than the one that was sampled is other history.
        ending = self._control.match(after[found.end() :].lstrip())
        ended = kept < len(sampled) and (ending is None or self._names[ending[0]] != sampled[kept])
        return None if ended else found.end()

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

    def logged(
        self,
        messages: Sequence[Message],
        following: Message | None,
        end_ids: Collection[int],
        *,
        cut_off: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Prompt and reply of a logged conversation: the ids of the template's own text of it, cut in two.

        Where ``P`` is what the template would ask the model to continue and ``R`` what it writes of the conversation
        with the reply, the prompt is what the ids of both begin with, and the reply is the rest of R's::

            P = <|user|>How?<|end|><|assistant|>
            R = <|user|>How?<|end|><|assistant|><|channel|>final<|message|>So.<|end|>
                ------------- prompt ----------- ---------------- reply ------------

        It ends with the first of ``end_ids`` that R has after the reply's text. Where it has none, it gets one: that
        which begins what the template puts before the next message, or else ``end_of_turn``.

        Args:
            messages: the conversation, up to the reply and with it.
            following: the message after the reply, if there is one.
            end_ids: every id that ends a reply.
            cut_off: the reply was never finished, so that it ends with its text.
            tools: what the assistant could call.

        Raises:
            PolicyError: the template refuses the conversation, or doesn't write the reply after what asks for it.
        """
        if tools:
            chat = self._for_tools(json.dumps(tools))
            return chat.logged(messages, following, end_ids, cut_off=cut_off)
        if self._joins:
            # A template that knows thinking in the text alone writes none that stands beside it.
            messages = [without_thinking(message) for message in messages]
        sealed, whole = self._sealed(messages, add_generation_prompt=False)
        asked, tail = self._render(sealed[:-1]), self._tail(sealed, whole, end_ids)
        end = len(whole) - len(tail)
        said = sealed[-1]["content"].rpartition(_END_OF_THINKING)[2].lstrip(f"{_CLOSE}\n ").rstrip()
        start = self._start_of_reply(sealed, asked, whole, whole[:end].rstrip().removesuffix(said))
        if start is None or not whole.endswith(tail) or not whole[start:end].strip():
            raise PolicyError(
                f"the chat template of {self._source!r} doesn't write the reply {messages[-1]['content'][:80]!r} after "
                "what asks for it, so that there are no ids to train. Take out of the conversation what the template "
                "changes."
            )
        closing = next((m for m in self._control.finditer(tail) if self._names[m[0]] in end_ids), None)
        ending: tuple[int, ...] = ()
        if closing is not None and not cut_off:
            end += closing.end()
        elif not cut_off:
            ending = (self._opening_end(sealed[:-1], following, end_ids),)
        prompt = self._ids(asked)
        if start:
            return prompt, self._ids(whole[start:end]) + ending
        ids = self._ids(whole[:end])
        alike = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(prompt, ids, strict=False)))
        return ids[:alike], ids[alike:] + ending

    def _tail(self, messages: Sequence[Message], whole: str, end_ids: Collection[int]) -> str:
        """What ``whole`` has after the last reply: what the template writes after any, or, after calls, their end."""
        tail = self._usual_tail(tuple(map(_structure, messages[:-1])))
        if tail is None or not whole.endswith(tail):
            tail = self._after_reply(messages[:-1])
        if not whole.endswith(tail) and messages[-1].get("tool_calls"):
            ends = [match.start() for match in self._control.finditer(whole) if self._names[match[0]] in end_ids]
            return whole[ends[-1] :] if ends else ""
        return tail

    def _after_any_reply(self, structures: tuple[Structure, ...]) -> str | None:
        try:
            return self._after_reply(list(map(_without_content, structures)))
        except PolicyError:
            return None

    def _start_of_reply(self, messages: Sequence[Message], asked: str, whole: str, lead: str) -> int | None:
        """Where the reply begins in ``whole``, if the template writes the conversation before it otherwise than asked.

        Returns:
            0 where it writes that alike, and ``None`` where the reply does not follow what asks for one.
        """
        if whole.startswith(asked):
            return 0
        history = self._render(messages[:-1], add_generation_prompt=False)
        if asked.startswith(history.rstrip()) and whole.startswith(history.rstrip()):
            return 0
        header = asked.removeprefix(history)
        if not header:
            return len(lead.rstrip())
        return len(lead) if lead.endswith(header) else None

    def end_of_turn(self, end_ids: Collection[int]) -> int:
        """The id that ends a reply: that of ``end_ids`` which the template puts after one, or else the tokenizer's.

        Where nothing closes a reply, this is the id that begins a user's message, if it is one of ``end_ids``.
        """
        asked: list[Message] = [{"role": "user", "content": "?"}]
        first = next((i for i in self._ids(self._after_reply(asked)) if i in end_ids), None)
        return self._opening_end(asked, None, end_ids) if first is None else first

    def _after_reply(self, asked: Sequence[Message], *following: Message) -> str:
        """What the template writes after the text of a reply to ``asked``."""
        probe: Message = {"role": "assistant", "content": _PROBE}
        return self._render([*asked, probe, *following], add_generation_prompt=False).rpartition(_PROBE)[2]

    def _opening_end(self, asked: Sequence[Message], following: Message | None, end_ids: Collection[int]) -> int:
        """The end id with which the message after a reply to ``asked`` begins, or else the tokenizer's own."""
        own = self._tokenizer.eos_token_id
        usual: int = own if own is not None else min(end_ids)
        role = "user" if following is None else following["role"]
        try:
            opening = self._control.match(self._after_reply(asked, {"role": role, "content": "?"}))
        except PolicyError:
            return usual
        found = self._names[opening[0]] if opening else usual
        return found if found in end_ids else usual

    def _sealed(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> tuple[list[Message], str]:
        """The messages with marks, and the template's text of them, in which no control token is of their making."""
        messages = self._with_system(messages)
        marked = _marked(messages, self._control, _around)
        text = self._render(marked, add_generation_prompt=add_generation_prompt)
        found = self._controls(text)
        if found == self._usual_controls(tuple(map(_structure, messages)), add_generation_prompt):
            return marked, text
        parted = _marked(messages, self._begins, _around_or_after)
        other = self._render(parted, add_generation_prompt=add_generation_prompt)
        return (marked, text) if self._controls(other) == found else (parted, other)

    def _with_system(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The conversation under the system message that every one has."""
        if not self._system:
            return messages
        own = [message["content"] for message in messages[:1] if message["role"] == "system"]
        return [{"role": "system", "content": "\n\n".join([self._system, *own])}, *messages[len(own) :]]

    def _controls(self, text: str) -> tuple[str, ...]:
        """The control tokens of a rendered text that no mark stands around, in their order."""
        unmarked = (part for piece in _BETWEEN_MARKS.split(text)[::2] for part in _MARKS.split(piece))
        return tuple(name for part in unmarked for name in self._control.findall(part))

    def _controls_without_content(
        self, structures: tuple[Structure, ...], add_generation_prompt: bool
    ) -> tuple[str, ...] | None:
        messages = list(map(_without_content, structures))
        try:
            return self._controls(self._render(messages, add_generation_prompt=add_generation_prompt))
        except PolicyError:
            return None

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        from jinja2 import TemplateError

        given = [self._with_thinking(message) for message in messages]
        try:
            text: str = self._tokenizer.apply_chat_template(
                given, add_generation_prompt=add_generation_prompt, tokenize=False, **self._arguments
            )
            # Half a character has no ids.
            text.encode()
        except Exception as error:
            # A template that somebody wrote raises anything.
            kind = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
            raise PolicyError(self._refusal(messages, f"{kind}{error}")) from error
        said = sum(len(message["content"]) for message in messages)
        if len(text) > MOST_TEXT + MOST_TEXT_PER_CHARACTER * said:
            raise PolicyError(self._refusal(messages, f"it writes {len(text):,} characters of {said:,}"))
        return text

    def _with_thinking(self, message: Message) -> dict[str, object]:
        """A message with what was thought where the template looks for it: in a field of one of two names, or text."""
        if "reasoning_content" not in message:
            return {**message}
        thought = message["reasoning_content"]
        if not self._joins:
            return {**message, "thinking": thought}
        content = f"<think>\n{thought}\n{_END_OF_THINKING}\n\n{message['content']}"
        return {"role": message["role"], "content": content}

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
                    ids += self._encoded(part)
        return tuple(ids)

    def _encoded(self, text: str) -> list[int]:
        """Ids of ``text``, in which names of control tokens are control tokens."""
        ids: list[int] = []
        for at, part in enumerate(self._between_names.split(text) if self._between_names else [text]):
            if at % 2:
                ids.append(self._names[part])
            elif part:
                ids += self._remembered(part) if len(part) <= _REMEMBERED_CHARACTERS else self._tokenized(part)
        return ids

    def _tokenized(self, text: str) -> tuple[int, ...]:
        fast = self._fast
        # Whoever else tokenizes with it may have told it to cut, to pad, or to take names for text.
        if fast is None or fast.truncation is not None or fast.padding is not None or fast.encode_special_tokens:
            return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        return tuple(fast.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    def _fast_one(self) -> Any:
        """The tokenizer behind transformers' one, which takes a third of the time, where the ids are the same."""
        fast = getattr(self._tokenizer, "backend_tokenizer", None)
        if fast is None:
            return None
        wanted = [self._tokenizer(text, add_special_tokens=False)["input_ids"] for text in _BETWEEN_NAMES]
        found = fast.encode_batch_fast(list(_BETWEEN_NAMES), add_special_tokens=False)
        return fast if [each.ids for each in found] == wanted else None

    def _parts_at(self, names: Sequence[str]) -> bool:
        """Whether what stands between control tokens has the same ids alone as in a longer text."""
        added = getattr(self._tokenizer, "added_tokens_decoder", {}).values()
        takes_more = any(each.lstrip or each.rstrip or each.single_word or each.normalized for each in added)
        if takes_more or not names:
            return False
        texts = itertools.cycle(_BETWEEN_NAMES)
        parts = [part for name in names for part in (next(texts), name)]
        alone = [(self._names[part],) if at % 2 else self._tokenized(part) for at, part in enumerate(parts)]
        return self._tokenized("".join(parts)) == tuple(itertools.chain.from_iterable(alone))


_REMEMBERED_CHARACTERS = 4096
# Texts by which it is told whether a tokenizer takes control tokens for borders: words, spaces, lines, digits, marks.
_BETWEEN_NAMES = ("user\nHow many?", " a b ", "x", "\n\n 12, é", "1", "  ", "A.\n", "\n", "…", "\tif x:\n    y", "'s")
_PROBE = "drift-probe"
_THOUGHT = "drift-thought"
_END_OF_THINKING = "</think>"
_IN_THE_TEXT = ("<think>", _END_OF_THINKING, "")
# Enough for what a template opens a thought with, at the end of a prompt.
_OPENING_IDS = 32
# What a template is always given, and its caller's own arguments.
_GIVEN = ("messages", "add_generation_prompt", "tokenize", "conversation", "chat_template", "tools", "documents")
# Code points that Unicode reserves for use inside a program; no text that is meant for others holds them.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_MARKS = re.compile(f"[{_OPEN}{_CLOSE}]")
_BETWEEN_MARKS = re.compile(f"{_OPEN}([^{_OPEN}{_CLOSE}]*){_CLOSE}")


def _texts_of(templates: Any) -> list[str]:
    """One chat template, or several by name, as transformers takes them."""
    return [templates] if isinstance(templates, str) else [str(each) for each in dict(templates).values()]


def _marked(messages: Sequence[Message], found: re.Pattern[str], mark: Callable[[re.Match[str]], str]) -> list[Message]:
    """The messages with ``mark`` put on whatever of their text, thinking and calls is ``found``."""
    marked: list[Message] = []
    for message in messages:
        other: Message = {**message, "content": found.sub(mark, message["content"])}
        if "reasoning_content" in message:
            other["reasoning_content"] = found.sub(mark, message["reasoning_content"])
        if "tool_calls" in message:
            other["tool_calls"] = _each_text(message["tool_calls"], lambda text: found.sub(mark, text))
        marked.append(other)
    return marked


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON value with ``change`` made to every text in it."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _each_text(each, change) for key, each in value.items()}
    return [_each_text(each, change) for each in value] if isinstance(value, list | tuple) else value


# Of a message: who speaks, and whether it has a text, a thought, and how many calls.
Structure = tuple[Role, bool, bool, int]


def without_thinking(message: Message) -> Message:
    """A message without what was thought before it."""
    return {key: message[key] for key in message if key != "reasoning_content"}  # type: ignore[literal-required, return-value]


def _structure(message: Message) -> Structure:
    calls = len(message.get("tool_calls", ()))
    return message["role"], bool(message["content"]), "reasoning_content" in message, calls


def _without_content(structure: Structure) -> Message:
    role, text, thought, calls = structure
    message: Message = {"role": role, "content": "x" if text else ""}
    if thought:
        message["reasoning_content"] = "x"
    if calls:
        message["tool_calls"] = [_call("x") for _ in range(calls)]
    return message


def _call(name: str) -> dict[str, Any]:
    # Some templates take ids of nine letters alone.
    return {"type": "function", "id": "callprobe", "function": {"name": name, "arguments": {"x": "x"}}}


def _tool(name: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"x": {"type": "string", "description": "x"}}, "required": ["x"]}
    return {"type": "function", "function": {"name": name, "description": "x", "parameters": parameters}}


def _around(name: re.Match[str]) -> str:
    """Marks around what reads like a control token, which the template carries into its text."""
    return _OPEN + name[0] + _CLOSE


def _around_or_after(found: re.Match[str]) -> str:
    """The same, and a mark after what a name could begin with, so that none begins there."""
    return _around(found) if found["name"] else found[0] + _CLOSE


def _parsed(tokenizer: Any, raw: str, prompt: str) -> tuple[str, str] | None:
    """Text and thinking by the tokenizer's response template; ``None`` where it reads neither, or also tool calls."""
    try:
        found = tokenizer.parse_response(raw, prefix=prompt)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    if not isinstance(found, dict) or found.get("tool_calls"):
        return None
    text, thinking = found.get("content"), found.get("thinking") or found.get("reasoning_content")
    if not isinstance(text, str) and not isinstance(thinking, str):
        return None
    return (text or "").strip(), (thinking or "").strip()


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
