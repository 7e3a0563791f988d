"""Names to things, from this package and from any other one that declares an entry point."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from drift.errors import ConfigError, unknown_name
from drift.secrets import refuse_secrets


class Registry:
    """Named constructors: built-in ones by import path, others through an entry-point group.

    Args:
        kind: what is registered, for messages.
        group: the entry-point group that other packages use.
        builtin: name to ``module:attribute``, imported only when asked for.
    """

    def __init__(self, kind: str, group: str, builtin: Mapping[str, str]) -> None:
        self.kind = kind
        self.group = group
        self._builtin = dict(builtin)

    def names(self) -> list[str]:
        """Every name that can be looked up, sorted."""
        return sorted({*self._builtin, *(point.name for point in entry_points(group=self.group))})

    def get(self, name: str) -> Callable[..., Any]:
        """What is registered under ``name``; raises ``ConfigError`` with the nearest known name."""
        if name in self._builtin:
            module, _, attribute = self._builtin[name].partition(":")
            found: Callable[..., Any] = getattr(import_module(module), attribute)
            return found
        for point in entry_points(group=self.group):
            if point.name == name:
                try:
                    loaded: Callable[..., Any] = point.load()
                except (ImportError, AttributeError) as error:
                    raise ConfigError(
                        f"{self.kind} {name!r} is declared by {point.value!r}, which can't be imported: {error}. "
                        "Reinstall the package that declares it."
                    ) from error
                return loaded
        raise unknown_name(self.kind, name, self.names())

    def make(self, name: str, settings: Mapping[str, Any], *, where: str) -> Any:
        """Call the constructor with ``settings``; unknown settings are refused with the nearest known one."""
        constructor = self.get(name)
        refuse_secrets(settings, where)
        parameters = inspect.signature(constructor).parameters
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            for key in settings:
                if key not in parameters:
                    raise unknown_name("setting", key, parameters, where=f"{where} of {self.kind} {name!r}")
        try:
            # YAML has no tuples, and settings are frozen.
            return constructor(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})
        except TypeError as error:
            raise ConfigError(f"{where}: {self.kind} {name!r} can't be made from {dict(settings)}: {error}.") from error
