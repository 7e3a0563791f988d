"""What logs of many shapes become: what is trained and seen, grouped, counted or refused; no field is lost."""

import gzip
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drift.chat import TemplateChat
from drift.dataset.imports import FORMATS
from drift.dataset.imports.base import BadRow
from drift.dataset.imports.files import open_source
from drift.dataset.imports.run import Conversion, load_target, make_reader
from drift.dataset.imports.tokens import Target
from drift.errors import DatasetError
from drift.types import Trajectory

Row = dict[str, Any]
TEMPLATE = (
    "{% for tool in tools or [] %}<|system|>{{ tool | tojson }}<|end|>{% endfor %}"
    "{% for m in messages %}<|{{ 'user' if m.role == 'tool' else m.role }}|>"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}[{{ c.function.name }} {{ c.function.arguments | tojson }}]{% endfor %}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def plain() -> Target:
    """A target whose template knows neither tools nor thoughts."""
    return load_target("default", 4000)


@pytest.fixture(scope="module")
def target(plain: Target) -> Target:
    """A target whose template has a place for everything."""
    tokenizer = load_target("default").chat._tokenizer
    tokenizer.chat_template = TEMPLATE
    return replace(plain, chat=TemplateChat(tokenizer, source="own"))


def read(path: Path, target: Target, **columns: Any) -> tuple[Conversion, list[Trajectory], list[tuple[int, str]]]:
    """The conversion of a log, its trajectories, and the line and reason of what it left out."""
    conversion = Conversion(open_source(path), make_reader("auto", columns), target)
    made = list(conversion)
    left_out = [(each.line, each.reason) for each in made if isinstance(each, BadRow)]
    return conversion, [each for each in made if not isinstance(each, BadRow)], left_out


def lines(folder: Path, *rows: Any) -> Path:
    path = folder / "log.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def trained(trajectory: Trajectory, target: Target) -> list[str]:
    ids = (turn.completion.token_ids for turn in trajectory.turns if turn.loss_weight)
    return [target.chat._tokenizer.decode(each).removesuffix("<|end|>") for each in ids]


def seen(trajectory: Trajectory, target: Target) -> str:
    return str(target.chat._tokenizer.decode(trajectory.turns[-1].prompt_ids))


