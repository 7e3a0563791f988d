"""Numbers that are not finite: found at the step where they come up, before anything is saved of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from drift.errors import TrainingError
from drift.training.checkpoints import newest
from drift.training.forward import Batch
from drift.types import Example

NAMED = 5
_REMEDY = "Lower training.learning_rate, or look at the weights: negative or very large ones can do this."


def nonfinite_error(folder: Path, step: int, found: str, rows: Sequence[str]) -> TrainingError:
    """The error that ends training.

    Args:
        folder: of the checkpoints.
        step: optimizer step in which it was found, counted from 1.
        found: what is not finite.
        rows: ids of the trajectories that it comes from, as far as is known.
    """
    names = list(dict.fromkeys(rows))
    listed = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
    batch = f", in the batch with {listed}" if names else ""
    kept = newest(folder)
    return TrainingError(
        f"went wrong by step {step}: {found}{batch}. "
        + (f"The last checkpoint stays: {kept.name}. " if kept else "There is no checkpoint yet. ")
        + _REMEDY
    )


@torch.no_grad()
def rows_without_a_loss(model: torch.nn.Module, rows: Sequence[Example], batches: Sequence[Batch]) -> list[str]:
    """Ids of the rows whose own loss is not finite; of all rows, where that is true of none of them alone.

    Args:
        model: as it is.
        rows: of one step.
        batches: each row on its own, on the model's device.
    """
    alone = [row.trajectory_id for row, batch in zip(rows, batches, strict=True) if not all_finite(model(batch=batch))]
    return alone or [row.trajectory_id for row in rows]


def all_finite(value: torch.Tensor) -> bool:
    """Whether all of ``value`` is finite."""
    return bool(torch.isfinite(value).all())


def nonfinite_parameters(model: torch.nn.Module) -> list[str]:
    """Names of trained parameters with values that are not finite."""
    return [
        name for name, value in model.named_parameters() if value.requires_grad and not all_finite(_own_part(value))
    ]


def _own_part(value: torch.Tensor) -> torch.Tensor:
    """Of a parameter that is sharded over ranks, what lies on this one."""
    local = getattr(value, "to_local", None)
    return value if local is None else local()
