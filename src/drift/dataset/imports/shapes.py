"""Shapes of logs: how each is recognised, and one function that makes conversations of a row of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from drift.dataset.imports.authors import authors
from drift.dataset.imports.base import (
    OF_ITS_ROW,
    BadRow,
    Fields,
    Logged,
    PassedOver,
    is_empty,
    on_last,
    show,
    unfolded,
)
from drift.dataset.imports.columns import Columns
from drift.dataset.imports.mathdial import mathdial
from drift.dataset.imports.messages import Said, as_prompt, as_reply, read_messages, system_of, tools_of
from drift.dataset.imports.recorded import trajectories

_MESSAGES = ("messages", "conversations", "conversation", "chat", "dialog", "dialogue", "turns")
_SYSTEMS = ("system", "system_prompt", "system_instructions", "gen_ai.system_instructions")
_TOOLS = ("tools", "functions", "gen_ai.tool.definitions")
_MEDIA = ("images", "image", "audios", "audio", "videos", "video", "files", "objects")
# What was asked, and what was said to it, under one another's names.
_PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("query", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
)
_WINNERS = {"model_a": (1.0, 0.0), "model_b": (0.0, 1.0)}
Shape = Callable[[Fields, Columns], Sequence[Logged]]


def auto(row: Fields, columns: Columns) -> Sequence[Logged]:
    """A row of any shape that is known, by the fields that it has."""
    if columns.messages:
        return messages(row, columns)
    shape = next((shape for shape, fits in _RECOGNISED if fits(row)), None)
    if shape is None:
        raise BadRow(
            "no_messages",
            f"messages: got {show(row.get('messages'))}, expected a list of messages with role and content. "
            f"The row has {row.names() or 'nothing'}: say where they are with --columns.messages NAME",
        )
    return shape(row, columns)


def messages(row: Fields, columns: Columns) -> Sequence[Logged]:
    """A list of messages: OpenAI's, Anthropic's blocks, ShareGPT's from and value, ms-swift's roles."""
    name = columns.messages or row.there(*_MESSAGES) or "messages"
    return [
        conversation(read_messages(columns.find(row, columns.messages, name), columns, name), row, columns, grows=True)
    ]


def pair(row: Fields, columns: Columns) -> Sequence[Logged]:
    """A prompt and its completion: TRL's, verifiers' results, Alpaca's instruction, input, output and history.

    What the assistant says in the prompt is an example: seen, not trained. The answers of a ``history`` are replies.
    """
    if not is_empty(row.values_by_name.get("error")):
        raise BadRow("failed", f"error: {show(row['error'])}")
    ask, answer = _pair_of(row) or _PAIRS[0]
    prompt = unfolded(row.take(ask))
    if isinstance(prompt, str) and ask == "instruction" and row.there("input"):
        prompt = f"{prompt}\n{row['input']}"
    said = [*_history(row.take("history"), columns), *as_prompt(prompt, columns, ask)]
    for each in said if ask == "prompt" else ():
        each.context = True
    completion = as_reply(row.take(answer), columns, answer)
    if unfolded(row.take("is_truncated")) is True:
        completion[-1].cut_off = True
    if ask != "prompt":
        # Alpaca's fields have roles by their names.
        said[-1].remarks = []
    return [conversation([*said, *completion], row, columns)]


def preference(row: Fields, columns: Columns) -> Sequence[Logged]:
    """Two conversations and which is better: TRL's chosen and rejected, arenas' a and b. 1, 0, and ½ for a tie."""
    if row.there("chosen"):
        names, worth = ("chosen", "rejected"), [1.0, 0.0]
        for at, name in enumerate(("chosen_return", "rejected_return")):
            worth[at] = columns.number(row[name], name) if row.there(name) else worth[at]
    else:
        names, winner = ("conversation_a", "conversation_b"), row.take("winner")
        if not isinstance(winner, str) or not (winner in _WINNERS or winner.startswith("tie")):
            raise BadRow("reward_missing", f"winner: got {show(winner)}, expected model_a, model_b or tie")
        worth = list(_WINNERS.get(winner, (0.5, 0.5)))
    asked = row.take("prompt")
    made = []
    for name, reward in zip(names, worth, strict=True):
        said = [] if asked is None else as_prompt(asked, columns, "prompt")
        for each in said:
            each.context = True
        said += as_reply(row.take(name), columns, name) if said else read_messages(row.take(name), columns, name)
        made.append(conversation(said, row, columns, reward=reward, part=name))
    return made


def request(row: Fields, columns: Columns) -> Sequence[Logged]:
    """A request and its response, as proxies log them; a response with several choices is as many conversations."""
    asked = row.take("request", "request_body")
    sent = Fields(unfolded(asked)) if isinstance(unfolded(asked), Mapping) else row
    prompt = as_prompt(sent.take("messages", "input", "prompt"), columns, "request.messages")
    received = unfolded(row.take("response", "response_body", "output", "choices"))
    choices = received.get("choices") if isinstance(received, Mapping) else received
    several = isinstance(choices, list | tuple) and all(
        isinstance(each, Mapping) and "message" in each for each in choices
    )
    options = list(choices) if several and isinstance(choices, list | tuple) else [received]
    if len(options) > 1 and not row.there("group_id", "prompt_id"):
        raise BadRow("turn_mismatch", f"response.choices: {len(options)}, and one reward for all: give a row for each")
    said = [*system_of(sent.take(*_SYSTEMS), "system"), *prompt, *as_reply(options[0], columns, "response")]
    made = conversation(said, row, columns, tools=tools_of(sent.take(*_TOOLS), "tools"), grows=True)
    return [_with_unused(made, row, sent, "request")]


def art(row: Fields, columns: Columns) -> Sequence[Logged]:
    """A group of ART: its trajectories, in whose ``messages_and_choices`` a choice was sampled and is trained."""
    whole = row.take("trajectories")
    if whole is None:
        return [_art_trajectory(row, columns, None, None)]
    if not isinstance(whole, list | tuple) or not all(isinstance(each, Mapping) for each in whole):
        raise BadRow("no_messages", f"trajectories: got {show(whole)}, expected a list of objects")
    group = columns.group_of(row) or OF_ITS_ROW
    inner = [Fields(each) for each in whole]
    return [
        _with_unused(_art_trajectory(each, columns, f"trajectories.{at}", group), row, each, "trajectories")
        for at, each in enumerate(inner)
    ]


def _art_trajectory(row: Fields, columns: Columns, part: str | None, group: str | None) -> Logged:
    said = read_messages(row.take("messages_and_choices"), columns, "messages_and_choices")
    chosen = any(each.sampled for each in said)
    for each in said:
        each.context = chosen and not each.sampled
    return conversation(said, row, columns, part=part, group=group)


def langfuse(row: Fields, columns: Columns) -> Sequence[Logged]:
    """Langfuse: a generation with ``input`` and ``output``, or a trace with its observations; and logs like it."""
    kind = row.take("type")
    if isinstance(kind, str) and kind.upper() != "GENERATION":
        raise PassedOver("not_a_generation", f"type: {show(kind)}, which is no reply of a model")
    trace = unfolded(row.take("trace"))
    inner = Fields(trace) if isinstance(trace, Mapping) else row
    observations = unfolded(row.take("observations")) or unfolded(inner.take("observations")) or ()
    generations = [
        each
        for each in observations
        if isinstance(each, Mapping) and each.get("type") == "GENERATION" and not is_empty(each.get("output"))
    ]
    source = Fields(generations[-1]) if generations else inner
    if is_empty(source.values_by_name.get("output")):
        raise PassedOver("not_a_generation", "output: nothing there, so no reply")
    said = as_prompt(source.take("input"), columns, "input")
    output = unfolded(source.take("output"))
    if isinstance(output, Mapping) and not is_empty(output.get("choices")):
        output = output["choices"][0]
    tools = tools_of(source.take(*_TOOLS), "tools")
    for each in said:
        each.remarks = []
    made = conversation([*said, *as_reply(output, columns, "output")], row, columns, tools=tools, grows=True)
    made = _with_unused(made, row, source, "observations" if generations else "trace")
    return [made if source is inner else _with_unused(made, row, inner, "trace")]


def otel(row: Fields, columns: Columns) -> Sequence[Logged]:
    """A span of OpenTelemetry's gen_ai conventions; spans of tools and others are passed over."""
    attributes = Fields(attributes_of(row["attributes"]))
    row.values_by_name = {**row.values_by_name, "attributes": attributes.values_by_name}
    operation = attributes.take("gen_ai.operation.name")
    sent = _numbered(attributes, "gen_ai.prompt") or attributes.take("gen_ai.input.messages")
    received = _numbered(attributes, "gen_ai.completion") or attributes.take("gen_ai.output.messages")
    if operation in ("execute_tool", "embeddings", "invoke_agent", "create_agent") or is_empty(received):
        raise PassedOver("not_a_generation", f"gen_ai.operation.name: {show(operation)}, which is no reply of a model")
    said = system_of(attributes.take("gen_ai.system_instructions"), "gen_ai.system_instructions")
    said += as_prompt(sent, columns, "gen_ai.input.messages")
    said += as_reply(received, columns, "gen_ai.output.messages")
    tools = tools_of(attributes.take("gen_ai.tool.definitions"), "gen_ai.tool.definitions")
    made = conversation(said, row, columns, tools=tools, grows=True)
    return [_with_unused(made, row, attributes, "attributes")]


