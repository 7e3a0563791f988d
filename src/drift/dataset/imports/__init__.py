"""Logged conversations as data sets of trajectories: a reader per format, one way to ids."""

from __future__ import annotations

from drift.registry import Registry

FORMATS = Registry(
    "format",
    "drift.imports",
    {
        "messages": "drift.dataset.imports.messages:messages",
        "drift": "drift.dataset.imports.authors:authors",
        "mathdial": "drift.dataset.imports.mathdial:mathdial",
        "trajectories": "drift.dataset.imports.messages:trajectories",
    },
)

__all__ = ["FORMATS"]
