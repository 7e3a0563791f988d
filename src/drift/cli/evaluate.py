"""``drift evaluate ENVIRONMENT --policies.NAME MODEL``"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from drift.cli.main import parse
from drift.policies.base import Sampling
from drift.recipe import EvaluationSettings, PolicyChoice
from drift.rollouts.config import ClusterSettings


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("environment", type=str, help="name of a registered environment")
    parser.add_argument("--out", type=str, required=True, help="directory of the evaluation")
    parser.add_argument(
        "--policies", type=dict[str, str], required=True, help="NAME: MODEL pairs, the baseline first: {base: default}"
    )
    parser.add_argument("--seen", type=str, default="", help="rollouts whose tasks must not be measured on")
    parser.add_argument(
        "--environment_settings", type=dict[str, Any], default={}, help="the environment's own settings"
    )
    parser.add_argument("--seed", type=int, default=1, help="decides tasks, samples and bootstrap")
    parser.add_class_arguments(PolicyChoice, "policy", skip={"model"})
    parser.add_class_arguments(Sampling, "sampling")
    parser.add_class_arguments(EvaluationSettings, as_group=False)
    parser.add_class_arguments(ClusterSettings, "cluster")


def run(parser: ArgumentParser, arguments: Sequence[str]) -> int:
    """Measure, and print the estimates."""
    parsed = parse(parser, arguments)
    found = parser.instantiate(parsed)
    from drift.api import evaluate
    from drift.reporting.console import print_summary

    evaluate(
        found.environment,
        policies=found.policies,
        out=found.out,
        settings=EvaluationSettings(tasks=found.tasks, samples=found.samples, quality=found.quality),
        sampling=found.sampling,
        environment_settings=found.environment_settings,
        policy=PolicyChoice(**parsed.policy.as_dict()),
        cluster=found.cluster,
        seen=found.seen or None,
        seed=found.seed,
    )
    print_summary(Path(found.out))
    return 0