def attributes_of(value: Any) -> Mapping[str, Any]:
    """Attributes of a span by name; OTLP writes each as ``{key, value: {stringValue: …}}``."""
    value = unfolded(value)
    if isinstance(value, Mapping):
        return value
    pairs = value if isinstance(value, list | tuple) else ()
    return {str(each["key"]): _otlp(each.get("value")) for each in pairs if isinstance(each, Mapping) and "key" in each}


def _otlp(value: Any) -> Any:
    if not isinstance(value, Mapping) or len(value) != 1:
        return value
    kind, inner = next(iter(value.items()))
    if kind == "intValue":
        return int(inner)
    if kind == "arrayValue":
        return [_otlp(each) for each in inner.get("values", ())]
    if kind == "kvlistValue":
        return attributes_of(inner.get("values", ()))
    return inner


def _numbered(attributes: Fields, name: str) -> list[dict[str, Any]]:
    """Messages that are spread over attributes, as ``gen_ai.prompt.0.role`` and ``gen_ai.prompt.0.content``."""
    places: dict[int, dict[str, Any]] = {}
    for key in attributes:
        at, _, what = key.removeprefix(f"{name}.").partition(".")
        if key.startswith(f"{name}.") and at.isdigit() and what:
            places.setdefault(int(at), {})[what] = attributes[key]
    return [places[at] for at in sorted(places)]


