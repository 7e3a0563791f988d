r"""The value of arithmetic in plain or LaTeX spelling, by a grammar of its own: no text is evaluated as code.

Numbers, ``+ - * / ^ !``, ``\cdot \times \div``, ``\frac``, ``\sqrt``, ``\pi``, ``e`` and brackets. Rational results are
exact; as soon as a root or a constant comes in, they are doubles.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

Value = Fraction | float
# Larger values are not computed, so that no text takes long.
MAX_BITS = 40_000
MAX_FACTORIAL = 3_000
_MAX_DEPTH = 40
_TOKEN = re.compile(
    r"\s*(?:(?P<number>[0-9]+\.?[0-9]*|\.[0-9]+)|(?P<word>\\[a-zA-Z]+|pi(?![a-z])|sqrt(?![a-z])|e(?![a-z]))|(?P<sign>\*\*|[-+*/^!(){}\[\]]))"
)
_PRODUCT = {"*", "\\cdot", "\\times"}
_FUNCTIONS = {"\\ln": math.log, "\\exp": math.exp, "\\sin": math.sin, "\\cos": math.cos, "\\tan": math.tan}
_QUOTIENT = {"/", "\\div"}


class _NoValue(ValueError):
    """The text is no arithmetic, or its value is too large or undefined."""


def value_of(text: str) -> Value | None:
    """The value of ``text`` as a whole; ``None`` if it is no arithmetic, undefined, or out of range."""
    tokens: list[str] = []
    at, text = 0, text.strip()
    if len(text) > 1000:
        return None
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            return None
        tokens.append(match.group().strip())
        at = match.end()
    reader = _Reader(tokens)
    try:
        value = reader.sum()
    except (_NoValue, ZeroDivisionError, OverflowError, ValueError):
        return None
    return value if reader.at == len(tokens) else None


class _Reader:
    """Recursive descent over tokens."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.at, self.depth = tokens, 0, 0

    def next(self) -> str:
        """The token at hand, or an empty string at the end."""
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, expected: str = "") -> str:
        """The token at hand, which is then behind."""
        token = self.next()
        if not token or (expected and token != expected):
            raise _NoValue
        self.at += 1
        return token

    def sum(self) -> Value:
        """Terms with signs between them."""
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise _NoValue
        value = self.product()
        while self.next() in ("+", "-"):
            sign = self.take()
            term = self.product()
            value = _bounded(value + term if sign == "+" else value - term)
        self.depth -= 1
        return value

    def product(self) -> Value:
        r"""Factors with operators between them, or none: 2\pi."""
        value = self.signed()
        while True:
            token = self.next()
            if token in _PRODUCT:
                self.take()
                value = _bounded(value * self.signed())
            elif token in _QUOTIENT:
                self.take()
                value = _bounded(value / self.signed())
            elif token and (token in "([" or token[0] == "\\" or token in ("pi", "sqrt", "e", "{")):
                value = _bounded(value * self.power())
            else:
                return value

    def signed(self) -> Value:
        """A factor with its signs."""
        negative = False
        while self.next() in ("+", "-"):
            negative ^= self.take() == "-"
        value = self.power()
        return -value if negative else value

    def power(self) -> Value:
        """An atom with factorials and an exponent."""
        base = self.atom()
        while self.next() == "!":
            self.take()
            if not isinstance(base, Fraction) or base.denominator != 1 or not 0 <= base <= MAX_FACTORIAL:
                raise _NoValue
            base = Fraction(math.factorial(int(base)))
        if self.next() not in ("^", "**"):
            return base
        self.take()
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise _NoValue
        exponent = self.signed()
        self.depth -= 1
        return _raised(base, exponent)

    def atom(self) -> Value:
        """A number, a constant, a fraction, a root or something in brackets."""
        token = self.take()
        if token[0].isdigit() or token[0] == ".":
            return Fraction(token.rstrip(".") or "0")
        if token in ("(", "[", "{"):
            value = self.sum()
            self.take({"(": ")", "[": "]", "{": "}"}[token])
            return value
        if token in ("\\pi", "pi"):
            return math.pi
        if token == "e":
            return math.e
        if token in ("\\frac", "\\dfrac", "\\tfrac"):
            above = self.group()
            return _bounded(above / self.group())
        if token in ("\\sqrt", "sqrt"):
            return self.root()
        if token in _FUNCTIONS:
            return _bounded(_FUNCTIONS[token](float(self.power())))
        raise _NoValue

    def group(self) -> Value:
        """Something in braces."""
        self.take("{")
        value = self.sum()
        self.take("}")
        return value

    def root(self) -> Value:
        """A root of which the sign is behind; exact where it can be."""
        degree: Value = Fraction(2)
        if self.next() == "[":
            self.take()
            degree = self.sum()
            self.take("]")
        inner = self.atom()
        if inner < 0 or degree <= 0:
            raise _NoValue
        if degree == 2 and isinstance(inner, Fraction):
            above, below = math.isqrt(inner.numerator), math.isqrt(inner.denominator)
            if above**2 == inner.numerator and below**2 == inner.denominator:
                return Fraction(above, below)
        return _bounded(float(inner) ** (1 / float(degree)))


def _bounded(value: Value) -> Value:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _NoValue
    elif value.numerator.bit_length() + value.denominator.bit_length() > MAX_BITS:
        raise _NoValue
    return value


def _raised(base: Value, exponent: Value) -> Value:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        bits = base.numerator.bit_length() + base.denominator.bit_length()
        if abs(exponent) * bits > MAX_BITS:
            raise _NoValue
        return Fraction(base) ** int(exponent)
    if base < 0:
        raise _NoValue
    return _bounded(float(base) ** float(exponent))
