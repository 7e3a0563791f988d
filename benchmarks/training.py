"""What each idea of the training path is worth, alone and together, beside plain rows and TRL's SFTTrainer.

    python benchmarks/training.py [ROUNDS] [--data run/rollouts --model ./my-model [--conversations 32]]

Every variant computes the same weighted rows (TRL: the same trained tokens, without weights) forward and backward on
the same stock model. They take turns within each round; ratios are of medians. The last line is JSON with every figure.
Rows are of the published run's shape, scaled down, and random ids; or, with --data, conversations of a data set, every
reply at weight 1, and the model is the one that they are to train.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from shapes import Shape, machine, make_model, make_rows

from drift.dataset.store import stream_trajectories
from drift.policies.hf import load_model
from drift.training.examples import rows_of
from drift.training.forward import padded_batch, tree_batch, use_trees, use_weighted_loss
from drift.training.loss import weighted_nll
from drift.training.plan import pack
from drift.training.tree import Tree, build_tree, join_trees
from drift.types import Example

PLAIN_ROWS = 16
TOKENS = 8192
# The share of a prompt's weight that the step skip_small leaves out by default.
SKIPPED = 1e-3


def significant(rows: Sequence[Example]) -> list[Example]:
    """Rows that keep their weight: without those of a prompt that are smallest and hold next to nothing of it."""
    masses: dict[str, list[float]] = {}
    for row in rows:
        masses.setdefault(row.group_id, []).append(max(map(abs, row.weight)))
    kept = []
    for row in rows:
        mass_K, own = np.array(masses[row.group_id]), max(map(abs, row.weight))
        if mass_K[mass_K <= own].sum() > SKIPPED * mass_K.sum():
            kept.append(row)
    return kept


def apart(rows: Sequence[Example]) -> list[Tree]:
    """Rows side by side without padding, nothing shared, as many as fit a pass."""
    trees, passes, size = [build_tree([row]) for row in rows], [], 0
    for tree in sorted(trees, key=lambda tree: -len(tree.token_ids)):
        if not passes or size + len(tree.token_ids) > TOKENS:
            passes.append([])
            size = 0
        passes[-1].append(tree)
        size += len(tree.token_ids)
    return [join_trees(some) for some in passes]


class Variants:
    """Forward and backward over all rows, in different ways. Gradients add up in ``model``."""

    def __init__(self, model: Any, rows: list[Example], batch: int = PLAIN_ROWS) -> None:
        self.model, self.rows, self.batch = model, rows, batch
        use_weighted_loss(model)

    def plain(self, rows: Sequence[Example] | None = None) -> float:
        """Padded rows, all logits: what a loss on ``model(...).logits`` costs."""
        return self._padded(rows or self.rows, lambda batch: self.model(batch=batch))

    def head_only(self) -> float:
        """Padded rows; only hidden states of trained tokens meet the LM head."""

        def loss(batch: Any) -> torch.Tensor:
            hidden = self.model.model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
            ).last_hidden_state
            trained = batch.weight[:, 1:] != 0
            return weighted_nll(
                hidden[:, :-1][trained], self.model.lm_head.weight, batch.input_ids[:, 1:][trained],
                batch.weight[:, 1:][trained],
            )  # fmt: skip

        return self._padded(self.rows, loss)

    def prefixes_only(self) -> float:
        """Shared prefixes once; all logits."""
        return self._trees(pack(self.rows, TOKENS), all_logits=True)

    def skipping_only(self) -> float:
        """Padded rows, all logits, negligible rows left out."""
        return self.plain(significant(self.rows))

    def unpadded_only(self) -> float:
        """Rows side by side without padding; all logits."""
        return self._trees(apart(self.rows), all_logits=True)

    def drift_exact(self) -> float:
        """Everything but skipping: the gradients of plain rows."""
        return self._trees(pack(self.rows, TOKENS))

    def drift(self) -> float:
        """What ``drift train`` does with weights of ``drift weigh``."""
        return self._trees(pack(significant(self.rows), TOKENS))

    def drift_runs_of_4(self) -> float:
        """The same with the conversations of a prompt in runs of four, each run in a tree of its own."""
        rows = significant(self.rows)
        by_prompt: dict[str, list[Example]] = {}
        for row in rows:
            by_prompt.setdefault(row.group_id, []).append(row)
        runs = [group[at : at + 4] for group in by_prompt.values() for at in range(0, len(group), 4)]
        return self._trees([tree for run in runs for tree in pack(run, TOKENS)])

    def _padded(self, rows: Sequence[Example], loss_of: Callable[[Any], torch.Tensor]) -> float:
        total = 0.0
        # In the order of the data, as a loader that shuffles would give them.
        for start in range(0, len(rows), self.batch):
            loss = loss_of(padded_batch(list(rows[start : start + self.batch])))
            loss.backward()
            total += loss.item()
        return total

    def _trees(self, trees: Sequence[Tree], *, all_logits: bool = False) -> float:
        total = 0.0
        use_trees(self.model, True)
        for tree in trees:
            batch = tree_batch(tree)
            if all_logits:
                hidden = self.model.model(
                    input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, tree=batch.layout
                ).last_hidden_state
                logits = self.model.lm_head(hidden)[0][batch.predictors]
                nll = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")
                loss = (nll * batch.weights).sum()
            else:
                loss = self.model(batch=batch)
            loss.backward()
            total += loss.item()
        use_trees(self.model, False)
        return total


def number_tokenizer() -> Any:
    """A tokenizer that names the ids which a trainer asks for; no text is tokenized here."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({str(at): at for at in range(3)}, unk_token="0"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", eos_token="2", unk_token="0")