U, A = {"role": "user", "content": "Q?"}, {"role": "assistant", "content": "Yes."}
CALL = {"function": {"name": "look", "arguments": '{"at": 3}'}, "id": "c"}
CALLS = '[look {"at": 3}]'
TEXT = {"type": "text", "text": "Yes."}
OUTPUT = [{"role": "assistant", "parts": [{"type": "text", "content": "Yes."}], "finish_reason": "stop"}]
SPAN = {"gen_ai.input.messages": json.dumps([{"role": "user", "parts": [{"type": "text", "content": "Q?"}]}])}
# A row, columns, what is trained, and what is seen before the last reply.
SHAPES: dict[str, tuple[Row, Row, list[str], str]] = {
    "openai": (
        {
            "messages": [
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "Q"}, {"type": "text", "text": "?"}]},
                {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning": "Look first."},
                {"role": "tool", "tool_call_id": "c", "content": "7"},
                {"role": "assistant", "content": None, "refusal": "No."},
            ],
            "tools": json.dumps([{"name": "look", "description": "Looks."}]),
            "reward": "0.5",
        },
        {},
        [f"<think>Look first.</think>{CALLS}", "No."],
        '<|system|>{"type": "function", "function": {"name": "look", "description": "Looks."}}<|end|>'
        "<|system|>Be brief.<|end|><|user|>Q?<|end|>"
        f"<|assistant|><think>Look first.</think>{CALLS}<|end|><|user|>7<|end|><|assistant|>",
    ),
    "anthropic": (
        {
            "system": [{"type": "text", "text": "S."}],
            "messages": [
                U,
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "Hm."},
                        {"type": "text", "text": "I look."},
                        {"type": "tool_use", "id": "c", "name": "look", "input": {"at": 3}},
                    ],
                },
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "7"}]},
                A,
            ],
            "reward": True,
        },
        {},
        [f"<think>Hm.</think>I look.{CALLS}", "Yes."],
        f"<|system|>S.<|end|><|user|>Q?<|end|><|assistant|><think>Hm.</think>I look.{CALLS}<|end|><|user|>7<|end|>"
        "<|assistant|>",
    ),
    "sharegpt": (
        {
            "conversations": [
                {"from": "human", "value": "Q?"},
                {"from": "gpt", "value": "I look."},
                {"from": "function_call", "value": '{"name": "look", "arguments": {"at": 3}}'},
                {"from": "observation", "value": "7"},
                {"from": "gpt", "value": "Yes.", "weight": 0.5},
                {"from": "human", "value": "More?"},
                {"from": "gpt", "value": "Ad.", "train": False},
            ],
            "score": 4,
        },
        {"reward": "score"},
        [f"I look.{CALLS}", "Yes."],
        f"<|user|>Q?<|end|><|assistant|>I look.{CALLS}<|end|><|user|>7<|end|><|assistant|>Yes.<|end|>"
        "<|user|>More?<|end|><|assistant|>",
    ),
    "own names": (
        {"talk": [{"who": "client", "said": "Q?"}, {"who": "desk", "said": "Yes."}], "mark": {"like": "up"}},
        {
            "messages": "talk",
            "role": "who",
            "content": "said",
            "roles": {"client": "user", "Desk": "assistant"},
            "reward": "mark.like",
            "values": {"up": 1, "down": 0},
        },
        ["Yes."],
        "<|user|>Q?<|end|><|assistant|>",
    ),
    "alpaca": (
        {"instruction": "Answer.", "input": "Q?", "output": "Yes.", "history": [["A?", "B."]], "reward": 1},
        {},
        ["B.", "Yes."],
        "<|user|>A?<|end|><|assistant|>B.<|end|><|user|>Answer.\nQ?<|end|><|assistant|>",
    ),
    "verifiers": (
        {
            "prompt": [U, A, {"role": "user", "content": "And?"}],
            "completion": [A],
            "label": True,
            "is_truncated": False,
        },
        {},
        ["Yes."],
        "<|user|>Q?<|end|><|assistant|>Yes.<|end|><|user|>And?<|end|><|assistant|>",
    ),
    "request": (
        {
            "request": {"messages": [U]},
            "response": {"choices": [{"message": A, "finish_reason": "length"}]},
            "reward": 1,
        },
        {},
        ["Yes."],
        "<|user|>Q?<|end|><|assistant|>",
    ),
    "langfuse": (
        {
            "trace": {"input": {"messages": [U]}, "output": A, "scores": [{"name": "liked", "value": 1}]},
            "observations": [{"type": "GENERATION", "input": [U], "output": A}],
        },
        {"reward": "trace.scores.liked"},
        ["Yes."],
        "<|user|>Q?<|end|><|assistant|>",
    ),
    "otel": (
        {"attributes": {**SPAN, "gen_ai.output.messages": OUTPUT, "eval.score": 1}, "spanId": "1"},
        {"reward": "attributes.eval.score", "id": "spanId"},
        ["Yes."],
        "<|user|>Q?<|end|><|assistant|>",
    ),
    "numbered": (
        {
            "attributes": [
                {"key": "gen_ai.prompt.0.role", "value": {"stringValue": "user"}},
                {"key": "gen_ai.prompt.0.content", "value": {"stringValue": "Q?"}},
                {"key": "gen_ai.completion.0.content", "value": {"stringValue": "Yes."}},
                {"key": "gen_ai.completion.0.role", "value": {"stringValue": "assistant"}},
                {"key": "score", "value": {"intValue": "1"}},
            ]
        },
        {"reward": "attributes.score"},
        ["Yes."],
        "<|user|>Q?<|end|><|assistant|>",
    ),
}


