"""Steps: what is done to weights after a scheme gave them, one pure function ``(weights_T, data, *, settings)`` each.

``weights_T`` holds a weight for each of T replies, conversation after conversation, ``data`` what they belong to.
"""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from drift.errors import ConfigError, require
from drift.registry import Registry
from drift.weights.groups import Bools, Floats, Indices, group_max, group_mean, group_sum, quotients
from drift.weights.schemes import shared_partition, tilted
from drift.weights.turns import Conversations


def drop_unsolved(weights_T: Floats, data: Conversations) -> Floats:
    """Nothing of a prompt without any success is trained: its best failures are still wrong answers."""
    return np.where(data.by_reply(_unsolved_G(data)[data.group_N]), 0.0, weights_T)


def shrink_unsolved(weights_T: Floats, data: Conversations, *, prior: float = 16.0) -> Floats:
    """Prompts without any success weigh less: their Ẑ is mixed with that of all prompts. Ours.

    ``w ← w Ẑ/Ẑ⁺`` with ``Ẑ⁺ = (K Ẑ + m Z̄)/(K + m)``: Z̄, the mean of ``e^{R/β}`` over the whole data set, counts for
    m = ``prior`` conversations of the prompt; 0 changes nothing.
    """
    require(prior >= 0, "weights.steps.shrink_unsolved", prior, "a number ≥ 0")
    if not data.partitioned:
        raise ConfigError("weights.steps: shrink_unsolved needs a scheme that divides by a prompt's Ẑ, drift or bolt.")
    beta, index_N = data.beta, data.group_N
    top, shared = shared_partition(data.returns_N, beta)
    # In units of e^{R/β} of the prompt's best: Ẑ is then at least 1/K, however far the others are.
    best_G, size_G = group_max(data.returns_N, index_N), np.bincount(index_N)
    own_G = group_mean(tilted(data.returns_N, best_G[index_N], beta), index_N)
    with np.errstate(over="ignore"):
        others_G = prior * shared * tilted(top, best_G, beta) if prior > 0 else 0.0
    ratio_G = own_G * (size_G + prior) / (size_G * own_G + others_G)
    factor_G: Floats = np.where(_unsolved_G(data), ratio_G, 1.0)
    return weights_T * data.by_reply(factor_G[index_N])


def bound_negative(weights_T: Floats, data: Conversations, *, share: float = 0.1) -> Floats:
    """Scale each prompt's negative weights so that ``Σ|w⁻| ≤ share · Σw⁺``; nothing else bounds the loss where w < 0.

    ``w⁻ ← w⁻ · min(1, share · Σw⁺ / Σ|w⁻|)``, sums over all replies of the prompt; of all prompts where conversations
    are measured against a baseline, here and in the steps below. A prompt without positive weights loses its negative
    ones; at a ``share`` of 1 they balance the positive ones, as Swift's do. Ours; measured in docs/LOG.md.
    """
    require(share >= 0, "weights.steps.bound_negative", share, "a number ≥ 0")
    up_G = group_sum(data.total(np.maximum(weights_T, 0.0)), data.pool_N)
    down_G = group_sum(data.total(np.maximum(-weights_T, 0.0)), data.pool_N)
    # The test is for sums that rounding leaves a little apart: Swift's at share 1.
    over_G = down_G > share * up_G * (1 + 1e-12)
    factor_G = np.where(over_G, quotients(share * up_G, down_G), 1.0)
    return np.where(weights_T < 0, weights_T * data.by_reply(factor_G[data.pool_N]), weights_T)


def skip_small(weights_T: Floats, data: Conversations, *, share: float = 1e-3) -> Floats:
    """A prompt's conversations of the smallest weights get 0, as many as hold at most ``share`` of its ``Σ|w|``.

    Without them a prompt's gradient, of the order of ``Σ|w| · ‖∇ log p‖``, moves by at most ``share`` of
    ``Σ|w| · max‖∇ log p‖``: computing them is a waste.
    """
    require(0 <= share < 1, "weights.steps.skip_small", share, "a share of at least 0 and below 1")
    if not share:
        return weights_T
    share_N = _shares_of_pool(weights_T, data)
    order = np.lexsort((share_N, data.pool_N))
    sorted_N, running_N = data.pool_N[order], share_N[order]
    # What earlier prompts hold is taken off; each prompt's first conversation is where its number changes.
    first_G = np.flatnonzero(np.diff(sorted_N, prepend=-1))
    smallest_G = running_N[first_G]
    # In place, here and below: there may be very many.
    np.cumsum(running_N, out=running_N)
    running_N -= (running_N[first_G] - smallest_G)[sorted_N]
    small_N = np.empty(len(order), bool)
    small_N[order] = running_N <= share
    del share_N, order, sorted_N, running_N
    pa.default_memory_pool().release_unused()
    return np.where(data.by_reply(small_N), 0.0, weights_T)


def _shares_of_pool(weights_T: Floats, data: Conversations) -> Floats:
    """``(N,)`` what share of its prompt's ``Σ|w|`` each has: one running sum then serves prompts of any scale."""
    mass_N = data.mass(weights_T)
    return quotients(mass_N, group_sum(mass_N, data.pool_N)[data.pool_N])


def hold_out(weights_T: Floats, data: Conversations, *, share: float = 0.05) -> Floats:
    """Some prompts are kept from training, the same of any data, to measure on (``evaluate DATA --seen WEIGHTS``).

    With them goes what differs in case, punctuation, order or repetition of words alone: openings are hashed so.
    """
    require(0 < share < 1, "weights.steps.hold_out", share, "a share above 0 and below 1")
    assert data.opening_N is not None, "told to whoever asks"
    return np.where(data.by_reply(is_held_out(data.opening_N, share)), 0.0, weights_T)


