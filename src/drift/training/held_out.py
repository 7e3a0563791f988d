"""Held-out loss: what training on some prompts does to others; the best model on the way, and an early end."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from drift.files import append_json, writing
from drift.training.config import HoldOut
from drift.training.distributed import Ranks
from drift.training.divergence import logprobs_while_training
from drift.training.log import drop_lines_after
from drift.types import Example

NAME, BEST = "held-out.jsonl", "best"


class HeldOutLoss(TrainerCallback):  # type: ignore[misc]
    """Measures the weighted negative log-likelihood of held-out replies before the first step and every so many.

    ``Σ w⁺ · −log π / Σ w⁺`` over the tokens of their replies, in nats per token, w⁺ what they would be trained with,
    or 0 where that is negative: a model that is destroyed by pushing away finds good replies unlikely.

    The best model on the way lies in ``best/step-<n>.safetensors``. That of the last checkpoint stays until the next,
    so that a run that was killed ends like one that was not.

    Args:
        model: the model that is trained.
        rows: to measure on, with weights ≥ 0.
        settings: when to measure, and what follows.
        dtype: of training.
        out: where ``held-out.jsonl`` goes.
        ranks: this process among others; the first measures.
        trees: the model's attention is that of trees while it trains.
    """

    def __init__(
        self,
        model: Any,
        rows: Sequence[Example],
        settings: HoldOut,
        dtype: str,
        out: Path,
        *,
        ranks: Ranks,
        trees: bool,
    ) -> None:
        self._model, self._rows, self._settings, self._dtype, self._out = model, rows, settings, dtype, out
        self._ranks, self._trees = ranks, trees
        self._course: dict[int, float] = {}
        self._stopped_at: int | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the base, or go on from a checkpoint with what was measured before it."""
        self._course = self._ranks.on_first_rank(lambda: self._before(state.global_step))
        if not self._course:
            self._measure(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure where it is time, keep the best, and end where it was long ago."""
        step, patience = state.global_step, self._settings.patience
        if step % self._settings.every and step < state.max_steps:
            return
        self._measure(step)
        if self._settings.keep == "best" and self._best == step and self._ranks.is_first:
            self._keep(step)
        since = [at for at in self._course if at > self._best]
        if patience and len(since) >= patience:
            self._stopped_at = step
            # Gone on from, it would train a step more.
            control.should_save = False
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What was the best before the best is not gone back to any more."""
        if self._ranks.is_first:
            for path in (self._out / BEST).glob("step-*"):
                if path != self._file(self._best):
                    path.unlink()

    def settle(self) -> None:
        """After training: put the best model back, if that is to be kept."""
        if self._settings.keep == "best" and self._ranks.is_first:
            self._model.load_state_dict(load_file(self._file(self._best)), strict=False)

    def report(self) -> dict[str, Any]:
        """For the manifest: prompts and rows, the step that was kept, its loss and the base's, and an early end."""
        step = self._best if self._settings.keep == "best" else max(self._course)
        return {
            "prompts": len({row.group_id for row in self._rows}),
            "rows": len(self._rows),
            "step": step,
            "nll": _finite(self._course[step]),
            "base_nll": _finite(self._course[0]),
            "stopped_at": self._stopped_at,
        }

    @property
    def _best(self) -> int:
        """The first step of the lowest loss; the base is none."""
        return min((step for step in self._course if step), key=lambda step: (self._course[step], step), default=0)

    def _file(self, step: int) -> Path:
        return self._out / BEST / f"step-{step}.safetensors"

    def _before(self, step: int) -> dict[int, float]:
        # Without a checkpoint the base is measured again.
        drop_lines_after(self._out / NAME, step or -1)
        lines = map(json.loads, (self._out / NAME).read_text().splitlines())
        return {line["step"]: math.inf if line["nll"] is None else line["nll"] for line in lines}

    def _measure(self, step: int) -> None:
        self._course[step] = nll = self._ranks.on_first_rank(self._nll)
        if self._ranks.is_first:
            append_json(self._out / NAME, {"step": step, "nll": _finite(nll)})

    def _nll(self) -> float:
        found = logprobs_while_training(self._model, self._rows, dtype=self._dtype, trees=self._trees)
        nats = tokens = 0.0
        for row, logprobs in zip(self._rows, found, strict=True):
            weights = [weight for at, weight in enumerate(row.weight) if weight and at]
            nats -= sum(weight * float(logp) for weight, logp in zip(weights, logprobs, strict=True))
            tokens += sum(weights)
        return nats / tokens if math.isfinite(nats) else math.inf

    def _keep(self, step: int) -> None:
        trained = {name: value for name, value in self._model.named_parameters() if value.requires_grad}
        path = self._file(step)
        with writing(path):
            path.parent.mkdir(exist_ok=True)
            half = path.with_name("unfinished")
            save_file({name: value.detach().cpu().contiguous() for name, value in trained.items()}, half)
            half.replace(path)


def _finite(nll: float) -> float | None:
    return nll if math.isfinite(nll) else None
