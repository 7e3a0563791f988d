"""``drift make-policy``"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from drift.bootstrap.config import PretrainConfig
from drift.cli.main import parse


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--out", type=str, required=True, help="the model folder")
    parser.add_class_arguments(PretrainConfig, as_group=False)


def run(parser: ArgumentParser, arguments: Sequence[str]) -> int:
    """Make the policy, and print how it behaves against how it was meant to."""
    found = parser.instantiate(parse(parser, arguments))
    config = PretrainConfig(**{name: found[name] for name in PretrainConfig.__dataclass_fields__})
    from drift.bootstrap.make import make_default_policy

    manifest = make_default_policy(config, Path(found.out))
    print(f"{found.out}: {manifest['parameters']:,} parameters, loss {manifest['loss']:.4f} nats per token")
    for key, value in manifest["calibration"].items():
        print(f"{key}: {value:.3f}")
    return 0