# Rows of other dialects, told columns, what is trained, and something that must be seen (or not lost).
DIALECTS: dict[str, tuple[Row, Row, list[str], str]] = {
    "JSON that was said": ({"prompt": "[2, 1]", "completion": '{"content": 1}'}, {}, ['{"content": 1}'], "[2, 1]"),
    "a system prompt in JSON": ({"system": '{"be": "kind"}', "messages": [U, A]}, {}, ["Yes."], '{"be": "kind"}'),
    "a request's JSON": ({"request": {"messages": [U]}, "response": '{"a": 1}'}, {}, ['{"a": 1}'], "<|user|>Q?"),
    "messages as text": ({"prompt": json.dumps([U]), "completion": json.dumps([A])}, {}, ["Yes."], "<|user|>Q?"),
    "items": (
        {
            "request": {
                "body": {
                    "instructions": "S.",
                    "input": [
                        U,
                        {"type": "function_call", "call_id": "c", "name": "look", "arguments": '{"at": 3}'},
                        {"type": "function_call_output", "call_id": "c", "output": "7"},
                    ],
                }
            },
            "response": {
                "output": [
                    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]},
                    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Yes."}]},
                ]
            },
        },
        {},
        [CALLS, "<think>Hm.</think>Yes."],
        f"<|system|>S.<|end|><|user|>Q?<|end|><|assistant|>{CALLS}<|end|><|user|>7",
    ),
    "tools in an input": (
        {"type": "GENERATION", "input": {"messages": [U], "tools": [{"name": "look"}]}, "output": A},
        {},
        ["Yes."],
        '"name": "look"',
    ),
    "generations out of order": (
        {
            "trace": {},
            "observations": [
                {"type": "GENERATION", "startTime": "2", "input": [U, A, U], "output": "Ad."},
                {"type": "GENERATION", "startTime": "1", "input": [U], "output": A},
            ],
        },
        {},
        ["Yes.", "Ad."],
        "",
    ),
    "numbered calls": (
        {
            "attributes": {
                "gen_ai.prompt.0.role": "user",
                "gen_ai.prompt.0.content": "Q?",
                "gen_ai.completion.0.tool_calls.0.name": "look",
                "gen_ai.completion.0.tool_calls.0.arguments": '{"at": 3}',
            }
        },
        {},
        [CALLS],
        "<|user|>Q?",
    ),
    "an event of a span": (
        {
            "attributes": {"gen_ai.system": "x"},
            "spanId": "1",
            "events": [{"attributes": {"gen_ai.prompt": "Q?", "gen_ai.completion": "Yes."}}],
        },
        {},
        ["Yes."],
        "<|user|>Q?",
    ),
    "flags as text": (
        {"messages": [U, {**A, "train": "false"}, U, {**A, "loss_mask": 0}, U, {**A, "weight": "1"}]},
        {},
        ["Yes."],
        "",
    ),
    "answer beside": (
        {"system_prompt": "S.", "question": "Q?", "response": "Yes.", "answer": "No."},
        {},
        ["Yes."],
        "<|system|>S.",
    ),
    "an instruction's context": (
        {"instruction": "Do.", "context": "It.", "response": "Yes."},
        {},
        ["Yes."],
        "Do.\nIt.",
    ),
    "a question's context": ({"question": "Q?", "context": "It.", "answer": "Yes."}, {}, ["Yes."], "Q?\nIt.<|end|>"),
    "a prompt that holds its context": (
        {"prompt": "It. Q?", "context": "It.", "completion": "Yes."},
        {},
        ["Yes."],
        "<|user|>It. Q?<|end|>",
    ),
    "no tools as text": ({"messages": [U, A], "tools": "null"}, {}, ["Yes."], "<|user|>Q?"),
    "a trace with a generation of something else": (
        {
            "trace": {"output": {"role": "assistant", "content": "Yes."}},
            "observations": [
                {"type": "GENERATION", "input": [U], "output": "Yes."},
                {"type": "GENERATION", "input": "A title, please.", "output": "Talk."},
            ],
        },
        {},
        ["Yes."],
        "<|user|>Q?",
    ),
    "langchain, kinds apart": (
        {
            "messages": [
                {"type": "system", "data": {"content": "S.", "type": "system"}},
                {"type": "human", "data": {"content": "Q?"}},
                {"type": "ai", "data": {"content": "", "tool_calls": [{"name": "look", "args": {"at": 3}, "id": "c"}]}},
                {"type": "tool", "data": {"content": "7", "tool_call_id": "c"}},
                {"type": "ai", "data": {"content": "Yes."}},
            ]
        },
        {},
        [CALLS, "Yes."],
        f"<|system|>S.<|end|><|user|>Q?<|end|><|assistant|>{CALLS}<|end|><|user|>7",
    ),
    "langchain, a weight beside": (
        {
            "messages": [
                {"type": "human", "data": {"content": "Q?"}},
                {"type": "ai", "data": {"content": "No."}, "weight": 0},
                {"type": "human", "data": {"content": "Q?"}},
                {"type": "ai", "data": {"content": "Yes."}},
            ]
        },
        {},
        ["Yes."],
        "<|assistant|>No.<|end|>",
    ),
    "langchain, classes": (
        {
            "messages": [
                {"lc": 1, "type": "constructor", "id": ["langchain", "HumanMessage"], "kwargs": {"content": "Q?"}},
                {"lc": 1, "type": "constructor", "id": ["x", "AIMessageChunk"], "kwargs": {"content": "Yes."}},
            ]
        },
        {},
        ["Yes."],
        "<|user|>Q?",
    ),
    "gemini": (
        {
            "systemInstruction": {"parts": [{"text": "S."}]},
            "contents": [{"role": "user", "parts": [{"text": "Q?"}]}, {"role": "model", "parts": [{"text": "Yes."}]}],
        },
        {},
        ["Yes."],
        "<|system|>S.<|end|><|user|>Q?",
    ),
    "marks of steps": (
        {"messages": [{**U, "parts": []}, {"role": "assistant", "parts": [{"type": "step-start"}, TEXT]}]},
        {},
        ["Yes."],
        "<|user|>Q?",
    ),
    "claude's export": (
        {"chat_messages": [{"sender": "human", "text": "Q?"}, {"sender": "assistant", "content": [TEXT]}]},
        {},
        ["Yes."],
        "<|user|>Q?",
    ),
    "a trajectory": ({"traj": [U, A]}, {}, ["Yes."], "<|user|>Q?"),
    "cohere": (
        {"conversation": [{"role": "User", "message": "Q?"}, {"role": "Chatbot", "message": "Yes."}]},
        {},
        ["Yes."],
        "<|user|>Q?",
    ),
}


