"""A causal LM's forward pass that takes a tree of rows and gives their weighted loss."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any

import torch

from drift.training.attention import NAME, Layout
from drift.training.loss import weighted_loss, weighted_nll
from drift.training.tree import Tree, build_tree
from drift.types import Example

# How far log-likelihoods of the two paths may be apart, by the size of the type's rounding.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.05}


@dataclass(frozen=True, kw_only=True)
class TreeBatch:
    """A tree as tensors: what one forward pass computes.

    Attributes:
        input_ids, position_ids: ``(1, N)``.
        layout: which tokens see which.
        predictors, targets, weights: ``(M,)`` the trained tokens; see ``Tree``.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    layout: Layout
    predictors: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor

    def to(self, device: torch.device) -> TreeBatch:
        """The same on ``device``."""
        tensors: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        }
        return replace(self, **tensors)


@dataclass(frozen=True, kw_only=True)
class PaddedBatch:
    """Rows of their own, padded on the right: each ``(B, T)``. The plain way, for models that a tree does not fit."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    weight: torch.Tensor

    def to(self, device: torch.device) -> PaddedBatch:
        """The same on ``device``."""
        return PaddedBatch(**{name: value.to(device) for name, value in vars(self).items()})


Batch = TreeBatch | PaddedBatch


def tree_batch(tree: Tree) -> TreeBatch:
    """A tree as tensors."""
    return TreeBatch(
        input_ids=torch.from_numpy(tree.token_ids).unsqueeze(0),
        position_ids=torch.from_numpy(tree.position_ids).unsqueeze(0),
        layout=Layout(tree.lengths, tree.ancestors),
        predictors=torch.from_numpy(tree.predictors),
        targets=torch.from_numpy(tree.targets),
        weights=torch.from_numpy(tree.weights),
    )


def padded_batch(rows: list[Example]) -> PaddedBatch:
    """Rows padded to one length; the padding is not attended to and has no weight."""
    pad = torch.nn.utils.rnn.pad_sequence
    ids = [torch.tensor(row.token_ids) for row in rows]
    return PaddedBatch(
        input_ids=pad(ids, batch_first=True),
        attention_mask=pad([torch.ones_like(row) for row in ids], batch_first=True),
        weight=pad([torch.tensor(row.weight, dtype=torch.float64) for row in rows], batch_first=True),
    )


def use_weighted_loss(model: Any) -> None:
    """Let ``model(batch=…)`` return the weighted loss of a batch, summed over its rows, in nats.

    The whole of it happens inside the model's own ``forward``, so that what wraps the model (DDP, FSDP, autocast)
    sees one ordinary call. Called without ``batch`` the model does what it always did.

    Args:
        model: a causal LM of transformers, or a PEFT model around one.
    """
    plain = model.forward

    def forward(self: Any, *args: Any, batch: Batch | None = None, **kwargs: Any) -> Any:
        if batch is None:
            return plain(*args, **kwargs)
        if isinstance(batch, TreeBatch):
            return _tree_loss(_causal_lm(self), batch)
        logits = plain(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
        return weighted_loss(logits, batch.input_ids, batch.weight, 1)

    model.forward = MethodType(forward, model)
    _use_weighted_head(_causal_lm(model))


def _use_weighted_head(lm: Any) -> None:
    """Let the LM head, given a batch, return its loss: FSDP has the head's weight whole inside its forward alone."""
    head = lm.get_output_embeddings()
    # Another kind of head has more to it than its weight; ``why_not_trees`` refuses it.
    if type(head) is not torch.nn.Linear:
        return
    plain = head.forward
    softcap = getattr(lm.config.get_text_config(), "final_logit_softcapping", None)

    def forward(self: Any, hidden: torch.Tensor, batch: TreeBatch | None = None) -> torch.Tensor:
        if batch is None:
            logits: torch.Tensor = plain(hidden)
            return logits
        return weighted_nll(hidden, self.weight, batch.targets, batch.weights, bias_V=self.bias, softcap=softcap)

    replaced: Any = head
    replaced.forward = MethodType(forward, head)


def use_trees(model: Any, on: bool) -> None:
    """Switch the model's attention to trees, or back to its own."""
    lm = _causal_lm(model)
    if on:
        lm.drift_own_attention = lm.config._attn_implementation
        lm.set_attn_implementation(NAME)
    elif hasattr(lm, "drift_own_attention"):
        lm.set_attn_implementation(lm.drift_own_attention)


def why_not_trees(model: Any) -> str:
    """Why a tree can't stand for separate rows with this model; empty if it can.

    Looks at the parts the tree's way needs, then computes a small tree and its rows and compares: models with linear
    attention, attention that is not behind the interface, or anything else that treats logits in a way of its own,
    differ there.
    """
    lm = _causal_lm(model)
    head = lm.get_output_embeddings()
    if type(head) is not torch.nn.Linear:
        return f"its output layer is {type(head).__name__}, expected a plain linear one"
    if not getattr(lm, "_supports_attention_backend", False) and not getattr(lm, "_supports_sdpa", False):
        return "its attention can't be replaced through transformers' AttentionInterface"
    if "kwargs" not in inspect.signature(lm.get_decoder().forward).parameters:
        return "its decoder passes no further arguments to its attention"
    rows, was_training = _probe(int(lm.config.get_text_config().vocab_size)), model.training
    for module in model.modules():
        # No dropout. But bitsandbytes' layers repack themselves for good, on a CPU, where they are not in training.
        module.training = type(module).__module__.startswith("bitsandbytes")
    try:
        with torch.no_grad():
            device = next(model.parameters()).device
            separate = sum(model(batch=padded_batch([row]).to(device)).double() for row in rows)
            use_trees(model, True)
            together = model(batch=tree_batch(build_tree(rows, segment_tokens=1)).to(device)).double()
    except (TypeError, ValueError, AttributeError, NotImplementedError, RuntimeError) as error:
        return f"its forward pass does not take one ({type(error).__name__}: {str(error)[:120]})"
    finally:
        use_trees(model, False)
        model.train(was_training)
    tolerance = TOLERANCE.get(next(model.parameters()).dtype, 0.15)
    if not abs(float(together - separate)) <= tolerance * max(1.0, abs(float(separate))):
        return f"its losses differ there ({float(together):.6g} for {float(separate):.6g} in separate rows)"
    return ""


def _probe(vocabulary: int) -> list[Example]:
    """Three rows of two branches, with weights that don't cancel."""
    ids = [7 + (31 * place * place + 17 * place) % max(1, vocabulary - 8) for place in range(64)]
    rows = []
    for number, (shared, own) in enumerate(((24, 12), (24, 20), (16, 9))):
        row = tuple(ids[:shared] + [(token + number + 1) % vocabulary for token in ids[shared : shared + own]])
        weight = (0.0,) * 8 + (1.0 + number,) * (len(row) - 8)
        rows.append(
            Example(
                trajectory_id=str(number),
                group_id="probe",
                token_ids=row,
                sampled=tuple(w > 0 for w in weight),
                weight=weight,
            )
        )
    return rows


def _causal_lm(model: Any) -> Any:
    """The causal LM inside what PEFT puts around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _tree_loss(lm: Any, batch: TreeBatch) -> torch.Tensor:
    hidden_ND = lm.get_decoder()(
        input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, tree=batch.layout
    ).last_hidden_state[0]
    loss: torch.Tensor = lm.get_output_embeddings()(hidden_ND[batch.predictors], batch=batch)
    return loss
