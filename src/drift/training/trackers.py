"""What trackers of ``TrainingArguments.report_to`` are told beside the losses: a name, and what was measured."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerControl, TrainerState
from transformers.integrations import get_reporting_integration_callbacks

from drift.training.config import TrainingConfig

PROJECT = "drift"


def tracked(config: TrainingConfig) -> bool:
    """Whether any tracker was asked for."""
    return config.to_dict()["arguments"]["report_to"] not in ("none", [], ["none"])


def names_of(config: TrainingConfig, out: Path) -> dict[str, Any]:
    """``run_name`` and ``project`` of a training into ``out``, unless given: the run's directory, and drift."""
    if not tracked(config):
        return {}
    # The one name that W&B reads from nowhere else.
    os.environ.setdefault("WANDB_PROJECT", str(config.arguments.get("project", PROJECT)))
    folder = out.resolve().parent
    name = f"{folder.parent.name}-{folder.name}" if folder.name.startswith("round-") else folder.name
    return {"run_name": name, "project": PROJECT}


def log_figures(arguments: Any, step: int, figures: Mapping[str, float]) -> None:
    """Give trackers what a trained model was measured to, as ``eval/NAME``.

    Args:
        arguments: the ``TrainingArguments`` that it was trained with, whose ``report_to`` names the trackers.
        step: how many steps it was trained.
        figures: what was measured, by name.
    """
    state = TrainerState(is_world_process_zero=True, is_local_process_zero=True, global_step=step)
    logs = {f"eval_{name}": value for name, value in figures.items()}
    for tracker in get_reporting_integration_callbacks(arguments.report_to):
        callback = tracker()
        callback.on_train_begin(arguments, state, TrainerControl())
        callback.on_log(arguments, state, TrainerControl(), logs=logs)
        callback.on_train_end(arguments, state, TrainerControl())
