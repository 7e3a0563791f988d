"""The page itself: facts and plots into one HTML file that needs nothing else."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from drift.files import write_atomic
from drift.record import sealed_page
from drift.reporting.advice import loud_lines, next_steps
from drift.reporting.comparison import cost_table, failures, level, main_table, read_comparison, subtitle, verdicts
from drift.reporting.comparison_plots import accuracy_against_cost, curves
from drift.reporting.facts import Facts, conversations_line, costs, read_facts, table, verdict
from drift.reporting.plots import COLORS, curve, histogram, multi_at_k
from drift.reporting.preview import Preview, lines
from drift.reporting.sentences import chain_line, sentences


def write_report(run: Path, out: Path) -> Path:
    """Write the report of ``run`` to ``out`` and return ``out``.

    Raises:
        DatasetError: there is no finished stage in ``run``.
        StorageError: the disk refuses.
    """
    write_atomic(out, sealed_page(render(read_facts(run))))
    return out


def render(facts: Facts) -> str:
    """The page of a run as HTML.

    Everything that a model or a data set said is escaped, and the page forbids scripts and requests by its own
    content-security policy.
    """
    return _template("page.html").render(
        title=f"drift: {facts.measured['environment']['name'] if facts.evaluation else facts.name}",
        verdict=verdict(facts),
        loud=loud_lines(facts),
        advice=next_steps(facts),
        facts=facts,
        chain=chain_line(facts.weights["chain"]) if facts.weights else "",
        sentences=list(sentences(facts.weights["diagnostics"])) if facts.weights else [],
        modes=[
            {"name": mode, "rows": table(facts, mode), "plot": _figure(multi_at_k(facts, mode))}
            for mode in (facts.measured["modes"] if facts.evaluation else [])
        ],
        conversations=conversations_line(facts.rollouts) if facts.rollouts else "",
        packages=next(each["packages"] for each in facts.stages if each),
        figures=_figures(facts),
        costs=costs(facts),
    )


def write_comparison_page(source: Path, out: Path) -> Path:
    """Write the page of the comparison in ``source`` to ``out`` and return ``out``."""
    found = read_comparison(source)
    page = _template("comparison.html").render(
        title=f"drift: {len(found.methods) - 1} methods on {found.values['recipe']['environment']['name']}",
        subtitle=f"{subtitle(found)}. Every method has the same rollouts, steps and held-out tasks; {level(found)}.",
        verdicts=verdicts(found),
        found=found,
        modes=[
            {
                "name": mode,
                "rows": main_table(found, mode),
                "curves": _figure(curves(found, mode)),
                "cost": _figure(accuracy_against_cost(found, mode)),
            }
            for mode in found.modes
        ],
        costs=cost_table(found),
        failed=failures(found),
        settings=json.dumps(found.values["recipe"], indent=2, ensure_ascii=False),
    )
    write_atomic(out, sealed_page(page))
    return out


def preview_page(preview: Preview) -> str:
    """The page of a preview as HTML; what was said is escaped, as on the others."""
    return _template("preview.html").render(title="drift: what will be trained", preview=preview, lines=lines(preview))


@functools.cache
def _template(name: str) -> Template:
    environment = Environment(loader=PackageLoader("drift.reporting"), autoescape=True, undefined=StrictUndefined)
    return environment.get_template(name)


def _figure(svg: str) -> Markup:
    # The only text taken as markup: drawn by matplotlib from numbers and policy names, which it escapes.
    return Markup(svg)


def _figures(facts: Facts) -> list[dict[str, Any]]:
    found = []
    if facts.weights:
        seen = facts.weights["diagnostics"]
        found.append({"name": "Returns", "plot": _figure(histogram(seen["return_histogram"], "return R", COLORS[3]))})
        found.append({"name": "Weights", "plot": _figure(histogram(seen["histogram"], "weight w", COLORS[2]))})
    if facts.curve:
        found.append(
            {
                "name": "Training: the weighted loss",
                "plot": _figure(curve(facts.curve, "loss", "weighted loss (nats per row)")),
            }
        )
    if facts.kl:
        plot = _figure(curve(facts.kl, "kl", "KL from the base (nats per conversation)"))
        found.append({"name": "On prompts set aside: the way from the base", "plot": plot})
    if facts.held_out:
        plot = _figure(curve(facts.held_out, "nll", "held-out loss (nats per token)"))
        found.append({"name": "On prompts held out: the loss", "plot": plot})
    return found
