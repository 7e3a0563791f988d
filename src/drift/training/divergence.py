"""How far a model is from another on recorded conversations, teacher-forced: what it would have said to each prefix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from drift.training.forward import padded_batch, rope_border, use_trees
from drift.training.plan import pack_padded
from drift.types import Example

Floats = NDArray[np.float64]
# Logits in memory at once for each model, in numbers: 256 MB in float32.
BUDGET = 2**26


def sampled_logprobs(model: Any, rows: Sequence[Example]) -> list[Floats]:
    """Log-probability of each sampled token of each row, given what stands before it.

    Args:
        model: a causal LM of transformers.
        rows: whose ``sampled`` says which tokens count; the first of a row never does.

    Returns:
        For each row, ``(M,)`` natural logarithms in the order of its sampled tokens.
    """
    logprobs: list[Floats] = [np.empty(0)] * len(rows)
    for batch in _batches(rows, model):
        for at, logits_MV, targets_M in _predictions(model, rows, batch):
            picked = torch.log_softmax(logits_MV, dim=-1).gather(-1, targets_M.unsqueeze(-1)).squeeze(-1)
            logprobs[at] = picked.double().cpu().numpy()
    return logprobs


def logprobs_while_training(model: Any, rows: Sequence[Example], *, dtype: str, trees: bool) -> list[Floats]:
    """``sampled_logprobs`` of a model between two steps of its training, which it leaves as it was.

    Args:
        model: as in training.
        rows: as above.
        dtype: ``bfloat16`` computes in that, as training does.
        trees: the model's attention is that of trees while it trains.
    """
    was_training = model.training
    device = next(model.parameters()).device.type
    model.eval()
    if trees:
        use_trees(model, False)
    try:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            return sampled_logprobs(model, rows)
    finally:
        if trees:
            use_trees(model, True)
        model.train(was_training)


def estimated_kl(base: Sequence[Floats], tuned: Sequence[Floats]) -> float:
    """``KL(base ‖ tuned)`` in nats per row, estimated from tokens that ``base`` sampled.

    The mean over rows of ``Σ_t (r_t − 1 − log r_t)`` with ``r_t = p_tuned / p_base`` of the sampled token: without
    bias, never negative, and of little variance near 0 (Schulman's k3).

    Args:
        base: log-probabilities of the sampled tokens under the policy that sampled them, row by row.
        tuned: the same tokens' under the other.
    """
    logs = [theirs - ours for ours, theirs in zip(base, tuned, strict=True)]
    return float(np.mean([np.sum(np.expm1(log) - log) for log in logs]))


def exact_kl(first: Any, second: Any, rows: Sequence[Example]) -> tuple[Floats, NDArray[np.int64]]:
    """``KL(first ‖ second)`` of each row's replies, summed exactly over the vocabulary at each sampled position.

    ``Σ_t Σ_v p(v | h_t) log(p(v | h_t) / q(v | h_t))`` over the prefixes h_t of a row's sampled tokens. Its mean over
    conversations that ``first`` sampled at temperature 1 is the divergence of what the two say in whole conversations.

    Args:
        first: the model p.
        second: the model q, of the same vocabulary.
        rows: whose ``sampled`` says which tokens count.

    Returns:
        ``(R,)`` nats, and ``(R,)`` number of sampled tokens.
    """
    kl_R, tokens_R = np.zeros(len(rows)), np.zeros(len(rows), np.int64)
    for batch in _batches(rows, first):
        pairs = zip(_predictions(first, rows, batch), _predictions(second, rows, batch), strict=True)
        for (at, p_MV, targets_M), (_, q_MV, _) in pairs:
            log_p, log_q = torch.log_softmax(p_MV, dim=-1), torch.log_softmax(q_MV.to(p_MV.device), dim=-1)
            # Where p is 0 the term is 0, and 0 · ∞ is not.
            terms = torch.where(log_p > -torch.inf, log_p.exp() * (log_p - log_q), 0.0)
            kl_R[at], tokens_R[at] = float(terms.double().sum()), len(targets_M)
    return kl_R, tokens_R


def _batches(rows: Sequence[Example], model: Any) -> list[list[int]]:
    """Places of rows of like length, as many together as the budget of logits allows."""
    return pack_padded(rows, BUDGET // int(model.config.get_text_config().vocab_size), rope_border(model.config))


@torch.no_grad()
def _predictions(model: Any, rows: Sequence[Example], batch: list[int]) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
    """For each row its place, and for its M sampled tokens the ``(M, V)`` logits before them and their ids."""
    padded = padded_batch([rows[at] for at in batch]).to(next(model.parameters()).device)
    logits_BTV = model(input_ids=padded.input_ids, attention_mask=padded.attention_mask, use_cache=False).logits
    predictions = []
    for row, at in enumerate(batch):
        places_M = [place for place, sampled in enumerate(rows[at].sampled) if sampled and place]
        before_M = [place - 1 for place in places_M]
        predictions.append((at, logits_BTV[row, before_M].float(), padded.input_ids[row, places_M]))
    return predictions
