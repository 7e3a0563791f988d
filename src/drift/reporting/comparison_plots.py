"""Plots of a comparison: multi@k of every method, and accuracy against cost."""

from __future__ import annotations

import math

from matplotlib.axes import Axes

from drift.reporting.comparison import Found
from drift.reporting.plots import COLORS, svg

_LINES = (("-", "o"), ("--", "s"), (":", "^"))


def _style(index: int) -> tuple[str, str, str]:
    """Color, line and marker of the method at ``index``: more methods than colors get other lines and markers."""
    return (COLORS[index % len(COLORS)], *_LINES[index // len(COLORS) % len(_LINES)])


def _height(found: Found) -> float:
    """In inches, so that the legend beside the plot has a line for each method."""
    return max(3.6, 0.2 * len(found.methods))


def curves(found: Found, mode: str) -> str:
    """multi@k against k for each method; intervals are in the table, where they can be told apart."""
    turns = list(range(1, found.max_turns + 1))

    def draw(axes: Axes) -> None:
        for name in found.ordered(mode):
            rows = [found.rows[name, f"{mode}/multi@{k}"] for k in turns]
            values = [math.nan if row["value"] is None else 100 * row["value"] for row in rows]
            color, line, marker = _style(found.methods.index(name))
            axes.plot(turns, values, line, marker=marker, markersize=3.5, color=color, label=name)
        axes.set_xticks(turns)
        axes.set_xlabel("turns k")
        axes.set_ylabel("solved within k turns (%)")
        axes.set_ylim(0, 104)
        axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))

    return svg(draw, f"multi@k of every method, {mode}", width=6.4, height=_height(found))


def accuracy_against_cost(found: Found, mode: str) -> str:
    """multi@T with its interval against the seconds of rollouts, weighing and training."""
    metric = f"{mode}/multi@{found.max_turns}"

    def draw(axes: Axes) -> None:
        for name in found.ordered(mode):
            row, cost = found.rows[name, metric], found.values["costs"][name]
            if row["value"] is None:
                continue
            color, _, marker = _style(found.methods.index(name))
            below, above = 100 * (row["value"] - row["low"]), 100 * (row["high"] - row["value"])
            bars = [[max(0.0, below)], [max(0.0, above)]]
            axes.errorbar(
                [cost["seconds"]], [100 * row["value"]], yerr=bars, fmt=marker, color=color, label=name, capsize=2
            )
        axes.set_xlabel("seconds: rollouts, weighing, training (mean over seeds)")
        axes.set_ylabel(f"multi@{found.max_turns} (%)")
        axes.set_xlim(left=0)
        axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))

    return svg(draw, f"accuracy against cost, {mode}", width=6.4, height=_height(found))
