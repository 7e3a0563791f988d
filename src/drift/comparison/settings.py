"""What is compared, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drift.comparison.methods import BASE, METHODS, Method, find_methods, own_methods
from drift.comparison.plans import Plan, plan_of
from drift.errors import ConfigError, require, unknown_name
from drift.recipe import Recipe, built_in_comparisons, check_keys, find_recipe, load_values, read_yaml

DEFAULT_METHODS = ("drift", "drift-drop", "sft", "rft", "refit", "swift", "rwr", "awr")
DEFAULT_SEEDS = (1, 2, 3)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Methods and seeds on one recipe: each seed has rollouts and held-out tasks that all methods share.

    Args:
        recipe: what all have in common; its seed is replaced.
        methods: what is compared, by name.
        seeds: each decides tasks, samples and the order of rows of one repetition.
        against: the row that the others are compared with: a method, or base.
    """

    recipe: Recipe
    methods: Mapping[str, Method] = field(default_factory=lambda: find_methods(DEFAULT_METHODS, {}))
    seeds: tuple[int, ...] = DEFAULT_SEEDS
    against: str = "sft"

    def __post_init__(self) -> None:
        require(bool(self.methods), "methods", list(self.methods), f"some of {', '.join(METHODS)}")
        require(bool(self.seeds), "seeds", self.seeds, "at least one whole number")
        require(len(set(self.seeds)) == len(self.seeds), "seeds", self.seeds, "each seed once")
        if self.against not in (BASE, *self.methods):
            raise unknown_name("method", self.against, [BASE, *self.methods], where="against")

    def plan_of(self, method: str, seed: int) -> Plan:
        """What ``method`` does with ``seed``; raises ``ConfigError`` where that makes no sense."""
        try:
            return plan_of(self.recipe, self.methods[method], seed)
        except ConfigError as error:
            raise ConfigError(f"method {method!r}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Given:
    """A comparison as a file gives it; the command line may change all of it.

    Attributes:
        recipe: values of a recipe.
        methods: names to compare.
        own: methods that the file defines.
        seeds: the seeds.
        against: the row that the others are compared with; empty where the file says nothing.
    """

    recipe: Mapping[str, Any]
    methods: tuple[str, ...]
    own: Mapping[str, Method]
    seeds: tuple[int, ...]
    against: str

    def against_among(self, methods: tuple[str, ...]) -> str:
        """What to compare with: as given, else sft if it is there, else the first method."""
        return self.against or ("sft" if "sft" in methods else methods[0])


@dataclass(frozen=True, kw_only=True)
class _File:
    recipe: str = "quickstart"
    methods: list[str] = field(default_factory=list)
    define: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)
    against: str = ""


def load_comparison(name: str) -> Given:
    """Read a comparison from a file: a recipe, or keys ``recipe``, ``methods``, ``define``, ``seeds`` and ``against``.

    Args:
        name: a YAML file, or a built-in recipe or comparison.

    Raises:
        ConfigError: no such file, an unknown key or method, or a value of the wrong kind.
    """
    path = built_in_comparisons().get(name) or find_recipe(name)
    values = read_yaml(path)
    if "recipe" not in values:
        values = {"recipe": load_values(path)}
    else:
        check_keys(values, _File, str(path))
    recipe = values["recipe"]
    if isinstance(recipe, str):
        beside = path.parent / recipe
        recipe = load_values(beside if beside.is_file() else find_recipe(recipe))
    else:
        check_keys(recipe, Recipe, str(path), "recipe.")
    define = values.get("define") or {}
    require(isinstance(define, Mapping), "define", define, f"methods by name (in {path})")
    own = own_methods(define, str(path))
    methods = _listed(values, "methods", str, path) or (*DEFAULT_METHODS, *own)
    seeds = _listed(values, "seeds", int, path) or DEFAULT_SEEDS
    find_methods(methods, own)
    return Given(
        recipe={key: value for key, value in recipe.items() if key != "seed"},
        methods=methods,
        own=own,
        seeds=seeds,
        against=str(values.get("against") or ""),
    )


def _listed(values: Mapping[str, Any], key: str, kind: type, path: Path) -> tuple[Any, ...]:
    given = values.get(key) or []
    sound = isinstance(given, list) and all(type(item) is kind for item in given)
    require(sound, key, given, f"a list of {'names' if kind is str else 'whole numbers'} (in {path})")
    return tuple(given)
