"""``transformers.Trainer`` with the weighted loss, right under gradient accumulation and several ranks."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from drift.errors import TrainingError
from drift.training.loss import weighted_loss
from drift.types import Example


class ExampleDataset(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Training rows as tensors."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        example = self._examples[index]
        return {
            "input_ids": torch.tensor(example.token_ids),
            "weight": torch.tensor(example.weight, dtype=torch.float32),
        }


def collate(pad_id: int, rows: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Pad rows on the right to ``input_ids``, ``attention_mask`` and ``weight``, each ``(B, T)``."""
    pad = torch.nn.utils.rnn.pad_sequence
    ids = [row["input_ids"] for row in rows]
    return {
        "input_ids": pad(ids, batch_first=True, padding_value=pad_id),
        "attention_mask": pad([torch.ones_like(row) for row in ids], batch_first=True),
        "weight": pad([row["weight"] for row in rows], batch_first=True),
    }


class WeightedTrainer(Trainer):  # type: ignore[misc]
    """Divides by the number of rows of the whole optimizer step, whatever micro-batches and ranks it is split into.

    ``Trainer`` averages gradients over ranks; each rank's loss is multiplied by their number to undo that, so that
    what is left is the sum over all rows, over all rows.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Tells Trainer that the loss already accounts for accumulation; the name of the switch depends on its version.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor]:
        """The micro-batches of one optimizer step, and the number of rows in them over all ranks."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        rows = torch.tensor(sum(len(batch["input_ids"]) for batch in batches), device=device)
        if self.args.world_size > 1:
            rows = self.accelerator.gather(rows).sum()
        return batches, rows

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """One micro-batch's share of the step's loss."""
        if num_items_in_batch is None:
            num_items_in_batch = len(inputs["input_ids"])
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        loss = weighted_loss(outputs.logits, inputs["input_ids"], inputs["weight"], num_items_in_batch)
        loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss


class MetricsLog(TrainerCallback):  # type: ignore[misc]
    """Appends what ``Trainer`` logs to a JSONL file; after a resume, lines past the checkpoint are written anew."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop lines of steps that will be run again."""
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= state.global_step]
        self._path.write_text("".join(line + "\n" for line in kept))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Write one line; stop on a loss or gradient that is not finite."""
        if not logs or "loss" not in logs or not state.is_world_process_zero:
            return
        names = ("loss", "grad_norm", "learning_rate")
        row: dict[str, float] = {"step": state.global_step}
        row.update((name, float(logs[name])) for name in names if name in logs)
        for name in ("loss", "grad_norm"):
            if not math.isfinite(row.get(name, 0.0)):
                raise TrainingError(
                    f"went wrong by step {state.global_step}: {name} is {row[name]}. The last checkpoint stays. "
                    "Lower training.learning_rate, or look at the weights: negative or very large ones can do this."
                )
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
