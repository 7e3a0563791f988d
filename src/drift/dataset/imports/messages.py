"""Messages as logs write them (OpenAI, Anthropic, ShareGPT, OpenTelemetry, …) as chat messages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from drift.dataset.imports.base import BadRow, Fields, is_empty, json_or_none, plain_json, show, unfolded, whole_text
from drift.dataset.imports.columns import Columns
from drift.types import Message, Role

CALL = "call"
ROLES: dict[str, str] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatbot", "ai", "chatgpt", "bing", "bard"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython"), "tool"),
    **dict.fromkeys(("tool_response", "tool_result", "tool_results", "function_response"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), CALL),
}
_THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thought", "thoughts", "reasoning_text", "thinking_content")
_WEIGHTS = ("weight", "loss", "train", "training", "loss_weight", "loss_mask", "trainable")
_SPEAKERS = ("role", "from", "speaker", "sender", "author")
_PICTURES = ("images", "image", "image_url", "image_path")
MEDIA = (*_PICTURES, "audios", "audio", "videos", "video", "files", "objects", "media")
# Under which names a log says why a reply ended, and what it says of one that was cut off.
ENDS = ("finish_reason", "stop_reason", "done_reason", "finishReason")
_CUT_OFF = {
    *("length", "max_tokens", "max_output_tokens", "model_length", "model_context_window_exceeded"),
    *("content_filter", "error"),
}
_CONTENTS = ("content", "value", "parts", "text")
# Under which names a row of a prompt and a reply has what is asked, and a request.
ASKS = ("prompt", "query", "instruction", "question")
ASKED = ("messages", "input", "prompt")
# Kinds of parts, and under which names a part of that kind has what it holds.
_PARTS: dict[str, tuple[str, tuple[str, ...]]] = {
    **dict.fromkeys(("text", "input_text", "output_text"), ("text", ("text", "content"))),
    **dict.fromkeys(
        ("thinking", "reasoning", "thought", "reasoning.text", "reasoning.summary", "summary_text", "reasoning_text"),
        ("thought", ("thinking", "reasoning", "text", "content", "summary")),
    ),
    **dict.fromkeys(("redacted_thinking", "reasoning.encrypted"), ("hidden", ("data",))),
    **dict.fromkeys(("tool_use", "tool_call", "function_call", "function"), ("call", ())),
    **dict.fromkeys(
        ("tool_result", "tool_call_response", "function_call_output", "tool_response"),
        ("result", ("content", "response", "output", "result")),
    ),
    "refusal": ("refusal", ("refusal",)),
    **dict.fromkeys(("step-start", "step-finish"), ("mark", ())),
}


@dataclass(kw_only=True)
class Said:
    """One message with what a log says of it.

    Attributes:
        message: the chat message.
        weight: of its loss.
        reward: its own, as it stands there; ``None`` where it has none.
        cut_off: it ran out of tokens.
        sampled: it stands in a record of what a model sampled.
        context: it is seen and not trained.
        thought: it is nothing but a thought, which belongs to what the assistant says next.
        remarks: what must be counted.
        unused: names of fields that hold something and were not read.
    """

    message: Message
    weight: float = 1.0
    reward: Any = None
    cut_off: bool = False
    sampled: bool = False
    context: bool = False
    thought: bool = False
    remarks: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    @property
    def role(self) -> Role:
        """Who speaks."""
        return self.message["role"]

    @property
    def is_empty(self) -> bool:
        """Whether nothing was said, called or thought."""
        return not (
            self.message["content"].strip() or self.message.get("tool_calls") or self.message.get("reasoning_content")
        )


def read_messages(value: Any, columns: Columns, where: str = "messages") -> list[Said]:
    """The messages of a list, or of a text that is one as JSON.

    Raises:
        BadRow: it is no list of messages, or one of them can't be understood.
    """
    value = unfolded(value)
    if not isinstance(value, list | tuple) or not value:
        raise BadRow("no_messages", f"{where}: got {show(value)}, expected a list of messages with role and content")
    said: list[Said] = []
    for at, raw in enumerate(value):
        if not isinstance(raw, Mapping):
            raise BadRow("no_messages", f"{where}[{at}]: got {show(raw)}, expected an object with role and content")
        for each in _read_message(raw, columns, f"{where}[{at}]"):
            _append(said, each)
    return said


def chat_messages(value: object) -> tuple[Message, ...]:
    """``value`` as chat messages with a reply; raises ``BadRow`` where it is not."""
    everything = read_messages(value, Columns())
    for at, said in enumerate(everything):
        if said.is_empty:
            raise BadRow("empty_content", f"messages[{at}].content: nothing there, expected text")
    messages = tuple(said.message for said in everything)
    first = next((at for at, message in enumerate(messages) if message["role"] == "assistant"), None)
    if first is None:
        raise BadRow("no_assistant", f"none of {len(messages)} messages is the assistant's; there is nothing to train")
    if first == 0:
        raise BadRow("starts_with_assistant", "messages[0] is the assistant's, and there is no prompt before it")
    return messages


def as_reply(value: Any, columns: Columns, where: str) -> list[Said]:
    """What an assistant said: a text, a message, blocks, a list of messages, or an API's whole response."""
    value = _unfolded_talk(value, columns)
    if isinstance(value, str):
        return [Said(message={"role": "assistant", "content": whole_text(value, where)}, sampled=True)]
    if isinstance(value, Mapping):
        # Responses of OpenAI's two interfaces.
        value = next((value[key] for key in ("choices", "output") if not is_empty(value.get(key))), value)
        value = [{"role": "assistant", "content": value}] if isinstance(value, str) else value
    if isinstance(value, list | tuple) and sum(map(_is_choice, value)) > 1:
        raise BadRow("turn_mismatch", f"{where}: {len(value)} choices, and one reward for all: give a row for each")
    if isinstance(value, list | tuple) and value and not any(_speaks(each, columns) for each in value):
        value = {"role": "assistant", "content": value}
    if isinstance(value, Mapping):
        value = [value if _speaks(value, columns) or _kind_of(value) else {**value, "role": "assistant"}]
    said = read_messages(value, columns, where)
    for each in said:
        each.sampled = True
    return said


