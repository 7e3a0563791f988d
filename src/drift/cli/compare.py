"""``drift compare RECIPE``"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from drift.cli.main import parse
from drift.cli.run import use_values
from drift.errors import ConfigError
from drift.recipe import Recipe, built_in_comparisons, built_in_recipes


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments: a recipe or a file of a comparison, what to compare, and every key of a recipe."""
    names = ", ".join(sorted([*built_in_recipes(), *built_in_comparisons()]))
    parser.add_argument("recipe", type=str, help=f"a YAML file of a recipe or a comparison, or a built-in one: {names}")
    parser.add_argument("--out", type=str, default="", help="directory of the comparison (default: runs/compare-NAME)")
    parser.add_argument("--methods", type=str, default="", help="names with commas between, such as drift,sft,rft")
    parser.add_argument("--seeds", type=str, default="", help="whole numbers with commas between (default: 1,2,3)")
    parser.add_argument("--against", type=str, default="", help="what the others are compared with: a method, or base")
    parser.add_argument("--jobs", type=int, default=1, help="how many methods run at a time")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print what would run, and stop")
    parser.add_class_arguments(Recipe, as_group=False, skip={"seed"})


def run(parser: ArgumentParser, arguments: Sequence[str]) -> int:
    """Resolve the comparison, check it, run it, print the table."""
    name = parse(parser, arguments).recipe
    from drift.comparison.methods import find_methods
    from drift.comparison.settings import Comparison, load_comparison

    given = load_comparison(name)
    use_values(parser, given.recipe, name, recipe=name)
    found = parser.instantiate(parse(parser, arguments))
    recipe = Recipe(**{key: found[key] for key in Recipe.__dataclass_fields__ if key != "seed"})
    methods = _split(found.methods) or given.methods
    comparison = Comparison(
        recipe=recipe,
        methods=find_methods(methods, given.own),
        seeds=_whole(found.seeds) or given.seeds,
        against=found.against or given.against_among(methods),
    )
    out = Path(found.out or f"runs/compare-{Path(name).stem}")
    if found.dry_run:
        from drift.comparison.run import check_comparison

        check_comparison(comparison, out)
        for key, method in comparison.methods.items():
            print(f"{key}: {method.summary}")
        print(f"seeds {', '.join(map(str, comparison.seeds))}, compared with {comparison.against}")
        return 0
    from drift.comparison.run import compare
    from drift.reporting.console import print_comparison

    compare(comparison, out, jobs=found.jobs, command=shlex.join(["drift", "compare", *_deciding(arguments)]))
    print_comparison(out)
    return 0


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _whole(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in _split(text))
    except ValueError as error:
        raise ConfigError(f"seeds: got {text!r}, expected whole numbers with commas between, like 1,2,3.") from error


def _deciding(arguments: Sequence[str]) -> list[str]:
    """The arguments that decide the result: where it goes, and how many at a time, is of this machine."""
    kept, skip = [], False
    for argument in arguments:
        here = argument.partition("=")[0] in ("--out", "--jobs")
        if not skip and not here:
            kept.append(argument)
        skip = here and "=" not in argument
    return kept
