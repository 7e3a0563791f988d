"""``drift quickstart``"""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import ArgumentParser

from drift.cli.main import parse
from drift.cli.run import execute, use_recipe
from drift.recipe import Recipe, find_recipe


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--out", type=str, default="runs/quickstart", help="directory of the run")
    parser.add_class_arguments(Recipe, as_group=False)


def run(parser: ArgumentParser, arguments: Sequence[str]) -> int:
    """Run the built-in quickstart recipe, with any of its keys overridden."""
    use_recipe(parser, find_recipe("quickstart"))
    found = parser.instantiate(parse(parser, arguments))
    recipe = Recipe(**{name: found[name] for name in Recipe.__dataclass_fields__})
    return execute(recipe, found.out, dry_run=False)
