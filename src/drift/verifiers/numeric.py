"""Numbers as people and models write them, read in linear time, and compared exactly or within a tolerance."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

from drift.errors import require
from drift.verifiers.base import Verification, boxed, judged, unparseable
from drift.verifiers.expressions import core, expression
from drift.verifiers.units import read_unit, same_unit
from drift.verifiers.values import value_of

Percent = Literal["either", "exact"]
Units = Literal["match", "ignore"]
MAX_CHARACTERS = 2000
MAX_DIGITS = 400
# Beyond the range of a double nothing is an answer, and 10**10**9 is an attack.
MAX_EXPONENT = 400


@dataclass(frozen=True, kw_only=True)
class Numeric:
    """Right if the numbers are equal; a gold written as a list is compared number by number, in order.

    A gold written as a whole number or a fraction of two is compared exactly, any other one within
    ``|answer − gold| ≤ max(absolute, relative·|gold|)``, in exact rational arithmetic.

    Args:
        absolute: tolerance in the unit of the gold.
        relative: tolerance as a share of the gold.
        integers_exact: compare whole numbers and fractions exactly, whatever the tolerances.
        percent: what 50% is: ``exact``, 0.5 and nothing else; or ``either``, 0.5 or 50 where only one of the two
            sides has a percent sign.
        units: ``match``, wrong if both have a unit and the units differ (none is converted); or ``ignore``.
    """

    absolute: float = 0.0
    relative: float = 1e-3
    integers_exact: bool = True
    percent: Percent = "either"
    units: Units = "match"

    def __post_init__(self) -> None:
        for name in ("absolute", "relative"):
            value = getattr(self, name)
            require(0 <= value < float("inf"), f"verifier.settings.{name}", value, "a finite number ≥ 0")
        require(self.percent in get_args(Percent), "verifier.settings.percent", self.percent, "either or exact")
        require(self.units in get_args(Units), "verifier.settings.units", self.units, "match or ignore")

    def verify(self, reply: str, gold: str) -> Verification:
        """Check ``reply``, the text of an answer, against ``gold``."""
        expected, is_list = _read_numbers(gold)
        require(bool(expected), "gold", gold[:80], "a number, or a list of numbers in brackets")
        if len(reply) > MAX_CHARACTERS:
            return unparseable("length")
        numbers, listed = _read_numbers(reply)
        if listed and not is_list:
            one_perhaps = len(numbers) == 1 or re.search(r"\d,\d", reply)
            numbers = _read_one(_DECIMAL_COMMA.sub(".", reply)) or ([] if one_perhaps else numbers)
        if not numbers:
            return unparseable("not a number")
        correct = len(numbers) == len(expected) and all(map(self._same, numbers, expected))
        answer = ", ".join(show_value(number.value) for number in numbers)
        return judged(correct, f"[{answer}]" if is_list else answer)

    async def verify_async(self, reply: str, gold: str) -> Verification:
        """The same; it takes microseconds."""
        return self.verify(reply, gold)

    def _same(self, answer: Quantity, gold: Quantity) -> bool:
        if self.units == "match" and not same_unit(answer.unit, gold.unit):
            return False
        if self._close(answer.value, gold.value, gold.whole):
            return True
        if self.percent == "either" and answer.percent != gold.percent:
            bare = [side.value * 100 if side.percent else side.value for side in (answer, gold)]
            return self._close(bare[0], bare[1], gold.whole)
        return False

    def _close(self, answer: Fraction, gold: Fraction, whole: bool) -> bool:
        if answer == gold or (whole and self.integers_exact):
            return answer == gold
        return abs(answer - gold) <= max(Fraction(self.absolute), Fraction(self.relative) * abs(gold))


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """One number as it was written.

    Attributes:
        value: the exact value; 50% is 1/2.
        whole: written as a whole number or as a fraction of two: no decimal point, no power of ten.
        percent: written with a percent sign.
        unit: the unit in one spelling per unit, or an empty string.
    """

    value: Fraction
    whole: bool
    percent: bool = False
    unit: str = ""


_SPACES = "\u00a0\u2009\u202f"
_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")
_LATEX = (
    (re.compile(r"(?<=[0-9])\s*\\[dt]?frac\s*\{([0-9]+)\}\s*\{([0-9]+)\}"), r" \1/\2"),
    (re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r"\1/\2"),
    (re.compile(r"\\(?:text|mathrm|textbf|mathbf|operatorname)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\!|\\(?:left|right)(?![a-z])"), ""),
    (re.compile(r"\\[,;: ]|~(?=[0-9A-Za-z])"), "\u2009"),
    (re.compile(r"\\([%$#{}\[\]])"), r"\1"),
    (re.compile(r"\\times|\\cdot|\u00b7|\u2062|\u22c5"), "×"),
    (re.compile(r"\^\s*\{?\\circ\}?|\\degree"), "°"),
    (re.compile(r"\\mu(?![a-z])|\u03bc"), "\u00b5"),
    (re.compile(r"\\approx|\\simeq|\u2248|\u2243"), "="),
)
_WRAPPERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("`", "`"))

_LABEL = re.compile(r"(?:[A-Za-z][A-Za-z_]{0,20}[0-9]{0,3}\s*)?=\s*")
_SIGN = re.compile(r"([+-]?)\s*")
_CURRENCY = re.compile(r"([$€£¥₹])\s*")
_NUMBER = re.compile(
    rf"(?P<grouped>[1-9][0-9]{{0,2}}(?P<sep>[,{_SPACES}])[0-9]{{3}}(?:(?P=sep)[0-9]{{3}})*)(?![0-9])"
    r"(?:\.(?P<gdec>[0-9]*))?"
    r"|(?P<int>[0-9]++)(?:\.(?P<dec>[0-9]*))?|\.(?P<only>[0-9]++)"
)
_POWER_OF_TEN = re.compile(
    r"[eE](?P<e>[+-]?[0-9]++)|\s*[x×*]\s*10\s*(?:\^|\*\*)\s*(?:\{\s*(?P<b>[+-]?[0-9]++)\s*\}|(?P<p>[+-]?[0-9]++))"
)
_TEN_TO = re.compile(r"10\s*(?:\^|\*\*)\s*(?:\{\s*(?P<b>[+-]?[0-9]++)\s*\}|(?P<p>[+-]?[0-9]++))")
_MIXED = re.compile(r"\s+([0-9]++)\s*/\s*([0-9]++)(?![0-9.])")
_OVER = re.compile(r"\s*[/\u2044\u00f7]\s*")
_PERCENT = re.compile(r"\s*(?:%|per\s?cent\b|percentage points?\b)", re.IGNORECASE)
_SCALE = re.compile(r"\s*(hundred|thousand|million|billion|trillion|dozen)s?\b", re.IGNORECASE)
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_MONEY_SCALE = re.compile(r"\s?([kKmMbB]|bn|mn)(?![A-Za-z])")
_MONEY_SCALES = {"k": 10**3, "m": 10**6, "mn": 10**6, "b": 10**9, "bn": 10**9}

_LIST = re.compile(r"\[(.*)\]|\((.*)\)|\{(.*)\}", re.DOTALL)


def _cleaned(text: str) -> str:
    """The text of an answer with LaTeX marks, wrappers, a final point and typographic signs put into plain ones."""
    inner = boxed(text)
    text = (text if inner is None else inner).strip()
    for left, right in _WRAPPERS:
        if len(text) > len(left + right) and text.startswith(left) and text.endswith(right):
            text = text[len(left) : -len(right)].strip()
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    text = text.translate({0x2212: "-", 0xFF0D: "-", 0xFE63: "-", 0x2013: "-"})
    text = _RAISED.sub(lambda run: "^" + run.group().translate(_SUPERSCRIPT), text)
    return text.strip(" \t\r\n" + _SPACES).removesuffix(".").rstrip()


def read_quantity(text: str) -> Quantity | None:
    """The number that ``text`` is, as a whole; ``None`` if it is not one number or could be read in two ways."""
    if len(text) > MAX_CHARACTERS:
        return None
    text = _cleaned(text)
    at = match.end() if (match := _LABEL.match(text)) else 0
    sign, at = _signed(text, at)
    currency = ""
    if match := _CURRENCY.match(text, at):
        currency, at = match.group(1), match.end()
        if not sign:
            sign, at = _signed(text, at)
    number = _read_number(text, at)
    if number is None:
        return None
    value, whole, at = number
    if match := (_MONEY_SCALE.match(text, at) if currency else None):
        value, at = value * _MONEY_SCALES[match.group(1).lower()], match.end()
    elif match := _SCALE.match(text, at):
        value, at = value * _SCALES[match.group(1).lower()], match.end()
    percent = _PERCENT.match(text, at)
    if percent:
        value, at = value / 100, percent.end()
    unit = read_unit(text[at:])
    if unit is None:
        return None
    return Quantity(value=-value if sign == "-" else value, whole=whole, percent=bool(percent), unit=currency or unit)


def show_value(value: Fraction) -> str:
    """``value`` as a whole number, a decimal where it ends within 15 places, or a fraction in lowest terms."""
    if value.denominator == 1:
        return str(value.numerator)
    scaled = value * 10**15
    if scaled.denominator != 1:
        return f"{value.numerator}/{value.denominator}"
    digits = f"{abs(scaled.numerator):016d}"
    return f"{'-' if value < 0 else ''}{digits[:-15]}.{digits[-15:].rstrip('0')}"


def _signed(text: str, at: int) -> tuple[str, int]:
    match = _SIGN.match(text, at)
    assert match is not None
    return match.group(1), match.end()


def _decimal(text: str, at: int) -> tuple[Fraction, bool, int] | None:
    """A plain number at ``at``: its value, whether it has no point, and where it ends."""
    match = _NUMBER.match(text, at)
    if match is None or match.end() - match.start() > MAX_DIGITS:
        return None
    groups = match.groupdict()
    integer = (groups["grouped"] or "").replace(groups["sep"] or ",", "") or groups["int"] or "0"
    places = groups["gdec"] or groups["dec"] or groups["only"] or ""
    value = Fraction(int(integer + places), 10 ** len(places))
    # "1000." ends a sentence; "1000.0" was written as a decimal.
    return value, not places, match.end()


def _power(match: re.Match[str]) -> Fraction | None:
    """The power of ten that a match spells; ``None`` beyond what is read."""
    digits = next(group for group in match.groups() if group is not None)
    if len(digits) > 8 or abs(int(digits)) > MAX_EXPONENT:
        return None
    return Fraction(10) ** int(digits)


def _read_number(text: str, at: int) -> tuple[Fraction, bool, int] | None:
    """A number at ``at``: a power of ten, a decimal, a mixed number or a fraction of two decimals."""
    if match := _TEN_TO.match(text, at):
        power = _power(match)
        return None if power is None else (power, False, match.end())
    first = _scientific(text, at)
    if first is None:
        return None
    value, whole, at = first
    if whole and (match := _MIXED.match(text, at)):
        if len(match.group()) > MAX_DIGITS or not int(match.group(2)):
            return None
        return value + Fraction(int(match.group(1)), int(match.group(2))), True, match.end()
    if match := _OVER.match(text, at):
        below = _scientific(text, match.end())
        if below is not None:
            if not below[0] or _OVER.match(text, below[2]):
                return None
            return value / below[0], whole and below[1], below[2]
    return value, whole, at


def _scientific(text: str, at: int) -> tuple[Fraction, bool, int] | None:
    number = _decimal(text, at)
    if number is None:
        return None
    match = _POWER_OF_TEN.match(text, number[2])
    if match is None:
        return number
    power = _power(match)
    return None if power is None else (number[0] * power, False, match.end())


# What an expression holds that has a value without being a number in digits.
_EXPRESSION = re.compile(r"\\|[^\x00-\x7f]|[\^!*=(]|\s[-+]\s|\b(?:pi|e|ln)\b|[a-z]{3}")
_DECIMAL_COMMA = re.compile(r"(?<=\d),(?=\d$)")


def _read_one(text: str) -> list[Quantity]:
    """The number that the text of an answer gives, by itself or as the value of an expression."""
    quantity = read_quantity(text)
    if quantity is None and len(text) <= MAX_CHARACTERS:
        bare = core(text)
        quantity = read_quantity(bare)
        if quantity is None and _EXPRESSION.search(bare):
            quantity = _value_of(bare)
    return [] if quantity is None else [quantity]


def _value_of(text: str) -> Quantity | None:
    found = expression(text, decimal_comma=True)
    value = value_of(found.parts[0]) if found and len(found.parts) == 1 else None
    if found is None or value is None or abs(value) > 10**MAX_EXPONENT:
        return None
    whole = isinstance(value, Fraction) and "." not in found.parts[0]
    value = Fraction(value) / 100 if found.percent else Fraction(value)
    return Quantity(value=value, whole=whole, percent=found.percent, unit=found.unit)


def _read_numbers(text: str) -> tuple[list[Quantity], bool]:
    """The numbers of ``text`` and whether it is a list: in brackets, or commas between what is no single number."""
    single = _read_one(text)
    if single or len(text) > MAX_CHARACTERS:
        return single, False
    bare = _cleaned(core(text)).replace("\\", "")
    bare = bare[label.end() :] if (label := _LABEL.match(bare)) else bare
    match = _LIST.fullmatch(bare)
    inner = bare if match is None else next(group for group in match.groups() if group is not None)
    parts = re.split(r",?\s+and\s+|;|,\s" if re.search(r",\s|;", inner) else r"\s+and\s+|[,;]", inner)
    numbers = [number for part in parts for number in _read_one(part)]
    if len(numbers) < len(parts) or (match is None and len(numbers) == 1):
        return [], False
    return numbers, True
