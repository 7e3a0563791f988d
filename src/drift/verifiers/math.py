"""Mathematical equality by math-verify, in worker processes that are killed at a deadline."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec

from drift.errors import ConfigError, require
from drift.verifiers.base import Verification, boxed, judged, unparseable
from drift.verifiers.expressions import expression
from drift.verifiers.markup import tidy
from drift.verifiers.math_pool import WorkerPool, shared_pool
from drift.verifiers.numeric import show_value

MAX_CHARACTERS = 100_000
# A plain decimal: optional sign and dollar, thousands separators or none.
_PLAIN = re.compile(
    r"([+-]?)\s?(?:\\?\$\s?)?([+-]?)([1-9][0-9]{0,2}(?:(?:,|\{,\})[0-9]{3}){1,10}|[0-9]{1,40})(\.[0-9]{0,40})?"
)
_WRAPPED = re.compile(r"\$([^$]*)\$|\\\((.*)\\\)|\\\[(.*)\\\]", re.DOTALL)
# math-verify rounds to six decimals, so numbers further apart than this are never equal to it.
_ROUNDING = Fraction(1, 10**6)


@dataclass(frozen=True, kw_only=True)
class Math:
    r"""Right if reply and gold are mathematically equal: numbers, fractions, LaTeX expressions, sets, intervals.

    The reply is the text of an answer, or a sentence or box that holds one; what is compared is the whole answer or
    nothing. Equal texts and plain decimals are compared here, everything else in a worker. A check that isn't done by
    the deadline, or that ends three workers, is ``unparseable`` with the reason ``deadline`` or ``crash`` and costs no
    other check.
    Decimals are equal if they agree after rounding to six places and to a share of 1e-5.

    Args:
        workers: how many processes; 0 means one per core. They start when first needed and end with this process.
        deadline: seconds that one check may take, not counting its time in the queue.
        memory_mb: the most address space one worker may use, in MiB.
    """

    workers: int = 0
    deadline: float = 5.0
    memory_mb: int = 2048

    def __post_init__(self) -> None:
        require(self.workers >= 0, "verifier.settings.workers", self.workers, "a whole number ≥ 0")
        require(0 < self.deadline <= 3600, "verifier.settings.deadline", self.deadline, "seconds above 0, up to 3600")
        require(self.memory_mb >= 512, "verifier.settings.memory_mb", self.memory_mb, "a whole number ≥ 512")
        # Looked for, not loaded: a run should not find out in its first conversation.
        if find_spec("math_verify") is None:
            raise ConfigError("verifier math: math-verify is not installed. Install it: pip install 'drift-rl[math]'.")

    @property
    def pool(self) -> WorkerPool:
        """The workers, shared by all verifiers of these settings in this process."""
        return shared_pool(self.workers or _cores(), self.deadline, self.memory_mb)

    def verify(self, reply: str, gold: str) -> Verification:
        """Check ``reply`` against ``gold``; raises ``ConfigError`` if math-verify is missing or can't read ``gold``."""
        known = self._without_worker(reply, gold)
        return known or _verification(self.pool.run(reply, gold), gold)

    async def verify_async(self, reply: str, gold: str) -> Verification:
        """The same without blocking the event loop."""
        known = self._without_worker(reply, gold)
        return known or _verification(await self.pool.run_async(reply, gold), gold)

    def close(self) -> None:
        """End the workers; a later check starts new ones."""
        self.pool.close()

    @staticmethod
    def _without_worker(reply: str, gold: str) -> Verification | None:
        """The outcome where it is known without algebra: equal decimals, or ones that differ beyond rounding."""
        require(bool(gold.strip()) and len(gold) <= MAX_CHARACTERS, "gold", gold[:80], "an expression")
        if len(reply) > MAX_CHARACTERS:
            return unparseable("length")
        if not reply.strip():
            return unparseable("empty")
        expected, answer = plain_decimal(gold), plain_decimal(reply)
        if (expected is None or answer is None) and max(len(reply), len(gold)) <= 4000 and tidy(reply) == tidy(gold):
            require(expression(gold) is not None, "gold", gold[:80], "an expression, or a few words")
            return judged(True, tidy(gold)[:1000])
        if expected is None or answer is None:
            return None
        whole = expected.denominator == answer.denominator == 1
        if expected == answer or whole or abs(expected - answer) > _ROUNDING:
            return judged(expected == answer, show_value(answer))
        return None


def plain_decimal(text: str) -> Fraction | None:
    r"""The value of a decimal in digits, maybe with sign, ``$``, thousands separators, ``$…$`` or ``\boxed{…}``."""
    text = text.strip()
    # Anything longer is left to the worker, and a box ends there.
    if len(text) > 200:
        return None
    if text.startswith("\\boxed"):
        inner = boxed(text)
        if inner is None or text != f"\\boxed{{{inner}}}":
            return None
        text = inner
    if match := _WRAPPED.fullmatch(text):
        text = next(group for group in match.groups() if group is not None).strip()
    match = _PLAIN.fullmatch(text.replace("\u2212", "-"))
    if match is None or (match.group(1) and match.group(2)):
        return None
    outer, sign, digits, places = match.groups()
    places = (places or "")[1:]
    value = Fraction(int(re.sub("[{},]", "", digits) + places), 10 ** len(places))
    return -value if "-" in (outer, sign) else value


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _verification(outcome: dict[str, str], gold: str) -> Verification:
    verdict = outcome["verdict"]
    if verdict == "gold":
        raise ConfigError(f"gold: got {gold[:80]!r}, expected a mathematical expression in LaTeX or plain notation.")
    if verdict == "unparseable":
        return unparseable(outcome["reason"])
    return judged(verdict == "right", outcome["answer"])
