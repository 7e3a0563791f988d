"""Environments: who the policy talks to."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any

from drift.environments.base import Environment, EnvironmentFactory
from drift.errors import require
from drift.registry import Registry, path_of, plain, settings_of_object
from drift.secrets import refuse_secrets

ENVIRONMENTS = Registry(
    "environment",
    "drift.environments",
    {
        "arithmetic": "drift.environments.arithmetic:Arithmetic",
        "choice": "drift.environments.questions:ChoiceQuestions",
        "clarify": "drift.environments.clarify:Clarify",
        "guess": "drift.environments.guess:Guess",
        "gymnasium": "drift.environments.adapters.gymnasium:Gymnasium",
        "math": "drift.environments.questions:MathQuestions",
        "openenv": "drift.environments.adapters.openenv:OpenEnv",
        "qa": "drift.environments.qa:qa",
        "reasoning": "drift.environments.fixed_length:Reasoning",
        "reasoning-gym": "drift.environments.adapters.reasoning_gym:ReasoningGym",
        "tools": "drift.environments.tools:Tools",
        "verifiers": "drift.environments.adapters.verifiers:Verifiers",
    },
)


def make_environment(environment: Any) -> EnvironmentFactory:
    """The environment that ``environment`` names or is.

    Args:
        environment: a registered name; ``module:attribute``; either with settings, ``{"name": "guess", "width": 20}``;
            a class; or an object that has ``tasks``, ``start`` and ``max_turns``.

    Raises:
        ConfigError: an unknown name or setting, with the nearest known one; or something that is no environment.
    """
    name, settings = split_settings(environment)
    made = ENVIRONMENTS.make(name, settings, where="environment")
    lacks = [part for part in ("tasks", "start", "max_turns") if not hasattr(made, part)]
    require(not lacks, "environment", environment, f"an object with {', '.join(lacks)} (see CONTRIBUTING.md)")
    most = made.max_turns
    require(
        isinstance(most, Integral) and 1 <= int(most) < 2**31,
        f"max_turns of {name!r}",
        most,
        "a whole number of replies, at least 1",
    )
    return made  # type: ignore[no-any-return]


def split_settings(environment: Any) -> tuple[Any, dict[str, Any]]:
    """The name (or the class or object itself) and the settings in what ``make_environment`` takes."""
    if not isinstance(environment, Mapping):
        return environment, {}
    name = environment.get("name")
    require(bool(name), "environment.name", name, f"one of {', '.join(ENVIRONMENTS.names())}, or module:attribute")
    return name, {key: value for key, value in environment.items() if key != "name"}


def environment_record(environment: Any) -> dict[str, Any]:
    """``name`` and ``settings`` of what ``make_environment`` takes, as plain values for manifests."""
    name, settings = split_settings(environment)
    if isinstance(name, str):
        return {"name": name, "settings": settings}
    settings = plain(settings) if callable(name) else settings_of_object(name)
    refuse_secrets(settings, "environment")
    return {"name": path_of(name), "settings": settings}


__all__ = [
    "ENVIRONMENTS",
    "Environment",
    "EnvironmentFactory",
    "environment_record",
    "make_environment",
    "split_settings",
]
