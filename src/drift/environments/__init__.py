"""Environments: who the policy talks to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drift.environments.base import Environment, EnvironmentFactory
from drift.registry import Registry

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
        "reasoning": "drift.environments.fixed_length:Reasoning",
        "tools": "drift.environments.tools:Tools",
        "verifiers": "drift.environments.adapters.verifiers:Verifiers",
    },
)


def make_environment(name: str, settings: Mapping[str, Any] | None = None) -> EnvironmentFactory:
    """The environment registered under ``name``, with its settings; raises ``ConfigError`` for either's mistakes."""
    made: EnvironmentFactory = ENVIRONMENTS.make(name, settings or {}, where="environment.settings")
    return made


__all__ = ["ENVIRONMENTS", "Environment", "EnvironmentFactory", "make_environment"]
