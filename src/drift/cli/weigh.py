"""``drift weigh DATA``"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

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
    from drift.dataset.weighing import KIND
    from drift.manifest import read_manifest

    out = weigh(found.data, out=found.out, config=config)
    manifest = read_manifest(out, KIND)
    diagnostics = manifest["diagnostics"]
    for key, value in diagnostics.items():
        if not isinstance(value, dict):
            print(f"{key}: {value}")
    for line in (*describe_beta(diagnostics.get("beta")), *describe_rollouts(diagnostics["rollouts"])):
        print(line)
    print(f"weights hash: {manifest['weights_hash'][:16]}")
    return 0


def describe_beta(found: Mapping[str, Any] | None) -> Iterator[str]:
    """What ``beta: auto`` found, in a line."""
    if found is None:
        return
    quantiles = found["quantiles"]
    if found["per"] == "dataset":
        limit = "0, the best of each prompt alone" if found["clamped"] else "any, all weigh the same"
        share = found.get("success_share")
        target = "" if share is None else f"; {100 * share:.1f} % succeed, and as many are to count"
        yield f"beta, one for all prompts: {limit if quantiles is None else format(quantiles[0], '.4g')}{target}"
        return
    spread = "none" if quantiles is None else ", ".join(f"{value:.4g}" for value in quantiles)
    yield f"beta of the prompts, quartiles: {spread}; {found['clamped']} prompts can't reach the target"


def describe_rollouts(found: Mapping[str, Any]) -> Iterator[str]:
    """What the samples of a prompt told, by how many there are, in a few lines."""

    def row(name: str, unit: str) -> str:
        shown = (
            f"{k}: {'–' if value is None else format(value, unit)}" for k, value in zip(ks, found[name], strict=True)
        )
        return ", ".join(shown)

    ks = found["k"]
    yield f"mixed prompts by samples: {row('mixed_share', '.1%')}"
    if "needed" not in found:
        return
    yield f"relative error of Ẑ by samples, median of mixed prompts: {row('error', '.2g')}"
    for error, needed in found["needed"].items():
        if needed["median"] is not None:
            yield (
                f"for an error of {float(error):.0%}: {needed['median']:.0f} samples of the median mixed prompt, "
                f"{needed['most']:.0f} of nine in ten; {needed['more']:,.0f} conversations more in all"
            )
