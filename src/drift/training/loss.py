"""The weighted loss: once in plain terms, and once without the logits in memory."""

from __future__ import annotations

from typing import Any

import torch

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
    targets_BT, weights_BT = token_ids_BT[:, 1:], weight_BT[:, 1:]
    trained_BT = weights_BT != 0
    picked_MV = logits_BTV[:, :-1][trained_BT]
    wide_MV = picked_MV.to(torch.promote_types(picked_MV.dtype, torch.float32))
    nll_M = torch.nn.functional.cross_entropy(wide_MV, targets_BT[trained_BT], reduction="none")
    return (nll_M * weights_BT[trained_BT].to(nll_M.dtype)).sum() / rows


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
        device = hidden_MD.device.type
        autocast = torch.is_autocast_enabled(device)
        compute = torch.get_autocast_dtype(device) if autocast else hidden_MD.dtype
        wide = torch.promote_types(compute, torch.float32)
        with torch.autocast(device, enabled=False):
            head = head_VD.to(compute)
            hidden_grad = torch.empty_like(hidden_MD)
            head_grad = torch.zeros_like(head_VD) if head_VD.requires_grad else None
            bias_grad = torch.zeros_like(bias_V) if bias_V is not None else None
            nll_M = torch.empty(len(hidden_MD), dtype=wide, device=hidden_MD.device)
            height = max(1, BLOCK // len(head_VD))
            for start in range(0, len(hidden_MD), height):
                block = slice(start, start + height)
                hidden, target_1 = hidden_MD[block].to(compute), targets_M[block].unsqueeze(-1)
                weight_1 = weights_M[block].to(wide).unsqueeze(-1)
                logits = (hidden @ head.T).to(wide)
                if bias_V is not None:
                    logits += bias_V
                if softcap is not None:
                    logits = softcap * torch.tanh(logits / softcap)
                lse_1 = logits.logsumexp(dim=-1, keepdim=True)
                nll_M[block] = (lse_1 - logits.gather(-1, target_1)).squeeze(-1)
                # d nll / d logit = softmax − one-hot, and tanh' = 1 − tanh².
                slope = 1 - (logits / softcap) ** 2 if softcap is not None else None
                grad = logits.sub_(lse_1).exp_()
                grad.scatter_add_(-1, target_1, torch.full_like(lse_1, -1.0))
                grad.mul_(weight_1)
                if slope is not None:
                    grad.mul_(slope)
                if bias_grad is not None:
                    bias_grad += grad.sum(dim=0).to(bias_grad.dtype)
                narrow = grad.to(compute)
                hidden_grad[block] = (narrow @ head).to(hidden_grad.dtype)
                if head_grad is not None and head_grad.dtype == compute:
                    head_grad.addmm_(narrow.T, hidden)
                elif head_grad is not None:
                    head_grad += (narrow.T @ hidden).to(head_grad.dtype)
        # Not saved_tensors: these belong to nobody else, and are scaled where they are.
        weights_grad = nll_M.to(weights_M.dtype) if weights_M.requires_grad else None
        ctx.gradients = (hidden_grad, head_grad, weights_grad, bias_grad)
        return (nll_M * weights_M.to(wide)).sum()

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, head, weights, bias = (None if grad is None else grad.mul_(upstream) for grad in ctx.gradients)
        del ctx.gradients
        return hidden, head, None, weights, bias, None
