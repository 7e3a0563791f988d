"""What runs in a worker process of the ``math`` verifier: one JSON request per line in, one JSON outcome per line out.

The worker ends when its standard input does, so it outlives its parent by no more than one check; and a timer in the
kernel ends a check that hangs, even within one long computation that never returns to the interpreter.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from typing import Any

from drift.verifiers.expressions import expression
from drift.verifiers.markup import tidy
from drift.verifiers.numeric import show_value
from drift.verifiers.quantities import Expression
from drift.verifiers.units import same_unit
from drift.verifiers.values import value_of

_LABEL = re.compile(
    r"((?:\\angle )?\\?[A-Za-z]{1,7}(?:_(?:\{\w{1,6}\}|\w{1,6}))?'?(?:\([\w, ]{1,10}\))?|\([a-zA-Z](?:, ?[a-zA-Z])*\))"
    r"\s*(?:=|\\approx)\s*(?=[^=])"
)
_COMMAND = re.compile(r"\\(?:begin|end)\s*\{[a-z]+\}|\\[A-Za-z]+")
_NUMERAL = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?")
# math-verify rounds to six decimals.
_ROUNDING = Fraction(1, 10**6)
# How far two decimals may differ as a share of the larger: math-verify alone takes 0.0000001 for 0.
_RELATIVE = 1e-5
_RELATIONS = ("StrictGreaterThan", "StrictLessThan", "GreaterThan", "LessThan", "And")
_WARM_UP = (
    (r"\boxed{\frac{1}{2}}", "0.5"),
    ("$x^2+1$", "$1+x^2$"),
    (r"$\{1,2\}$", r"$(1,2)$"),
    ("so 1/2 + 3", r"$\sqrt{2}$"),
)


def main() -> None:
    """Serve requests until standard input ends."""
    serve(_prepare, check)


def serve(prepare: Callable[[], dict[str, str]], check: Callable[[str, str], dict[str, str]]) -> None:
    """Answer each request by ``check``, after ``prepare``. Settings come as the first line."""
    channel = os.fdopen(os.dup(1), "w", encoding="ascii")
    # Whatever a library prints must not get between the outcomes.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    settings = json.loads(sys.stdin.readline() or "null")
    if settings is None:
        return
    limit = settings["memory_mb"] * 2**20
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _write(channel, prepare())
    # macOS refuses it: there the deadline alone bounds a worker.
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for line in sys.stdin:
        reply, gold = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, settings["alarm"])
        outcome = check(reply, gold)
        _write(channel, outcome)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _write(channel: Any, outcome: dict[str, str]) -> None:
    channel.write(json.dumps(outcome) + "\n")
    channel.flush()


def _prepare() -> dict[str, str]:
    """Import what is needed and use each part once, so that the first check is as quick as the others."""
    try:
        import math_verify  # noqa: F401 - looked for, and used once below
        import sympy.parsing.sympy_parser
        import sympy.physics.units  # used by simplify; sympifies names of its own when it is loaded
    except ImportError as error:
        return {"verdict": "missing", "reason": str(error)}
    logging.disable(logging.CRITICAL)
    # This evaluates text with Python's eval: here a numeral is a numeral, and nothing else is read.
    sympy.parsing.sympy_parser.parse_expr = _read_numeral
    for reply, gold in _WARM_UP:
        check(reply, gold)
    return {"verdict": "ready"}


def _read_numeral(text: str, *_: object, **__: object) -> Any:
    """What sympy makes of a text, without evaluating it: an integer or a decimal, and nothing else."""
    from sympy import Float, Integer
    from sympy.core.sympify import SympifyError

    text = text.strip()
    if not _NUMERAL.fullmatch(text):
        raise SympifyError(text)
    return Integer(int(text)) if text.lstrip("+-").isdigit() else Float(text)


def check(reply: str, gold: str) -> dict[str, str]:
    """The outcome of one check; never raises."""
    try:
        expected = _gold(gold)
        if expected is None:
            return {"verdict": "gold"}
        answer = expression(reply)
        if answer is None or (answer.words and not expected.words):
            return {"verdict": "unparseable", "reason": "no answer found"}
        correct = tidy(reply) == tidy(gold) or same(answer, expected)
        if not correct and len(answer.parts) == 2 and len(expected.parts) == 1 and "," in reply:
            as_decimal = expression(reply, decimal_comma=True)
            if as_decimal is not None and len(as_decimal.parts) == 1:
                answer, correct = as_decimal, same(as_decimal, expected)
        if not correct and expected.parts and expected.parts[0].startswith("("):
            point = _as_point(answer)
            answer, correct = (point, True) if same(point, expected) else (answer, False)
        shown = _normal_form(answer)
        if not correct and shown is None:
            return {"verdict": "unparseable", "reason": "no formula"}
        return {"verdict": "right" if correct else "wrong", "answer": shown or tidy(reply)[:1000]}
    except (Exception, RecursionError) as error:
        return {"verdict": "unparseable", "reason": type(error).__name__}


@functools.lru_cache(maxsize=4096)
def _gold(gold: str) -> Expression | None:
    return expression(gold)


def same(answer: Expression, gold: Expression) -> bool:
    """Whether two answers are equal by value; several values are compared as a set, whose members all have to occur."""
    if answer.words or gold.words:
        return answer.words == gold.words
    if not same_unit(answer.unit, gold.unit) or _is_share_of_unit(answer, gold) or _is_share_of_unit(gold, answer):
        return False
    if _is_special(answer) or _is_special(gold):
        return _same_special(answer, gold)
    if len(gold.parts) != len(answer.parts):
        answer, gold = _as_union(answer), _as_union(gold)
    left, right = ({part.replace(" ", ""): part for part in side.parts} for side in (gold, answer))
    if len(left) != len(right):
        return False
    for part in right.values():
        match = next((key for key in left if _same_part(part, left[key], answer.percent, gold.percent)), None)
        if match is None:
            return False
        del left[match]
    return not left


_LESS = r"(<|>|\\leq|\\geq)"
_HALF_LINE = re.compile(rf"[a-z] ?{_LESS} ?([^<>=,]+)")
_BETWEEN = re.compile(r"([^<>=,]+?) ?(<|\\leq) ?[a-z] ?(<|\\leq) ?([^<>=,]+)")
_INTERVAL = re.compile(r"[(\[].*\\infty.*[)\]]|\[[^,]+,[^,]+\)|\([^,]+,[^,]+\]")


def _as_union(found: Expression) -> Expression:
    """Several intervals, or inequalities of one variable, as the one set that they are together."""
    parts = [_as_interval(part) for part in found.parts]
    if not all(_INTERVAL.fullmatch(part) for part in parts):
        return found
    return replace(found, parts=(r" \cup ".join(parts),))


def _as_point(found: Expression) -> Expression:
    """Values of several variables, ``x = 1, y = 2``, as the point that they are, in the order of the names."""
    names = [_LABEL.match(part) for part in found.parts]
    values = {name[1].strip(): part[name.end() :] for name, part in zip(names, found.parts, strict=True) if name}
    if not 1 < len(values) == len(found.parts):
        return found
    return replace(found, parts=(f"({','.join(values[name] for name in sorted(values))})",))


def _as_interval(part: str) -> str:
    if match := _HALF_LINE.fullmatch(part):
        left = {"<": r"(-\infty,{0})", r"\leq": r"(-\infty,{0}]", ">": r"({0},\infty)", r"\geq": r"[{0},\infty)"}
        return left[match[1]].format(match[2])
    if match := _BETWEEN.fullmatch(part):
        return f"{'(' if match[2] == '<' else '['}{match[1]},{match[4]}{')' if match[3] == '<' else ']'}"
    return part


def _is_share_of_unit(one: Expression, other: Expression) -> bool:
    return one.percent and not other.percent and bool(other.unit)


def _is_special(found: Expression) -> bool:
    return bool(found.parts) and found.parts[0].startswith(("clock ", "ratio ", "base "))


def _same_special(answer: Expression, gold: Expression) -> bool:
    """Times of day, ratios and numerals of a base; the base of one side may be missing."""
    one, other = answer.parts[0], gold.parts[0]
    if one == other:
        return True
    kinds = [part.partition(" ")[0] for part in (one, other)]
    if kinds.count("clock") == 1:
        # 9:16 looks like a time of day.
        one, other = (part.replace("clock", "ratio") for part in (one, other))
        kinds = ["ratio" if kind == "clock" else kind for kind in kinds]
    if kinds == ["ratio", "ratio"]:
        first = [Fraction(number) for number in one.removeprefix("ratio ").split(":")]
        second = [Fraction(number) for number in other.removeprefix("ratio ").split(":")]
        proportional = len(first) == len(second) and all(
            a * second[0] == b * first[0] for a, b in zip(first, second, strict=True)
        )
        return proportional and any(first) and any(second)
    if "base" in kinds and kinds[0] != kinds[1]:
        return one.rpartition(": ")[2] == other.rpartition(": ")[2]
    if "ratio" in kinds and kinds[0] != kinds[1]:
        fractions = [value_of(part.removeprefix("ratio ").replace(":", "/")) for part in (one, other)]
        return fractions[0] is not None and (one + other).count(":") == 1 and fractions[0] == fractions[1]
    return False


def _same_part(answer: str, gold: str, answer_percent: bool, gold_percent: bool) -> bool:
    """Whether two formulas are equal: as texts, else as exact numbers, else as math-verify finds."""
    answer, gold = _without_label(answer, gold)
    if answer_percent and gold_percent:
        answer_percent = gold_percent = False
    if answer_percent or gold_percent:
        # 0.2 and 20 are both written for 20 %; 0.5 % is not a half.
        plain, percent = (gold, answer) if answer_percent else (answer, gold)
        value, share = value_of(plain), value_of(percent)
        if value is None or share is None:
            return False
        return value * 100 == share or (value == share and not -1 < value < 1)
    if _closed_up(answer) == _closed_up(gold):
        return True
    if any(side.strip(" +-") == r"\infty" for side in (answer, gold)):
        return False
    one, other = value_of(answer), value_of(gold)
    if one and other and abs(Fraction(one) - Fraction(other)) <= abs(Fraction(one)) * _of_doubles(one, other):
        return True
    if isinstance(one, Fraction) and isinstance(other, Fraction):
        if one == other:
            return True
        if not ("." in answer or "." in gold) or abs(one - other) > _ROUNDING:
            return False
        return abs(one - other) <= Fraction(_RELATIVE) * max(abs(one), abs(other))
    return _algebra(answer, gold)


def _closed_up(part: str) -> str:
    return re.sub(r"(?<!\d) | (?!\d)", "", part)


def _of_doubles(*values: Fraction | float) -> Fraction:
    """The share by which values of roots and constants may differ, for the rounding of doubles; 0 between fractions."""
    return Fraction(any(isinstance(value, float) for value in values), 10**15)


def _algebra(answer: str, gold: str) -> bool:
    from math_verify import verify
    from sympy import Eq

    one, other = _parsed(answer), _parsed(gold)
    if one is None or other is None:
        return False
    if isinstance(one, Eq) and isinstance(other, Eq):
        # math-verify takes "y =" for a name of the right side, and would not see what is before it.
        one, other = (Eq(side.lhs - side.rhs, 0, evaluate=False) for side in (one, other))
    elif any(isinstance(side, Eq) and not _is_name(side.lhs) for side in (one, other)):
        return False
    if type(one).__name__ in _RELATIONS and type(other).__name__ not in _RELATIONS:
        # math-verify takes an inequality for an interval only where it is the gold one.
        one, other = other, one
    return bool(verify([other], [one], timeout_seconds=None)) and _near(other, one)


def _is_name(side: Any) -> bool:
    """Whether one side of an equation names the value of the other: ``m + n`` does, ``2x`` and ``x^2 + y^2`` do not."""
    from sympy import Number

    numbered = side.as_coeff_Mul()[0] != 1 or (side.is_Add and side.atoms(Number) - {-1})
    return not (side.free_symbols and numbered)


def _without_label(answer: str, gold: str) -> tuple[str, str]:
    """Both without "x =" where one of them has it, or both have the same."""
    names = [_LABEL.match(side) for side in (answer, gold)]
    first, second = names
    if first and second:
        if first[1].replace(" ", "") != second[1].replace(" ", ""):
            return answer, gold
        return answer[first.end() :], gold[second.end() :]
    if first and "=" not in gold:
        return answer[first.end() :], gold
    return (answer, gold[second.end() :]) if second and "=" not in answer else (answer, gold)


@functools.lru_cache(maxsize=4096)
def _parsed(formula: str) -> Any:
    """What math-verify's grammar makes of a formula as a whole; ``None`` if it is none."""
    from latex2sympy2_extended import latex2sympy
    from sympy import I

    if re.search(r"[A-Za-z]{4,}", _COMMAND.sub(" ", formula)):
        return None
    try:
        is_complex = re.search(r"(?<![A-Za-z\\])i(?![A-Za-z])|\\sqrt\{-", formula) is not None
        parsed = latex2sympy(formula.replace("°", ""), is_real=not is_complex, normalization_config=None)
        if is_complex and not re.search(r"\\(?:sum|prod|int)|_\{?i", formula) and hasattr(parsed, "free_symbols"):
            parsed = parsed.subs({symbol: I for symbol in parsed.free_symbols if symbol.name == "i"})
        return parsed
    except Exception:
        return None


