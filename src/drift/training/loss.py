"""The loss of a pass: once in plain terms, and once without the logits in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from drift.registry import Link, data_of
from drift.training.tree import Terms

# Logits in memory at once: 64 MB in float32. Fewer make each matrix product too small, more are no faster.
BLOCK = 2**24


def weighted_loss(
    logits_BTV: torch.Tensor, token_ids_BT: torch.Tensor, weight_BT: torch.Tensor, rows: torch.Tensor | float
) -> torch.Tensor:
    """Weighted negative log-likelihood, averaged over rows (DRIFT Eq. 15, Refit's objective negated).

    ``L = −(1/rows) Σ_b Σ_t weight_{b,t} · log p(token_{b,t} | token_{b,<t})``

    The denominator is a number of rows and never a sum of weights: dividing by ``Σ w`` would cancel the scale of the
    weights, and blow up where signed weights cancel. Only tokens with a weight are looked at, so padding and prompts
    cost no softmax.

    Args:
        logits_BTV: ``(B, T, V)`` logits; position t predicts token t + 1.
        token_ids_BT: ``(B, T)`` the row's ids.
        weight_BT: ``(B, T)`` what each token's negative log-likelihood is multiplied by; may be negative.
        rows: rows in the whole optimizer step, over all micro-batches and ranks.

    Returns:
        A scalar in nats.
    """
    weights_BT = weight_BT[:, 1:]
    nll_M = _nll_of_logits(logits_BTV, token_ids_BT, weight_BT)
    return (nll_M * weights_BT[weights_BT != 0].to(nll_M.dtype)).sum() / rows


def loss_of_logits(
    logits_BTV: torch.Tensor, token_ids_BT: torch.Tensor, weight_BT: torch.Tensor, terms: Terms | None, loss: Link
) -> torch.Tensor:
    """``loss`` of padded rows, summed over them; ``weighted_loss`` where there are no terms."""
    if terms is None:
        return weighted_loss(logits_BTV, token_ids_BT, weight_BT, 1)
    return _objective(loss, _nll_of_logits(logits_BTV, token_ids_BT, weight_BT), terms)


def _nll_of_logits(logits_BTV: torch.Tensor, token_ids_BT: torch.Tensor, weight_BT: torch.Tensor) -> torch.Tensor:
    """``(M,)`` losses of the tokens that have a weight, row after row."""
    trained_BT = weight_BT[:, 1:] != 0
    picked_MV = logits_BTV[:, :-1][trained_BT]
    wide_MV = picked_MV.to(torch.promote_types(picked_MV.dtype, torch.float32))
    return torch.nn.functional.cross_entropy(wide_MV, token_ids_BT[:, 1:][trained_BT], reduction="none")


def _objective(loss: Link, nll_M: torch.Tensor, terms: Terms) -> torch.Tensor:
    """``loss`` as a function of the losses of a pass's distinct tokens."""
    logp_T = -nll_M[terms.place_T]
    given = {name: getattr(terms, name) for name in data_of(loss.function)}
    given = {name: value.to(logp_T) if name == "base_T" else value for name, value in given.items()}
    value: torch.Tensor = loss.function(logp_T, terms.weight_T.to(logp_T), **given, **loss.settings)
    return value


def shaped_nll(
    hidden_MD: torch.Tensor,
    head_VD: torch.Tensor,
    targets_M: torch.Tensor,
    terms: Terms,
    loss: Link,
    *,
    bias_V: torch.Tensor | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """A loss of ``drift.training.objectives`` by way of ``weighted_nll``, as exact and with as little in memory.

    Whatever the loss, its gradient is ``Σ_m c_m ∇ nll_m`` with ``c_m = ∂ loss / ∂ nll_m``. The tokens' losses are
    computed once to know c, which costs one product with the LM head, and once more to add up the gradients.

    Args:
        hidden_MD: as the others in ``weighted_nll``.
        head_VD: likewise.
        targets_M: likewise.
        terms: what the tokens count, row by row.
        loss: the loss.
        bias_V: likewise.
        softcap: likewise.

    Returns:
        A scalar in nats: the loss, with its gradient.
    """
    head = _as_computed(hidden_MD, head_VD)
    with torch.no_grad(), torch.autocast(hidden_MD.device.type, enabled=False):
        parts = [
            (lse_1 - logits.gather(-1, target_1)).squeeze(-1)
            for _, _, target_1, logits, lse_1 in _blocks(hidden_MD, head, targets_M, bias_V, softcap)
        ]
    nll_M = torch.cat(parts).requires_grad_()
    with torch.enable_grad():
        value = _objective(loss, nll_M, terms)
        (weights_M,) = torch.autograd.grad(value, nll_M)
    linear = weighted_nll(hidden_MD, head_VD, targets_M, weights_M, bias_V=bias_V, softcap=softcap)
    return value.detach() + (linear - linear.detach())


def weighted_nll(
    hidden_MD: torch.Tensor,
    head_VD: torch.Tensor,
    targets_M: torch.Tensor,
    weights_M: torch.Tensor,
    *,
    bias_V: torch.Tensor | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """``Σ_m weight_m · −log softmax(head · hidden_m)[target_m]``, a block of rows at a time.

    Neither the logits nor their gradient are ever there as a whole: each block's gradients are worked out in the
    forward pass, while its logits are at hand, which costs three matrix products like the plain way, and no fourth one
    as recomputing would.

    Args:
        hidden_MD: ``(M, D)`` hidden states that predict.
        head_VD: ``(V, D)`` weight of the LM head.
        targets_M: ``(M,)`` ids.
        weights_M: ``(M,)`` may be negative; the gradient with respect to them is each token's own loss.
        bias_V: ``(V,)`` bias of the LM head.
        softcap: logits become ``softcap · tanh(logit / softcap)`` (Gemma 2).

    Returns:
        A scalar in nats, in float32 or wider. It can be differentiated once.
    """
    loss: torch.Tensor = _WeightedNLL.apply(hidden_MD, head_VD, targets_M, weights_M, bias_V, softcap)  # type: ignore[no-untyped-call]
    return loss


def _blocks(
    hidden_MD: torch.Tensor,
    head_VD: torch.Tensor,
    targets_M: torch.Tensor,
    bias_V: torch.Tensor | None,
    softcap: float | None,
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Of each block of rows: which, its hidden states, targets ``(H, 1)``, logits in float32 or wider, their lse."""
    height = max(1, BLOCK // len(head_VD))
    # One block at least, so that there is something to put together.
    for start in range(0, max(1, len(hidden_MD)), height):
        block = slice(start, start + height)
        hidden = hidden_MD[block].to(head_VD.dtype)
        logits = hidden @ head_VD.T
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if bias_V is not None:
            logits += bias_V
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        yield block, hidden, targets_M[block].unsqueeze(-1), logits, logits.logsumexp(dim=-1, keepdim=True)


def _as_computed(hidden_MD: torch.Tensor, head_VD: torch.Tensor) -> torch.Tensor:
    """The head in the type that autocast asks for, or the hidden states have."""
    device = hidden_MD.device.type
    autocast = torch.is_autocast_enabled(device)
    return head_VD.to(torch.get_autocast_dtype(device) if autocast else hidden_MD.dtype)


class _WeightedNLL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: torch.Tensor,
        head_VD: torch.Tensor,
        targets_M: torch.Tensor,
        weights_M: torch.Tensor,
        bias_V: torch.Tensor | None,
        softcap: float | None,
    ) -> torch.Tensor:
        hidden_grad = torch.empty_like(hidden_MD)
        head_grad = torch.zeros_like(head_VD) if head_VD.requires_grad else None
        bias_grad = torch.zeros_like(bias_V) if bias_V is not None else None
        losses = []
        head = _as_computed(hidden_MD, head_VD)
        with torch.autocast(hidden_MD.device.type, enabled=False):
            for block, hidden, target_1, logits, lse_1 in _blocks(hidden_MD, head, targets_M, bias_V, softcap):
                losses.append((lse_1 - logits.gather(-1, target_1)).squeeze(-1))
                # d nll / d logit = softmax − one-hot, and tanh' = 1 − tanh².
                slope = 1 - (logits / softcap) ** 2 if softcap is not None else None
                grad = logits.sub_(lse_1).exp_()
                grad.scatter_add_(-1, target_1, torch.full_like(lse_1, -1.0))
                grad.mul_(weights_M[block].to(grad.dtype).unsqueeze(-1))
                if slope is not None:
                    grad.mul_(slope)
                if bias_grad is not None:
                    bias_grad += grad.sum(dim=0).to(bias_grad.dtype)
                narrow = grad.to(hidden.dtype)
                hidden_grad[block] = (narrow @ head).to(hidden_grad.dtype)
                if head_grad is not None and head_grad.dtype == hidden.dtype:
                    head_grad.addmm_(narrow.T, hidden)
                elif head_grad is not None:
                    head_grad += (narrow.T @ hidden).to(head_grad.dtype)
        nll_M = torch.cat(losses)
        # Not saved_tensors: these belong to nobody else, and are scaled where they are.
        weights_grad = nll_M.to(weights_M.dtype) if weights_M.requires_grad else None
        ctx.gradients = (hidden_grad, head_grad, weights_grad, bias_grad)
        return (nll_M * weights_M.to(nll_M.dtype)).sum()

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, head, weights, bias = (None if grad is None else grad.mul_(upstream) for grad in ctx.gradients)
        del ctx.gradients
        return hidden, head, None, weights, bias, None
