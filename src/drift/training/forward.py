"""A causal LM's forward pass that takes a tree of rows and gives their weighted loss."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any

import torch

from drift.registry import Link
from drift.training.attention import NAME, Layout
from drift.training.loss import loss_of_logits, shaped_nll, weighted_nll
from drift.training.objectives import NLL
from drift.training.tree import Terms, Tree, build_tree, terms_of
from drift.types import Example

# How far the two ways may be apart, as a share of the largest loss and of the norm of the gradient. Rounding in float32
# makes 5e-7 to 1e-6 of the gradients of most small models, and 4.1e-6 at 30 layers; in float64 1e-7 at 80 layers.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.01}
# What lies between the tolerance in float32 and this may be rounding, and is judged by float64.
_DOUBTFUL = 3e-5


@dataclass(frozen=True, kw_only=True)
class TreeBatch:
    """A tree as tensors: what one forward pass computes.

    Attributes:
        input_ids, position_ids: ``(1, N)``.
        layout: which tokens see which.
        predictors, targets, weights: ``(M,)`` the trained tokens; see ``Tree``.
        terms: what a loss that is not ``nll`` needs to know; ``None`` has the loss ``nll``.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    layout: Layout
    predictors: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    terms: Terms | None = None

    def to(self, device: torch.device) -> TreeBatch:
        """The same on ``device``."""
        return replace(self, **_on(device, vars(self)))


@dataclass(frozen=True, kw_only=True)
class PaddedBatch:
    """Rows of their own, padded on the right: each ``(B, T)``. The plain way, for models that a tree does not fit."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    weight: torch.Tensor
    terms: Terms | None = None

    def to(self, device: torch.device) -> PaddedBatch:
        """The same on ``device``."""
        return replace(self, **_on(device, vars(self)))


Batch = TreeBatch | PaddedBatch


def _on(device: torch.device, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``values`` that are tensors or terms, on ``device``."""
    terms = {
        name: Terms(*(each.to(device) for each in value)) for name, value in values.items() if type(value) is Terms
    }
    return terms | {name: value.to(device) for name, value in values.items() if isinstance(value, torch.Tensor)}


def _tensors(terms: Terms | None) -> Terms | None:
    return None if terms is None else Terms(*map(torch.from_numpy, terms))


def tree_batch(tree: Tree) -> TreeBatch:
    """A tree as tensors."""
    return TreeBatch(
        input_ids=torch.from_numpy(tree.token_ids).unsqueeze(0),
        position_ids=torch.from_numpy(tree.position_ids).unsqueeze(0),
        layout=Layout(tree.lengths, tree.ancestors),
        predictors=torch.from_numpy(tree.predictors),
        targets=torch.from_numpy(tree.targets),
        weights=torch.from_numpy(tree.weights),
        terms=_tensors(tree.terms),
    )


def padded_batch(rows: list[Example]) -> PaddedBatch:
    """Rows padded to one length; the padding is not attended to and has no weight."""
    pad = torch.nn.utils.rnn.pad_sequence
    ids = [torch.tensor(row.token_ids) for row in rows]
    return PaddedBatch(
        input_ids=pad(ids, batch_first=True),
        attention_mask=pad([torch.ones_like(row) for row in ids], batch_first=True),
        weight=pad([torch.tensor(row.weight, dtype=torch.float64) for row in rows], batch_first=True),
        terms=_tensors(terms_of(rows)),
    )