def _near(one: Any, other: Any) -> bool:
    """False for two real numbers that differ by more than a share of ``_RELATIVE``; True for anything else."""
    if not (getattr(one, "is_number", False) and getattr(other, "is_number", False)):
        return True
    try:
        a, b = float(one), float(other)
    except (TypeError, ValueError, OverflowError):
        return True
    return abs(a - b) <= _RELATIVE * max(abs(a), abs(b))


def _normal_form(answer: Expression) -> str | None:
    """One spelling of what was read, the same as the parent's for plain numbers; ``None`` if it is no formula."""
    if answer.words or _is_special(answer):
        return answer.words or answer.parts[0]
    shown = [_shown(part, answer.percent) for part in answer.parts]
    known = [one for one in shown if one is not None]
    if len(known) < len(shown):
        return None
    return known[0] if len(known) == 1 else "{" + ", ".join(sorted(set(known))) + "}"


def _shown(part: str, percent: bool) -> str | None:
    label = _LABEL.match(part)
    part = part[label.end() :] if label else part
    value = value_of(part)
    if isinstance(value, Fraction):
        value = value / 100 if percent else value
        return show_value(value) if max(abs(value.numerator), value.denominator) < 10**400 else part[:1000]
    parsed = _parsed(part)
    if parsed is None:
        return None
    try:
        return str(parsed.doit())[:1000]
    except Exception:
        return str(parsed)[:1000]
