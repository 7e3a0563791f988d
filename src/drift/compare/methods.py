"""Methods by name: what each changes in a recipe, and nothing else."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from drift.errors import ConfigError, unknown_name
from drift.recipe import Recipe

BASE = "base"
# What a method may change; the rest is what makes methods comparable.
OPEN = ("weights", "training", "rounds")


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to train from rollouts.

    Args:
        summary: what it is, in a line.
        overrides: recipe keys, dotted, and their values.
    """

    summary: str
    overrides: Mapping[str, Any] = field(default_factory=dict)


def _weighting(name: str, summary: str, **more: Any) -> Method:
    return Method(summary=summary, overrides={"weights.scheme": name, **more})


METHODS: dict[str, Method] = {
    "drift": _weighting("drift", "DRIFT (Eq. 12, 13), the last reply of each conversation"),
    "drift-no-repetition": _weighting("drift", "DRIFT without the repetition penalty", **{"weights.repetition": 0.0}),
    "drift-format": _weighting("drift", "DRIFT, 0.1 for each unreadable reply", **{"weights.format_failure": 0.1}),
    "drift-all-turns": _weighting("drift", "DRIFT, every reply trained", **{"training.turns": "all"}),
    "drift-mean": _weighting("drift", "DRIFT, mean over a reply's tokens", **{"training.normalization": "mean"}),
    "drift-drop": _weighting("drift", "DRIFT without prompts that have no success", **{"weights.no_success": "drop"}),
    "drift-refresh": _weighting("drift", "DRIFT in two rounds, the second on rollouts of its own", rounds=2),
    "sft": _weighting("sft", "every conversation weighs 1"),
    "rft": _weighting("rft", "successes alone"),
    "refit": _weighting("refit", "the return as weight"),
    "swift": _weighting("swift", "the return, standardised within its prompt"),
    "rwr": _weighting("rwr", "reward-weighted regression"),
    "awr": _weighting("awr", "advantage-weighted regression"),
}


def own_methods(given: Mapping[str, Any], where: str) -> dict[str, Method]:
    """Methods that a file defines: overrides by name, dotted or nested.

    Raises:
        ConfigError: a key that no recipe has or that a method may not change, or a name that is taken.
    """
    found = {}
    for name, overrides in given.items():
        place = f"{where}, method {name!r}"
        if name == BASE or name in METHODS:
            raise ConfigError(f"{place}: there is a method of that name already. Give it another.")
        if not str(name).replace("-", "").replace("_", "").replace(".", "").isalnum() or str(name).startswith("."):
            raise ConfigError(f"{place}: got a name that can't be a folder's, expected letters, digits, -, _ and dots.")
        if not isinstance(overrides, Mapping):
            raise ConfigError(f"{place}: got {overrides!r}, expected recipe keys and values, like weights.beta: 0.3.")
        flat = _flatten(overrides)
        _check(flat, place)
        summary = ", ".join(f"{key} {value}" for key, value in flat.items())
        found[str(name)] = Method(summary=summary, overrides=flat)
    return found


def find_methods(names: Iterable[str], own: Mapping[str, Method]) -> dict[str, Method]:
    """The methods called ``names``; raises ``ConfigError`` with the nearest known name for one that there isn't."""
    known = {**METHODS, **own}
    for name in names:
        if name not in known:
            raise unknown_name("method", name, known)
    return {name: known[name] for name in names}


def apply_method(recipe: Recipe, method: Method, seed: int) -> Recipe:
    """``recipe`` as this method runs it with this seed; raises ``ConfigError`` where the outcome makes no sense."""
    changed: Any = dataclasses.replace(recipe, seed=seed)
    for key, value in method.overrides.items():
        changed = _set(changed, key.split("."), value)
    return typing.cast(Recipe, changed)


def _set(record: Any, path: list[str], value: Any) -> Any:
    head, *rest = path
    if rest:
        inner = getattr(record, head)
        value = {**inner, ".".join(rest): value} if isinstance(inner, Mapping) else _set(inner, rest, value)
    return dataclasses.replace(record, **{head: value})


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _check(flat: Mapping[str, Any], where: str) -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Recipe, as_group=False)
    known = _keys(Recipe)
    for key, value in flat.items():
        free = key.startswith("weights.parameters.")
        if not free and key not in known:
            raise unknown_name("key", key, [name for name in known if name.split(".")[0] in OPEN], where=where)
        if key.split(".")[0] not in OPEN:
            raise ConfigError(
                f"{where}: got {key}, expected keys of {', '.join(OPEN)}: the rest is shared by all methods."
            )
        if free:
            continue
        try:
            parser.parse_object({key: value})
        except Exception as error:  # jsonargparse raises several kinds
            raise ConfigError(f"{where}: {' '.join(str(error).split())}.") from error


def _keys(record: type, prefix: str = "") -> list[str]:
    found = []
    for name, hint in typing.get_type_hints(record).items():
        inner = dataclasses.is_dataclass(hint)
        found += _keys(typing.cast(type, hint), f"{prefix}{name}.") if inner else [f"{prefix}{name}"]
    return found