def is_held_out(opening_N: ArrayLike, share: float) -> Bools:
    """``(N,)`` which openings, by their keys, are among the share that is held out."""
    held_N: Bools = (np.asarray(opening_N, np.int64) & 0xFFFFFFFF) < share * 2**32
    return held_N


def resample(weights_T: Floats, data: Conversations, *, share: float = 0.5, seed: int = 1) -> Floats:
    """Fewer conversations for the same expected gradient: some of each prompt drawn by weight, the others get 0.

    In a prompt of K with ``S = Σ|w|``, m = max(1, round(share · K)) equidistant points, all shifted by one uniform
    number, fall on the conversations laid end to end with lengths ``Σ_t |w|``. One that n points fall on is multiplied
    by ``n · S / (m Σ_t |w|)``, whose expectation is 1 (systematic resampling, as in particle filters).
    """
    require(0 < share <= 1, "weights.steps.resample", share, "a share above 0 and at most 1")
    index_N = data.pool_N
    points_G = np.maximum(1, np.rint(share * np.bincount(index_N)))
    order = np.argsort(index_N, kind="stable")
    sorted_N, length_N = index_N[order], (_shares_of_pool(weights_T, data) * points_G[index_N])[order]
    # Where each conversation ends, in units of the distance between points, from the start of its prompt.
    edge_N = np.concatenate([[0.0], np.cumsum(length_N)])
    first_G = np.searchsorted(sorted_N, np.arange(len(points_G)))
    shift_N = (np.random.default_rng(seed).random(len(points_G)) - edge_N[first_G])[sorted_N]
    drawn_N = np.floor(edge_N[1:] + shift_N) - np.floor(edge_N[:-1] + shift_N)
    factor_N = np.empty(len(order))
    factor_N[order] = quotients(drawn_N, length_N)
    return weights_T * data.by_reply(factor_N)


def undo_adaptive(weights_T: Floats, data: Conversations) -> Floats:
    """Weights as if every prompt had been sampled alike, by ``stopping_factors``; the first step of adaptive data."""
    if not data.first:
        raise ConfigError("weights.steps: undo_adaptive is for adaptive sampling, and every prompt was sampled alike.")
    assert data.sample_N is not None, "known under adaptive sampling"
    factors_N = stopping_factors(data.stopped_N, np.less(data.sample_N, data.first), data.group_N)
    corrected_T = weights_T * data.by_reply(factors_N)
    if not data.partitioned:
        return corrected_T
    # What the scheme gave: some reply of every conversation has it, and those of such schemes are never negative.
    weights_N, index_N = np.maximum.reduceat(weights_T, data.start_N), data.group_N
    # It divided by Ẑ, the mean of what weights are in proportion to; now by an unbiased one.
    scale_G = group_mean(weights_N, index_N) * group_sum(factors_N, index_N)
    scale_G = quotients(scale_G, group_sum(weights_N * factors_N, index_N), 1.0)
    return corrected_T * data.by_reply(scale_G[index_N])


def stopping_factors(success_N: ArrayLike, first_N: ArrayLike, index_N: Indices) -> Floats:
    """What a conversation counts where prompts whose first k conversations agree got no more, and others K in all.

    With s successes among K, j of the first k being successes, ``c = E[j | 0 < j < k] / s`` for a success and
    ``E[k − j | 0 < j < k] / (K − s)`` for a failure, j being hypergeometric: what is expected of the mean of the first
    k, given all K in whatever order (Rao–Blackwell). So ``(1/k) Σ_i c_i g(τ_i)`` is unbiased for ``E[g(τ)]`` of every
    prompt, for any g, of no larger variance than the first k (docs/method.md); each prompt's factors sum to k.

    ``success_N`` is the outcome that decided, ``first_N`` whether it was among the first, ``index_N`` the prompt,
    0…G−1. Returns ``(N,)`` c > 0, and 1 where a prompt got no more than its first conversations.
    """
    success = np.asarray(success_N, bool)
    triples_G = np.stack([group_sum(each, index_N) for each in (np.ones(len(success)), success, first_N)], axis=1)
    triples, place_G = np.unique(triples_G, axis=0, return_inverse=True)
    pairs = np.array([_factors(*map(int, triple)) for triple in triples]).reshape(-1, 2)
    return pairs[place_G.reshape(-1)[index_N], success.astype(np.intp)]


def _factors(size: int, solved: int, first: int) -> tuple[float, float]:
    """The factor of a failure and of a success."""
    all_right, none_right = math.comb(solved, first), math.comb(size - solved, first)
    mixed = math.comb(size, first) - all_right - none_right
    # Nothing first is left, as where some failed in the environment; or what came first can only agree.
    if first == 0 or mixed == 0:
        share = first / size if first else 1.0
        return share, share
    # Σ_j j·C(s, j)·C(K−s, k−j) = s·C(K−1, k−1), of which j = k goes.
    successes = (solved * math.comb(size - 1, first - 1) - first * all_right) / mixed
    return (first - successes) / (size - solved), successes / solved


def _unsolved_G(data: Conversations) -> Bools:
    """``(G,)`` which prompts have no success."""
    return np.equal(group_sum(data.success_N, data.group_N), 0)


_ALL = (undo_adaptive, hold_out, drop_unsolved, shrink_unsolved, bound_negative, skip_small, resample)
REGISTRY = Registry("step", "drift.steps", {step.__name__: step for step in _ALL})