def _history(value: Any, columns: Columns) -> list[Said]:
    value = unfolded(value)
    if is_empty(value):
        return []
    if not all(isinstance(each, list | tuple) and len(each) == 2 for each in value):
        return read_messages(value, columns, "history")
    said = zip(("user", "assistant") * len(value), (text for each in value for text in each), strict=True)
    return read_messages([{"role": role, "content": text} for role, text in said], columns, "history")


def conversation(
    said: list[Said],
    row: Fields,
    columns: Columns,
    *,
    reward: float | None = None,
    group: str | None = None,
    tools: tuple[Mapping[str, Any], ...] = (),
    part: str | None = None,
    grows: bool = False,
) -> Logged:
    """The conversation that ``said`` is, with what the row says of it.

    Args:
        said: its messages.
        row: the whole row.
        columns: where the row has what.
        reward: of the whole conversation; ``None`` reads the row's.
        group: its prompt; ``None`` reads the row's.
        tools: what could be called; empty reads the row's.
        part: which of the row's conversations it is.
        grows: as of ``Logged``.
    """
    media = row.there(*_MEDIA)
    if media is not None:
        raise BadRow("not_text", f"{media}: {show(row.values_by_name[media])}, which a text model can't see")
    said = _merged([*system_of(columns.find(row, columns.system, *_SYSTEMS), columns.system or "system"), *said])
    tools = tools or tools_of(columns.find(row, columns.tools, *_TOOLS), columns.tools or "tools")
    remarks = [remark for each in said for remark in each.remarks]
    if any(one.role == two.role and one.role in ("user", "assistant") for one, two in pairwise(said)):
        remarks.append("consecutive_roles")
    everything = [at for at, each in enumerate(said) if each.role == "assistant"]
    places = _replies(said, everything, remarks)
    trained = [said[at] for at in places]
    rewards, fault = on_last(reward or 0.0, len(places)), None
    if reward is None:
        try:
            rewards = columns.rewards_of(row, len(places), [each.reward for each in trained])
        except BadRow as bad:
            fault = bad
    inner = {f"messages.{name}" for each in said for name in each.unused}
    return Logged(
        messages=tuple(each.message for each in said),
        rewards=rewards,
        success=columns.success_of(row),
        answers=(None,) * len(places),
        group_id=group or columns.group_of(row),
        id=_joined(columns.id_of(row), part),
        replies=tuple(places),
        cut_off=tuple(each.cut_off for each in trained),
        loss_weights=tuple(each.weight for each in trained),
        tools=tools,
        remarks=tuple(dict.fromkeys(remarks)),
        unused=tuple(sorted(inner)),
        part=part,
        grows=grows and columns.prefixes == "fold",
        fault=fault,
    )


