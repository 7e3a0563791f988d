"""Something to start from: a package with an environment or a weighting, or a recipe, that runs as it is."""

from __future__ import annotations

import os
import re
import sys
from importlib.resources import files
from keyword import iskeyword
from pathlib import Path
from typing import Any, Literal, get_args

from drift import __version__
from drift.errors import ConfigError, require, unknown_name
from drift.files import write_atomic
from drift.keywords import by_fields

Kind = Literal["environment", "weighting", "recipe"]
_NAME = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")
_ENDING = ".jinja"


@by_fields()
def new(kind: Kind, name: str, *, out: str | os.PathLike[str] | None = None) -> str:
    """Write a package with an environment or a weighting and its test, or a recipe, that runs as it is.

    Args:
        kind: environment, weighting or recipe.
        name: what drift is to call it: small letters, digits and dashes.
        out: directory of the package; NAME here unless given. It must be new or empty.

    Returns:
        What was written, and what to do next.

    Raises:
        ConfigError: an unknown kind, a name that can't be, or a directory that holds something.
    """
    if kind not in get_args(Kind):
        raise unknown_name("kind", kind, get_args(Kind), where="drift new")
    sound = _NAME.fullmatch(name) is not None
    require(sound, "name", name, "small letters and digits, parted by dashes, like word-length")
    place = Path(out or name)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise ConfigError(f"{place} is there already and is not empty. Give another name, or --out.")
    module = name.replace("-", "_")
    free = module not in sys.stdlib_module_names and not iskeyword(module) and name not in _taken(kind)
    require(free, "name", name, "a name that neither drift nor Python has given away")
    words = {"name": name, "module": module, "class": "".join(map(str.capitalize, module.split("_")))}
    written = []
    for source, inside in _templates(files("drift.scaffold") / "templates" / kind):
        path = place / inside.replace("MODULE", module).removesuffix(_ENDING)
        write_atomic(path, _filled(source.read_text(encoding="utf-8"), {**words, "version": __version__}).encode())
        written.append(str(path))
    install = "pip install -e '.[dev]' && " if kind != "recipe" else ""
    return "\n".join([*(f"wrote {path}" for path in sorted(written)), f"Next: cd {place} && {install}make test"])


def _taken(kind: str) -> list[str]:
    """Names that drift has for things of this kind."""
    from drift.environments import ENVIRONMENTS
    from drift.recipe import built_in_recipes
    from drift.weights.schemes import SCHEMES

    return {"environment": ENVIRONMENTS.names(), "weighting": list(SCHEMES), "recipe": list(built_in_recipes())}[kind]


def _templates(folder: Any, prefix: str = "") -> list[tuple[Any, str]]:
    """Every template below ``folder``, and its path from there."""
    found = []
    for each in sorted(folder.iterdir(), key=lambda each: each.name):
        if each.is_dir():
            found += _templates(each, f"{prefix}{each.name}/")
        elif each.name.endswith(_ENDING):
            found.append((each, prefix + each.name))
    return found


def _filled(text: str, words: dict[str, str]) -> str:
    for name, value in words.items():
        text = text.replace("{{ " + name + " }}", value)
    return text
