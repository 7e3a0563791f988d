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
from fractions import Fraction
from typing import Any

from drift.verifiers.base import boxed
from drift.verifiers.numeric import show_value

_DELIMITERS = re.compile(r"(?<!\\)\$|\\\(|\\\[")
_CURRENCY = re.compile(r"(?<!\\)\$")
_LONG_POWER = re.compile(r"\^\s*(-?\d[\d.]*)")
_GROUPS = re.compile(r"(?<![\d.}] )(?<![\d.])[1-9]\d{0,2}(?: \d{3})+(?![\d/])(?! \d)")
_MIXED = re.compile(r"(?<![\d.}/^])(\d{1,18}) +(\d{1,18})/(\d{1,18})(?!\d)")
_COMMAND_OR_TEXT = re.compile(r"\\(?:text|mbox|mathrm|operatorname|begin|end)\s*\{[^{}]*\}|\\[A-Za-z]+")
_NUMERAL = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?")
_OR = re.compile(r"\s+(?:or|and)\s+")
_SHORT_WORD = re.compile(r"\b(?:is|it|so|of|an|to|we|in|by|if|as|at|on|no|be|do)\b", re.IGNORECASE)
_ONE_WORD = re.compile(r"[A-Za-z]{1,40}")
_WORD = re.compile(r"[A-Za-z]{3,}")
_FUNCTIONS = "sin cos tan cot sec csc arcsin arccos arctan log exp sqrt sinh cosh tanh det max min gcd lcm mod"
_SCIENTIFIC = re.compile(r"(?<![\w.])(\d+(?:\.\d*)?|\.\d+)[eE]([+-]?\d{1,3})(?!\w)")
# How far two decimals may differ as a share of the larger: math-verify alone takes 0.0000001 for 0.
_RELATIVE = 1e-5
_WARM_UP = (
    (r"\boxed{\frac{1}{2}}", "0.5"),
    ("$x^2+1$", "$1+x^2$"),
    (r"$\{1,2\}$", r"$(1,2)$"),
    ("so 1/2 + 3", r"$\sqrt{2}$"),
)


def main() -> None:
    """Serve requests until standard input ends. Settings come as the first line."""
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
    _write(channel, _prepare())
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
        import math_verify.parser
        import sympy.parsing.sympy_parser
        import sympy.physics.units  # used by simplify; sympifies names of its own when it is loaded
    except ImportError as error:
        return {"verdict": "missing", "reason": str(error)}
    logging.disable(logging.CRITICAL)
    # Both of these evaluate text with Python's eval: here the grammar reads expressions, and a numeral is a numeral.
    for module, name, ours in (
        (math_verify.parser, "parse_expr_cached", _read_expression),
        (sympy.parsing.sympy_parser, "parse_expr", _read_numeral),
    ):
        if not hasattr(module, name):
            return {"verdict": "missing", "reason": f"{module.__name__} has no {name}, expected math-verify 0.9"}
        setattr(module, name, ours)
    for reply, gold in _WARM_UP:
        check(reply, gold)
    return {"verdict": "ready"}


@functools.lru_cache(maxsize=20)
def _read_expression(expression: str) -> Any:
    """An expression of digits and operators, as math-verify cut it out of a text, by grammar and not by evaluation."""
    from latex2sympy2_extended import latex2sympy

    return latex2sympy(_LONG_POWER.sub(r"^{\1}", expression.replace("**", "^")).replace("*", r"\cdot "))


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
    from math_verify import verify

    try:
        expected = _gold(gold)
        if not expected:
            return {"verdict": "gold"}
        answer = _read(reply)
        if not answer:
            return {"verdict": "unparseable", "reason": "no answer found"}
        correct = verify(list(expected), answer, timeout_seconds=None)
        if correct and "%" not in reply + gold:
            correct = any(_near(one, other) for one in expected for other in answer)
        return {"verdict": "right" if correct else "wrong", "answer": _normal_form(answer)}
    except (Exception, RecursionError) as error:
        return {"verdict": "unparseable", "reason": type(error).__name__}


@functools.lru_cache(maxsize=4096)
def _gold(gold: str) -> tuple[Any, ...]:
    return tuple(_read(gold))


def _read(text: str) -> list[Any]:
    """What math-verify reads in ``text``: expressions where there are any, else the text of the answer."""
    from math_verify import parse

    text = text.replace("\u2212", "-")
    inner = boxed(text)
    is_money = len(_CURRENCY.findall(text)) == 1 and not _is_prose(text)
    if inner is not None:
        attempts = [_formula(inner)]
    elif _DELIMITERS.search(text) and not is_money:
        attempts = [text]
    elif _is_prose(text):
        # Numbers such as 2e-3 in the only spelling of a power of ten that a LaTeX grammar knows.
        attempts = [_SCIENTIFIC.sub(r"$\1 \\times 10^{\2}$", text)]
    else:
        attempts = [_formula(text), text]
    if _ONE_WORD.fullmatch(text.strip()):
        attempts.append(rf"$\text{{{text.strip()}}}$")
    expressions: list[Any] = next(filter(None, (parse(attempt, parsing_timeout=None) for attempt in attempts)), [])
    # A text that couldn't be parsed is compared as text, if there is anything in it.
    return [item for item in expressions if not isinstance(item, str)] or [
        item for item in expressions if re.search(r"\w", item)
    ]


def _is_prose(text: str) -> bool:
    """Whether ``text`` has words that are neither commands nor functions."""
    bare = _OR.sub(" ", _COMMAND_OR_TEXT.sub(" ", text))
    if _SHORT_WORD.search(bare):
        return True
    several_lines = "\n" in text.strip() and "\\begin" not in text
    return several_lines or any(word.lower() not in _FUNCTIONS.split() for word in _WORD.findall(bare))


def _formula(text: str) -> str:
    """``text`` as one inline formula."""
    text = _CURRENCY.sub("", text.replace("\n", " ")).strip()
    text = _OR.sub(", ", text)
    text = _SCIENTIFIC.sub(r"\1 \\times 10^{\2}", text)
    # A space between digits is a product to the grammar; people mean a group of three, or a mixed number.
    text = _MIXED.sub(r"(\1+\\frac{\2}{\3})", _GROUPS.sub(lambda match: match.group().replace(" ", ""), text))
    if "\\" not in text:
        # 2^10 in plain text is 1024; in LaTeX it is 2^1 times 0.
        text = _LONG_POWER.sub(r"^{\1}", text.replace("**", "^"))
    return f"${text}$"


def _near(one: Any, other: Any) -> bool:
    """False for two real numbers that differ by more than a share of ``_RELATIVE``; True for anything else."""
    if not (getattr(one, "is_number", False) and getattr(other, "is_number", False)):
        return True
    try:
        a, b = float(one), float(other)
    except (TypeError, ValueError, OverflowError):
        return True
    return abs(a - b) <= _RELATIVE * max(abs(a), abs(b))


def _normal_form(expressions: list[Any]) -> str:
    """One spelling of what was read, the same as the parent's for plain numbers."""
    first = expressions[0]
    try:
        # "x = 5" and "5" are one answer.
        if getattr(first, "is_Equality", False) and first.lhs.is_Symbol:
            first = first.rhs
        value = first.doit()
        if value.is_Rational:
            return show_value(Fraction(int(value.p), int(value.q)))
        if value.is_Float:
            return show_value(Fraction(f"{float(value):.15g}"))
        return str(value)[:1000]
    except Exception:
        return str(first)[:1000]