@pytest.mark.parametrize("name", DIALECTS)
def test_dialects_of_a_shape_say_the_same(tmp_path: Path, target: Target, name: str) -> None:
    row, columns, replies, prompt = DIALECTS[name]
    _, (found,), left_out = read(lines(tmp_path, {**row, "reward": 1}), target, **columns)
    assert (trained(found, target), left_out) == (replies, []) and prompt in seen(found, target)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Q?", "completion": None, "answer": "No."}, "no_messages"),
        ({"instruction": "Q?", "input": "It.", "output": ""}, "nothing_trained"),
        ({"messages": [{**U, "images": ["x"]}, A]}, "not_text"),
        ({"messages": [{"role": "user", "content": [{"image": "x", "text": "Q?"}]}, A]}, "not_text"),
        ({"prompt": [{"type": "text", "text": "Q?"}], "completion": "Yes."}, "unknown_role"),
        ({"attributes": {**SPAN, "gen_ai.output.messages": OUTPUT * 2}}, "turn_mismatch"),
    ],
)
def test_what_would_be_trained_wrong_is_refused(tmp_path: Path, target: Target, row: Row, reason: str) -> None:
    _, made, left_out = read(lines(tmp_path, {**row, "reward": 1}), target)
    assert not made and left_out == [(1, reason)]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [U, {**A, "finish_reason": "length"}]},
        {"messages": [U, {**A, "done_reason": "length"}]},
        {"messages": [U, A], "finish_reason": "length"},
        {"prompt": "Q?", "completion": "Yes.", "stop_reason": "max_tokens"},
        {"prompt": "Q?", "completion": "Yes.", "is_truncated": True},
        {"attributes": {**SPAN, "gen_ai.completion": "Yes.", "gen_ai.response.finish_reasons": '["length"]'}},
    ],
)
def test_a_reply_that_was_cut_off_ends_without_the_id_that_ends_one(tmp_path: Path, target: Target, row: Row) -> None:
    _, (found,), _ = read(lines(tmp_path, {**row, "reward": 1}), target)
    assert target.chat._tokenizer.decode(found.turns[0].completion.token_ids) == "Yes."
    assert found.turns[0].completion.finish_reason == "length"


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_recognised_and_trained_as_the_template_writes_it(tmp_path: Path, target: Target, name: str) -> None:
    row, columns, replies, prompt = SHAPES[name]
    conversion, (found,), left_out = read(lines(tmp_path, row), target, **columns)
    assert (trained(found, target), seen(found, target), left_out) == (replies, prompt, [])
    assert found.success is None and conversion.unused == {}
    assert found.turns[-1].completion.finish_reason == ("length" if name == "request" else "stop")
    assert sum(turn.step.reward for turn in found.turns) == {"openai": 0.5, "sharegpt": 4.0}.get(name, 1.0)


@pytest.mark.parametrize("name", SHAPES)
def test_every_field_is_used_counted_or_a_reason_to_refuse(tmp_path: Path, target: Target, name: str) -> None:
    row, columns, _, _ = SHAPES[name]
    paths: list[tuple[str, ...]] = []

    def note(value: Any, path: tuple[str, ...]) -> Any:
        """The same with a field that nobody knows in every object, but in those that are passed on whole."""
        if isinstance(value, dict):
            inner = {key: note(each, (*path, key)) for key, each in value.items()}
            whole = {"function", "scores", "value"} & set(path) or "type" in value or "key" in value
            paths.extend([] if whole else [path])
            return inner if whole else {**inner, "unheard": "of"}
        return [note(each, path) for each in value] if isinstance(value, list) else value

    conversion, made, left_out = read(lines(tmp_path, note(row, ())), target, **columns)
    assert paths and (left_out or sum(conversion.unused.values()) >= 1), paths
    assert {key.rpartition(".")[2] for key in conversion.unused} == {"unheard"} or left_out
    assert len(made) + len(left_out) == 1


def test_two_in_a_row_share_its_group_and_a_choice_alone_is_trained(tmp_path: Path, target: Target) -> None:
    other = {"role": "assistant", "content": "No."}
    history = [U, A, U, {"finish_reason": "stop", "message": other}]
    rows = [
        {"prompt": [U], "chosen": [A], "rejected": [other]},
        {"chosen": [U, A], "rejected": [U, other], "chosen_return": 0.75, "rejected_return": -1},
        {"conversation_a": [U, A], "conversation_b": [U, other], "winner": "both_bad"},
        {"prompt": "Q?", "chosen": [U, A], "rejected": [U, other]},
        {"conversations": [U], "chosen": A, "rejected": other},
        {"messages": [U, A], "chosen": [U, A], "rejected": [U, other]},
        {
            "trajectories": [
                {"messages_and_choices": [U, A], "reward": 1},
                {"messages_and_choices": history, "reward": 0},
            ]
        },
    ]
    _, found, left_out = read(lines(tmp_path, *rows), target)
    assert not left_out and [trained(each, target) for each in found] == [["Yes."], ["No."]] * 7
    assert [each.turns[-1].step.reward for each in found] == [1, 0, 0.75, -1, 0.5, 0.5, 1, 0, 1, 0, 1, 0, 1, 0]
    assert len({each.group_id for each in found[:12]}) == 1 and {each.group_id for each in found[12:]} == {"row-7"}
    assert [each.turns[-1].step.info["part"] for each in found[::13]] == ["chosen", "trajectories.1"]


