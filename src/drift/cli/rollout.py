"""``drift rollout ENVIRONMENT``"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser

from drift.cli.main import parse
from drift.recipe import PolicyChoice, RolloutSettings


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("environment", type=str, help="name of a registered environment")
    parser.add_argument("--out", type=str, required=True, help="directory of the trajectories")
    parser.add_argument(
        "--environment_settings", type=dict[str, Any], default={}, help="the environment's own settings"
    )
    parser.add_argument("--split", type=str, default="train", help="split of the tasks")
    parser.add_argument("--seed", type=int, default=1, help="decides tasks and samples")
    parser.add_class_arguments(PolicyChoice, "policy")
    parser.add_class_arguments(RolloutSettings, as_group=False)


def run(parser: ArgumentParser, arguments: Sequence[str]) -> int:
    """Sample conversations, and say what came out."""
    found = parser.instantiate(parse(parser, arguments))
    settings = RolloutSettings(**{name: found[name] for name in RolloutSettings.__dataclass_fields__})
    from drift.api import rollout
    from drift.dataset.store import KIND
    from drift.manifest import read_manifest

    out = rollout(
        found.environment,
        out=found.out,
        policy=found.policy,
        settings=settings,
        environment_settings=found.environment_settings,
        split=found.split,
        seed=found.seed,
    )
    manifest = read_manifest(out, KIND)
    counts = ", ".join(f"{key.removeprefix('stop_')} {value}" for key, value in manifest["counts"].items())
    print(f"{out}: {counts}; hash {manifest['dataset_hash'][:16]}")
    return 0
