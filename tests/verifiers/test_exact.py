import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift.errors import ConfigError
from drift.verifiers.exact import Exact

quick = settings(max_examples=100, derandomize=True, deadline=None)


@pytest.mark.parametrize(
    ("reply", "gold"),
    [
        ("Paris", "paris"),
        ("  New \n York ", "new york"),
        ("'Paris.'", "Paris"),
        ("**Paris**!", "Paris"),
        ("(c)", "C"),
        ("\uff30aris", "Paris"),  # full width
        ("o\ufb03ce", "office"),  # a ligature
        ("cafe\u0301", "caf\u00e9"),
        ("STRASSE", "stra\u00dfe"),
        ("\u22123", "-3"),
        ("True", "true"),
    ],
)
def test_texts_that_differ_in_form_alone_are_the_same(reply, gold):
    assert Exact().verify(reply, gold).verdict == "right"


@pytest.mark.parametrize(
    ("reply", "gold"),
    [
        ("-3", "3"),
        ("3%", "3"),
        ("$3", "3"),
        (".5", "5"),
        ("10\u00b2", "102"),  # NFKC alone makes these one text
        ("x\u2082", "x2"),
        ("2\u00bd", "21/2"),
        ("(0, 5)", "[0, 5]"),
        ("[0, 5)", "(0, 5)"),
        ("<3", "3"),
        ("a b", "ab"),
        ("Paris, Texas", "Paris"),
    ],
)
def test_texts_that_mean_something_else_are_not(reply, gold):
    outcome = Exact().verify(reply, gold)
    assert outcome.verdict == "wrong"
    assert outcome.answer == Exact().normalise(reply)


@pytest.mark.parametrize("reply", ["", "  ", "...", "**"])
def test_nothing_is_unparseable_and_not_wrong(reply):
    outcome = Exact().verify(reply, "x")
    assert (outcome.verdict, outcome.answer, outcome.reason) == ("unparseable", None, "empty")


@pytest.mark.parametrize(
    ("setting", "reply", "gold"),
    [
        ("ignore_case", "paris", "Paris"),
        ("ignore_whitespace", "new  york", "new york"),
        ("ignore_punctuation", "Paris.", "Paris"),
        ("unicode_compatible", "\uff30", "P"),
    ],
)
def test_each_setting_turns_off_what_it_names(setting, reply, gold):
    assert Exact().verify(reply, gold).right
    assert not Exact(**{setting: False}).verify(reply, gold).right


@quick
@given(st.text(max_size=30))
def test_normalising_twice_changes_nothing_more_and_a_text_is_itself(text):
    exact = Exact(ignore_punctuation=False)
    assert exact.normalise(exact.normalise(text)) == exact.normalise(text)
    if Exact().normalise(text):
        assert Exact().verify(text, text).verdict == "right"


def test_a_gold_without_text_is_the_fault_of_the_data():
    with pytest.raises(ConfigError, match="gold: got '\\?'"):
        Exact().verify("x", "?")


@pytest.mark.parametrize("reply", ["x" * 10**6, "\u0301\u0323" * 5000, "\ufdfa" * 10_000, "(" * 10_000])
def test_hostile_texts_are_judged_at_once(reply):
    start = time.process_time()
    assert not asyncio.run(Exact().verify_async(reply, "x")).right
    assert time.process_time() - start < 2