@pytest.mark.parametrize(("told", "success"), [("1.0", True), (" False ", False), (1, True), (0.0, False), ("", None)])
def test_success_is_read_as_tables_write_it(tmp_path: Path, target: Target, told: Any, success: bool | None) -> None:
    _, (found,), _ = read(lines(tmp_path, {"messages": [U, A], "reward": 1, "success": told}), target)
    assert found.success is success


def test_what_two_conversations_begin_with_is_their_prompt(tmp_path: Path, target: Target) -> None:
    shared, other = [U, A, {"role": "user", "content": "And?"}], {"role": "assistant", "content": "No."}
    _, found, _ = read(lines(tmp_path, {"chosen": [*shared, A], "rejected": [*shared, other]}), target)
    assert [trained(each, target) for each in found] == [["Yes."], ["No."]]
    row = {"history": [["Q?", "Yes."]], "instruction": "And?", "chosen": "Yes.", "rejected": "No."}
    _, told, _ = read(lines(tmp_path, row), target)
    assert [trained(each, target) for each in told] == [["Yes."], ["No."]]
    assert {seen(each, target) for each in [*found, *told]} == {
        "<|user|>Q?<|end|><|assistant|>Yes.<|end|><|user|>And?<|end|><|assistant|>"
    }


def test_texts_that_mark_turns_are_conversations(tmp_path: Path, target: Target) -> None:
    chosen = "\n\nHuman: Q?\n\nAssistant: Yes.\n\nHuman: And\n\nso: on?\n\nAssistant: More."
    row = {"chosen": chosen, "rejected": chosen.replace("More", "Less")}
    _, (good, bad), left_out = read(lines(tmp_path, row), target)
    assert [trained(each, target) for each in (good, bad)] == [["More."], ["Less."]] and not left_out
    assert "<|user|>And\n\nso: on?<|end|>" in seen(good, target) and good.group_id == bad.group_id
    _, made, left_out = read(lines(tmp_path, {"chosen": "Human: Q?", "rejected": "No."}), target)
    assert (made, left_out) == ([], [(1, "no_messages")])


RED_UP = {"prompt": "A colour?", "responses": ["Red.", "Up."]}
GRADED = [{"model": "a", "score": 7.5, "response": "Red."}, {"model": "b", "score": "2", "response": "Up."}]


@pytest.mark.parametrize(
    ("row", "columns", "rewards"),
    [
        ({**RED_UP, "rewards": [1, 0]}, {}, (1, 0)),
        ({**RED_UP, "responses": json.dumps(RED_UP["responses"]), "rewards": "[1, 0]"}, {}, (1, 0)),
        ({**RED_UP, "scores": [0.9, 0.1]}, {"reward": "scores"}, (0.9, 0.1)),
        ({**RED_UP, "scores": {"help": [3, 4], "safe": [1, 0]}}, {"reward": "scores.safe"}, (1, 0)),
        ({"prompt": "A colour?", "response": ["Red.", "Up."], "reward": [1, 0]}, {}, (1, 0)),
        ({"instruction": "A colour?", "completions": GRADED}, {"reward": "score"}, (7.5, 2)),
        ({"instruction": "A colour?", "completions": GRADED}, {"reward": "completions.score"}, (7.5, 2)),
        (
            {
                "prompt": "\n\nHuman: A colour?\n\nAssistant: ",
                "answers": [{"answer": "Red.", "rank": 1.0}, {"answer": "Up.", "rank": 2.0}],
            },
            {"reward": "rank", "values": {"1": 1, "2": 0.5}},
            (1, 0.5),
        ),
        (
            {
                "contents": [{"role": "user", "parts": [{"text": "A colour?"}]}],
                "candidates": [
                    {"content": {"role": "model", "parts": [{"text": each}]}, "reward": at, "finishReason": "STOP"}
                    for at, each in enumerate(("Red.", "Up."))
                ],
            },
            {},
            (0, 1),
        ),
        (
            {
                "messages": [{"role": "user", "content": "A colour?"}],
                "completions": [[{"role": "assistant", "content": each}] for each in ("Red.", "Up.")],
                "rewards": [1, 0],
            },
            {},
            (1, 0),
        ),
    ],
)
def test_replies_to_one_prompt_in_a_row_are_its_samples(
    tmp_path: Path, target: Target, row: Row, columns: Row, rewards: tuple[float, float]
) -> None:
    conversion, found, left_out = read(lines(tmp_path, row), target, **columns)
    assert not left_out and [trained(each, target) for each in found] == [["Red."], ["Up."]]
    assert tuple(each.turns[-1].step.reward for each in found) == rewards
    assert {seen(each, target) for each in found} == {"<|user|>A colour?<|end|><|assistant|>"}
    assert len({each.group_id for each in found}) == 1 and [each.sample for each in found] == [0, 1]
    assert not {name.rpartition(".")[2] for name in conversion.unused} & {"score", "reward", "rank", "finishReason"}