def as_prompt(value: Any, columns: Columns, where: str) -> list[Said]:
    """What was asked: a text (the user's), a message, or messages alone or as an object's ``messages``."""
    value = _unfolded_talk(value, columns)
    if isinstance(value, Mapping):
        inner = next((value[key] for key in ASKED if not is_empty(value.get(key))), None)
        if inner is not None:
            return as_prompt(inner, columns, where)
        value = [value]
    if isinstance(value, str) and value.strip():
        return [Said(message={"role": "user", "content": whole_text(value, where)}, remarks=["plain_text_pair"])]
    return read_messages(value, columns, where)


def _unfolded_talk(value: Any, columns: Columns) -> Any:
    """``value``, or the messages that it holds as text, as tables have them. JSON that somebody said stays text."""
    inner = unfolded(value)
    if isinstance(inner, str) or not isinstance(value, str | bytes):
        return inner
    several = inner if isinstance(inner, list) else [inner]
    if several and all(isinstance(each, Mapping) and _is_talk(each, columns) for each in several):
        return inner
    return value if isinstance(value, str) else value.decode(errors="replace")


def _is_talk(value: Mapping[str, Any], columns: Columns) -> bool:
    if any(isinstance(value.get(key), list) for key in ("messages", "choices")):
        return True
    said = _speaks(value, columns) and any(key in value for key in (columns.content, *_CONTENTS, "tool_calls"))
    return said or value.get("type") in [*_PARTS] or isinstance(value.get("message"), Mapping)


def system_of(value: Any, where: str) -> list[Said]:
    """A system prompt beside the messages: text, or blocks of it; none where it is empty."""
    said, parts = Said(message={"role": "system", "content": ""}), unfolded(value)
    parts = parts["parts"] if isinstance(parts, Mapping) and _is_parts(parts.get("parts")) else parts
    # JSON that a system prompt says is its text.
    content = value if isinstance(value, str) and not _is_parts(parts) else parts
    said.message["content"] = _read_parts(content, said, where, [])
    return [] if said.is_empty else [said]


