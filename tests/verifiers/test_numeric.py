import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift.errors import ConfigError
from drift.verifiers.numeric import Numeric, read_quantity, show_value

quick = settings(max_examples=100, derandomize=True, deadline=None)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("-3", -3),
        ("\u22123", -3),
        ("+3", 3),
        ("007", 7),
        ("3.", 3),
        ("1,000", 1000),
        ("-1,234,567.50", Fraction("-1234567.5")),
        ("1{,}000", 1000),
        (r"1\,000", 1000),
        ("1\u202f000", 1000),
        ("1/2", Fraction(1, 2)),
        ("-1/2", Fraction(-1, 2)),
        ("1 1/2", Fraction(3, 2)),
        ("-1 1/2", Fraction(-3, 2)),
        (r"\frac{1}{2}", Fraction(1, 2)),
        (r"\dfrac{2000}{2}", 1000),
        (".5", Fraction(1, 2)),
        ("2e-3", Fraction(1, 500)),
        ("2E3", 2000),
        (r"1.2 \times 10^{-5}", Fraction("0.000012")),
        ("1.2 × 10⁵", 120_000),
        ("-6e+25", -6 * 10**25),
        ("10^5", 100_000),
        ("50%", Fraction(1, 2)),
        (r"50\%", Fraction(1, 2)),
        ("5 percent", Fraction(1, 20)),
        ("$1,000", 1000),
        ("-$5", -5),
        ("$-5", -5),
        ("$1.5 million", 1_500_000),
        ("$5k", 5000),
        ("3 million", 3_000_000),
        ("x = 5", 5),
        ("\u2248 3.2", Fraction(16, 5)),
        ("**42**", 42),
        ("$42$", 42),
        (r"\boxed{42}", 42),
        ("42 apples", 42),
        ("9.8 m/s²", Fraction("9.8")),
        ("5cm", 5),
        ("300 K", 300),
        (r"5\text{ cm}", 5),
        (r"90^\circ", 90),
    ],
)
def test_numbers_written_in_ordinary_ways_are_read(text, value):
    assert read_quantity(text).value == value


@pytest.mark.parametrize(
    "text",
    [
        "", "-", "--5", "NaN", "inf", "1/0", "1/2/3", "1.2.3", "1,00", "1234,567", "0,123", "1,000,00", "1 000",
        "3-5", "12 or 13", "5 more than x", "2x", "2 x", "2e", "2i", "5k", "5:30",
        "0x10", "1_000", "\u0663", "5 or", "5 thirds", "5 hundredths", "(5", "__import__('os').getpid()",
        "1e999", "1e-999", "1e9999999999", "10^10000000", "9" * 401,
    ],
)  # fmt: skip
def test_what_is_no_number_or_can_be_read_in_two_ways_is_not_read(text):
    assert read_quantity(text) is None
    assert Numeric().verify(text, "5").verdict == "unparseable"


@pytest.mark.parametrize(
    ("reply", "gold", "wrong"),
    [("five", "5", "4"), ("3π", "9.42478", "3"), ("2 pi", "6.28319", "2"), ("2^10", "1024", "10"), ("5²", "25", "52"),
     ("3!", "6", "3"), ("2½", "2.5", "21"), (r"7\tfrac{1}{4}", "7.25", "1.75"), ("**4.5**", "4.5", "5"),
     ("The total is 31.", "31", "3"), ("## 12", "12", "2"), ("x_2 = 9", "9", "2"), ("about 40 minutes", "40", "4"),
     ("1 - 1/4", "0.75", "0.25")],
)  # fmt: skip
def test_an_expression_or_a_decorated_number_counts_with_its_value(reply, gold, wrong):
    assert Numeric().verify(reply, gold).verdict == "right"
    assert Numeric().verify(reply, wrong).verdict == "wrong"


@pytest.mark.parametrize(("reply", "gold"), [("-3", "3"), ("1/2", "1/3"), ("2e-3", "2"), ("1,000", "1")])
def test_the_four_false_acceptances_of_the_published_check_are_rejected(reply, gold):
    assert Numeric().verify(reply, gold).verdict == "wrong"
    assert Numeric().verify(gold, reply).verdict == "wrong"


@quick
@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12))
def test_integers_in_every_spelling_equal_themselves_and_nothing_else(value, other):
    # Python's own formatting is the oracle.
    spellings = (f"{value}", f"{value:,}", f"{value}.00", f"{value:,}".replace(",", "{,}"), f"{2 * value}/2")
    for spelling in spellings:
        outcome = Numeric().verify(spelling, f"{value}")
        assert (outcome.verdict, outcome.answer) == ("right", str(value))
        assert Numeric().verify(spelling, f"{other}").right == (value == other)
        assert not Numeric().verify(spelling, f"{value + 1}").right


@quick
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_read_back_as_the_decimal_they_are_written_as(value):
    exact = Fraction(repr(value))
    assert read_quantity(repr(value)).value == exact
    assert read_quantity(f"{value:.17e}").value == Fraction(f"{value:.17e}")
    assert Numeric(relative=0).verify(repr(value), repr(value)).right


