"""Verifiers: is this answer the right one? None of them evaluates a model's text as code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drift.registry import Registry
from drift.verifiers.base import Verification, Verifier

VERIFIERS = Registry(
    "verifier",
    "drift.verifiers",
    {
        "choice": "drift.verifiers.choice:Choice",
        "exact": "drift.verifiers.exact:Exact",
        "judge": "drift.verifiers.judge:Judge",
        "math": "drift.verifiers.math:Math",
        "numeric": "drift.verifiers.numeric:Numeric",
    },
)


def make_verifier(name: str, settings: Mapping[str, Any] | None = None) -> Verifier:
    """The verifier registered under ``name``, with its settings; raises ``ConfigError`` for either's mistakes."""
    made: Verifier = VERIFIERS.make(name, settings or {}, where="verifier.settings")
    return made


__all__ = ["VERIFIERS", "Verification", "Verifier", "make_verifier"]