def test_what_is_of_one_reply_in_a_row_stays_with_it(tmp_path: Path, target: Target) -> None:
    row = {**RED_UP, "id": 7, "system": "Be brief.", "history": [["Q?", "Yes."]], "rewards": [1, 0], "tags": ["x", "y"]}
    row |= {"success": [True, False], "finish_reasons": ["stop", "length"], "models": ["a", "b"]}
    conversion, (red, up), _ = read(lines(tmp_path, row), target, notes=["models"])
    assert [(each.success, each.turns[-1].completion.finish_reason) for each in (red, up)] == [
        (True, "stop"),
        (False, "length"),
    ]
    assert [each.turns[-1].step.info["models"] for each in (red, up)] == ["a", "b"]
    assert [each.turns[-1].step.info["id"] for each in (red, up)] == ["7/responses.0", "7/responses.1"]
    # What was said before is seen by both, and trained by neither.
    assert trained(red, target) == ["Red."] and seen(red, target).startswith("<|system|>Be brief.<|end|><|user|>Q?")
    assert conversion.unused == {"tags": 1}
    _, _, left_out = read(lines(tmp_path, {**RED_UP, "responses": ["Red.", ""], "rewards": [1, 0]}), target)
    assert left_out == [(1, "nothing_trained")]


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        ({**RED_UP, "reward": 1}, {}, "reward: got 1, expected a list with one for each of 2 replies in responses"),
        (
            {**RED_UP, "rewards": [1, 0, 1]},
            {},
            "rewards: got [1, 0, 1], expected a list with one for each of 2 replies",
        ),
        ({**RED_UP, "meta": {"score": 1}}, {"reward": "meta.score"}, "meta.score: got 1, expected a list with one for"),
        ({**RED_UP, "scores": [1, 0]}, {}, "Numbers are in scores: say which with --columns.reward scores"),
        ({"question": "Q?", "completions": GRADED}, {}, "Numbers are in score: say which with --columns.reward score"),
        (
            {"prompt": "Q?", "answers": [{"answer": "Red.", "rank": 1}, {"answer": "Up.", "rank": 2}]},
            {"reward": "rank"},
            "rank: a rank is lower where a reply is better. Say what each is worth: --columns.values '{1: 1, 2: 0.5}'",
        ),
    ],
)
def test_a_reward_that_is_of_no_reply_is_refused(
    tmp_path: Path, target: Target, row: Row, columns: Row, message: str
) -> None:
    conversion, found, _ = read(lines(tmp_path, row), target, **columns)
    assert not found and message in str(conversion.shown[0])


def test_right_answers_beside_a_reply_are_no_replies(tmp_path: Path, target: Target) -> None:
    row = {"question": "2 + 2?", "answers": ["4", "four"], "response": "4", "reward": 1}
    conversion, (only,), _ = read(lines(tmp_path, row), target)
    assert trained(only, target) == ["4"] and conversion.unused == {"answers": 1}
    row = {"prompt": "Cities?", "response": '["Paris", "Rome"]', "reward": 1}
    _, (only,), _ = read(lines(tmp_path, row), target)
    assert trained(only, target) == ['["Paris", "Rome"]']
    row = {"messages": [U, A], "candidates": ["No.", "Never."], "reward": 1}
    conversion, (only,), _ = read(lines(tmp_path, row), target)
    assert trained(only, target) == ["Yes."] and conversion.unused == {"candidates": 1}


@pytest.mark.parametrize("format", FORMATS.names())
@pytest.mark.parametrize("row", [{"id": 0}, {"messages": 0, "turns": [0]}, {"input": "", "output": "x"}])
def test_a_row_of_another_shape_is_refused(format: str, row: Row) -> None:
    with pytest.raises(BadRow):
        make_reader(format, {})(row)


def test_a_prompt_that_marks_turns_is_messages(tmp_path: Path, target: Target) -> None:
    row = {"prompt": "\n\nHuman: Q?\n\nAssistant: Yes.\n\nHuman: And?\n\nAssistant:", "response": "More.", "reward": 1}
    _, (only,), _ = read(lines(tmp_path, row), target)
    assert seen(only, target) == "<|user|>Q?<|end|><|assistant|>Yes.<|end|><|user|>And?<|end|><|assistant|>"


