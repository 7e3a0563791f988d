"""What is written down while a model is trained: a JSON line each time, and progress on stderr."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from drift.files import append_json, write_atomic
from drift.progress import Progress

_LOGGED = ("loss", "grad_norm", "learning_rate")


def drop_lines_after(path: Path, step: int) -> None:
    """Keep lines of a JSONL file up to those of ``step``: a run that goes on from there writes the others anew."""
    lines = path.read_text().splitlines() if path.exists() else []
    write_atomic(path, "".join(line + "\n" for line in lines if _step_of(line) <= step).encode())


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        # Cut off while it was written, so it is past the checkpoint.
        return math.inf


class MetricsLog(TrainerCallback):  # type: ignore[misc]
    """Appends what ``Trainer`` logs to a JSONL file and shows progress; for the first rank alone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._bar: Progress

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop lines of steps that will be run again, and begin the bar."""
        drop_lines_after(self._path, state.global_step)
        self._bar = Progress("training", state.max_steps, done=state.global_step, unit="steps").__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the step."""
        self._bar.advance()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the bar."""
        self._bar.__exit__(None, None, None)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Write one line."""
        if logs and "loss" in logs:
            row = {"step": state.global_step, **{name: float(logs[name]) for name in _LOGGED if name in logs}}
            append_json(self._path, row)
