"""Logged conversations as data sets of trajectories: a reader per format, one way to ids."""

from __future__ import annotations

from drift.registry import Registry

# Formats that ``Columns`` says the fields of; the others are readers of their own.
SHAPES = ("auto", "messages", "pair", "samples", "preference", "request", "art", "langfuse", "otel")
FORMATS = Registry(
    "format",
    "drift.imports",
    {
        **{name: f"drift.dataset.imports.shapes:{name}" for name in SHAPES},
        "drift": "drift.dataset.imports.authors:authors",
        "mathdial": "drift.dataset.imports.mathdial:mathdial",
        "trajectories": "drift.dataset.imports.recorded:trajectories",
    },
)

__all__ = ["FORMATS", "SHAPES"]