def tools_of(value: Any, where: str) -> tuple[Mapping[str, Any], ...]:
    """A list of tools in the form that chat templates take, each ``{"type": "function", "function": {…}}``."""
    value = unfolded(value)
    if is_empty(value) or value == "null":
        return ()
    tools = [value] if isinstance(value, Mapping) else value
    if not isinstance(tools, list | tuple) or not all(isinstance(unfolded(tool), Mapping) for tool in tools):
        raise BadRow("bad_field", f"{where}: got {show(value)}, expected a list of tools")
    made = []
    for tool in map(unfolded, tools):
        function = tool.get("function") or {key: each for key, each in tool.items() if key != "type"}
        if not isinstance(function, Mapping) or not function.get("name"):
            raise BadRow("bad_field", f"{where}: got {show(tool)}, expected a tool with a name")
        for name in {"input_schema", "inputSchema"} & set(function):
            function = {**function, "parameters": function[name]}
            del function[name]
        made.append({"type": "function", "function": plain_json(function, where)})
    return tuple(made)


def _speaks(value: Any, columns: Columns) -> bool:
    return isinstance(value, Mapping) and any(
        not is_empty(value.get(key)) for key in (columns.role or "role", "from", "message")
    )


def _is_choice(value: Any) -> bool:
    """Whether ``value`` is one of several replies to one request."""
    return isinstance(value, Mapping) and "role" not in value and ("message" in value or "finish_reason" in value)


def _kind_of(raw: Mapping[str, Any]) -> str | None:
    """The kind of an item that stands among messages and has no speaker, as OpenAI's later interface has them."""
    name = raw.get("type")
    kind = _PARTS[name][0] if isinstance(name, str) and name in _PARTS else None
    return kind if kind in ("thought", "hidden", "call", "result") else None


def _read_message(raw: Mapping[str, Any], columns: Columns, where: str) -> Iterator[Said]:
    """One message of a log, with the results of tools that lie inside it as messages of their own."""
    raw = _unwrapped(raw)
    outer = Fields(raw)
    fields, sampled = outer, False
    if isinstance(raw.get("message"), Mapping) and "role" not in raw:
        # One of the choices of an API's response.
        fields, sampled = Fields(outer["message"]), True
    speaker = columns.find(fields, columns.role, *_SPEAKERS)
    kind = None if speaker is not None else _kind_of(raw)
    if kind is None and speaker is None and str(raw.get("type")).lower() in ROLES:
        speaker = fields["type"]
    if kind is not None:
        fields = outer = Fields({"role": "tool" if kind == "result" else "assistant", "content": [raw]})
        speaker = fields["role"]
    media = fields.there(*MEDIA)
    if media is not None:
        raise BadRow("not_text", f"{where}.{media}: {show(fields[media])}, which a text model can't see")
    role = _role(speaker, columns, where, fields)
    said = Said(message={"role": "assistant" if role == CALL else role, "content": ""}, sampled=sampled)  # type: ignore[typeddict-item]
    results: list[Said] = []
    content = unfolded(fields.path(columns.content)) if columns.content else _content(fields)
    if role == CALL:
        said.message["tool_calls"] = _calls(content, f"{where}.content")
    elif role == "tool" and kind is None and not _is_parts(content):
        said.message["content"] = as_text(content, f"{where}.content")
    else:
        said.message["content"] = _read_parts(content, said, f"{where}.content", results)
    if role == "assistant":
        _add_thoughts_and_calls(fields, said, where)
    if said.role == "assistant":
        _add_marks(fields, outer, said, where, columns)
    if role == "tool":
        for key, names in (("tool_call_id", ("tool_call_id", "tool_use_id", "call_id")), ("name", ("name",))):
            given = fields.take(*names)
            if isinstance(given, str):
                said.message[key] = whole_text(given, f"{where}.{key}")  # type: ignore[literal-required]
    said.thought = kind in ("thought", "hidden")
    said.unused = [f"{name}" for each in {id(f): f for f in (outer, fields)}.values() for name in each.unread()]
    yield from results
    # A user's message that held nothing but results is none of the user's.
    if not results or not said.is_empty:
        yield said


