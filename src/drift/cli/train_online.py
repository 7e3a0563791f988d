"""``drift train-online ENVIRONMENT``"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser

from drift.baselines.config import OnlineConfig
from drift.cli.main import parse


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("environment", type=str, help="name of a registered environment")
    parser.add_argument("--out", type=str, required=True, help="the model folder")
    parser.add_argument(
        "--environment_settings", type=dict[str, Any], default={}, help="the environment's own settings"
    )
    parser.add_argument("--start", type=str, default="default", help="the model to start from")
    parser.add_argument("--seed", type=int, default=1, help="decides tasks, their order and the conversations")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, …")
    parser.add_class_arguments(OnlineConfig, as_group=False)


def run(parser: ArgumentParser, arguments: Sequence[str]) -> int:
    """Train, and say what it cost."""
    found = parser.instantiate(parse(parser, arguments))
    config = OnlineConfig(**{name: found[name] for name in OnlineConfig.__dataclass_fields__})
    from drift.api import train_online
    from drift.manifest import read_manifest
    from drift.training.config import KIND

    out = train_online(
        found.environment,
        out=found.out,
        start=found.start,
        config=config,
        environment_settings=found.environment_settings,
        seed=found.seed,
        device=found.device,
    )
    manifest = read_manifest(out, KIND)
    told = {**manifest["counts"], **manifest["cost"]}
    counts = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in told.items())
    print(f"{out}: {manifest['rounds']} rounds; {counts}")
    return 0
