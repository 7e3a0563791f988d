"""The weighted loss, as one pure function."""

from __future__ import annotations

import torch


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
    nll_N = torch.nn.functional.cross_entropy(
        logits_BTV[:, :-1][trained_BT].float(), targets_BT[trained_BT], reduction="none"
    )
    return (nll_N * weights_BT[trained_BT].to(nll_N.dtype)).sum() / rows
