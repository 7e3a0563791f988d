import json
import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift.environments.tool_calls import (
    Canonical,
    TurnScore,
    canonical,
    canonical_calls,
    parse_calls,
    score_dialogue,
    score_turn,
)
from drift.problems.mtu_bench import ToolCall

A, B = '{"name": "a", "arguments": {}}', '{"name": "b", "arguments": {"x": [1, null, {"y": "\\u00e9"}]}}'


@pytest.mark.parametrize(
    ("reply", "calls"),
    [
        ("In words.", []),
        ("a < b > c {} </tool_calls>", []),
        (f"<tool_call>{A}</tool_call>", [("a", {})]),
        (f"I will.<tool_call>\n {A} \n</tool_call> Done.", [("a", {})]),
        (f"<tool_call>{B}</tool_call><tool_call>{A}</tool_call>", [("b", {"x": [1, None, {"y": "é"}]}), ("a", {})]),
        ('<tool_call>{"arguments": {"s": "<tool-call>"}, "name": " a "}</tool_call>', [("a", {"s": "<tool-call>"})]),
        ('<tool_call>{"name": "a", "arguments": {"s": "\\ud800 [[{"}}</tool_call>', [("a", {"s": "\ud800 [[{"})]),
    ],
)
def test_calls_are_read_from_their_tags(reply: str, calls: list[tuple[str, dict[str, Any]]]) -> None:
    parsed = parse_calls(reply)
    assert parsed.calls == tuple(ToolCall(name=name, arguments=arguments) for name, arguments in calls)
    assert parsed.reason == ""


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "empty"),
        (" \n\t", "empty"),
        (f"<tool_call>{A}", "tags"),
        (f"{A}</tool_call>", "tags"),
        (f"<tool_call>{A}<tool_call>{A}</tool_call></tool_call>", "tags"),
        (f"<tool_call>{A}</tool_call> <tool_call>", "tags"),
        ('<tool_call>{"name": "a", "arguments": {"x": "</tool_call>"}}</tool_call>', "tags"),
        ("<tool_call></tool_call>", "not_json"),
        ('<tool_call>{"name": "a", "argum</tool_call>', "not_json"),
        ("<tool_call>{'name': 'a', 'arguments': {}}</tool_call>", "not_json"),
        (f"<tool_call>{A} {A}</tool_call>", "not_json"),
        (f"<tool_call>```json\n{A}\n```</tool_call>", "not_json"),
        ('<tool_call>{"name": "a", "arguments": {"x": NaN}}</tool_call>', "not_json"),
        ('<tool_call>{"name": "a", "arguments": {"x": -Infinity}}</tool_call>', "not_json"),
        ('<tool_call>{"name": "a", "arguments": {"x": 1e999}}</tool_call>', "not_json"),
        (f'<tool_call>{{"name": "a", "arguments": {{"x": {"9" * 5000}}}}}</tool_call>', "not_json"),
        ('<tool_call>{"name": "a", "arguments": {"x": 1, "x": 2}}</tool_call>', "not_json"),
        ('<tool_call>{"name": "a", "arguments": {"x": "\n"}}</tool_call>', "not_json"),
        (f"<tool_call>[{A}]</tool_call>", "not_a_call"),
        ('<tool_call>"a"</tool_call>', "not_a_call"),
        ('<tool_call>{"name": "a"}</tool_call>', "not_a_call"),
        ('<tool_call>{"name": "a", "arguments": {}, "id": 1}</tool_call>', "not_a_call"),
        ('<tool_call>{"name": " ", "arguments": {}}</tool_call>', "not_a_call"),
        ('<tool_call>{"name": 1, "arguments": {}}</tool_call>', "not_a_call"),
        ('<tool_call>{"name": "a", "arguments": "{}"}</tool_call>', "not_a_call"),
        (f"<tool_call>{A}</tool_call>" * 33, "too_many"),
        (f'<tool_call>{{"name": "a", "arguments": {{"x": "{"y" * 20_000}"}}}}</tool_call>', "too_long"),
        ("<tool_call>" + "[" * 33 + "]" * 33 + "</tool_call>", "too_deep"),
        ("<tool_call>" + '{"a":' * 3_000 + "</tool_call>", "too_deep"),
    ],
)
def test_what_can_not_be_read_has_a_reason_and_no_calls(reply: str, reason: str) -> None:
    parsed = parse_calls(reply)
    assert (parsed.calls, parsed.reason) == (None, reason)


