"""What scores answers to problems of reasoning-gym, in a process of its own: see ``drift.verifiers.math_pool``.

Some of its generators read an answer with Python's ``eval``, or with sympy's parser, which calls it. Here ``eval`` of a
text reads literals and arithmetic, and the parser formulas of known names; nothing that a model says is run.
"""

from __future__ import annotations

import ast
import builtins
import functools
import json
import os
import random
import re
import tempfile
from contextvars import ContextVar
from typing import Any

import numpy as np

from drift.verifiers.math_worker import serve

_ARITHMETIC = re.compile(r"(?:0x[0-9a-fA-F]+|[0-9]+(?:\.[0-9]*)?|[\s+\-/%&|^~<>().]|\*(?!\*))*")
_NAME = re.compile(r"[^\W\d]\w*")
_FUNCTIONS = re.compile(r"a?(?:sin|cos|tan)h?|cot|sec|csc|exp|log|ln|sqrt|Abs|pi|[A-Za-z]")
_FORMULA = re.compile(r"(?:[\w\s+\-*/^(),=]|\.(?![^\W\d]))*")


# What a generator evaluates of its own accord, to make a problem, is not ours to judge.
_judging: ContextVar[bool] = ContextVar("judging", default=False)


def main() -> None:
    """Serve requests until standard input ends."""
    serve(prepare, score)


def prepare() -> dict[str, str]:
    """Import the library, and let it run nothing that it is told."""
    try:
        import sympy.parsing.sympy_parser as parser
        from reasoning_gym import algebra, games
    except ImportError as error:
        return {"verdict": "missing", "reason": str(error)}
    # Programs of its own that it runs write files.
    os.chdir(tempfile.gettempdir())
    builtins.eval = functools.partial(_evaluate, builtins.eval)
    read = functools.partial(_parse, parser.parse_expr)
    sympy: Any = algebra.simple_integration.sympy
    for module in (parser, sympy, games.countdown, games.puzzle24):
        module.parse_expr = read
    return {"verdict": "ready"}


def _evaluate(evaluate: Any, source: Any, *scopes: Any) -> Any:
    if not _judging.get() or not isinstance(source, str) or scopes:
        return evaluate(source, *scopes)
    return evaluate(source) if _ARITHMETIC.fullmatch(source) else ast.literal_eval(source)


def _parse(parse: Any, text: str, *more: Any, **others: Any) -> Any:
    if not _judging.get():
        return parse(text, *more, **others)
    strange = [name for name in _NAME.findall(text) if not _FUNCTIONS.fullmatch(name)]
    if strange or not _FORMULA.fullmatch(text) or len(text) > 2000:
        raise ValueError(f"no formula: {strange[:3]}")
    return parse(text, *more, **others)


def score(answer: str, problem: str) -> dict[str, str]:
    """The question of a problem, and the score of an answer to it, between 0 and 1.

    Args:
        answer: of the model; empty to ask for the question alone.
        problem: ``[generator, arguments, size, index]`` as JSON.
    """
    generator, arguments, size, index = json.loads(problem)
    try:
        problems = _dataset(generator, json.dumps(arguments, sort_keys=True), size)
        # Some draw from the random numbers of the whole process.
        random.seed(index)
        np.random.seed(index)
        entry = problems[index]
    except Exception as error:
        return {"verdict": "error", "reason": f"{type(error).__name__}: {error}"}
    outcome = {"verdict": "question", "question": str(entry["question"])}
    if not answer:
        return outcome
    _judging.set(True)
    try:
        value = float(problems.score_answer(answer, entry=entry))
    except Exception:
        # What it can't read is no answer to it.
        value = 0.0
    finally:
        _judging.set(False)
    return {**outcome, "verdict": "score", "score": repr(min(1.0, max(0.0, value)))}


@functools.lru_cache(maxsize=32)
def _dataset(generator: str, arguments: str, size: int) -> Any:
    """The problems of a generator with these arguments, JSON; nearly all generators make each when it is asked for."""
    import reasoning_gym

    return reasoning_gym.create_dataset(generator, size=size, seed=0, **json.loads(arguments))
