"""Names to things, from this package and from any other one that declares an entry point."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoints, entry_points
from typing import Any

from drift.errors import ConfigError, require, unknown_name
from drift.secrets import refuse_secrets

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Registry:
    """Things by name: built in, of another package through an entry-point group, or anybody's by ``module:attribute``.

    Args:
        kind: what is registered, for messages.
        group: the entry-point group that other packages use.
        builtin: name to the thing itself, or to ``module:attribute``, imported only when asked for.
    """

    def __init__(self, kind: str, group: str, builtin: Mapping[str, Any]) -> None:
        self.kind = kind
        self.group = group
        self._builtin = dict(builtin)

    def names(self) -> list[str]:
        """Every name that can be looked up, sorted."""
        return sorted({*self._builtin, *(point.name for point in _declared(self.group))})

    def find(self, thing: Any) -> Any:
        """``thing`` itself, or what it names: as ``get``, or ``module:attribute``."""
        if isinstance(thing, str) and ":" not in thing:
            return self.get(thing)
        found = load_attribute(thing, self.kind) if isinstance(thing, str) else thing
        if not callable(found):
            raise ConfigError(f"{self.kind}: got {thing!r}, expected a name, module:attribute or a function.")
        return found

    def get(self, name: str) -> Callable[..., Any]:
        """What is registered under ``name``; raises ``ConfigError`` with the nearest known name."""
        if name in self._builtin:
            built_in = self._builtin[name]
            if not isinstance(built_in, str):
                return built_in  # type: ignore[no-any-return]
            module, _, attribute = built_in.partition(":")
            found: Callable[..., Any] = getattr(import_module(module), attribute)
            return found
        for point in _declared(self.group):
            if point.name == name:
                try:
                    loaded: Callable[..., Any] = point.load()
                except Exception as error:
                    # Another's module runs as it is imported.
                    raise ConfigError(
                        f"{self.kind} {name!r} is declared by {point.value!r}, which can't be imported: "
                        f"{type(error).__name__}: {error}. Reinstall the package that declares it."
                    ) from error
                return loaded
        raise unknown_name(self.kind, name, self.names())

    def make(self, thing: Any, settings: Mapping[str, Any], *, where: str) -> Any:
        """``thing`` called with ``settings``: a name, ``module:attribute``, class or function; an object as it is.

        Raises:
            ConfigError: an unknown name or setting, with the nearest known one; or settings that it can't be made with.
        """
        constructor = self._constructor(thing, settings, where)
        if not callable(constructor):
            return constructor
        return self._called(constructor, thing, settings, where)

    def check(self, thing: Any, settings: Mapping[str, Any], *, where: str) -> None:
        """Refuse what ``make`` refuses without making it; a class may have a static ``check`` that takes the same."""
        constructor = self._constructor(thing, settings, where)
        if isinstance(inspect.getattr_static(constructor, "check", None), staticmethod):
            self._called(constructor.check, thing, settings, where)

    def _constructor(self, thing: Any, settings: Mapping[str, Any], where: str) -> Any:
        constructor = thing
        if isinstance(thing, str):
            constructor = load_attribute(thing, self.kind) if ":" in thing else self.get(thing)
        name = thing if isinstance(thing, str) else path_of(thing)
        if not callable(constructor):
            require(
                not settings, where, dict(settings), f"no settings: {self.kind} {name!r} is an object, made already"
            )
            return constructor
        refuse_secrets(settings, where)
        parameters = inspect.signature(constructor).parameters
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            for key in settings:
                if key not in parameters:
                    raise unknown_name("setting", key, parameters, where=f"{where} of {self.kind} {name!r}")
        return constructor

    def _called(self, function: Callable[..., Any], thing: Any, settings: Mapping[str, Any], where: str) -> Any:
        name = thing if isinstance(thing, str) else path_of(thing)
        parameters = inspect.signature(function).parameters.values()
        required = [each.name for each in parameters if each.default is each.empty and each.kind in _NAMED]
        missing = [each for each in required if each not in settings]
        if missing:
            keys = " and ".join(f"{where}.{each}" for each in missing)
            raise ConfigError(f"{self.kind} {name!r} needs {' and '.join(missing)}. Give {keys}.")
        try:
            # YAML has no tuples, and settings are frozen.
            return function(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})
        except TypeError as error:
            known = ", ".join(map(str, parameters)).replace("'", "")
            raise ConfigError(
                f"{where}: {self.kind} {name!r} can't be made from {dict(settings)}: {error}. Its settings are {known}."
            ) from error


def _declared(group: str) -> EntryPoints:
    """What installed packages declare in ``group``; a folder of packages that changed is read again."""
    return _declared_in(group, tuple((place, _changed(place)) for place in sys.path))


@lru_cache(maxsize=64)
def _declared_in(group: str, places: tuple[tuple[str, int], ...]) -> EntryPoints:
    # A hundred packages take 50 ms to read, and one check of a comparison asks a hundred times.
    return entry_points(group=group)


def _changed(place: str) -> int:
    try:
        return os.stat(place or ".").st_mtime_ns
    except OSError:
        return 0


def load_attribute(path: str, kind: str) -> Any:
    """What ``module:attribute`` names; modules of the working directory are found as those that are installed.

    Raises:
        ConfigError: no such module, one that can't be imported, or no such attribute in it.
    """
    module, _, attribute = path.partition(":")
    here = os.getcwd()
    added = here not in sys.path
    if added:
        sys.path.append(here)
    try:
        found: Any = import_module(module)
        for name in attribute.split("."):
            found = getattr(found, name)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{kind} {path!r}: {module!r} can't be imported: {error}. Check its name.") from error
    except AttributeError as error:
        public = [name for name in vars(import_module(module)) if not name.startswith("_")]
        raise unknown_name(kind, attribute, public, where=f"module {module!r}") from error
    finally:
        if added:
            sys.path.remove(here)
    return found


def path_of(thing: Any) -> str:
    """``module:name`` of a function or class, for the record; of what has no name, that of its class."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}:{named.__qualname__}"


