import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift.environments.answers import extract_answer, parse_whole_number
from drift.verifiers.reading import is_placeholder

quick = settings(max_examples=60, derandomize=True, deadline=None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("7", 7),
        ("+7", 7),
        ("-7", -7),
        ("- 7", -7),
        ("\u22127", -7),  # the typographic minus
        ("-0", 0),
        ("007", 7),
        ("  42\n", 42),
        ("42.", 42),
        ("42.0", 42),
        ("42.000", 42),
        ("1,234", 1234),
        ("12,345,678", 12345678),
        ("-1,234.00", -1234),
        ("9" * 18, 10**18 - 1),
    ],
)
def test_whole_numbers_written_in_ordinary_ways_are_read(text, expected):
    assert parse_whole_number(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "-",
        ".0",
        "1.5",
        "1.05",
        "1e3",
        "0x10",
        "1/2",
        "12 34",
        "1,23",
        "1234,567",
        "1,,234",
        ",123",
        "--5",
        "5-",
        "five",
        "42 apples",
        "= 42",
        "$42",
        "1_000",
        "NaN",
        "inf",
        "²",
        "\uff14\uff12x",
        "4\x002",
        "9" * 19,  # no task has an answer that long
        "__import__('os').system('true')",
        "<answer>4</answer>",
    ],
)
def test_anything_else_is_a_format_failure_and_not_a_number(text):
    assert parse_whole_number(text) is None


@quick
@given(st.integers(-(10**18) + 1, 10**18 - 1), st.booleans(), st.sampled_from(["", ".", ".0", ".00"]))
def test_every_way_to_write_an_integer_reads_back_as_that_integer(value, separated, tail):
    # Python's own formatting is the oracle.
    assert parse_whole_number((f"{value:,}" if separated else str(value)) + tail) == value


@quick
@given(st.text("0179+-\u2212., \n\tx٣", max_size=8))
def test_any_text_gives_none_or_the_integer_its_digits_spell(text):
    value = parse_whole_number(text)
    bare = "".join(text.split()).replace("\u2212", "-").replace(",", "").split(".")[0]
    assert value is None or value == int(bare)


@pytest.mark.parametrize(
    "text",
    [
        "9" * 10**6,
        "-" + "9" * 10**6 + ".0",
        "1." + "0" * 10**6 + "1",
        " " * 10**6 + "x",
        "-" + " " * 10**6 + "x",
        "+-" * 500_000,
        ",123" * 250_000,
        "1" + ",000" * 6,  # one group more than 18 digits
        "1" + ",000" * 2000,  # past the 4,300 digits at which int() refuses
        "1" + ",000" * 250_000,
    ],
    ids=lambda text: f"{text[:6].strip()}... {len(text)} characters",
)
def test_hostile_numbers_are_refused_at_once(text):
    start = time.process_time()
    assert parse_whole_number(text) is None
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("<answer>5</answer>", "5"),
        ("I think <answer> 5 </answer>.", "5"),
        ("<answer>5</answer> no, <answer>6</answer>", "6"),  # the last one counts
        ("<ANSWER>5</Answer>", "5"),
        ("<answer>\n5\n</answer>", "5"),
        ("<answer></answer>", None),
        ("<answer>5</answer> <answer>your answer</answer>", "5"),  # the prompt repeated
        ("<think><answer>4</answer></think> <answer>5</answer>", "5"),
        ("<think><answer>4</answer>", None),
        ("<answer>5</answer> <answer>6", "6"),  # the later one counts, though it was left open
        ("<answer>5", "5"),
        ("<answer>5</ans", "5"),
        ("5</answer>", None),
        ("</answer>5<answer>", None),
        ("< answer>5</answer>", "5"),
        ("the answer is 5", None),
        ("", None),
    ],
)
def test_the_last_complete_answer_tag_is_read(reply, expected):
    assert extract_answer(reply) == expected


@quick
@given(
    st.lists(st.text("answer/5 .\n\u2028é", max_size=8), min_size=1, max_size=4),
    st.text("answer/5 .\n\u2028é", max_size=8),
)
def test_the_last_of_several_answers_is_read_whatever_stands_between(answers, filler):
    reply = filler.join(f"<answer>{answer}</answer>" for answer in answers) + filler
    filled = [answer.strip() for answer in answers if not is_placeholder(answer.strip())]
    if "<" not in filler:
        assert extract_answer(reply) == (filled[-1] if filled else None)


@pytest.mark.parametrize(
    "reply",
    ["x" * 10**6, "<answer>" + "x" * 10**6, "</answer>" * 10**5, "<answer>1</answer>" * 10**5],
    ids=["no tag", "one open tag", "closing tags only", "many answers"],
)
def test_long_replies_are_read_at_once(reply):
    start = time.process_time()
    extract_answer(reply)
    assert time.process_time() - start < 1


def test_a_reply_of_open_tags_alone_takes_time_linear_in_its_length():
    # A policy stuck in a loop says this. Eight times the tags may take 8 times as long, not 64 times.
    def seconds(tags):
        reply = "<answer>" * tags
        start = time.process_time()
        assert extract_answer(reply) is None
        return time.process_time() - start

    short, long = (min(seconds(tags) for _ in range(3)) for tags in (200, 1600))
    assert long < 24 * max(short, 1e-4)