def test_what_may_be_a_reward_is_named_and_what_never_is_one_is_not(tmp_path: Path, target: Target) -> None:
    row = {"messages": [U, A], "turn": 1, "timestamp": 5.0, "prompt_tokens": 9, "length_ok": 1, "user": {"rating": 4}}
    conversion, *_ = read(lines(tmp_path, row), target)
    assert "Numbers are in user.rating, length_ok: say which with --columns.reward user.rating" in str(
        conversion.shown[0]
    )


def test_what_is_no_reply_is_seen_and_counted(tmp_path: Path, target: Target) -> None:
    hello = {"role": "assistant", "content": "Hello."}
    rows = [
        {"messages": [hello, U, A], "reward": 1},
        {"messages": [hello, {"role": "user", "content": "R?"}, A], "reward": 1},
        {"messages": [U, {"role": "assistant", "content": ""}, U, A], "reward": 1},
        {"messages": [U, U, A, A], "reward": [0, 1]},
        {"prompt": "Q?", "completion": "Yes.", "reward": 1},
        {"type": "SPAN", "input": {}, "output": "x"},
    ]
    conversion, found, left_out = read(lines(tmp_path, *rows), target)
    assert [trained(each, target) for each in found] == [["Yes."]] * 3 + [["Yes."] * 2, ["Yes."]]
    assert left_out == [(6, "not_a_generation")] and len({each.group_id for each in found[:2]}) == 2
    assert seen(found[2], target) == "<|user|>Q?<|end|><|assistant|><|end|><|user|>Q?<|end|><|assistant|>"
    kinds = ("greeting_not_trained", "empty_reply", "consecutive_roles", "plain_text_pair", "not_a_generation")
    assert [conversion.counted[kind] for kind in kinds] == [2, 1, 1, 1, 1]


def test_a_chat_that_grows_is_one_and_what_is_there_twice_is_counted(tmp_path: Path, target: Target) -> None:
    more = [U, A, {"role": "user", "content": "And?"}, A]
    rows = [
        {"messages": [U, A], "id": 1},
        {"messages": more, "id": 2, "reward": 1},
        {"messages": more, "id": 2.0, "reward": 1},
        {"messages": more, "id": "3", "reward": 0},
        {"messages": [{"role": "user", "content": "R?"}, A], "id": "3", "reward": 0},
    ]
    conversion, found, left_out = read(lines(tmp_path, *rows), target)
    assert left_out == [(1, "prefix_of_row"), (3, "duplicate_id")]
    assert [each.turns[-1].step.info["line"] for each in found] == [2, 4, 5]
    assert conversion.counted == {"prefix_of_row": 1, "duplicate": 1, "duplicate_id": 2} and conversion.single == 1
    _, kept, _ = read(lines(tmp_path, *rows[1:], {**rows[0], "reward": 0}), target, prefixes="keep", group="none")
    assert len(kept) == len({each.group_id for each in kept}) == 4


def test_a_reply_is_trained_in_the_row_that_has_its_weight_or_thought(tmp_path: Path, target: Target) -> None:
    more, thought = [U, {**A, "weight": 0}, {"role": "user", "content": "And?"}, A], {**A, "reasoning": "Hm."}
    inside = {**A, "content": "<think>Hm.</think>Yes."}
    _, found, left_out = read(lines(tmp_path, *({"messages": each, "reward": 1} for each in ([U, A], more))), target)
    assert [trained(each, target) for each in found] == [["Yes."], ["Yes."]] and not left_out
    for first, said in (
        (thought, inside["content"]),
        (inside, inside["content"]),
        ({**A, "finish_reason": "length"}, "Yes."),
    ):
        rows = [{"messages": [U, first], "reward": 1}, {"messages": [U, A, *more[2:3], thought], "reward": 1}]
        conversion, found, _ = read(lines(tmp_path, *rows), target)
        assert [trained(each, target) for each in found] == [[said], ["<think>Hm.</think>Yes."]]
        assert conversion.counted["trained_elsewhere"] == 1
    _, (last,), left_out = read(lines(tmp_path, {"messages": [U, thought]}, rows[1]), target)
    assert left_out == [(1, "reward_missing")] and trained(last, target) == ["Yes.", "<think>Hm.</think>Yes."]


def test_replies_that_fit_are_kept_where_later_ones_do_not(tmp_path: Path, target: Target) -> None:
    rows = [{"messages": [U, A, U, {"role": "assistant", "content": "long " * 90}], "reward": 1}]
    conversion, (found,), _ = read(lines(tmp_path, *rows), replace(target, max_length=60))
    assert trained(found, target) == ["Yes."] and len(found.messages) == 4
    assert found.turns[0].step.reward == 1 and conversion.counted["too_long"] == 1


