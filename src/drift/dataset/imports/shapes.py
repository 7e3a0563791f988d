"""Shapes of logs: how each is recognised, and one function that makes conversations of a row of it."""

from __future__ import annotations

import re
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
    with_notes,
)
from drift.dataset.imports.columns import Columns
from drift.dataset.imports.mathdial import mathdial
from drift.dataset.imports.messages import (
    ASKED,
    ASKS,
    ENDS,
    MEDIA,
    ROLES,
    Said,
    as_prompt,
    as_reply,
    as_text,
    is_cut_off,
    read_messages,
    system_of,
    tools_of,
)
from drift.dataset.imports.recorded import trajectories
from drift.dataset.imports.samples import one_reply_each, samples_in

_MESSAGES = (
    *("messages", "conversations", "conversation", "chat", "dialog", "dialogue", "turns"),
    *("contents", "chat_messages", "trajectory", "traj"),
)
_SYSTEMS = (
    *("system", "system_prompt", "system_instructions", "gen_ai.system_instructions", "instructions"),
    *("systemInstruction", "system_instruction"),
)
_TOOLS = ("tools", "functions", "tool_defs", "gen_ai.tool.definitions")
# What a question is about, and what was said to it. Beside the others, an answer is what was right.
_ABOUT = ("input", "context")
_REPLIES = ("completion", "response", "output")
_ALTERNATIVES = (
    ("chosen", "rejected"),
    ("preferred_output", "non_preferred_output"),
    ("conversation_a", "conversation_b"),
    ("response_a", "response_b"),
)
# How a text of several turns marks them, as in the preferences of HH-RLHF.
_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):[ ]?")
_WINNERS = {**dict.fromkeys(("model_a", "a"), (1.0, 0.0)), **dict.fromkeys(("model_b", "b"), (0.0, 1.0))}
Shape = Callable[[Fields, Columns], Sequence[Logged | BadRow]]


def shape_of(row: Fields) -> Shape | None:
    """The shape that a row has by its fields; ``None`` for none that is known."""
    return next((shape for shape, fits in _RECOGNISED if fits(row)), None)


def auto(row: Fields, columns: Columns) -> Sequence[Logged | BadRow]:
    """A row of any shape that is known, by the fields that it has."""
    if columns.messages:
        return messages(row, columns)
    shape = shape_of(row)
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
    return [_pair(row, columns)]


def _pair(row: Fields, columns: Columns, *, history: bool = True) -> Logged:
    """The conversation of a prompt and its completion; ``history`` says whether replies before them are trained."""
    if not is_empty(row.values_by_name.get("error")):
        raise BadRow("failed", f"error: {show(row['error'])}")
    ask, answer = _pair_of(row) or ("prompt", "completion")
    said = _asked(row, ask, columns)
    for each in said:
        each.context |= not history
    reply = as_reply(row.get(answer), columns, answer)
    return conversation([*said, *_without_prompt(reply, said)], row, columns)


def _asked(row: Fields, ask: str, columns: Columns) -> list[Said]:
    """What a row asks under the name ``ask``, with what it is about, and what was said before."""
    prompt, about = row.take(ask), row.there(*_ABOUT)
    if isinstance(prompt, str) and about is not None:
        words = as_text(row[about], about)
        # But an instruction, what is asked may hold it.
        prompt = prompt if ask != "instruction" and words in prompt else f"{prompt}\n{words}"
    said = as_prompt(_by_marks(prompt), columns, ask)
    for each in said:
        each.context = ask == "prompt"
        # Alpaca's fields have roles by their names.
        each.remarks = [] if ask == "instruction" else each.remarks
    return [*_history(row.take("history"), columns), *said]


def _without_prompt(reply: list[Said], asked: Sequence[Said]) -> list[Said]:
    """A reply without the prompt before it, where it is the whole conversation."""
    first = next((at for at, each in enumerate(reply) if each.role == "user"), None)
    words = [each.message["content"].strip() for each in asked]
    told = [each.message["content"].strip() for each in reply[: len(words)]]
    return reply[len(words) :] if first is not None and words and words == told else reply


