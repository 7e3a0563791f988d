"""A model card, written from the manifests of the stages that made the model: nothing in it is typed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from drift import __version__
from drift.artifacts import MODEL
from drift.errors import DatasetError
from drift.files import write_atomic
from drift.manifest import read_manifest
from drift.reporting.facts import Facts, conversations_line, read_facts, table, verdict, warnings_of
from drift.reporting.sentences import chain_line

CARD = "README.md"


def write_card(model: Path) -> Path:
    """Write the card of the model in ``model`` beside it; with ``adapter/``, one there too; returns its path.

    Raises:
        DatasetError: ``model`` is not what drift train wrote.
    """
    write_atomic(model / CARD, model_card(model).encode())
    if (model / "adapter").is_dir():
        write_atomic(model / "adapter" / CARD, model_card(model, adapter=True).encode())
    return model / CARD


def model_card(model: Path, *, adapter: bool = False) -> str:
    """The card of the model in ``model``, or of its adapter alone, as Markdown with the hub's metadata.

    Args:
        model: a model folder that drift trained. What lies beside it and belongs to it is told too.
        adapter: the card of the adapter, which is added to the base.

    Raises:
        DatasetError: ``model`` is not what drift train wrote.
    """
    from jinja2 import Environment, StrictUndefined

    manifest, place = read_manifest(model, MODEL), model.resolve()
    facts, given = _facts(place, manifest), str(manifest["model"])
    base = hub_id(given)
    local = "the small model that comes with drift" if given == "default" else f"a local model, `{Path(given).name}`"
    text = (files("drift.publishing") / "card.md.jinja").read_text(encoding="utf-8")
    # Markdown, not HTML: nothing in it is of a conversation.
    template = Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(text)
    return template.render(
        adapter=adapter,
        base=base,
        base_told=f"`{base}`" if base else local,
        name=place.parent.name if place.name == "model" else place.name,
        version=__version__,
        rollouts=_conversations(facts),
        counts=manifest["counts"],
        chain=chain_line(manifest["weights"]) if manifest["weights"] else "",
        steps=manifest["steps"],
        config=manifest["spec"]["config"],
        seed=manifest["spec"]["seed"],
        packages=manifest["packages"],
        verdict=verdict(facts) if facts else "Nothing was measured.",
        lines=[*facts.likelihood, *(f"**{line}**" for line in warnings_of(facts))] if facts else [],
        tables=[_table(facts, mode) for mode in facts.measured["modes"]] if facts and facts.evaluation else [],
        tasks=facts.measured["tasks"] if facts and facts.evaluation else 0,
    )


def hub_id(model: str) -> str:
    """``model`` where it names one of the hub; empty for a folder of some machine, whose path is nobody's business."""
    return model if model.count("/") == 1 and not model.startswith((".", "/", "~")) and not Path(model).exists() else ""


def _facts(model: Path, manifest: Mapping[str, Any]) -> Facts | None:
    """What lies beside the model, if it was made of that."""
    folder = model.parent
    try:
        facts = read_facts(folder.parent if folder.name.startswith("round-") else folder, conversations=0)
    except DatasetError:
        return None
    return facts if facts.model is not None and facts.model["spec"] == manifest["spec"] else None


def _conversations(facts: Facts | None) -> str:
    """Where they come from; the name of a log, or a path in the settings of an environment, is nobody's business."""
    if facts is None or facts.rollouts is None:
        return ""
    spec = facts.rollouts["spec"]
    if "import" in spec:
        return f"imported from a log (format {spec['import']['format']})"
    return f"in the environment `{spec['environment']['name']}`: {conversations_line(facts.rollouts)}"


def _table(facts: Facts, mode: str) -> str:
    policies = facts.policies
    heads = [mode, *policies, *([f"{policies[-1]} - {policies[0]}"] if len(policies) > 1 else [])]
    lines = [heads, ["---"] * len(heads)]
    for row in table(facts, mode):
        if row["main"]:
            cells = [*row["cells"], *([row["difference"]] if row["difference"] else [])]
            texts = [f"{value} [{span.replace(' to ', ', ')}]" if span else value for value, span in cells]
            lines.append([row["metric"], *texts, *[""] * (len(heads) - 1 - len(texts))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
