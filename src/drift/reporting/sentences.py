"""Weights in words: how they were made, and what they will do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def chain_line(record: Mapping[str, Any]) -> str:
    """How weights were made, in a line: the chain of a manifest."""
    links = [record["turns"], *record["steps"]]
    parts = [f"{record['scheme']}{_settings(record['settings'])}", *(_link(each) for each in links)]
    shaping = f"γ {record['gamma']:g}, λ {record['repetition']:g}"
    return f"{record['outcome']} ({shaping}) → {' → '.join(parts)}"


def _link(record: str | Mapping[str, Any]) -> str:
    name, settings = (record, {}) if isinstance(record, str) else next(iter(record.items()))
    return f"{name}{_settings(settings)}"


def _settings(settings: Mapping[str, Any]) -> str:
    shown = [f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in settings.items()]
    return f" ({', '.join(shown)})" if shown else ""


def sentences(report: Mapping[str, Any]) -> Iterator[str]:
    """The diagnostics of a manifest in plain sentences with rounded figures."""
    count, groups, successes = report["trajectories"], report["groups"], report["successes"]
    mixed, equal = round(report["mixed_share"] * groups), report["groups_with_equal_returns"]
    if report["outcome"] == "reward":
        low, high = report["return_histogram"]["edges"][0], report["return_histogram"]["edges"][-1]
        yield f"{count:,} conversations have returns from {low:.3g} to {high:.3g}."
        yield f"{groups - equal:,} of {groups:,} prompts have returns that differ ({1 - equal / groups:.0%})."
    else:
        yield f"{successes:,} of {count:,} conversations succeeded ({successes / count:.0%})."
        yield (
            f"{mixed:,} of {groups:,} prompts hold both successes and failures ({report['mixed_share']:.0%}); "
            f"{report['groups_without_success']:,} without any success."
        )
    if report["outcome"] == "reward":
        if equal == groups:
            yield "NO PROMPT HAS RETURNS THAT DIFFER: weights can't tell better from worse within one."
    elif not successes:
        yield "NOTHING SUCCEEDED: before training on this, look at what the policy replies, and how it is judged."
    elif not mixed:
        yield "NO PROMPT IS MIXED: weights can't tell better from worse within one. Take other tasks, or more samples."
    if report.get("beta") is not None:
        share = report["beta"]["effective_share"]
        aim = "" if share is None else f", at which {share:.0%} of a prompt's conversations count"
        beta = report["beta"]["value"]
        yield f"β was found to be {'without effect: all weigh alike' if beta is None else f'{beta:.3g}{aim}'}."
    for step in report["steps"]:
        if step["conversations"] or abs(step["share"]) >= 5e-4:
            verb, share = "took" if step["share"] >= 0 else "added", abs(step["share"])
            lost = f"; {step['conversations']:,} conversations have no weight any more" if step["conversations"] else ""
            yield f"{_link(step['step'])} {verb} {share:.1%} of the weight{lost}."
    kept = count - report["zero_weights"]
    yield f"{kept:,} conversations have a weight; they count like {report['ess']:,.0f} of equal weight."