def test_brackets_in_strings_are_not_nesting() -> None:
    text = '[{"' * 200
    body = json.dumps({"name": "a", "arguments": {"x": text}})
    assert parse_calls(f"<tool_call>{body}</tool_call>").calls == (ToolCall(name="a", arguments={"x": text}),)


PIECES = [
    "<tool_call>",
    "</tool_call>",
    A,
    B,
    "{",
    "}",
    "[",
    "]",
    '"',
    "\\",
    ":",
    ",",
    "NaN",
    "1e9",
    "\ud800",
    "\x00",
    " ",
]


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=30).map("".join))
def test_any_text_is_read_without_an_exception_and_has_one_canonical_form(reply: str) -> None:
    parsed = parse_calls(reply)
    assert (parsed.calls is None) == bool(parsed.reason)
    if parsed.calls is not None:
        calls = canonical_calls(parsed.calls)
        assert calls == canonical_calls(parsed.calls)
        json.dumps(calls).encode()
        again = "".join(
            f"<tool_call>{json.dumps({'name': c.name, 'arguments': dict(c.arguments)})}</tool_call>"
            for c in parsed.calls
        )
        assert not again or parse_calls(again).calls == parsed.calls


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "<tool_call>",
        "<tool_call></tool_call>",
        "<tool_call>{",
        '<tool_call>\\"',
        "</tool_",
        '"\\',
        "<",
    ],
)
@pytest.mark.parametrize(("before", "after"), [("", ""), ("<tool_call>", "</tool_call>")])
def test_a_megabyte_of_anything_is_read_at_once(text: str, before: str, after: str) -> None:
    reply = before + text * (1_000_000 // len(text)) + after
    begun = time.process_time()
    parse_calls(reply)
    assert time.process_time() - begun < 0.5


def test_the_longest_body_that_is_read_at_all_is_read_at_once() -> None:
    for text in ("{", '\\"', '"\\', '{"a":', '"a",', "1" * 4000 + ","):
        body = (text * 20_000)[:20_000]
        begun = time.process_time()
        assert parse_calls(f"<tool_call>{body}</tool_call>").calls is None
        assert time.process_time() - begun < 0.1


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Seattle", "  seattle ", True),
        ("San  Francisco", "san francisco", True),
        ("STRASSE", "straße", True),
        (3, "3", True),
        (3, 3.0, True),
        ("3.50", 3.5, True),
        ("+3", 3, True),
        (-0.0, 0, True),
        ("-0.0", "0", True),
        (1e3, "1000", True),
        (1e-7, "0.0000001", True),
        (True, "True", True),
        (False, "false", True),
        ({"a": 1, "b": [2]}, {"b": ["2"], "a": "1.0"}, True),
        (None, None, True),
        (3, 4, False),
        (3, -3, False),
        (0.1, 0.11, False),
        (12345678901234567, 12345678901234568, False),
        (True, 1, False),
        (None, "null", False),
        (None, "", False),
        ("07", "7", False),
        ("07:00", "7:00", False),
        ("1,000", "1000", False),
        ("Seattle", "Seattle, WA", False),
        ([1, 2], [2, 1], False),
        ({"a": 1}, {"A": 1}, False),
        ({"a": 1}, {"a": 1, "b": None}, False),
        ([], {}, False),
        ("٣", 3, False),
    ],
)
def test_values_are_compared_by_what_they_mean(one: Any, other: Any, same: bool) -> None:
    assert (canonical(one) == canonical(other)) == same


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=10,
    )
)
def test_the_canonical_form_is_a_fixed_point_and_knows_no_order_of_keys(value: Any) -> None:
    form = canonical(value)
    assert canonical(form) == form
    if isinstance(value, dict):
        assert json.dumps(canonical(dict(reversed(value.items())))) == json.dumps(form)


