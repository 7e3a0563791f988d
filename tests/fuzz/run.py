"""Fuzz parsers, verifiers, imports and templates.

    python -m tests.fuzz.run [--inputs 1000000] [--seed 1]       hostile fragments put together, a seeded stream
    python -m tests.fuzz.run --atheris SECONDS                   guided by coverage (pip install atheris)

Every input goes to one target. An exception, or more than ``DEADLINE`` seconds for one input, is a failure, and is
printed with the input's seed. Ends with a table.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable

DEADLINE = 2.0
FRAGMENTS = [
    *(
        "\\boxed{",
        "}",
        "\\frac{",
        "{",
        "\\dfrac12",
        "\\text{",
        "\\sqrt",
        "\\left(",
        "^{",
        "_{",
        "$",
        "$$",
        "\\(",
        "\\%",
    ),
    *("<answer>", "</answer>", "<think>", "</think>", "<score>", "</score>", "<score>7</score>", "</script>", "<!--"),
    *("The answer is ", "answer: ", "Final answer", "(A)", "B.", "C", "option D", "not ", "a red fox", "none"),
    *("1,000", "1000", "-3", "1/2", "2e-3", "50%", "$5", "1" * 40, "9" * 4400, "1e400", "1e-400", ".5", "½", "٣", "π"),
    *("NaN", "Infinity", "-", "−", "+", "=", "≈", "or", "and", "km", "m/s", "^10000000", "**", "10^10^6", "0x1F"),
    *('{"name": "f", "arguments": {"a": 1}}', "[", "]", '{"', '":', "null", "true", "\\u0000", '"', "'", "\\", "\\n"),
    *(
        "<|user|>",
        "<tool_call>",
        "</tool_call>",
        "```json",
        "```",
        "<|im_end|>",
        "<|im_start|>assistant",
        "<|end|>",
        "</s>",
    ),
    *("{{ 7*7 }}", "{% for x in y %}", "${x}", "%s%n", "../../etc", "\x00", "\x1b[31m", "\u202e", "\u2028", "\ud800"),
    *("\ufeff", "\u200b", "́" * 30, "\U0001f600", "ﬁ", "Ａ", "\r\n", "\t", " ", "\n", "===", "=== end ", "__import__"),
    *('{"messages": [', '{"role": "user", "content": "', '"reward": 1', '"turn_rewards": [0, 1]', "}", "}]}", "Paris"),
]


def text_of(rng: random.Random) -> str:
    """One hostile text: mostly short, now and then one fragment very often."""
    parts = rng.choices(FRAGMENTS, k=rng.randint(1, 10))
    kind = rng.random()
    if kind < 0.002:
        parts.insert(rng.randint(0, len(parts)), rng.choice(FRAGMENTS)[:20] * rng.choice([1_000, 20_000]))
    elif kind < 0.3:
        parts.insert(rng.randint(0, len(parts)), "".join(chr(rng.randrange(0x3000)) for _ in range(rng.randint(1, 8))))
    elif kind < 0.5:
        parts = [part[: rng.randint(0, len(part))] for part in parts]
    return "".join(parts)


def checked(name: str, target: Callable[[str], None], text: str, origin: str) -> float:
    """Seconds that one input took; raises with the input's origin where it got through.

    Of this process alone, so that a busy machine is no finding; on the clock for a target that has processes.
    """
    clock = time.perf_counter if hasattr(target, "deadline") else time.process_time
    start = clock()
    try:
        target(text)
    except Exception as error:
        raise RuntimeError(f"{name} failed on {origin}: {type(error).__name__}: {error}; {text[:300]!r}") from error
    took = clock() - start
    # A target that has a deadline of its own, and processes that start, says how long it may take.
    if took > getattr(target, "deadline", DEADLINE):
        raise RuntimeError(f"{name} took {took:.1f} s on {origin}: {text[:300]!r}")
    return took


def stream(inputs: int, seed: int) -> int:
    """The seeded stream; prints a table and returns how many inputs failed."""
    from tests.fuzz.targets import all_targets

    targets, failed, done = all_targets(), 0, 0
    each = -(-inputs // len(targets))
    print("| target | inputs | seconds | slowest, ms | failed |\n|---|---|---|---|---|")
    for name, target in targets.items():
        slowest, bad, start = 0.0, 0, time.perf_counter()
        count = min(each, getattr(target, "most", each))
        done += count
        for at in range(count):
            origin = f"{seed}/{name}/{at}"
            try:
                slowest = max(slowest, checked(name, target, text_of(random.Random(origin)), origin))
            except RuntimeError as error:
                bad += 1
                if bad <= 3:
                    print(error, file=sys.stderr)
        failed += bad
        print(f"| {name} | {count:,} | {time.perf_counter() - start:.0f} | {slowest * 1000:.0f} | {bad} |", flush=True)
    print(f"{done:,} inputs, {failed} failed")
    return failed


def guided(seconds: int) -> None:
    """Coverage-guided inputs by atheris, for all targets in turn."""
    import atheris

    with atheris.instrument_imports(
        include=["drift.verifiers", "drift.environments", "drift.problems", "drift.dataset"]
    ):
        from tests.fuzz.targets import all_targets
    # What works in other processes shows no coverage here.
    targets = [(name, target) for name, target in all_targets().items() if not hasattr(target, "deadline")]

    def once(data: bytes) -> None:
        provider = atheris.FuzzedDataProvider(data)
        name, target = targets[provider.ConsumeIntInRange(0, len(targets) - 1)]
        checked(name, target, provider.ConsumeUnicode(4000), "atheris")

    atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", "-max_len=4000", "-timeout=10"], once)
    atheris.Fuzz()


def main() -> int:
    """Fuzz as the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--atheris", type=int, default=0, help="seconds of coverage-guided fuzzing instead")
    arguments = parser.parse_args()
    if arguments.atheris:
        guided(arguments.atheris)
        return 0
    return 1 if stream(arguments.inputs, arguments.seed) else 0


if __name__ == "__main__":
    raise SystemExit(main())
