"""A limit on how far training may take the model from its base, measured on conversations that are not trained on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from drift.errors import TrainingError
from drift.files import append_json
from drift.training.config import TrainingConfig
from drift.training.distributed import Ranks
from drift.training.divergence import estimated_kl, logprobs_while_training
from drift.training.examples import rows_of
from drift.training.log import drop_lines_after
from drift.types import Example, Trajectory

NAME = "kl.jsonl"
# More conversations of one prompt tell less than other prompts do.
PER_PROMPT = 4
# Steps between measurements, beside those at checkpoints: at the default rate a model moves little in ten steps, and a
# measurement, a forward pass over at most 32 conversations, costs less than one step.
STEPS = 10
# Prompts to measure on: with four conversations each enough for a mean, and few to go without.
PROMPTS = 8


def set_aside(groups: Collection[str], prompts: int, share: float = 0.1) -> set[str]:
    """The prompts that are not trained on: those of the smallest hashes, at most a share of all and at least one.

    Args:
        groups: ids of all prompts.
        prompts: how many at most.
        share: what share of all at most.

    Raises:
        TrainingError: there are not two prompts.
    """
    if len(groups) < 2:
        raise TrainingError(
            f"training.kl_limit and hold_out set prompts aside to measure on: there are {len(groups)}. Set both to 0."
        )
    ordered = sorted(groups, key=lambda group: hashlib.sha256(f"kl/{group}".encode()).digest())
    return set(ordered[: min(prompts, max(1, int(len(groups) * share)))])


class HeldOut:
    """Collects the rows to measure on while the data pass by, and lets the others through.

    Args:
        groups: prompts that are set aside.
        max_length: longest row in tokens; ``None`` for any.
        weights: of replies by id, negative ones taken for 0, where all conversations of a prompt are kept; else four
            are, of weight 1.
    """

    def __init__(
        self, groups: Collection[str], max_length: int | None, weights: Mapping[str, Sequence[float]] | None = None
    ) -> None:
        self._groups, self._longest, self._weights = frozenset(groups), max_length, weights
        self._kept_rows: dict[str, dict[str, list[Example]]] = {}

    def set_aside_from(self, trajectories: Iterable[Trajectory]) -> Iterator[Trajectory]:
        """The conversations to train on; replies of the others are kept here."""
        for trajectory in trajectories:
            if trajectory.group_id not in self._groups:
                yield trajectory
                continue
            weights = [1.0] * len(trajectory.turns)
            if self._weights is not None:
                weights = [max(0.0, weight) for weight in self._weights.get(trajectory.id, ())]
            rows = rows_of(trajectory, weights, normalization="sum") if trajectory.error is None else []
            if rows and all(self._longest is None or len(row.token_ids) <= self._longest for row in rows):
                held = self._kept_rows.setdefault(trajectory.group_id, {})
                held[trajectory.id] = rows
                if self._weights is None and len(held) > PER_PROMPT:
                    # Whatever order they come in.
                    del held[max(held)]

    def rows(self) -> list[Example]:
        """The rows that were kept, in the order of their ids."""
        by_id = {name: rows for held in self._kept_rows.values() for name, rows in held.items()}
        return [row for name in sorted(by_id) for row in by_id[name]]


class KLLimit(TrainerCallback):  # type: ignore[misc]
    """Measures every so many steps and before each checkpoint; ends training once the limit is passed.

    What is kept then is the model of the last measurement within the limit. No checkpoint is ever written of a model
    beyond it, so that a run that was killed ends like one that was not.

    Args:
        model: the model as training begins, before a checkpoint is loaded; its replies are the base's.
        rows: to measure on.
        config: ``kl_limit``, ``dtype``.
        out: where ``kl.jsonl`` goes.
        ranks: this process among others; the first measures.
        trees: the model's attention is that of trees while it trains.
    """

    def __init__(
        self, model: Any, rows: Sequence[Example], config: TrainingConfig, out: Path, *, ranks: Ranks, trees: bool
    ) -> None:
        self._model, self._rows, self._config, self._path = model, rows, config, out / NAME
        self._ranks, self._trees = ranks, trees
        self._conversations = len({row.trajectory_id for row in rows})
        self._base = ranks.on_first_rank(self._logprobs)
        self._kept: dict[str, torch.Tensor] = {}
        self._kept_step, self._kept_kl = 0, 0.0
        self._stopped: tuple[int, float] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Go on from a checkpoint, which was within the limit when it was written."""
        if self._ranks.is_first:
            drop_lines_after(self._path, state.global_step)
        if state.global_step:
            self._keep(state.global_step, self._ranks.on_first_rank(self._measure))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure where it is time, and stop past the limit."""
        step = state.global_step
        if step % STEPS and not control.should_save and step < state.max_steps:
            return
        kl = self._ranks.on_first_rank(self._measure)
        if self._ranks.is_first:
            append_json(self._path, {"step": step, "kl": _finite(kl)})
        if kl <= self._config.kl_limit:
            self._keep(step, kl)
            return
        self._stopped = (step, kl)
        control.should_save = False
        control.should_training_stop = True

    def settle(self) -> None:
        """After training: put back the model of the last measurement within the limit, if it was passed.

        Raises:
            TrainingError: the first measurement was past it.
        """
        if self._stopped is None:
            return
        step, kl = self._stopped
        if not self._kept_step:
            raise TrainingError(
                f"the first measurement, at step {step}, finds a KL of {kl:.3g} nats per conversation from the base, "
                f"past training.kl_limit {self._config.kl_limit:g}: there is no step to go back to. "
                "Lower training.learning_rate or training.save_steps, or raise the limit."
            )
        if self._kept:
            self._model.load_state_dict(self._kept, strict=False)

    def report(self) -> dict[str, Any]:
        """For the manifest: the limit, the step that was kept and its KL, and where the limit was passed, if it was."""
        return {
            "limit": self._config.kl_limit,
            "step": self._kept_step,
            "kl": self._kept_kl,
            "stopped_at": self._stopped[0] if self._stopped else None,
            "stopped_kl": _finite(self._stopped[1]) if self._stopped else None,
            "conversations": self._conversations,
        }

    def _keep(self, step: int, kl: float) -> None:
        self._kept_step, self._kept_kl = step, kl
        # Only the first rank saves, and only what is trained can have changed.
        if self._ranks.is_first:
            trained = ((name, value) for name, value in self._model.named_parameters() if value.requires_grad)
            self._kept = {name: value.detach().cpu().clone() for name, value in trained}

    def _measure(self) -> float:
        tuned = self._logprobs()
        per_row = estimated_kl(self._base, tuned)
        # A conversation whose template rewrites history has several rows.
        return per_row * len(self._rows) / self._conversations

    def _logprobs(self) -> list[Any]:
        return logprobs_while_training(self._model, self._rows, dtype=self._config.dtype, trees=self._trees)


def _finite(kl: float) -> float | None:
    """JSON knows no infinity: null is a model that gives a token of the base no chance, or has none left."""
    return kl if math.isfinite(kl) else None