def naive_turn(given: list[Canonical], gold: list[Canonical]) -> tuple[bool, bool, float, float]:
    """MTU-Bench's figures of one turn by its definitions, with plain loops."""
    names = [n for n, _ in given] == [n for n, _ in gold]
    left, shared = list(gold), 0
    for call in given:
        if call in left:
            left.remove(call)
            shared += 1
    either = len(given) + len(gold) - shared
    number = 1.0 if either == 0 else shared / either
    if given == gold:
        order = 1.0
    elif not given or not gold:
        order = 0.0
    else:
        runs = [
            (size, -at_gold, -at_given)
            for at_gold in range(len(gold))
            for at_given in range(len(given))
            for size in range(min(len(gold) - at_gold, len(given) - at_given) + 1)
            if gold[at_gold : at_gold + size] == given[at_given : at_given + size]
        ]
        size, _, at_given = max(runs)
        order = math.cos(math.pi / 2 * (-at_given / len(given))) * size / len(gold)
    return names, given == gold, number, order


CALLS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(['{"x":"1"}', "{}"])), max_size=6)


@given(CALLS, CALLS)
def test_a_turn_is_scored_as_by_a_naive_scorer(given_calls: list[Canonical], gold: list[Canonical]) -> None:
    score = score_turn(given_calls, gold)
    names, right, number, order = naive_turn(given_calls, gold)
    assert (score.tool_selection, score.right) == (names, right)
    assert (score.tool_number, score.tool_order) == pytest.approx((number, order))
    assert score.right == (score.tool_number == 1 and score.tool_order == 1)


def test_the_figures_of_a_turn_by_hand() -> None:
    x, y, wrong = ("x", "{}"), ("y", "{}"), ("x", '{"k":"1"}')
    assert score_turn([], []) == TurnScore(tool_selection=True, right=True, tool_number=1.0, tool_order=1.0)
    assert score_turn(None, []) == TurnScore(tool_selection=False, right=False, tool_number=0.0, tool_order=0.0)
    assert score_turn([wrong], [x]) == TurnScore(tool_selection=True, right=False, tool_number=0.0, tool_order=0.0)
    surplus = score_turn([wrong, x, y], [x, y])
    assert not surplus.tool_selection and not surplus.right
    assert surplus.tool_number == pytest.approx(2 / 3)
    assert surplus.tool_order == pytest.approx(math.cos(math.pi / 6))  # the run of both starts at 1 of 3
    swapped = score_turn([y, x], [x, y])
    assert swapped.tool_number == 1 and not swapped.right
    assert swapped.tool_order == pytest.approx(math.cos(math.pi / 4) / 2)


def naive_dialogue(right: list[bool]) -> dict[str, float]:
    """MTU-Bench's figures of one dialogue by its definitions, with plain loops."""
    soft, process, failed = [], 0, False
    for j in range(len(right)):
        if not right[j]:
            soft.append(0.0)
            failed = True
            continue
        before = [i for i in range(j) if not right[i]]
        soft.append(1 - math.exp(-(j - before[-1])) if before else 1.0)
        process += not failed
    count = len(right)
    return {
        "success": float(sum(right) == count),
        "turn_success": sum(right) / count,
        "soft_turn_success": sum(soft) / count,
        "task_process": process / count,
    }


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(0, 3))
def test_a_dialogue_is_scored_as_by_a_naive_scorer(right: list[bool], unreached: int) -> None:
    def score(correct: bool) -> TurnScore:
        return TurnScore(tool_selection=True, right=correct, tool_number=0.0, tool_order=0.0)

    found = score_dialogue([score(correct) for correct in right], len(right) + unreached)
    assert found == pytest.approx(naive_dialogue(right + [False] * unreached))