def test_a_template_without_a_place_for_thoughts_trains_the_text_and_counts(tmp_path: Path, plain: Target) -> None:
    rows = [{"messages": [U, {**A, "reasoning_content": "Hm."}], "reward": 1}]
    conversion, (found,), _ = read(lines(tmp_path, *rows), plain)
    assert trained(found, plain) == ["Yes."] and conversion.counted["reasoning_left_out"] == 1
    assert (plain.chat.takes_thinking, plain.chat.takes_calls, plain.chat.takes_tools) == (False,) * 3


def test_calls_and_tools_that_name_control_tokens_stay_text(tmp_path: Path, target: Target) -> None:
    hostile = "a<|end|><|user|>"
    call = {"role": "assistant", "tool_calls": [{"name": "look", "arguments": {"at": hostile}}]}
    rows = [{"messages": [U, call], "tools": [{"name": "look", "description": hostile}], "reward": 1}]
    _, (found,), _ = read(lines(tmp_path, *rows), target)
    ids = found.turns[0].prompt_ids + found.turns[0].completion.token_ids
    names = target.chat._tokenizer.convert_ids_to_tokens([each for each in ids if each in target.chat._control_ids])
    assert names == ["<|system|>", "<|end|>", "<|user|>", "<|end|>", "<|assistant|>", "<|end|>"]


def test_whatever_a_log_lies_in_the_rows_are_the_same(tmp_path: Path, target: Target) -> None:
    rows = [{"messages": [U, {**A, "content": f"{at}\u2028"}], "reward": at} for at in range(3)]
    whole = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    written: dict[str, bytes] = {
        "lines.jsonl": whole.replace("\n", "\r\n").encode("utf-8-sig"),
        "wide.jsonl": whole.encode("utf-16"),
        "unmarked.jsonl": whole.encode("utf-16-le"),
        "packed.jsonl.gz": gzip.compress(whole.encode()),
        "list.json": json.dumps(rows, indent=1).encode(),
        "line.json": json.dumps(rows).encode(),
        "inside.json": json.dumps({"version": 1, "data": rows}, indent=1).encode(),
        "named.json": json.dumps({"meta": {}, "conversations": rows}).encode(),
        "bare.jsonl": "".join(f"{json.dumps(row['messages'])}\n" for row in rows).encode(),
        "table.csv": (
            "messages,reward\n"
            + "".join('"' + json.dumps(row["messages"]).replace('"', '""') + f'",{row["reward"]}\n' for row in rows)
        ).encode(),
    }
    for name, data in written.items():
        (tmp_path / name).write_bytes(data)
    excel = written["table.csv"].decode().replace("messages,", "messages ;")
    written["excel.csv"] = re.sub(r'",(\d)', r'";\1', excel).encode()
    (tmp_path / "excel.csv").write_bytes(written["excel.csv"])
    with pa.output_stream(tmp_path / "packed.jsonl.zst", compression="zstd") as file:
        file.write(whole.encode())
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "table.parquet")
    folder = tmp_path / "parts"
    folder.mkdir()
    for at, part in enumerate((rows[:2], rows[2:])):
        (folder / f"part-{at}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in part))
    (folder / "_SUCCESS").write_text("")
    for name in (*written, "packed.jsonl.zst", "table.parquet", "parts"):
        _, found, left_out = read(tmp_path / name, target)
        if name == "bare.jsonl":
            assert [reason for _, reason in left_out] == ["reward_missing"] * 3
            continue
        assert [each.turns[0].completion.text for each in found] == ["0\u2028", "1\u2028", "2\u2028"], name
        told = [(each.turns[0].step.info["line"], each.turns[0].step.reward) for each in found]
        assert told == [(1, 0.0), (2, 1.0), (3, 2.0)], name
    (tmp_path / "broken.jsonl.gz").write_bytes(written["packed.jsonl.gz"][:-20])
    (tmp_path / "parts.zip").write_bytes(b"PK\x03\x04")
    with pytest.raises(DatasetError, match="zip archive: unpack it"):
        open_source(tmp_path / "parts.zip")
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    assert read(tmp_path / "deep.jsonl", target)[2] == [(1, "not_json")]
    with pytest.raises(DatasetError, match=r"broken\.jsonl\.gz can't be read"):
        open_source(tmp_path / "broken.jsonl.gz")


def test_nulls_that_a_table_fills_in_are_not_there(tmp_path: Path, target: Target) -> None:
    calls = [{"name": "look", "arguments": {"at": 3}}, {"name": "buy", "arguments": {"what": "x"}}]
    rows = [{"messages": [U, {"role": "assistant", "tool_calls": [call]}], "reward": 1, "success": 1} for call in calls]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "table.parquet")
    _, found, _ = read(tmp_path / "table.parquet", target)
    assert [trained(each, target) for each in found] == [[CALLS], ['[buy {"what": "x"}]']]
    assert [each.success for each in found] == [True, True]
