"""``drift weigh DATA``"""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import ArgumentParser

from drift.cli.main import parse
from drift.weights.config import WeightConfig


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("data", type=str, help="directory of trajectories")
    parser.add_argument("--out", type=str, required=True, help="directory of the weights")
    parser.add_class_arguments(WeightConfig, as_group=False)


def run(parser: ArgumentParser, arguments: Sequence[str]) -> int:
    """Weigh, and print what the weights will do."""
    found = parser.instantiate(parse(parser, arguments))
    config = WeightConfig(**{name: found[name] for name in WeightConfig.__dataclass_fields__})
    from drift.api import weigh
    from drift.manifest import read_manifest
    from drift.reporting.sentences import sentences
    from drift.weights.table import KIND

    out = weigh(found.data, out=found.out, config=config)
    manifest = read_manifest(out, KIND)
    for line in sentences(manifest["diagnostics"]):
        print(line)
    print(f"weights hash: {manifest['weights_hash'][:16]}")
    return 0
