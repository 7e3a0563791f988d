"""What is fuzzed: functions of one text that raise where something hostile got through."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from drift.dataset.imports.base import BadRow
from drift.dataset.imports.run import make_reader
from drift.environments.answers import extract_answer, parse_whole_number
from drift.environments.base import fault_of_messages
from drift.environments.mentions import numbers_named, options_named
from drift.environments.tool_calls import canonical_calls, parse_calls
from drift.policies import DEFAULT_MODEL
from drift.problems.boxed import boxed
from drift.verifiers.choice import Choice
from drift.verifiers.exact import Exact
from drift.verifiers.judge import HIGHEST, LOWEST, read_score
from drift.verifiers.numeric import Numeric
from drift.verifiers.quoting import quote

OPTIONS = ("a red fox", "a blue whale", "a grey owl", "a green frog")
NUMERIC, CHOICE, EXACT = Numeric(), Choice(), Exact()
# (gold, what is claimed last): a verifier must not accept the claim, whatever stands before it.
WRONG_NUMBERS = (("1000", "1001"), ("1000", "-1000"), ("3", "-3"), ("1/2", "1/3"), ("2", "2e-3"), ("1", "1,000"))
WRONG_LETTERS = (("A", "B"), ("C", "D"), ("B", "A"))


def answers(text: str) -> None:
    found = extract_answer(text)
    assert found is None or found in text
    number = parse_whole_number(text)
    assert number is None or isinstance(number, int)
    assert boxed(text) is None or isinstance(boxed(text), str)


def mentions(text: str) -> None:
    assert options_named(text, OPTIONS) <= {0, 1, 2, 3}
    numbers_named(text)


def tool_calls(text: str) -> None:
    parsed = parse_calls(text)
    assert (parsed.calls is None) == bool(parsed.reason)
    canonical_calls(parsed.calls or ())


def numeric(text: str) -> None:
    for gold, wrong in WRONG_NUMBERS[len(text) % 6 : len(text) % 6 + 2]:
        assert not NUMERIC.verify(f"{text}\n\nThe answer is \\boxed{{{wrong}}}.", gold).right, (gold, wrong)
    NUMERIC.verify(text, "12.5")


def choice(text: str) -> None:
    gold, wrong = WRONG_LETTERS[len(text) % 3]
    assert not CHOICE.verify(f"{text}\n\nThe final answer is ({wrong}).", gold, options=OPTIONS).right, (gold, wrong)
    CHOICE.verify(text, "A", options=OPTIONS)


def exact(text: str) -> None:
    assert not EXACT.verify(f"{text}\n<answer>Paris</answer>", "London").right
    EXACT.verify(text, "Paris")


def judge(text: str) -> None:
    score, reason = read_score(text)
    assert (score is None) == bool(reason)
    assert score is None or LOWEST <= score <= HIGHEST


def quoting(text: str) -> None:
    quoted = quote([("user", text), ("assistant", text[::-1])], tags=("score",), max_characters=2000)
    lines = quoted.text.split("\n")
    # Only our own lines carry the code: what is quoted can neither end its quotation nor begin another.
    assert sum(quoted.code in line for line in lines) == 3 and "<score>" not in quoted.text
    quoted.text.encode("utf-8")


def imports(text: str) -> None:
    rows: list[Any] = [
        {"messages": [{"role": "user", "content": text}], "reward": 1},
        {"messages": text, "reward": text},
    ]
    with contextlib.suppress(ValueError, RecursionError):
        rows.append(json.loads(text))
    for row in rows:
        if not isinstance(row, Mapping):
            continue
        for name in ("auto", "drift", "mathdial"):
            try:
                make_reader(name, {})(row)
            except BadRow as bad:
                assert bad.reason and bad.detail


def _math() -> Callable[[str], None]:
    from drift.verifiers.math import Math

    # Workers of their own, so that what a deadline ends is counted and costs no other input.
    verifier = Math(workers=1, deadline=1.0, memory_mb=1024)

    def math(text: str) -> None:
        gold, wrong = (("\\frac{1}{2}", "\\frac{1}{3}"), ("x^2", "x^3"), ("1000", "1,001"))[len(text) % 3]
        assert not verifier.verify(f"{text}\n\nThe answer is \\boxed{{{wrong}}}.", gold).right, (gold, wrong)
        assert verifier.verify(text, gold).answer is None or text

    # Two checks, each begun three times at most, and workers that start meanwhile.
    math.deadline = 120.0  # type: ignore[attr-defined]
    return math


def _templates() -> Callable[[str], None]:
    from transformers import AutoTokenizer

    from drift.chat import TemplateChat

    tokenizer = AutoTokenizer.from_pretrained(DEFAULT_MODEL)
    chat = TemplateChat(tokenizer, source="default")
    control = set(tokenizer.all_special_ids)
    plain = [token for token in chat.first([{"role": "user", "content": "x"}]) if token in control]

    def templates(text: str) -> None:
        messages = [{"role": "user", "content": text[:2000]}]
        if fault_of_messages(messages):
            return
        found = chat.first(messages)
        assert [token for token in found if token in control] == plain

    return templates


def all_targets() -> dict[str, Callable[[str], None]]:
    """Every target by name."""
    found = (answers, mentions, tool_calls, numeric, choice, exact, judge, quoting, imports)
    return {**{target.__name__: target for target in found}, "math": _math(), "templates": _templates()}
