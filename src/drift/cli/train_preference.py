"""``drift train-preference DATA``"""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import ArgumentParser

from drift.baselines.config import PreferenceConfig
from drift.cli.main import parse


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("data", type=str, help="directory of trajectories")
    parser.add_argument("--out", type=str, required=True, help="the model folder")
    parser.add_argument("--base", type=str, default="default", help="the model that sampled the trajectories")
    parser.add_argument("--seed", type=int, default=1, help="decides the order of the rows")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, …")
    parser.add_argument("--any_policy", type=bool, default=False, help="accept trajectories of another model")
    parser.add_class_arguments(PreferenceConfig, as_group=False)


def run(parser: ArgumentParser, arguments: Sequence[str]) -> int:
    """Train, and say what on."""
    found = parser.instantiate(parse(parser, arguments))
    config = PreferenceConfig(**{name: found[name] for name in PreferenceConfig.__dataclass_fields__})
    from drift.api import train_preference
    from drift.manifest import read_manifest
    from drift.training.config import KIND

    out = train_preference(
        found.data,
        out=found.out,
        base=found.base,
        config=config,
        seed=found.seed,
        device=found.device,
        any_policy=found.any_policy,
    )
    manifest = read_manifest(out, KIND)
    counts = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in manifest["counts"].items())
    print(f"{out}: {manifest['steps']} steps; {counts}")
    return 0
