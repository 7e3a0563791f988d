"""``drift export DATA``"""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import ArgumentParser

from drift.cli.main import parse
from drift.exports.config import ExportConfig


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("data", type=str, help="directory of trajectories")
    parser.add_argument("--out", type=str, required=True, help="the file to write, JSON Lines")
    parser.add_argument(
        "--model", type=str, default="", help="compare the ids that TRL would make of the rows with the sampled ones"
    )
    parser.add_class_arguments(ExportConfig, as_group=False)


def run(parser: ArgumentParser, arguments: Sequence[str]) -> int:
    """Write the rows, and say what was made of the conversations."""
    found = parser.instantiate(parse(parser, arguments))
    config = ExportConfig(**{name: found[name] for name in ExportConfig.__dataclass_fields__})
    from drift.api import export

    manifest = export(found.data, out=found.out, config=config, model=found.model)
    counts = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in manifest["counts"].items())
    print(f"{found.out}: {counts}")
    if manifest["rendered"]:
        counts = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in manifest["rendered"].items() if value)
        print(f"rendered again: {counts}")
    return 0