def samples(row: Fields, columns: Columns) -> Sequence[Logged | BadRow]:
    """Several replies to one prompt, each with its reward, as best-of-n dumps and UltraFeedback have them."""
    name, ask = samples_in(row), _asks(row)
    if name is None or ask is None:
        raise BadRow("no_messages", f"expected a prompt and a list of replies. The row has {row.names() or 'nothing'}")
    made: list[Logged | BadRow] = []
    for part, sample, inner in one_reply_each(row, name, ask, columns):
        try:
            logged = _pair(sample, inner, history=False)
            noted = {name: sample.path(own) for name, own in zip(columns.notes, inner.notes, strict=True)}
            made.append(with_notes(_of_its_list(logged, row, sample, part), noted))
        except BadRow as bad:
            made.append(BadRow(bad.reason, f"{part}: {bad.detail}"))
    return made


def _of_its_list(logged: Logged, row: Fields, sample: Fields, part: str) -> Logged:
    """``logged`` as one of a row's; what nobody read of its reply is told with the list's name."""
    row.read_like(sample)
    names = [name for name in sample.unread() if name.partition(".")[0] not in row]
    unused = (*logged.unused, *(f"{part.rpartition('.')[0]}.{name}" for name in names))
    return replace(logged, id=_joined(logged.id, part), part=part, unused=unused)


def _asks(row: Fields) -> str | None:
    """Where a row has what was asked: a prompt, or messages that end before a reply."""
    ask = row.there(*ASKS, *_MESSAGES, "input")
    if ask not in _MESSAGES:
        return ask
    said = unfolded(row.values_by_name[ask])
    last = said[-1] if isinstance(said, list) and said else None
    return ask if isinstance(last, Mapping) and ROLES.get(str(last.get("role"))) in ("user", "tool") else None


def preference(row: Fields, columns: Columns) -> Sequence[Logged]:
    """Two conversations and which is better: TRL's chosen and rejected, arenas' a and b. 1, 0, and ½ for a tie.

    What both begin with is their prompt.
    """
    names = next((names for names in _ALTERNATIVES if _has(*names)(row)), None)
    if names is None:
        raise BadRow("no_messages", f"expected chosen and rejected. The row has {row.names() or 'nothing'}")
    worth = [1.0, 0.0]
    if names[0].endswith("_a"):
        winner = row.take("winner")
        known = winner.strip().lower() if isinstance(winner, str) else ""
        if known not in _WINNERS and not ("tie" in known or known.endswith("bad")):
            raise BadRow("reward_missing", f"winner: got {show(winner)}, expected model_a, model_b or tie")
        worth = list(_WINNERS.get(known, (0.5, 0.5)))
    for at, name in enumerate(("chosen_return", "rejected_return")):
        worth[at] = columns.number(row[name], name) if names[0] == "chosen" and row.there(name) else worth[at]
    ask = row.there(*ASKS, *_MESSAGES)
    ask = ask or (row.there("input") if names[0] == "preferred_output" else None)
    both: list[tuple[list[Said], list[Said]]] = []
    for name in names:
        value = row.take(name)
        reply = read_messages(_by_marks(value), columns, name) if ask is None else as_reply(value, columns, name)
        whole = ask is None or (ask in _MESSAGES and any(each.role == "user" for each in reply))
        said = [] if whole or ask is None else _asked(row, ask, columns)
        for each in said:
            each.context = True
        both.append((said, _without_prompt(reply, said)))
    for one, other in zip(*(reply[:-1] for _, reply in both), strict=False):
        if one.message != other.message:
            break
        one.context = other.context = True
    return [
        conversation([*said, *reply], row, columns, reward=reward, part=name)
        for (said, reply), name, reward in zip(both, names, worth, strict=True)
    ]


def _by_marks(value: Any) -> Any:
    """The messages of a text that marks whose turn it is; anything else as it is."""
    before, *parts = _TURN.split(value) if isinstance(value, str) else [""]
    if len(parts) < 4 or before.strip():
        return value
    # A prompt ends where the reply begins.
    parts = parts[:-2] if not parts[-1].strip() else parts
    return [{"role": mark.lower(), "content": text} for mark, text in zip(parts[::2], parts[1::2], strict=True)]


