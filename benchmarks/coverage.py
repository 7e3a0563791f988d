"""How often the 95 % intervals of shares, paired differences, means and means over seeds hold the truth.

    python benchmarks/coverage.py [--runs 2000] [--seeds-runs 400]

One conversation a prompt is enumerated, so its figures are exact; everything else is simulated: a conversation
succeeds where ``√r (√c shared + √(1 − c) own) + √(1 − r) noise`` is below a threshold, with normal parts of the prompt
(shared by both policies, or the policy's own) and of the conversation; r is the correlation within a prompt, c that of
a prompt's parts for two policies. Prints the tables of docs/method.md; ten minutes on one core.
"""

from __future__ import annotations

import argparse
import functools
import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from drift.evaluation.comparisons import over_seeds
from drift.evaluation.intervals import spread
from drift.evaluation.metrics import Ratio

Floats = NDArray[np.float64]
PROMPTS = (8, 12, 20, 50, 100, 200, 500)
CHANCES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
PAIRS = ((0.5, 0.5), (0.8, 0.7), (0.9, 0.5), (0.95, 0.95), (0.99, 0.95), (0.99, 0.99))


def share(solved_P: Floats, samples: int, least: float | None = 0.0) -> Ratio:
    """The metric of so many samples of each prompt."""
    return Ratio(numerator_P=solved_P, denominator_P=np.full(len(solved_P), float(samples)), least=least)


def holds(truth: float, ours: Ratio, theirs: Ratio | None = None) -> bool:
    """Whether the interval over prompts holds the truth."""
    low, high = spread([ours], [theirs] if theirs else []).ends()
    return low is not None and high is not None and low - 1e-12 <= truth <= high + 1e-12


def exact(prompts: int, chance: float) -> float:
    """Coverage of a share with one conversation a prompt, over all numbers of successes."""
    found = 0.0
    for successes in range(prompts + 1):
        solved_P = (np.arange(prompts) < successes).astype(float)
        ways = math.lgamma(prompts + 1) - math.lgamma(successes + 1) - math.lgamma(prompts - successes + 1)
        log = ways + successes * math.log(chance) + (prompts - successes) * math.log1p(-chance)
        found += math.exp(log) * holds(chance, share(solved_P, 1))
    return found


def attainable(prompts: int, chance: float) -> float:
    """The smallest chance from 93 % of the likeliest numbers of successes: no interval that holds 93 % has less."""
    logs = [
        math.lgamma(prompts + 1) - math.lgamma(x + 1) - math.lgamma(prompts - x + 1)
        + x * math.log(chance) + (prompts - x) * math.log1p(-chance)
        for x in range(prompts + 1)
    ]  # fmt: skip
    total = 0.0
    for probability in sorted(map(math.exp, logs), reverse=True):
        total += probability
        if total >= 0.93:
            break
    return total


def solved(
    rng: np.random.Generator, runs: int, prompts: int, samples: int, chances: tuple[float, ...], r: float, c: float
) -> list[Floats]:
    """``(runs, prompts)`` successes of each policy."""
    shared = rng.standard_normal((runs, prompts))
    found = []
    for chance in chances:
        own = math.sqrt(c) * shared + math.sqrt(1 - c) * rng.standard_normal((runs, prompts))
        noise = rng.standard_normal((runs, prompts, samples))
        below = math.sqrt(r) * own[..., None] + math.sqrt(1 - r) * noise < NormalDist().inv_cdf(chance)
        found.append(below.sum(axis=-1).astype(float))
    return found


def of_shares(rng: np.random.Generator, runs: int, prompts: int, samples: int, chance: float, r: float) -> float:
    """Coverage of a share; equal counts of prompts have equal intervals."""
    counts = np.sort(solved(rng, runs, prompts, samples, (chance,), r, 0.0)[0], axis=1)
    rows, times = np.unique(counts, axis=0, return_counts=True)
    return float(np.average([holds(chance, share(row, samples)) for row in rows], weights=times))


