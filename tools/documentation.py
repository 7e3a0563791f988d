"""Pages of the documentation that are made from the code when the site is built: a hook of MkDocs."""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path
from typing import Any

import docstring_parser

import drift
from drift.cli import parser_of
from drift.keywords import descriptions_of, options_of_record
from drift.recipe import Recipe
from drift.verbs import VERBS

ROOT = Path(__file__).parents[1]
HANDLES = ("Artifact", "Run", "Page")


def python_page() -> str:
    """Every public name of the package: calls, settings, records."""
    calls = [name for name in drift.__all__ if inspect.isfunction(getattr(drift, name))]
    rest = [name for name in drift.__all__ if name not in calls]
    own = [name for name in rest if name in HANDLES]
    settings = [name for name in rest if name.endswith("Config") or name in ("Recipe", "Sampling")]
    others = [name for name in rest if name not in (*own, *settings)]
    parts = ["# Python", "`import drift` gives all of these; nothing heavy is loaded before it is used."]
    for title, names in (("Calls", calls), ("Handles", own), ("Settings", settings), ("Records and protocols", others)):
        parts.append(f"## {title}")
        parts += [call(name) if title == "Calls" else f"::: {getattr(drift, name).__module__}.{name}" for name in names]
    return "\n\n".join(parts)


def call(name: str) -> str:
    """A call as people make it: the fields of its settings records are arguments of it."""
    function = getattr(drift, name)
    told = docstring_parser.parse(inspect.getdoc(function) or "", docstring_parser.DocstringStyle.GOOGLE)
    words, rows = descriptions_of(function), []
    for each in inspect.signature(function).parameters.values():
        default = "" if each.default is each.empty or each.default is each else f"`{each.default!r}`"
        stars = "**" if each.kind is each.VAR_KEYWORD else ""
        rows.append(f"| `{stars}{each.name}` | {cell(default)} | {cell(words.get(each.name, ''))} |")
    parts = [f"### drift.{name}", told.short_description or "", told.long_description or ""]
    parts.append("\n".join(["| argument | default | what it is |", "|---|---|---|", *rows]))
    parts += [f"**Returns** {' '.join((told.returns.description or '').split())}"] if told.returns else []
    parts += [f"**Raises** `{each.type_name}`: {' '.join((each.description or '').split())}" for each in told.raises]
    return "\n\n".join(part for part in parts if part)


def cell(text: str) -> str:
    """``text`` within a table."""
    return text.replace("|", "&#124;").replace("<", "&lt;")


def recipe_page() -> str:
    """Every key of a recipe, with its type, default and description."""
    rows = [f"| `{each.name}` | {cell(each.help.replace('%%', '%'))} |" for each in options_of_record(Recipe)]
    told = "Keys of a recipe (YAML), which are options of `drift run` and keywords of `drift.run` as well."
    return "\n".join(["# Recipe keys", "", told, "", "| key | what it is |", "|---|---|", *rows])


def commands_page() -> str:
    """The help of every verb, as the terminal shows it."""
    os.environ["COLUMNS"] = "110"
    told = "Each is a function of `drift` with the same arguments. Dashes in options do as well as underscores."
    parts = ["# Commands", told]
    for name, verb in VERBS.items():
        summary = f"{verb.summary[0].upper()}{verb.summary[1:]}."
        parts += [f"## drift {name}", summary, f"```text\n{parser_of(name).format_help()}```"]
    return "\n\n".join(parts)


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    pages = {
        "reference/python.md": python_page(),
        "reference/recipe.md": recipe_page(),
        "reference/commands.md": commands_page(),
        "contributing.md": (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
    }
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to files that lie beside the documentation go to their page here, or are text.

    Pages that tell how things came about are found after those that tell how they are.
    """
    if page.file.src_uri in ("LOG.md", "decisions.md"):
        page.meta["search"] = {"boost": 0.1}
    markdown = markdown.replace("](../CONTRIBUTING.md", "](contributing.md").replace("](docs/", "](")
    return re.sub(r"\[([^\]]+)\]\((?:\.\./(?:src|tests|benchmarks|tools)/[^)]*|results)\)", r"\1", markdown)
