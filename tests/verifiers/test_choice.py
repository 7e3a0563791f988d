import string
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift.errors import ConfigError
from drift.verifiers.choice import Choice

quick = settings(max_examples=100, derandomize=True, deadline=None)
OPTIONS = ("nothing", "Because of a reaction", "a cat", "42")


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("C", "C"),
        ("c", "C"),
        ("(C)", "C"),
        ("**D**", "D"),
        ("c)", "C"),
        ("A", "A"),
        ("B. Because of a reaction", "B"),
        ("B) it reacts", "B"),
        ("(b) it reacts, and A does not", "B"),
        ("**B** because A is inert", "B"),
        ("Answer: c", "C"),
        ("Answer: A", "A"),
        ("**Answer:** B", "B"),
        ("The answer is B", "B"),
        ("The answer is (b).", "B"),
        ("The answer is: A", "A"),
        ("The answer is A because it is small.", "A"),
        ("The correct answer is **B) Because of a reaction**", "B"),
        ("Not A, so the answer is B", "B"),
        ("The answer is not A, the answer is B", "B"),
        ("Option B is correct", "B"),
        ("B is the correct answer", "B"),
        ("I choose C", "C"),
        ("One might think the answer is B, but it is C.", "C"),
        (r"\boxed{C}", "C"),
        (r"So it is $\boxed{\text{D}}$ in the end", "D"),
        ("First I think the answer is A.\nNo, wait.\nThe answer is C.", "C"),
        ("A. one\nB. two\nC. three\nAnswer: B", "B"),
        ("Some reasoning about A and B.\n\nC", "C"),
        ("Because of a reaction", "B"),
        ("because of a reaction.", "B"),
        ("The answer is a cat", "C"),
        ("42", "D"),
    ],
)
def test_the_claimed_option_is_read(reply, letter):
    outcome = Choice().verify(reply, letter, options=OPTIONS)
    assert (outcome.verdict, outcome.answer) == ("right", letter)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "I don't know.",
        "A reaction occurs",  # an article
        "The answer is a reaction",
        "I think",
        "The answer is not A",
        "It is false that the answer is A.",
        "Bob says the answer is A.",
        "E",  # no such option
        "The answer is A or B",
        "Answer: B and C",
        "The answer is A. The answer is B.",
        "B. a cat",  # the label of one, the text of another
        "A. one\nB. two",  # a list claims nothing
        "DNA",
    ],
)
def test_no_claim_or_two_of_them_are_unparseable(reply):
    outcome = Choice().verify(reply, "A", options=OPTIONS)
    assert (outcome.verdict, outcome.answer) == ("unparseable", None)
    assert outcome.reason


@pytest.mark.parametrize("gold", ["(c)", "C", "c", "C."])
def test_a_gold_may_be_written_as_the_data_sets_do(gold):
    assert Choice().verify("The answer is C.", gold).right


@quick
@given(
    st.sampled_from("ABCDEFGHIJ"),
    st.sampled_from(["{}", "({})", "**{}**", "Answer: {}", "The answer is {}.", r"\boxed{{{}}}", "{}."]),
    st.booleans(),
)
def test_every_letter_is_read_in_every_form(letter, form, lower):
    reply = form.format(letter.lower() if lower else letter)
    assert Choice(letters=string.ascii_uppercase[:10]).verify(reply, letter).answer == letter


@quick
@given(st.text(max_size=60), st.sampled_from("ABCD"))
def test_any_text_gives_one_letter_or_none(text, gold):
    outcome = Choice().verify(text, gold)
    assert (outcome.answer is None) == (outcome.verdict == "unparseable")
    assert outcome.answer is None or (outcome.answer in "ABCD" and outcome.right == (outcome.answer == gold))


@pytest.mark.parametrize("gold", ["E", "", "AB", "the first"])
def test_a_gold_that_is_no_option_is_refused(gold):
    with pytest.raises(ConfigError, match="expected one of the letters ABCD"):
        Choice().verify("A", gold)


@pytest.mark.parametrize("wrong", [{"letters": "ACB"}, {"letters": "A"}, {"options": ("one",)}])
def test_settings_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=f"verifier.settings.{next(iter(wrong))}"):
        Choice(**wrong)


@pytest.mark.parametrize(
    "reply",
    [
        "*" * 59,
        " ( " * 300_000,
        "answer is " * 100_000,
        "A. \n" * 250_000,
        "\\boxed{" * 140_000,
        "option A, " * 100_000,
    ],
    ids=lambda reply: f"{reply[:10].strip()}... {len(reply)} characters",
)
def test_hostile_replies_are_read_at_once(reply):
    start = time.process_time()
    Choice().verify(reply, "A", options=OPTIONS)
    assert time.process_time() - start < 2


def test_an_options_value_may_be_beyond_every_double():
    options = ("10^{400}", "10^{-400}", "0", "5")
    for reply, letter in (("1e400", "A"), ("10^{400}", "A"), ("10^{-400}", "B"), ("0", "C"), ("10^{401}", None)):
        found = Choice().verify(f"<answer>{reply}</answer>", "A", options=options)
        assert found.answer == letter, (reply, found)