def _merged(said: list[Said]) -> list[Said]:
    """Without system messages that say nothing; those that stand together, a developer's among them, are one."""
    kept: list[Said] = []
    for each in said:
        if each.role == "system" and each.is_empty:
            continue
        if kept and each.role == kept[-1].role == "system":
            if each.message["content"] != kept[-1].message["content"]:
                kept[-1].message["content"] += f"\n\n{each.message['content']}"
            kept[-1].remarks += each.remarks
            continue
        kept.append(each)
    return kept


def _replies(said: Sequence[Said], everything: Sequence[int], remarks: list[str]) -> list[int]:
    """Which messages are replies: the assistant's that answer something, say something and are no example."""
    if not everything:
        raise BadRow("no_assistant", f"none of {len(said)} messages is the assistant's; there is nothing to train")
    asked = next((at for at, each in enumerate(said) if each.role in ("user", "tool")), None)
    if asked is None and said[0].role == "assistant":
        raise BadRow("starts_with_assistant", "the assistant speaks first, and nobody after it")
    answering = [at for at in everything if asked is None or at > asked]
    if len(answering) < len(everything):
        remarks.append("greeting_not_trained")
    places = [at for at in answering if not said[at].is_empty and not said[at].context]
    if any(said[at].is_empty for at in answering):
        remarks.append("empty_reply")
    if not any(said[at].weight for at in places):
        raise BadRow("nothing_trained", f"{len(everything)} replies, which greet, are empty, are examples or weigh 0")
    return places


def _joined(name: str | None, part: str | None) -> str | None:
    return f"{name}/{part}" if name and part else name


def _pair_of(row: Fields) -> tuple[str, str] | None:
    return next((names for names in _PAIRS if all(row.there(name) for name in names)), None)


def _with_unused(logged: Logged, row: Fields, inner: Fields, prefix: str) -> Logged:
    """``logged``, with what nobody read of an object inside its row."""
    told = row.paths_below(prefix)
    names = (name for name in inner.unread() if not any(path == name or path.startswith(f"{name}.") for path in told))
    return logged if inner is row else replace(logged, unused=(*logged.unused, *(f"{prefix}.{each}" for each in names)))


def _own(reader: Callable[[Fields], Logged]) -> Shape:
    return lambda row, columns: [reader(row)]


def _has(*names: str) -> Callable[[Fields], bool]:
    return lambda row: all(row.there(name) for name in names)


def _is_span(row: Fields) -> bool:
    return row.there("attributes") is not None and (
        row.there("spanId", "span_id", "context") is not None or "gen_ai." in str(row.values_by_name["attributes"])
    )


# In order: what tells a shape apart comes before what several have.
_RECOGNISED: tuple[tuple[Shape, Callable[[Fields], bool]], ...] = (
    (_own(trajectories), _has("messages", "turns", "stop_reason")),
    (_own(authors), _has("messages", "turn_rewards")),
    (_own(mathdial), _has("self-correctness")),
    (otel, _is_span),
    (art, lambda row: row.there("trajectories", "messages_and_choices") is not None),
    (preference, lambda row: _has("chosen", "rejected")(row) or _has("conversation_a", "conversation_b")(row)),
    (request, lambda row: _has("request")(row) or _has("request_body")(row)),
    (request, lambda row: _has("messages")(row) and row.there("response", "choices") is not None),
    (pair, _has("prompt", "completion")),
    (messages, lambda row: row.there(*_MESSAGES) is not None),
    (pair, lambda row: _pair_of(row) is not None),
    (langfuse, lambda row: row.there("trace", "observations") is not None or ("input" in row and "output" in row)),
)