def _unwrapped(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message as LangChain stores it, what it holds apart from its kind or class, with a role; others as they are."""
    name = next((key for key in ("data", "kwargs") if isinstance(raw.get(key), Mapping)), "")
    if not name or "content" not in raw[name] or not raw.keys().isdisjoint((*_SPEAKERS, "content")):
        return raw
    path = raw.get("id")
    kind = path[-1] if name == "kwargs" and isinstance(path, list | tuple) and path else raw.get("type")
    role = str(kind).removesuffix("Chunk").removesuffix("Message").lower()
    # What a log says of the message stands beside what it holds.
    beside = {key: value for key, value in raw.items() if key not in (name, "lc", "type", "id")}
    return {**beside, **{key: value for key, value in raw[name].items() if key != "type"}, "role": role}


def _content(fields: Fields) -> Any:
    content = fields.take(*_CONTENTS) or fields.take("message")
    # JSON that a message says is its text.
    return content if isinstance(content, str) else unfolded(content)


def _role(value: Any, columns: Columns, where: str, fields: Fields) -> str:
    name = value.strip().lower().replace("-", "_") if isinstance(value, str) else None
    own = {key.strip().lower().replace("-", "_"): role for key, role in columns.roles.items()}
    role = ROLES.get(own.get(name, name)) if name is not None else None
    if is_empty(value):
        there = fields.names() or "nothing"
        raise BadRow("unknown_role", f"{where} has {there}: say which names the speaker with --columns.role NAME")
    if role is None:
        raise BadRow(
            "unknown_role",
            f"{where}.role: got {show(value)}, expected system, user, assistant or tool. Say who that is: "
            f"--columns.roles '{{{value if name else 'NAME'}: assistant}}'",
        )
    return role


def _is_parts(content: Any) -> bool:
    return isinstance(content, list | tuple) and all(
        isinstance(part, str) or (isinstance(part, Mapping) and any(key in part for key in ("type", "text", *MEDIA)))
        for part in content
    )


def _read_parts(content: Any, said: Said, where: str, results: list[Said]) -> str:
    """The text of a message's content; thoughts and calls in it go to ``said``, results of tools to ``results``.

    Parts of text are joined with nothing between, as chat templates do.
    """
    if is_empty(content):
        return ""
    if isinstance(content, str):
        return whole_text(content, where)
    if isinstance(content, Mapping):
        content = [content]
    if not _is_parts(content):
        raise BadRow("content_not_text", f"{where}: got {show(content)}, expected text")
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[Mapping[str, Any]] = []
    for at, part in enumerate(content):
        if isinstance(part, str):
            texts.append(part)
            continue
        kind, value = _part(part, f"{where}[{at}]")
        if kind == "call":
            calls += _calls(part, f"{where}[{at}]")
        elif kind == "result":
            results.append(_result(part, value, f"{where}[{at}]"))
        elif kind == "hidden" or (kind == "thought" and is_empty(value)):
            said.remarks.append("reasoning_left_out")
        elif kind == "thought":
            thoughts.append(as_text(value, f"{where}[{at}]"))
        elif kind != "mark":
            said.remarks += ["refusal_as_text"] if kind == "refusal" else []
            texts.append(as_text(value, f"{where}[{at}]"))
    if thoughts:
        said.message["reasoning_content"] = whole_text("\n".join(thoughts), where)
    if calls:
        said.message["tool_calls"] = calls
    return whole_text("".join(texts), where)


def _part(part: Mapping[str, Any], where: str) -> tuple[str, Any]:
    """The kind of a part, and what it holds."""
    name = part.get("type")
    media = any(not is_empty(part.get(key)) for key in MEDIA)
    if is_empty(name) and isinstance(part.get("text"), str) and not media:
        name = "text"
    if not isinstance(name, str) or name not in _PARTS:
        raise BadRow("not_text", f"{where}: a part of type {show(name or sorted(part))}, which a text model can't see")
    kind, keys = _PARTS[name]
    return kind, next((part[key] for key in keys if not is_empty(part.get(key))), None)


def _result(part: Mapping[str, Any], value: Any, where: str) -> Said:
    message: Message = {"role": "tool", "content": as_text(value, where)}
    name = next((part[key] for key in ("tool_use_id", "call_id", "id") if not is_empty(part.get(key))), None)
    if isinstance(name, str):
        message["tool_call_id"] = whole_text(name, where)
    return Said(message=message)


def as_text(value: Any, where: str) -> str:
    """A text, the texts of parts, or anything else as JSON."""
    if is_empty(value):
        return ""
    if isinstance(value, str):
        return whole_text(value, where)
    if _is_parts(value):
        pieces = (part if isinstance(part, str) else _part(part, where)[1] for part in value)
        return whole_text("".join(as_text(piece, where) for piece in pieces), where)
    return whole_text(json.dumps(value, ensure_ascii=False, default=str), where)


def _calls(value: Any, where: str) -> list[Mapping[str, Any]]:
    """Calls of tools in the form that chat templates take, the arguments as an object where they are one."""
    value = json_or_none(value) if isinstance(value, str) else value
    calls: list[Mapping[str, Any]] = []
    for call in map(unfolded, value if isinstance(value, list | tuple) else [value]):
        function = call.get("function") or call if isinstance(call, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or not name or function is None:
            raise BadRow("tool_calls", f"{where}: got {show(call)}, expected a call with a name and arguments")
        arguments: Any = next(
            (function[key] for key in ("arguments", "input", "parameters", "args") if function.get(key) is not None), {}
        )
        inner = json_or_none(arguments) if isinstance(arguments, str) else arguments
        inner = plain_json(arguments if inner is None else inner, where)
        made = {"type": "function", "function": {"name": whole_text(name, where), "arguments": inner}}
        given = next((call[key] for key in ("id", "call_id") if isinstance(call.get(key), str) and call[key]), None)
        calls.append(made if given is None else {**made, "id": whole_text(given, where)})
    return calls


def _add_thoughts_and_calls(fields: Fields, said: Said, where: str) -> None:
    """What an assistant's message has beside its content."""
    thought = fields.take(*_THOUGHTS)
    details = unfolded(fields.take("reasoning_details", "thinking_blocks"))
    if thought is not None:
        said.message["reasoning_content"] = as_text(thought, f"{where}.reasoning_content")
    elif details is not None:
        _read_parts(details, said, f"{where}.reasoning_details", [])
    calls = unfolded(fields.take("tool_calls", "function_call"))
    if calls is not None:
        said.message["tool_calls"] = [*said.message.get("tool_calls", ()), *_calls(calls, f"{where}.tool_calls")]
    refusal = fields.take("refusal")
    if isinstance(refusal, str) and not said.message["content"].strip():
        said.message["content"] = whole_text(refusal, f"{where}.refusal")
        said.remarks.append("refusal_as_text")


def _add_marks(fields: Fields, outer: Fields, said: Said, where: str, columns: Columns) -> None:
    """What a log says of an assistant's message: the weight of its loss, its reward, whether it was cut off."""
    told = fields.there(*_WEIGHTS)
    if told is not None:
        try:
            said.weight = Columns().number(fields[told], told)
        except BadRow:
            said.weight = -1
        if said.weight < 0:
            raise BadRow("bad_field", f"{where}.{told}: got {show(fields[told])}, expected true, false or a number ≥ 0")
    # What a user names may stand on each message: reward, or messages.reward.
    names = (columns.reward, columns.reward.partition(".")[2]) if columns.reward else ("reward",)
    said.reward = next((found for found in map(fields.path, filter(None, names)) if not is_empty(found)), None)
    said.cut_off = is_cut_off([each.take(*ENDS) for each in (outer, fields)])


def is_cut_off(reasons: Any) -> bool:
    """Whether why a reply ended, or one of several reasons, says that it was cut off."""
    reasons = unfolded(reasons)
    several = reasons if isinstance(reasons, list | tuple) else [reasons]
    return any(isinstance(reason, str) and reason.lower() in _CUT_OFF for reason in several)


def _append(said: list[Said], new: Said) -> None:
    """Add a message; calls without a text belong to the assistant's message before them, a thought to what follows."""
    last = said[-1] if said else None
    calls = new.message.get("tool_calls")
    if last is not None and last.thought and new.role == "assistant":
        new.message = {**last.message, **new.message}
        new.remarks, said[-1] = last.remarks + new.remarks, new
        return
    if last is None or last.role != "assistant" or new.role != "assistant" or not calls or new.message["content"]:
        said.append(new)
        return
    last.message["tool_calls"] = [*last.message.get("tool_calls", ()), *calls]
    last.weight, last.reward = min(last.weight, new.weight), new.reward if last.reward is None else last.reward
    last.cut_off, last.remarks, last.unused = new.cut_off, last.remarks + new.remarks, last.unused + new.unused