def use_weighted_loss(model: Any, loss: Link = NLL) -> None:
    """Let ``model(batch=…)`` return the weighted loss of a batch, summed over its rows, in nats.

    The whole of it happens inside the model's own ``forward``, so that what wraps the model (DDP, FSDP, autocast)
    sees one ordinary call. Called without ``batch`` the model does what it always did.

    Args:
        model: a causal LM of transformers, or a PEFT model around one.
        loss: what is minimised.
    """
    plain = model.forward

    def forward(self: Any, *args: Any, batch: Batch | None = None, **kwargs: Any) -> Any:
        if batch is None:
            return plain(*args, **kwargs)
        if isinstance(batch, TreeBatch):
            return _tree_loss(_causal_lm(self), batch)
        logits = plain(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
        return loss_of_logits(logits, batch.input_ids, batch.weight, batch.terms, loss)

    model.forward = MethodType(forward, model)
    _use_weighted_head(_causal_lm(model), loss)


def _use_weighted_head(lm: Any, loss: Link) -> None:
    """Let the LM head, given a batch, return its loss: FSDP has the head's weight whole inside its forward alone."""
    head = lm.get_output_embeddings()
    # Another kind of head has more to it than its weight; ``why_not_trees`` refuses it.
    if type(head) is not torch.nn.Linear:
        return
    plain = head.forward
    text = lm.config.get_text_config()
    softcap = getattr(text, "final_logit_softcapping", None)
    # Cohere multiplies its logits, Granite divides them.
    scale = (getattr(text, "logit_scale", None) or 1.0) / (getattr(text, "logits_scaling", None) or 1.0)

    def forward(self: Any, hidden: torch.Tensor, batch: TreeBatch | None = None) -> torch.Tensor:
        if batch is None:
            logits: torch.Tensor = plain(hidden)
            return logits
        hidden = hidden if scale == 1 else hidden * scale
        if batch.terms is None:
            return weighted_nll(hidden, self.weight, batch.targets, batch.weights, bias_V=self.bias, softcap=softcap)
        return shaped_nll(hidden, self.weight, batch.targets, batch.terms, loss, bias_V=self.bias, softcap=softcap)

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


def rope_border(config: Any) -> int | None:
    """Tokens beyond which a row's positions are encoded in another way; ``None`` where length changes nothing.

    Some encodings (longrope, dynamic NTK) choose their frequencies by the longest row of a forward pass. Rows on either
    side must not share one.

    Args:
        config: of a model.
    """
    text = config.get_text_config()
    given = getattr(text, "rope_parameters", None) or {}
    # One encoding for all layers, or one for each kind of layer.
    encodings = [given] if "rope_type" in given else [each for each in given.values() if isinstance(each, dict)]
    scaled = [
        each for each in encodings if each.get("rope_type", "default") not in ("default", "linear", "proportional")
    ]
    borders = [each.get("original_max_position_embeddings") or text.max_position_embeddings for each in scaled]
    return min(borders, default=None)


def acting_window(config: Any, longest: int) -> int:
    """The longest window or chunk of a model's attention that a row of ``longest`` tokens outgrows; 0 if none.

    Args:
        config: of a model.
        longest: tokens of the longest row.
    """
    windows = [0]
    for name, value in config.get_text_config().to_dict().items():
        if "window" in name or "chunk" in name or "topk" in name:
            sizes = value if isinstance(value, list | tuple) else [value]
            windows += [size for size in sizes if type(size) is int and size < longest]
    return max(windows)


def why_not_trees(model: Any, longest: int = 2**31) -> str:
    """Why a tree can't stand for separate rows with this model; empty if it can.

    Looks at the parts the tree's way needs. Then computes a small tree, and its rows one by one as transformers does:
    each token's loss and the gradient of all that is trained must be the same, and every layer must have called the
    attention once. The rows are longer than each window of the model that acts on rows of ``longest`` tokens. More than
    1e-5 in float32 is rounding if the two agree in float64 and separate rows are as far from their own float64.

    Args:
        model: after ``use_weighted_loss``; its gradients are set to ``None``.
        longest: tokens of the longest row that is to be trained.
    """
    lm = _causal_lm(model)
    head = lm.get_output_embeddings()
    if type(head) is not torch.nn.Linear:
        return f"its output layer is {type(head).__module__}.{type(head).__name__}, expected a plain linear one"
    if not getattr(lm, "_supports_attention_backend", False) and not getattr(lm, "_supports_sdpa", False):
        return "its attention can't be replaced through transformers' AttentionInterface"
    if "kwargs" not in inspect.signature(lm.get_decoder().forward).parameters:
        return "its decoder passes no further arguments to its attention"
    return _tried(model, longest, trees=True)


def why_not_padded(model: Any, longest: int = 2**31) -> str:
    """Why rows padded to one length can't stand for separate rows with this model; empty if they can.

    Looks as ``why_not_trees`` does. A model that counts positions from a row's end, say, sees the padding.
    """
    return _tried(model, longest, trees=False)


def _tried(model: Any, longest: int, *, trees: bool) -> str:
    was_training = model.training
    for module in model.modules():
        # No dropout. But bitsandbytes' layers repack themselves for good, on a CPU, where they are not in training.
        module.training = type(module).__module__.startswith("bitsandbytes")
    try:
        reason, off = _difference(model, longest, trees)
        if TOLERANCE[torch.float32] < off < _DOUBTFUL and all(p.dtype == torch.float32 for p in model.parameters()):
            use_trees(model, False)
            try:
                if off <= _rounding(model, longest):
                    reason, _ = _difference(model, longest, trees)
            finally:
                model.float()
        return reason
    except torch.OutOfMemoryError:
        # Says nothing of the model, and the answer is kept.
        raise
    except (TypeError, ValueError, AttributeError, NotImplementedError, RuntimeError) as error:
        return f"its forward pass does not take one ({type(error).__name__}: {str(error)[:120]})"
    finally:
        use_trees(model, False)
        model.zero_grad(set_to_none=True)
        model.train(was_training)


def _rounding(model: Any, longest: int) -> float:
    """How far the gradient of separate rows is from its own float64, as a share of its norm; leaves float64."""
    rows = _probe(_causal_lm(model).config, longest)
    model.zero_grad(set_to_none=True)
    _separate_losses(model, rows, 1.0)
    norm = _norm(model)
    # What was found in float32 goes along, and its difference remains.
    _separate_losses(model.double(), rows, -1.0)
    return _norm(model) / norm


def _difference(model: Any, longest: int, trees: bool) -> tuple[str, float]:
    """Compute rows together and one by one; what differs, or nothing, and by how much."""
    config = _causal_lm(model).config
    rows = _probe(config, longest)
    tree = build_tree(rows, segment_tokens=1, rope_border=rope_border(config))
    batch = (tree_batch(tree) if trees else padded_batch(rows)).to(next(model.parameters()).device)
    model.zero_grad(set_to_none=True)
    separate_M = _separate_losses(model, rows, 1.0)
    norm = _norm(model)
    use_trees(model, trees)
    # What the rows left is not cleared: the gradient of the difference remains.
    together_M = _token_losses(model, batch, -1.0)
    layers = config.get_text_config().num_hidden_layers
    if isinstance(batch, TreeBatch) and batch.layout.calls != layers:
        return f"its {layers} layers called the attention {batch.layout.calls} times, expected once each", math.inf
    tolerance = _tolerance(model)
    off = float((together_M - separate_M).abs().max() / separate_M.abs().max())
    if not off <= tolerance:
        return f"its losses differ there (a token's by {off:.2g} of the largest in separate rows)", off
    off = _norm(model) / norm
    return "" if off <= tolerance else f"its gradients differ there (by {off:.2g} of their norm in separate rows)", off


def _separate_losses(model: Any, rows: list[Example], sign: float) -> torch.Tensor:
    """``_token_losses`` of rows one by one. No two tokens have the same weight: those of a tree are found by it."""
    device = next(model.parameters()).device
    return torch.cat([_token_losses(model, padded_batch([row]).to(device), sign) for row in rows])


def _token_losses(model: Any, batch: Batch, sign: float) -> torch.Tensor:
    """``(M,)`` the trained tokens' losses in the order of their weights; adds the gradient, times ``sign``."""
    weights = batch.weights if isinstance(batch, TreeBatch) else batch.weight
    weights.requires_grad_()
    (sign * model(batch=batch)).backward()
    assert weights.grad is not None
    trained = weights.detach() != 0
    order = weights.detach()[trained].argsort()
    return sign * weights.grad[trained][order].double()


def _norm(model: Any) -> float:
    """Of the gradient of all that is trained."""
    norms = [parameter.grad.norm().double().cpu() for parameter in model.parameters() if parameter.grad is not None]
    return float(torch.stack(norms).norm())


def _tolerance(model: Any) -> float:
    if any(type(module).__module__.startswith("bitsandbytes") for module in model.modules()):
        return TOLERANCE[torch.bfloat16]
    return max(TOLERANCE.get(parameter.dtype, 0.0) for parameter in model.parameters())


def _probe(config: Any, longest: int) -> list[Example]:
    """Three rows of two branches, the shared parts longer than any acting window, all on one side of a rope border."""
    vocabulary, border = int(config.get_text_config().vocab_size), rope_border(config)
    window = acting_window(config, longest)
    begin, tails = window, ((32, 12), (32, 20), (22, 9))
    if border is not None and begin + 31 <= border < begin + 52:
        begin = border
    ids = [7 + (31 * place * place + 17 * place + place // 97) % max(1, vocabulary - 8) for place in range(begin + 52)]
    rows = []
    for number, (shared, own) in enumerate(tails):
        before, length = begin + shared, begin + shared + own
        # Trained is what no other row has too; the first row trains what it shares.
        first = before if number else begin + 8
        row = ids[:before] + [(token + number + 1) % vocabulary for token in ids[before:length]]
        # Of one sign in each row: they don't cancel. Larger ones come later, in the tree and in the rows.
        weight = (0.0,) * first + tuple(number + 1.0 + place / length for place in range(first, length))
        rows.append(
            Example(
                trajectory_id=str(number),
                group_id="probe",
                token_ids=tuple(row),
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
