"""``drift run RECIPE``"""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from drift.cli.main import parse
from drift.errors import ConfigError
from drift.recipe import Recipe, built_in_recipes, find_recipe, load_values, to_dict


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments: a recipe, where to, and every key of a recipe."""
    names = ", ".join(sorted(built_in_recipes()))
    parser.add_argument("recipe", type=str, help=f"a YAML file, or a built-in recipe: {names}")
    parser.add_argument("--out", type=str, default="", help="directory of the run (default: runs/NAME)")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved recipe, check it, and stop")
    parser.add_class_arguments(Recipe, as_group=False)


def run(parser: ArgumentParser, arguments: Sequence[str]) -> int:
    """Resolve the recipe (defaults, then the file, then the command line), check it, run it."""
    path = find_recipe(parse(parser, arguments).recipe)
    use_recipe(parser, path, recipe=str(path))
    found = parser.instantiate(parse(parser, arguments))
    recipe = Recipe(**{name: found[name] for name in Recipe.__dataclass_fields__})
    return execute(recipe, found.out or f"runs/{path.stem}", dry_run=found.dry_run)


def use_recipe(parser: ArgumentParser, path: Path, **positional: str) -> None:
    """Make the values of a recipe file the parser's defaults; ``positional`` is what the parser requires besides.

    Raises:
        ConfigError: no such file, an unknown key, or a value of the wrong type.
    """
    use_values(parser, load_values(path), str(path), **positional)


def use_values(parser: ArgumentParser, values: Mapping[str, Any], where: str, **positional: str) -> None:
    """Make recipe values the parser's defaults; ``where`` names what they come from in errors."""
    try:
        checked = parser.parse_object({**positional, **values})
    except ArgumentError as error:
        raise ConfigError(f"recipe {where}: {' '.join(str(error).split())}.") from error
    parser.set_defaults({key: checked[key] for key in flatten(values)})


def execute(recipe: Recipe, out: str, *, dry_run: bool) -> int:
    """Run a resolved recipe, or only print and check it."""
    from drift.pipeline import check_recipe, run_recipe

    if dry_run:
        import yaml

        print(yaml.safe_dump(to_dict(recipe), sort_keys=False, allow_unicode=True), end="")
        check_recipe(recipe)
        return 0
    from drift.reporting.console import print_summary

    run_recipe(recipe, out)
    print_summary(Path(out))
    return 0


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested recipe values as dotted keys; free-form mappings (settings, turns) stay whole."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and key not in ("settings", "turns"):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