@functools.cache
def left_in(steps: tuple[int, ...]) -> float:
    """The chance that an exact test leaves in 0, by prompts' differences without their signs; 93 % of many prompts.

    Of two equal policies each sign is as likely as the other. What is left out are the largest sums of both signs that
    have at most 7 % together: nothing with fewer than five prompts.
    """
    if len(steps) > 20:
        return 0.93
    chances = np.ones(1)
    for step in steps:
        chances = np.convolve(chances, [0.5, *[0.0] * (2 * step - 1), 0.5])
    tails = 2 * np.cumsum(chances[: len(chances) // 2])
    return 1 - float(tails[tails <= 0.07].max(initial=0.0))


def of_differences(
    rng: np.random.Generator, runs: int, prompts: int, samples: int, pair: tuple[float, float], r: float, c: float
) -> tuple[float, float]:
    """Coverage of the paired difference of two shares, and, where it is 0, the least of an exact test."""
    ours, theirs = solved(rng, runs, prompts, samples, pair, r, c)
    truth, steps = pair[0] - pair[1], np.sort(np.abs(ours - theirs)).astype(int)
    held = [holds(truth, share(a, samples), share(b, samples)) for a, b in zip(ours, theirs, strict=True)]
    least = 0.0 if truth else float(np.mean([left_in(tuple(row[row > 0].tolist())) for row in steps]))
    return float(np.mean(held)), least


def of_seeds(
    rng: np.random.Generator, runs: int, prompts: int, seeds: int, chances: tuple[float, ...], apart: float
) -> float:
    """Coverage over seeds on the same prompts, each with a chance of its own in probits, of a mean or of a difference.

    A policy's seeds are its own, prompts are shared.
    """
    held, truth = 0, chances[0] - sum(chances[1:])
    for _ in range(runs):
        ease_P, sides = math.sqrt(0.3) * rng.standard_normal(prompts), []
        for chance in chances:
            # The mean of Φ over normal thresholds is the chance.
            level = NormalDist().inv_cdf(chance) * math.sqrt(1 + apart**2)
            level_S = level + apart * rng.standard_normal(seeds)
            below = ease_P + math.sqrt(0.7) * rng.standard_normal((seeds, prompts)) < level_S[:, None]
            sides.append([share(row.astype(float), 1) for row in below])
        found = over_seeds(*sides)
        assert found.low is not None and found.high is not None
        held += found.low - 1e-12 <= truth <= found.high + 1e-12
    return held / runs


def of_means(rng: np.random.Generator, runs: int, prompts: int, kind: str) -> tuple[float, float]:
    """Coverage of a mean that is no share, and of the percentile bootstrap (500 resamples) on the same data."""
    draws = {
        "normal": (lambda: rng.standard_normal((runs, prompts)), 0.0),
        "turns": (lambda: np.minimum(rng.geometric(0.4, (runs, prompts)), 5).astype(float), (1 - 0.6**5) / 0.4),
        "exponential": (lambda: rng.exponential(1.0, (runs, prompts)), 1.0),
        "lognormal": (lambda: rng.lognormal(0.0, 1.0, (runs, prompts)), math.exp(0.5)),
    }
    draw, truth = draws[kind]
    times = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=500) / prompts
    values, kept = draw(), 0
    for row in values:
        low, high = np.quantile(times @ row, (0.025, 0.975))
        kept += low <= truth <= high
    return float(np.mean([holds(truth, share(row, 1, None)) for row in values])), kept / runs


def print_row(label: str, cells: list[float], exceptional: list[float] | None = None) -> None:
    """A row of a table in per cent, with a star where no interval could have 98 % or less."""
    marks = exceptional or [0.0] * len(cells)
    stars = ["*" if min(pair) > 0.98 else "" for pair in zip(cells, marks, strict=True)]
    texts = [f"{100 * cell:.1f}{star}" for cell, star in zip(cells, stars, strict=True)]
    print(f"| {label} | {' | '.join(texts)} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--seeds-runs", type=int, default=400)
    given = parser.parse_args()
    rng, runs = np.random.default_rng(0), given.runs
    print("Shares\n| prompts | " + " | ".join(f"p {p}" for p in CHANCES) + " |")
    for prompts in PROMPTS:
        cells = [exact(prompts, p) for p in CHANCES]
        print_row(f"{prompts} × 1, or samples that always agree", cells, [attainable(prompts, p) for p in CHANCES])
    for r in (0.0, 0.3, 0.8):
        for prompts in PROMPTS:
            print_row(f"{prompts} × 4, r {r}", [of_shares(rng, runs, prompts, 4, p, r) for p in CHANCES])
    print("\nPaired differences\n| prompts | " + " | ".join(f"{a} − {b}" for a, b in PAIRS) + " |")
    for samples, r, c in ((1, 0.0, 0.0), (1, 0.8, 0.9), (4, 0.0, 0.0), (4, 0.5, 0.9), (4, 0.9, 0.9), (4, 0.9, 0.0)):
        for prompts in (8, 20, 50, 200):
            both = [of_differences(rng, runs, prompts, samples, pair, r, c) for pair in PAIRS]
            print_row(f"{prompts} × {samples}, r {r}, c {c}", *map(list, zip(*both, strict=True)))
    for title, columns in (("Means", [(p,) for p in CHANCES]), ("Paired differences", list(PAIRS))):
        names = [" − ".join(map(str, each)) for each in columns]
        print(f"\n{title} over seeds\n| seeds | prompts | {' | '.join(names)} |")
        for apart in (0.0, 0.25, 0.5):
            rng = np.random.default_rng(1)
            for seeds in (2, 3, 5):
                for prompts in (8, 50, 200, 500):
                    cells = [of_seeds(rng, given.seeds_runs, prompts, seeds, c, apart) for c in columns]
                    print_row(f"{seeds}, apart by {apart} | {prompts}", cells)
    rng = np.random.default_rng(2)
    print("\nMeans: Student's, percentile bootstrap\n| prompts | normal | turns | exponential | lognormal |")
    for prompts in PROMPTS:
        both = [of_means(rng, runs // 2, prompts, kind) for kind in ("normal", "turns", "exponential", "lognormal")]
        print(f"| {prompts} | " + " | ".join(f"{100 * t:.1f}, {100 * b:.1f}" for t, b in both) + " |", flush=True)


if __name__ == "__main__":
    main()