def trl_variants(
    rows: list[Example], vocabulary: int, *, batch: int = PLAIN_ROWS, only: str = ""
) -> dict[str, Callable[[], float]]:
    """TRL's SFTTrainer on the same rows and trained tokens, at its settings that run on this machine."""
    try:
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer
    except ImportError:
        return {}
    data = Dataset.from_list(
        [
            {
                "input_ids": list(row.token_ids),
                "labels": [i if flag else -100 for i, flag in zip(row.token_ids, row.sampled, strict=True)],
            }
            for row in rows
        ]
    )
    made: dict[str, Callable[[], float]] = {}
    longest = max(len(row.token_ids) for row in rows)
    for name, settings in {
        "trl": {},
        "trl, rows sorted by length": {"train_sampling_strategy": "group_by_length"},
        "trl, packed": {"packing": True, "max_length": 2 * longest},
    }.items():
        if only not in ("", name):
            continue
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            arguments = {
                "output_dir": tempfile.mkdtemp(),
                "per_device_train_batch_size": max(1, batch // 4) if "packing" in settings else batch,
                "max_length": None,
                "report_to": "none",
                "use_cpu": True,
                "bf16": False,
                "gradient_checkpointing": False,
                "disable_tqdm": True,
            }
            try:
                trainer = SFTTrainer(
                    model=make_model(vocabulary=vocabulary),
                    args=SFTConfig(**{**arguments, **settings}),
                    train_dataset=data,
                    processing_class=number_tokenizer(),
                )
            except (ValueError, TypeError, ImportError) as error:
                print(f"{name}: not run: {error}", file=sys.stderr)
                continue
        trainer.current_gradient_accumulation_steps = 1
        batches = list(trainer.get_train_dataloader())

        def run(trainer: Any = trainer, batches: Any = batches) -> float:
            total = 0.0
            for batch in batches:
                total += float(trainer.training_step(trainer.model, dict(batch)))
            trainer.model.zero_grad()
            return total

        made[name] = run
    return made


def matrix_rate(size: int = 1536, times: int = 5) -> float:
    """Floating-point operations per second of a float32 matrix product, the best of some."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    best = 0.0
    for _ in range(times):
        start = time.perf_counter()
        a @ b
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def operations(model: Any, trees: Sequence[Tree]) -> float:
    """Floating-point operations of forward and backward over trees: three times those of forward."""
    config = model.config
    layers = sum(p.numel() for name, p in model.named_parameters() if ".layers." in name and p.dim() == 2)
    total = 0.0
    for tree in trees:
        attended = 0
        for length, above in zip(tree.lengths, tree.ancestors, strict=True):
            before = sum(tree.lengths[index] for index in above)
            attended += length * before + length * (length + 1) // 2
        total += 2 * layers * len(tree.token_ids)
        total += 4 * attended * config.hidden_size * config.num_hidden_layers
        total += 2 * len(tree.targets) * config.vocab_size * config.hidden_size
    return 3 * total


def rate_reached(model: Any, rows: list[Example] | None) -> dict[str, float]:
    """Share of the machine's matrix-product rate that a training step reaches."""
    rows = rows or make_rows(Shape(), scope="all")
    variants = Variants(model, rows)
    shares = []
    for _ in range(3):
        rate = matrix_rate()
        start = time.perf_counter()
        variants.drift_exact()
        seconds = time.perf_counter() - start
        rate = max(rate, matrix_rate())
        shares.append(operations(model, pack(rows, TOKENS)) / seconds / rate)
    return {"share": statistics.median(shares), "matrix_gflops": rate / 1e9}


def real_rows(data: Path, count: int) -> list[Example]:
    """Rows of the first conversations of a data set, every reply trained alike."""
    rows: list[Example] = []
    for trajectory in itertools.islice(stream_trajectories(data), count):
        rows += rows_of(trajectory, [1.0] * len(trajectory.turns), normalization="sum")
    return rows


def main() -> None:
    """Measure, print ratios, and one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("rounds", type=int, nargs="?", default=5)
    parser.add_argument("--data", type=Path, help="directory of trajectories")
    parser.add_argument("--model", type=str, help="the model that they are of")
    parser.add_argument("--conversations", type=int, default=32, help="how many of them")
    given = parser.parse_args()
    rounds, shape = given.rounds, Shape()
    if given.data:
        rows, model = real_rows(given.data, given.conversations), load_model(given.model, dtype="float32")[0]
    else:
        rows, model = make_rows(shape), make_model(vocabulary=shape.vocabulary)
    variants = Variants(model, rows)
    runs: dict[str, Callable[[], float]] = {
        "plain": variants.plain,
        "1 head only": variants.head_only,
        "2 prefixes only": variants.prefixes_only,
        "3 skipping only": variants.skipping_only,
        "4 unpadded only": variants.unpadded_only,
        "drift, nothing skipped": variants.drift_exact,
        "drift, runs of 4": variants.drift_runs_of_4,
        "drift": variants.drift,
        **({} if given.data else trl_variants(rows, shape.vocabulary)),
    }
    exact = check_equal(variants)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(rounds + 1):
        print(f"round {round_} of {rounds}", file=sys.stderr, flush=True)
        for name, run in runs.items():
            model.zero_grad()
            start = time.perf_counter()
            run()
            # The first round warms up.
            if round_:
                seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    tokens = sum(len(row.token_ids) for row in rows)
    computed = sum(len(tree.token_ids) for tree in pack(significant(rows), TOKENS))
    print(f"{len(rows)} trajectories, {tokens} tokens ({computed} computed by drift), {rounds} rounds, medians")
    for name, value in median.items():
        print(f"{name:28s} {len(rows) / value:8.1f} trajectories/s   {median['plain'] / value:5.2f} x plain")
    reached = rate_reached(
        model if given.data else make_model(vocabulary=32_000, hidden=512), rows if given.data else None
    )
    what = "" if given.data else " (hidden 512)"
    print(f"share of the matrix-product rate reached by a step{what}: {reached['share']:.0%}")
    print(
        json.dumps(
            {
                "benchmark": "training",
                "machine": machine(),
                "shape": {"data": str(given.data), "model": given.model} if given.data else vars(shape),
                "rounds": rounds,
                "seconds": median,
                "times_plain": {name: median["plain"] / value for name, value in median.items()},
                "times_best_trl": min((v for k, v in median.items() if k.startswith("trl")), default=float("nan"))
                / median["drift"],
                "gradient_difference": exact,
                "matrix_rate": reached,
            }
        )
    )


def check_equal(variants: Variants) -> float:
    """Relative difference of the gradients with nothing skipped from those of plain rows."""
    gradients = []
    for run in (variants.plain, variants.drift_exact):
        variants.model.zero_grad()
        run()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in variants.model.parameters()]))
    return float((gradients[0] - gradients[1]).norm() / gradients[0].norm())


if __name__ == "__main__":
    main()
