"""Train the default policy, measure what came out, save it as an ordinary model folder."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from drift.files import writing
from drift.manifest import read_manifest, write_manifest
from drift.progress import Progress
from tools.default_policy.calibration import calibrate
from tools.default_policy.config import PretrainConfig
from tools.default_policy.pretrain import Encoder, pretrain

KIND = "policy"


def make_default_policy(config: PretrainConfig, out: Path) -> dict[str, Any]:
    """Train and save a policy in 16-bit floats, with a manifest that holds its calibration.

    Args:
        config: size, seed and training.
        out: the model folder.

    Returns:
        The manifest: ``config``, ``parameters``, the mean loss of the last 100 steps in nats per token, and
        ``calibration``, exact chances on held-out problems to compare with ``config.flaws``.
    """
    start = time.monotonic()
    losses: list[float] = []
    with Progress("making the policy", config.steps, unit="steps") as progress:

        def report(step: int, loss: float) -> None:
            losses.append(loss)
            progress.advance()

        model, tokenizer = pretrain(config, report)
    with writing(out):
        model.to(torch.float16).save_pretrained(out)
        tokenizer.save_pretrained(out)
    found = calibrate(model.to(torch.float32), Encoder(tokenizer), config.flaws)
    content = {
        "config": asdict(config),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "loss": sum(losses[-100:]) / len(losses[-100:]),
        "calibration": {key: round(value, 4) for key, value in found.items()},
        "cost": {"seconds": round(time.monotonic() - start, 1)},
    }
    content["config"]["flaws"]["slips"] = {str(k): v for k, v in config.flaws.slips.items()}
    write_manifest(out, KIND, content)
    return read_manifest(out, KIND)
