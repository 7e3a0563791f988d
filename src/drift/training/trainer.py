"""``transformers.Trainer`` with the weighted loss, right under accumulation and several ranks of unequal load."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from transformers import Trainer

from drift.errors import TrainingError
from drift.training.checkpoints import publish, unfinished
from drift.training.forward import Batch, padded_batch, tree_batch
from drift.training.nonfinite import all_finite, nonfinite_error, nonfinite_parameters
from drift.training.plan import OptimizerStep, pack, pack_padded
from drift.training.tree import build_tree
from drift.types import Example


@dataclass(frozen=True, kw_only=True)
class StepInputs:
    """What one rank computes for one optimizer step.

    Attributes:
        passes: one batch for each forward pass.
        divisor: what the loss of the step is divided by, over all ranks.
    """

    passes: list[Batch]
    divisor: float


class StepDataset(torch.utils.data.Dataset[StepInputs]):
    """Optimizer steps as one rank computes them; item i is step i, so that a resumed run goes on where it was.

    Args:
        steps: the plan.
        rows: the training rows.
        rank: which rank this is.
        tokens_per_batch: the most tokens of one forward pass.
        trees: compute shared prefixes once; otherwise each row is padded and computed for itself.
        rope_border: see ``forward.rope_border``.
    """

    def __init__(
        self,
        steps: Sequence[OptimizerStep],
        rows: Sequence[Example],
        *,
        rank: int,
        tokens_per_batch: int,
        trees: bool,
        rope_border: int | None = None,
    ) -> None:
        self._steps, self._rows, self._rank = steps, rows, rank
        self._tokens, self._trees, self._rope_border = tokens_per_batch, trees, rope_border

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, index: int) -> StepInputs:
        step, rows = self._steps[index], self.rows_of(index)
        passes: list[Batch]
        if self._trees:
            passes = [tree_batch(tree) for tree in pack(rows, self._tokens, self._rope_border)]
        else:
            alike = pack_padded(rows, self._tokens, self._rope_border)
            passes = [padded_batch([rows[at] for at in places]) for places in alike]
        return StepInputs(passes=passes, divisor=step.divisor)

    def rows_of(self, index: int) -> list[Example]:
        """The rows of step ``index`` that this rank computes, with the weights they have in it."""
        step = self._steps[index]
        pairs = zip(step.ranks[self._rank].tolist(), step.factors[self._rank].tolist(), strict=True)
        return [_scaled(self._rows[row], factor) for row, factor in pairs]

    def alone(self, row: Example) -> Batch:
        """A pass over one row."""
        return tree_batch(build_tree([row], rope_border=self._rope_border)) if self._trees else padded_batch([row])

    def empty(self) -> Batch:
        """A pass over two tokens of no weight, for a rank that has fewer rows than others."""
        row = Example(trajectory_id="", group_id="", token_ids=(0, 0), sampled=(False, False), weight=(0.0, 0.0))
        return self.alone(row)


class WeightedTrainer(Trainer):  # type: ignore[misc]
    """Drives optimizer, schedule, checkpoints and ranks; what a step computes comes ready from a ``StepDataset``.

    The loss is the sum over all rows of the step, divided as its plan says. ``Trainer`` averages gradients over ranks;
    each rank's loss is multiplied by their number to undo that. Checkpoints appear whole or not at all, and carry the
    losses that were not yet logged. A loss, gradient or parameter that is not finite ends training before it is saved.
    """

    def create_accelerator_and_postprocess(self) -> None:
        """Let FSDP run on CPUs too, where torch can do it and accelerate leaves it out."""
        state = PartialState()
        if self.args.fsdp_plugin_args is not None and state.distributed_type is DistributedType.MULTI_CPU:
            state.distributed_type = DistributedType.MULTI_GPU
        super().create_accelerator_and_postprocess()

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """Train, or go on from a checkpoint with the losses it had not logged."""
        self._unlogged = torch.zeros((), device=self.args.device)
        self._nonfinite_before = set(nonfinite_parameters(self.model))
        if resume_from_checkpoint:
            self._unlogged += read_losses(Path(resume_from_checkpoint), self.args.process_index, self.args.world_size)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def get_train_dataloader(self) -> Any:
        """One item is one optimizer step of this rank: nothing is left to shuffle, shard or accumulate."""
        return torch.utils.data.DataLoader(
            self.train_dataset,
            batch_size=1,
            collate_fn=_only,
            num_workers=self.args.dataloader_num_workers,
            persistent_workers=self.args.dataloader_num_workers > 0,
        )

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The next step. ``Trainer`` does not count its items: what its loss is divided by comes with it."""
        return [next(epoch_iterator)], None

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Let the rate rise from the first step on, which otherwise would have none."""
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        rise_from_the_first_step(scheduler, self.args.get_warmup_steps(num_training_steps))
        return scheduler

    def training_step(
        self, model: torch.nn.Module, inputs: StepInputs, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """All forward and backward passes of one step; gradients meet other ranks' in the last one."""
        model.train()
        device = self.args.device
        passes = [batch.to(device) for batch in inputs.passes]
        # Ranks of unequal load make as many passes: some engines wait for one another in each.
        passes += [self.train_dataset.empty().to(device)] * (self._most_passes(len(passes)) - len(passes))
        total = torch.zeros((), device=device)
        for at, batch in enumerate(passes):
            last = at == len(passes) - 1
            self.accelerator.gradient_state._set_sync_gradients(last)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                with self.compute_loss_context_manager():
                    loss = model(batch=batch) / inputs.divisor * self.accelerator.num_processes
                self.accelerator.backward(loss)
            total += loss.detach().float()
        if not all_finite(total):
            rows = self._rows_without_a_loss(model)
            raise self._nonfinite_error(self.state.global_step + 1, f"loss is {float(total)}", rows)
        self._unlogged += total
        return total

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        whole = torch.as_tensor(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        if not all_finite(whole):
            rows = [row.trajectory_id for row in self._step_rows()]
            raise self._nonfinite_error(self.state.global_step + 1, f"grad_norm is {float(whole)}", rows)
        return norm

    def _rows_without_a_loss(self, model: torch.nn.Module) -> list[str]:
        """Ids of the step's rows whose own loss is not finite; all of them, where no row shows it alone."""
        rows, alone = self._step_rows(), []
        # With several ranks, a pass of one alone would wait for the others.
        if self.accelerator.num_processes == 1:
            with torch.no_grad():
                losses = [model(batch=self.train_dataset.alone(row).to(self.args.device)) for row in rows]
            alone = [row for row, loss in zip(rows, losses, strict=True) if not all_finite(loss)]
        return [row.trajectory_id for row in alone or rows]

    def _step_rows(self) -> list[Example]:
        return cast(StepDataset, self.train_dataset).rows_of(self.state.global_step)

    def _nonfinite_error(self, step: int, what: str, rows: Sequence[str] = ()) -> TrainingError:
        return nonfinite_error(self._checkpoints.parent, step, what, rows)

    def check_parameters(self) -> None:
        """Raise ``TrainingError`` where a trained parameter is no longer finite."""
        names = [name for name in nonfinite_parameters(self.model) if name not in self._nonfinite_before]
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise self._nonfinite_error(self.state.global_step, f"parameter {names[0]}{more} is not finite")

    @property
    def _checkpoints(self) -> Path:
        return Path(self.args.output_dir)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the mean loss of the steps since the last line, those before a resume included."""
        if "loss" in logs:
            every = self.args.logging_steps
            steps = self.state.global_step % every or every
            logs["loss"] = float(self.accelerator.gather(self._unlogged.reshape(1)).mean()) / steps
            self._unlogged.zero_()
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, but not into a checkpoint of DeepSpeed, which holds its parts already."""
        if not (_internal_call and self.is_deepspeed_enabled):
            super().save_model(output_dir, _internal_call)

    def _get_output_dir(self, trial: Any) -> str:
        return str(unfinished(self._checkpoints))

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        self.check_parameters()
        super()._save_checkpoint(model, trial)
        name = f"checkpoint-{self.state.global_step}"
        write_losses(
            unfinished(self._checkpoints) / name, float(self._unlogged), self.args.process_index, self.args.world_size
        )
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            publish(self._checkpoints, name, self.args.save_total_limit)
        # What is removed lies where the next checkpoint is written.
        self.accelerator.wait_for_everyone()

    def _most_passes(self, own: int) -> int:
        if self.accelerator.num_processes == 1:
            return max(1, own)
        counts = self.accelerator.gather(torch.tensor([own], device=self.args.device))
        return max(1, int(counts.max()))

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: the estimate of transformers is for rows of their own."""
        return 0


def rise_from_the_first_step(scheduler: Any, warmup: int) -> None:
    """Let the rate of step s (from 0) of ``warmup`` steps be ``(s + 1)/(warmup + 1)`` of its peak, instead of s/warmup.

    Args:
        scheduler: a learning-rate schedule of transformers; those without a warm-up stay as they are.
        warmup: steps over which the rate rises.
    """

    def risen(rate: Callable[[int], float]) -> Callable[[int], float]:
        return lambda step: (step + 1) / (warmup + 1) if step < warmup else rate(step)

    if warmup and isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        scheduler.lr_lambdas = [risen(each) for each in scheduler.lr_lambdas]
        # The rate of the first step was set when the schedule was made.
        for group, base, rate in zip(
            scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
        ):
            group["lr"] = base * rate(0)
        scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]


def _scaled(row: Example, factor: float) -> Example:
    return row if factor == 1 else replace(row, weight=tuple(value * factor for value in row.weight))


def write_losses(checkpoint: Path, unlogged: float, rank: int, ranks: int) -> None:
    """Keep the sum of one rank's losses that were not logged yet."""
    (checkpoint / f"unlogged-{rank}-of-{ranks}.json").write_text(json.dumps(unlogged))


def read_losses(checkpoint: Path, rank: int, ranks: int) -> float:
    """What a rank kept; if another number of ranks did, their mean, which is what is logged."""
    own = checkpoint / f"unlogged-{rank}-of-{ranks}.json"
    kept = [own] if own.is_file() else sorted(checkpoint.glob("unlogged-*.json"))
    return sum(float(json.loads(path.read_text())) for path in kept) / max(1, len(kept))


def _only(items: list[StepInputs]) -> StepInputs:
    return items[0]
