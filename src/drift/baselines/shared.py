"""What every training through TRL has in common: the library, its settings, its log."""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from drift.baselines.config import DEFAULT_ARGUMENTS, SET_BY_TRAINING, TrlConfig
from drift.errors import ConfigError, Interrupted, TrainingError, unknown_name
from drift.files import append_json, write_atomic
from drift.progress import Progress
from drift.training.checkpoints import saving

METRICS = "metrics.jsonl"
TESTED = "1.16"


def trl_version() -> str:
    """The version of TRL that is installed.

    Raises:
        ConfigError: none, or one of another major version than was tested.
    """
    try:
        found = version("trl")
    except PackageNotFoundError:
        raise ConfigError("this objective is trained through TRL. Install it: pip install 'drift-rl[trl]'.") from None
    if found.split(".")[0] != TESTED.split(".")[0]:
        raise ConfigError(f"trl {found} is installed, expected {TESTED} or later of the same major version.")
    return found


def check_arguments(config: TrlConfig) -> None:
    """Refuse names in ``config.arguments`` that transformers doesn't know; raises ``ConfigError`` with the nearest."""
    known = {each.name for each in fields(TrainingArguments)} - set(SET_BY_TRAINING)
    for name in config.arguments:
        if name not in known:
            place = f"{config.where}.arguments"
            raise unknown_name("setting of transformers.TrainingArguments", name, known, where=place)


def trl_arguments(config: TrlConfig, out: Path, *, seed: int, device: str) -> dict[str, Any]:
    """``config`` as arguments of TRL's configurations, without the number of rows and steps."""
    return {
        "output_dir": str(out / "trl"),
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.schedule,
        "warmup_steps": config.warmup,
        "bf16": config.dtype == "bfloat16",
        "gradient_checkpointing": False,
        "seed": seed,
        "data_seed": seed,
        "use_cpu": device == "cpu" or not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "disable_tqdm": True,
        **DEFAULT_ARGUMENTS,
        **config.arguments,
    }


def train_and_save(trainer: Any, out: Path, tokenizer: Any) -> None:
    """Train, and save the trainer's model and ``tokenizer`` to ``out``.

    Raises:
        Interrupted: Ctrl-C.
        StorageError: the disk refuses.
    """
    trainer.remove_callback(PrinterCallback)
    try:
        trainer.train()
    except KeyboardInterrupt as stop:
        raise Interrupted(
            f"stopped at step {trainer.state.global_step}. No checkpoint is kept of a training through TRL: the same "
            "command begins again."
        ) from stop
    with saving(out):
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(out)
        tokenizer.save_pretrained(out)
    shutil.rmtree(out / "trl", ignore_errors=True)


@contextmanager
def quiet() -> Iterator[None]:
    """One bar, that of the training, not one for each pass over the rows; and no warnings of TRL about itself."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        with warnings.catch_warnings():
            # TRL's settings carry a name that transformers has renamed; its rollout_func is what we are tested with.
            warnings.filterwarnings("ignore", message=".*gradient_checkpointing` is deprecated", category=FutureWarning)
            warnings.filterwarnings("ignore", message="You are using 'rollout_func'")
            yield
    finally:
        if shown:
            enable_progress_bars()


class Log(TrainerCallback):  # type: ignore[misc]
    """Appends every number that a trainer logs to a JSONL file, shows progress, and stops on a loss that is not finite.

    Args:
        path: the file, begun anew.
        label: shown while it runs.
    """

    def __init__(self, path: Path, label: str) -> None:
        self._path, self._label = path, label
        self._bar: Progress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin the file and the bar."""
        write_atomic(self._path, b"")
        self._bar = Progress(self._label, state.max_steps, unit="steps").__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the step."""
        if self._bar is not None:
            self._bar.advance()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Write one line; what is no finite number is null."""
        if not logs or "loss" not in logs:
            return
        row: dict[str, Any] = {"step": state.global_step}
        for name, value in logs.items():
            row[name] = _number(value)
            if name in ("loss", "grad_norm") and row[name] is None:
                raise TrainingError(f"went wrong by step {state.global_step}: {name} is {value}. Lower learning_rate.")
        append_json(self._path, row)


def _number(value: Any) -> float | None:
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None