def settings_of_object(thing: Any) -> dict[str, Any]:
    """What an object says of itself, for the record: its public attributes that are plain values."""
    return {name: plain(value) for name, value in vars(thing).items() if not name.startswith("_") and is_plain(value)}


def is_plain(value: Any) -> bool:
    """Whether JSON could hold ``value``, tuples taken for lists."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(is_plain(item) for item in value)
    return value is None or isinstance(value, str | int | float)


def check_settings(function: Callable[..., Any], settings: Collection[str], *, where: str) -> None:
    """Refuse settings that ``function`` does not take by keyword; raises ``ConfigError`` with the nearest known one.

    Keyword-only arguments that end in ``_N`` or ``_T`` are data, not settings.
    """
    known = settings_of(function)
    for key in settings:
        if key not in known:
            raise unknown_name("setting", key, known, where=where)


def settings_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The keyword-only arguments of ``function`` that are settings, and their defaults (``Parameter.empty``: none)."""
    keywords = (p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY)
    return {p.name: p.default for p in keywords if not p.name.endswith(("_N", "_T"))}


def data_of(function: Callable[..., Any]) -> list[str]:
    """The keyword-only arguments of ``function`` that are data: those that end in ``_N`` or ``_T``."""
    keywords = (p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY)
    return [p.name for p in keywords if p.name.endswith(("_N", "_T"))]


@dataclass(frozen=True, kw_only=True)
class Link:
    """A function with its settings, as a recipe names it.

    Attributes:
        name: what it is called; ``module:function`` for one of one's own.
        function: what it is.
        settings: all of them, defaults included.
    """

    name: str
    function: Callable[..., Any]
    settings: Mapping[str, Any]

    def __call__(self, *arguments: Any) -> Any:
        """The function of ``arguments``, with the settings."""
        return self.function(*arguments, **self.settings)

    @property
    def record(self) -> str | dict[str, Any]:
        """The link as it is written in a recipe."""
        return {self.name: dict(self.settings)} if self.settings else self.name


def link(item: Any, known: Registry, where: str) -> Link:
    """A function with its settings: a name, ``module:function``, a function, or ``{one of them: settings}``.

    Settings are values by name, or a single value, that of the first setting.

    Raises:
        ConfigError: an unknown name or setting, or a setting that is missing.
    """
    given: Any = {}
    if isinstance(item, Mapping):
        require(len(item) == 1, where, dict(item), "one name with its settings, such as {bound_negative: 0.1}")
        item, given = next(iter(item.items()))
    function = known.find(item)
    name = item if isinstance(item, str) else path_of(function)
    settings = settings_of(function)
    require(given is not None, f"{where}.{name}", None, "a value, or the name alone")
    if not isinstance(given, Mapping):
        require(bool(settings), f"{where}.{name}", given, "nothing: it has no settings")
        given = {next(iter(settings)): given}
    check_settings(function, given, where=f"{where} of {name}")
    return Link(name=name, function=function, settings=complete({**settings, **given}, f"{where}: {name}"))


def complete(settings: Mapping[str, Any], what: str) -> dict[str, Any]:
    """``settings``; raises ``ConfigError`` where one has no value."""
    missing = [key for key, value in settings.items() if value is inspect.Parameter.empty]
    if missing:
        raise ConfigError(f"{what} needs {', '.join(missing)}. Give a value for each.")
    return dict(settings)


def is_own(function: Callable[..., Any]) -> bool:
    """Whether a function comes with this package."""
    return function.__module__.startswith("drift.")


def try_once(function: Callable[..., Any], *arguments: Any, **settings: Any) -> None:
    """Call a cheap function of this package, so that settings it can't work with are refused before any long work.

    Raises:
        ConfigError: it can't work with them.
    """
    if not is_own(function):
        return
    try:
        function(*arguments, **settings)
    except TypeError as error:
        given = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        raise ConfigError(
            f"{function.__name__} can't work with the settings {given}: {error}. Correct them."
        ) from error


def name_of(item: Any) -> str:
    """The name in what ``link`` takes."""
    if isinstance(item, Mapping) and len(item) == 1:
        return name_of(next(iter(item)))
    return path_of(item) if callable(item) else str(item)


def plain(value: Any) -> Any:
    """A setting as plain values, for manifests; functions by where they are."""
    if isinstance(value, Mapping):
        return {name_of(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return path_of(value) if callable(value) else value
