"""``drift import FILE``"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser

from drift.cli.main import parse


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "file", type=str, help="logged conversations: JSON Lines, Parquet, or a directory of trajectories"
    )
    parser.add_argument("--out", type=str, required=True, help="directory of the trajectories")
    parser.add_argument(
        "--format", type=str, default="messages", help="messages, drift, mathdial, trajectories or a registered one"
    )
    parser.add_argument(
        "--settings", type=dict[str, Any], default={}, help="the format's own settings, as {reward: score}"
    )
    parser.add_argument("--model", type=str, default="default", help="the model to be trained: its template is used")
    parser.add_argument("--max_length", type=int, default=0, help="most tokens of a conversation; 0 takes the model's")
    parser.add_argument("--strict", action="store_true", help="fail, before anything is written, if any row is bad")


def run(parser: ArgumentParser, arguments: Sequence[str]) -> int:
    """Import, and say what came in and what did not."""
    found = parse(parser, arguments)
    from drift.api import import_conversations
    from drift.dataset.imports.run import listing, read_rejected
    from drift.dataset.store import KIND
    from drift.manifest import read_manifest

    out = import_conversations(
        found.file,
        out=found.out,
        format=found.format,
        settings=found.settings,
        model=found.model,
        max_length=found.max_length,
        strict=found.strict,
    )
    manifest = read_manifest(out, KIND)
    excluded = manifest["excluded"]
    if excluded:
        print(listing(read_rejected(out)), file=sys.stderr)
        counts = ", ".join(f"{reason} {count}" for reason, count in excluded.items())
        print(f"left out {sum(excluded.values())} of {manifest['rows']} rows: {counts}")
    counts = ", ".join(f"{key.removeprefix('stop_')} {value}" for key, value in manifest["counts"].items())
    print(f"{out}: {counts}; hash {manifest['dataset_hash'][:16]}")
    return 0
