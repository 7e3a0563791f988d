"""Plots as inline SVG, one per figure, made with matplotlib without a display."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from drift.reporting.facts import Facts, floor_curve

COLORS = ("#7a8699", "#1f6feb", "#d9730d", "#2da44e", "#a371f7", "#cf222e")


def svg(draw: Callable[[Axes], None], title: str, width: float = 5.2, height: float = 3.1) -> str:
    """The figure that ``draw`` makes, as an SVG element; ``title`` is its description."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    draw(axes)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    buffer = io.StringIO()
    # Without a fixed date and salt the same run would give another file each time.
    with matplotlib.rc_context({"svg.hashsalt": "drift"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Title": title}, transparent=True)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def multi_at_k(facts: Facts, mode: str) -> str:
    """multi@k against k for each policy, with its 95 % interval."""
    turns = list(range(1, facts.measured["max_turns"] + 1))

    def draw(axes: Axes) -> None:
        for index, policy in enumerate(facts.policies):
            rows = [facts.rows[(policy, f"{mode}/multi@{k}")] for k in turns]
            color = COLORS[index % len(COLORS)]
            # Where no answer was asked for yet there is nothing to draw.
            values, low, high = (
                [math.nan if row["value"] is None else 100 * row[key] for row in rows]
                for key in ("value", "low", "high")
            )
            axes.plot(turns, values, marker="o", color=color, label=policy)
            axes.fill_between(turns, low, high, color=color, alpha=0.18, linewidth=0)
        guessing = floor_curve(facts, mode)
        if guessing:
            values = [math.nan if value is None else 100 * value for value in guessing]
            axes.plot(turns, values, color="black", linestyle=":", linewidth=1, label="guessing")
        axes.set_xticks(turns)
        axes.set_xlabel("turns k")
        axes.set_ylabel("solved within k turns (%)")
        axes.set_ylim(0, 104)
        axes.legend(frameon=False, loc="best")

    return svg(draw, f"multi@k, {mode}")


def histogram(values: Mapping[str, Sequence[float]], label: str, color: str) -> str:
    """A histogram that was counted when the weights were made."""
    edges, counts = values["edges"], values["counts"]

    def draw(axes: Axes) -> None:
        widths = [high - low for low, high in itertools.pairwise(edges)]
        axes.bar(edges[:-1], counts, width=widths, align="edge", color=color, edgecolor="white", linewidth=0.5)
        axes.set_xlabel(label)
        axes.set_ylabel("conversations")
        # One bar often towers over the rest, and the rest is what matters.
        axes.set_yscale("symlog", linthresh=10)
        axes.yaxis.set_major_formatter("{x:,.0f}")

    return svg(draw, label)


def curve(rows: Sequence[Mapping[str, Any]], key: str, label: str) -> str:
    """``key`` of each row against its optimizer step; a gap where it is ``None``."""

    def draw(axes: Axes) -> None:
        values = [math.nan if row.get(key) is None else row[key] for row in rows]
        axes.plot([row["step"] for row in rows], values, color=COLORS[1], marker="o" if len(rows) < 40 else "")
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(label)

    return svg(draw, label)