@quick
@given(st.fractions(max_denominator=1000))
def test_a_value_is_shown_so_that_it_reads_back(value):
    assert read_quantity(show_value(value)).value == value


@pytest.mark.parametrize(
    ("tolerance", "reply", "gold", "right"),
    [
        ({}, "16/3", "5.333", True),
        ({}, "5.34", "5.333", False),
        ({}, "1000001", "1000000", False),  # whole numbers are exact
        ({"integers_exact": False}, "1000001", "1000000", True),
        ({"relative": 0}, "16/3", "5.333", False),
        ({"relative": 0, "absolute": 0.01}, "5.34", "5.333", True),
        ({"relative": 0, "absolute": 0.5}, "5.5", "5.0", True),  # the bound belongs to it
        ({"relative": 0, "absolute": 0.5}, "5.50000000000000001", "5.0", False),
        ({"relative": 0.05}, "-3.14", "3.14", False),
        ({"relative": 0.05}, "0.01", "0.0", False),
        ({}, "0.3333", "1/3", False),  # so are fractions
        ({"integers_exact": False}, "0.3333", "1/3", True),
    ],
)
def test_tolerances_are_what_they_say(tolerance, reply, gold, right):
    assert Numeric(**tolerance).verify(reply, gold).right == right


@pytest.mark.parametrize(
    ("reply", "gold", "either", "exact"),
    [("50%", "0.5", True, True), ("50%", "50", True, False), ("50", "50%", True, False), ("50%", "50%", True, True),
     ("5%", "50", False, False), ("0.5%", "50%", False, False)],
)  # fmt: skip
def test_percent_is_read_as_the_setting_says(reply, gold, either, exact):
    assert Numeric(percent="either").verify(reply, gold).right == either
    assert Numeric(percent="exact").verify(reply, gold).right == exact


@pytest.mark.parametrize(
    ("reply", "gold", "right"),
    [
        ("5 m", "5 cm", False),
        ("5 metres", "5 m", True),
        ("5", "5 cm", True),
        ("5 cm", "5", True),
        ("$18", "18 dollars per day", True),
        ("18 eggs", "$18", False),
        ("5 lb", "5 pounds", True),
        ("£5", "5 pounds", True),
        ("55 mph", "55 miles per hour", True),
        ("9.8 m/s^2", "9.8 meters / second^2", True),
        ("5 kW", "5 mW", False),
    ],
)
def test_units_are_compared_where_both_sides_have_one(reply, gold, right):
    assert Numeric().verify(reply, gold).right == right
    assert Numeric(units="ignore").verify(reply, gold).right


@pytest.mark.parametrize(
    ("reply", "gold", "verdict"),
    [
        ("[0, 5]", "[0, 5]", "right"),
        ("0, 5", "[0, 5]", "right"),
        ("x = [0, 5]", "[0, 5]", "right"),
        ("[0, 5]", "5", "wrong"),
        ("(0; 5)", "[0, 5]", "right"),
        (r"\{0, 5\}", "[0, 5]", "right"),
        ("[5, 0]", "[0, 5]", "wrong"),
        ("[0, 5, 5]", "[0, 5]", "wrong"),
        ("5", "[0, 5]", "wrong"),
        ("1,000", "[1, 0]", "wrong"),  # one number
        ("[0.3333, 1/4]", "[0.333, 0.25]", "right"),
        ("[0, x]", "[0, 5]", "unparseable"),
        ("[0, 5", "[0, 5]", "unparseable"),
        ("[5]", "5", "unparseable"),
        ("3", "[3]", "right"),
    ],
)
def test_lists_are_compared_number_by_number_in_order(reply, gold, verdict):
    assert Numeric().verify(reply, gold).verdict == verdict


@pytest.mark.parametrize("gold", ["", "fivefold", "[1, x]", "9" * 401])
def test_a_gold_that_is_no_number_is_refused(gold):
    with pytest.raises(ConfigError, match="gold: got"):
        Numeric().verify("5", gold)


@pytest.mark.parametrize("wrong", [{"relative": -1}, {"absolute": float("nan")}, {"percent": "no"}, {"units": "si"}])
def test_settings_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=f"verifier.settings.{next(iter(wrong))}"):
        Numeric(**wrong)


@pytest.mark.parametrize(
    "text",
    ["9" * 10**6, "1" + ",000" * 250_000, "1e" + "9" * 10**6, " " * 10**6 + "x", "\\boxed{" * 140_000, "1/" * 999,
     "1," * 999, "m/" * 900, "5 " + "m" * 1900, "\\frac{" * 330, "-" * 1999, "1 " * 999],
    ids=lambda text: f"{text[:8].strip()}... {len(text)} characters",
)  # fmt: skip
def test_hostile_texts_are_refused_at_once(text):
    start = time.process_time()
    assert not Numeric().verify(text, "7").right
    assert time.process_time() - start < 0.5
