"""Numbers that are not finite: found at the step where they come up, before anything is saved of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from drift.errors import TrainingError
from drift.training.checkpoints import last_checkpoint

_LISTED = 5


def nonfinite_error(out: Path, step: int, what: str, rows: Sequence[str]) -> TrainingError:
    """The error that ends training.

    Args:
        out: the model folder.
        step: optimizer step in which it was found, counted from 1.
        what: the number that is not finite.
        rows: ids of the trajectories that it comes from, as far as is known.
    """
    names = list(dict.fromkeys(rows))
    listed = ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
    batch = f", in the batch with {listed}" if names else ""
    kept = last_checkpoint(out)
    state = f"The last checkpoint stays: {kept.name}." if kept else "There is no checkpoint yet."
    return TrainingError(
        f"went wrong by step {step}: {what}{batch}. {state} "
        "Lower training.learning_rate, or look at the weights: negative or very large ones can do this."
    )


def all_finite(value: torch.Tensor) -> bool:
    """Whether all of ``value`` is finite."""
    return bool(torch.isfinite(value).all())


def nonfinite_parameters(model: torch.nn.Module) -> list[str]:
    """Names of trained parameters with values that are not finite; of a sharded one, this rank looks at its part."""
    trained = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    own = [(name, value.to_local() if hasattr(value, "to_local") else value) for name, value in trained]
    return [name for name, value in own if not all_finite(value)]