def request(row: Fields, columns: Columns) -> Sequence[Logged]:
    """A request and its response, as proxies log them."""
    asked, wrapped = _body(row, "request", "request_body")
    asked = unfolded(asked)
    sent = Fields(asked) if isinstance(asked, Mapping) else row
    prompt = as_prompt(sent.take(*ASKED), columns, "request.messages")
    reply, around = _body(row, "response", "response_body", "output", "choices")
    received, whole = row, unfolded(reply)
    if isinstance(whole, Mapping) and ("choices" in whole or isinstance(whole.get("output"), list)):
        received = Fields(whole)
        reply = received.take("choices", "output")
    said = [*system_of(sent.take(*_SYSTEMS), "system"), *prompt, *as_reply(reply, columns, "response")]
    if received is not row and received.values_by_name.get("status") == "incomplete":
        said[-1].cut_off = True
    made = conversation(said, row, columns, tools=tools_of(sent.take(*_TOOLS), "tools"), grows=True)
    for inner, name in ((wrapped, "request"), (sent, "request"), (around, "response"), (received, "response")):
        made = _with_unused(made, row, inner, name)
    return [made]


def _body(row: Fields, *names: str) -> tuple[Any, Fields]:
    """What is under one of ``names``, and the object that it lies in: ``row``, or one with a ``body``."""
    given = row.take(*names)
    value = unfolded(given)
    if not isinstance(value, Mapping) or is_empty(value.get("body")):
        return given, row
    outer = Fields(value)
    return outer["body"], outer


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
    said = read_messages(row.take("messages_and_choices", "messages"), columns, "messages_and_choices")
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
        for each in (observations if isinstance(observations, list | tuple) else ())
        if isinstance(each, Mapping) and each.get("type") == "GENERATION" and not is_empty(each.get("output"))
    ]
    generations.sort(key=lambda each: str(each.get("startTime") or ""))
    told = _words(inner.values_by_name.get("output"), columns)
    same = [each for each in generations if told and _words(each["output"], columns) == told]
    source = Fields((same or generations)[-1]) if generations else inner
    if generations:
        # It was found by its type. What the trace tells of is that reply too.
        _ = source.take("type"), same and (inner.take("input"), inner.take("output"))
    if is_empty(source.values_by_name.get("output")):
        raise PassedOver("not_a_generation", "output: nothing there, so no reply")
    asked = unfolded(source.take("input"))
    sent = Fields(asked) if isinstance(asked, Mapping) and not is_empty(asked.get("messages")) else source
    said = as_prompt(source.take("input") if sent is source else sent["messages"], columns, "input")
    tools = tools_of(source.take(*_TOOLS) or sent.take(*_TOOLS), "tools")
    for each in said:
        each.remarks = []
    said = said if sent is source else [*system_of(sent.take(*_SYSTEMS), "input.system"), *said]
    said += as_reply(source.take("output"), columns, "output")
    made = conversation(said, row, columns, tools=tools, grows=True)
    if not {_words(each["output"], columns) for each in generations} <= {each.message["content"] for each in said}:
        # A generation of something else: a title, a check.
        made = replace(made, unused=(*made.unused, "observations"))
    name = "observations" if generations else "trace"
    made = _with_unused(_with_unused(made, row, source, name), source, sent, "input")
    return [made if source is inner else _with_unused(made, row, inner, "trace")]


def _words(value: Any, columns: Columns) -> str | None:
    """What a reply says; ``None`` where it is none."""
    try:
        return as_reply(value, columns, "output")[-1].message["content"]
    except BadRow:
        return None


def otel(row: Fields, columns: Columns) -> Sequence[Logged]:
    """A span of OpenTelemetry's gen_ai conventions; spans of tools and others are passed over."""
    found = dict(attributes_of(row.take("attributes")))
    for event in row.values_by_name.get("events") or ():
        # Where what was said is logged as an event of the span.
        inner = attributes_of(event.get("attributes")) if isinstance(event, Mapping) else {}
        found |= {key: each for key, each in inner.items() if key.startswith("gen_ai.")}
    attributes = Fields(found)
    row.values_by_name = {**row.values_by_name, "attributes": attributes.values_by_name}
    operation = attributes.take("gen_ai.operation.name")
    sent = _numbered(attributes, "gen_ai.prompt") or _numbered(attributes, "llm.input_messages")
    sent = sent or attributes.take("gen_ai.input.messages", "gen_ai.prompt")
    received = _numbered(attributes, "gen_ai.completion") or _numbered(attributes, "llm.output_messages")
    received = [{"role": "assistant", **each} if "message" not in each else each for each in received]
    received = received or attributes.take("gen_ai.output.messages", "gen_ai.completion")
    if operation in ("execute_tool", "embeddings", "invoke_agent", "create_agent") or is_empty(received):
        raise PassedOver("not_a_generation", f"gen_ai.operation.name: {show(operation)}, which is no reply of a model")
    several = unfolded(received)
    if isinstance(several, list) and len(several) > 1 and all(isinstance(each, Mapping) for each in several):
        raise BadRow("turn_mismatch", f"{len(several)} replies, and one reward for all: give a span for each")
    said = system_of(attributes.take("gen_ai.system_instructions"), "gen_ai.system_instructions")
    said += as_prompt(sent, columns, "gen_ai.input.messages")
    said += as_reply(received, columns, "gen_ai.output.messages")
    said[-1].cut_off |= is_cut_off(attributes.take("gen_ai.response.finish_reasons", "llm.response.finish_reason"))
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


