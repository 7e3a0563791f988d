"""How the cost of a training step grows with K and with the number of turns, and how its tokens do.

    python benchmarks/scaling.py [PICTURE]

Each point computes all K conversations of a prompt, forward and backward, with nothing skipped. The last line is
JSON with every figure; PICTURE gets a plot.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

from shapes import Shape, machine, make_model, make_rows

from drift.training.plan import pack
from training import TOKENS, Variants

ROUNDS = 3


def seconds_of(shape: Shape, ours: Variants) -> dict[str, float]:
    """Median processor seconds of one step, drift's way and plain rows', and tokens in rows and computed."""
    rows = make_rows(shape, scope="all")
    times: dict[str, list[float]] = {"drift": [], "plain": []}
    ours.rows = rows
    for _ in range(ROUNDS):
        for name, run in (("drift", ours.drift_exact), ("plain", ours.plain)):
            ours.model.zero_grad()
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    return {
        **{name: statistics.median(found) for name, found in times.items()},
        "tokens": sum(len(row.token_ids) for row in rows),
        "own": sum(len(row.token_ids) - shape.prompt_tokens for row in rows),
        "computed": sum(len(tree.token_ids) for tree in pack(rows, TOKENS)),
    }


def main() -> None:
    """Measure both sweeps, print them, draw them."""
    ours = Variants(make_model(vocabulary=Shape().vocabulary), [])
    sweeps = {
        "K": {k: seconds_of(Shape(prompts=1, samples=k, turns=3), ours) for k in (4, 8, 16, 32)},
        "turns": {t: seconds_of(Shape(prompts=1, samples=8, turns=t, solve=0.0), ours) for t in (1, 3, 5)},
    }
    for axis, points in sweeps.items():
        first = next(iter(points.values()))
        for value, found in points.items():
            grown = {name: found[name] / first[name] for name in ("drift", "plain", "tokens", "own")}
            print(
                f"{axis} = {value:2d}: {found['tokens']:6.0f} tokens (x {grown['tokens']:.2f}, "
                f"without the prompt x {grown['own']:.2f}), "
                f"drift x {grown['drift']:.2f}, plain rows x {grown['plain']:.2f}, "
                f"plain / drift {found['plain'] / found['drift']:.2f}"
            )
    if len(sys.argv) > 1:
        draw(sweeps, sys.argv[1])
    print(json.dumps({"benchmark": "scaling", "machine": machine(), "rounds": ROUNDS, "sweeps": sweeps}))


def draw(sweeps: dict[str, dict[int, dict[str, float]]], path: str) -> None:
    """Cost against each axis, relative to its first point."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), constrained_layout=True)
    for panel, (axis, points) in zip(axes, sweeps.items(), strict=True):
        first = next(iter(points.values()))
        for name, label, style in (
            ("tokens", "tokens in rows", "k--"),
            ("own", "tokens in rows, without the prompt", "k:"),
            ("plain", "plain rows, processor seconds", "C1o-"),
            ("drift", "drift, processor seconds", "C0o-"),
        ):
            panel.plot(list(points), [found[name] / first[name] for found in points.values()], style, label=label)
        panel.set_xlabel(axis)
        panel.set_ylabel("relative to the first point")
        panel.set_ylim(bottom=0)
        panel.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