def _numbered(attributes: Fields, name: str) -> list[Any]:
    """Messages that are spread over attributes, as ``gen_ai.prompt.0.role`` and ``gen_ai.prompt.0.content``."""
    whole: dict[str, Any] = {}
    keys = [key for key in attributes if key.startswith(f"{name}.") and key.removeprefix(f"{name}.")[:1].isdigit()]
    for key in keys:
        *places, last = key.removeprefix(f"{name}.").split(".")
        inner = whole
        for place in places:
            inner = inner.setdefault(place, {})
            if not isinstance(inner, dict):
                return []
        inner[last] = attributes[key]
    listed = _listed(whole)
    return listed if isinstance(listed, list) and all(isinstance(each, Mapping) for each in listed) else []


def _listed(value: Any) -> Any:
    """Objects whose names are numbers as the lists that they stand for."""
    if not isinstance(value, dict):
        return value
    inner = {name: _listed(each) for name, each in value.items()}
    if inner and all(name.isdigit() for name in inner):
        return [inner[name] for name in sorted(inner, key=int)]
    return inner


def _history(value: Any, columns: Columns) -> list[Said]:
    value = unfolded(value)
    if is_empty(value):
        return []
    if not isinstance(value, list | tuple) or not all(isinstance(e, list | tuple) and len(e) == 2 for e in value):
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
    media = row.there(*MEDIA)
    if media is not None:
        raise BadRow("not_text", f"{media}: {show(row.values_by_name[media])}, which a text model can't see")
    inner = {f"messages.{name}" for each in said for name in each.unused}
    said = _merged([*system_of(columns.find(row, columns.system, *_SYSTEMS), columns.system or "system"), *said])
    tools = tools or tools_of(columns.find(row, columns.tools, *_TOOLS), columns.tools or "tools")
    remarks = [remark for each in said for remark in each.remarks]
    if any(one.role == two.role and one.role in ("user", "assistant") for one, two in pairwise(said)):
        remarks.append("consecutive_roles")
    everything = [at for at, each in enumerate(said) if each.role == "assistant"]
    places = _replies(said, everything, remarks)
    said[-1].cut_off |= is_cut_off(row.take(*ENDS)) or unfolded(row.take("is_truncated")) is True
    trained = [said[at] for at in places]
    rewards, fault = on_last(reward or 0.0, len(places)), None
    if reward is None:
        try:
            rewards = columns.rewards_of(row, len(places), [each.reward for each in trained])
        except BadRow as bad:
            fault = bad
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
    ask = row.there(*ASKS)
    # A reply that is there and empty is one, and what stands beside it under answer is what was right.
    answer = next((name for name in _REPLIES if name in row), "answer")
    answers = answer != "answer" or (ask in ("query", "question") and row.there(answer))
    return (ask, answer) if ask and answers else None


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
    (preference, lambda row: any(_has(*names)(row) for names in _ALTERNATIVES)),
    (samples, lambda row: samples_in(row) is not None and _asks(row) is not None),
    (request, lambda row: _has("request")(row) or _has("request_body")(row)),
    (request, lambda row: _has("messages")(row) and row.there("response", "choices") is not None),
    (pair, _has("prompt", "completion")),
    (messages, lambda row: row.there(*_MESSAGES) is not None),
    (pair, lambda row: _pair_of(row) is not None),
    (langfuse, lambda row: row.there("trace", "observations") is not None or ("input" in row and "output" in row)),
)
