"""Rows that begin alike, as a tree of token segments in which every shared prefix is there once.

K conversations about one prompt share it, and may share more: a first answer, the feedback to it. A row per
conversation computes all that K times. Here each segment of the tree is computed once; a token attends to its own
segment and to those above it, which is what it would have seen in a row of its own, so losses and gradients are those
of separate rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from drift.types import Example

Ints = NDArray[np.int64]

# A prefix is shared where that saves at least so many tokens. A segment costs a call of attention per layer, about
# what this many tokens cost (measured on a small model; on a larger one a segment costs less than a token or two).
SEGMENT_TOKENS = 16


class _Segment(NamedTuple):
    """Tokens ``start`` to ``end`` of a row, without a branch inside; ``parent`` is the segment before, or −1."""

    row: int
    start: int
    end: int
    parent: int


class Terms(NamedTuple):
    """The trained tokens of some rows, row after row, T in all; arrays or tensors of shape ``(T,)``.

    Attributes:
        place_T: which of a pass's M tokens it is computed as: rows may share one.
        weight_T: its weight in its own row.
        base_T: its log-probability under the policy that sampled it; 0 where nobody asked.
        reply_T: the number of its reply.
    """

    place_T: Any
    weight_T: Any
    base_T: Any
    reply_T: Any


def terms_of(rows: Sequence[Example], place_T: Ints | None = None) -> Terms | None:
    """The terms of some rows, each computed for itself unless places are given; ``None`` where weights say it all."""
    if not all(row.starts for row in rows):
        return None
    trained = [1 + np.flatnonzero(row.weight[1:]) for row in rows]
    before = np.cumsum([0, *(len(row.starts) for row in rows)])
    reply = [
        count + np.searchsorted(row.starts, at, side="right") - 1
        for row, at, count in zip(rows, trained, before[:-1], strict=True)
    ]
    base = [np.asarray(row.logprobs or np.zeros(len(row.weight)))[at] for row, at in zip(rows, trained, strict=True)]
    weight = [np.asarray(row.weight, float)[at] for row, at in zip(rows, trained, strict=True)]
    place_T = np.arange(sum(map(len, trained))) if place_T is None else place_T
    return Terms(place_T, np.concatenate(weight), np.concatenate(base), np.concatenate(reply).astype(np.int64))


@dataclass(frozen=True, kw_only=True)
class Tree:
    """Rows merged, laid out segment after segment in one sequence of N tokens.

    Token layout of two rows ``P A`` and ``P B`` that share ``P``::

        token_ids    = P, A, B
        position_ids = 0 … |P|−1, |P| … |P|+|A|−1, |P| … |P|+|B|−1
        ancestors    = (), (0,), (0,)

    The last token of a row is predicted and never read, so it is not among the N.

    Attributes:
        token_ids: ``(N,)``.
        position_ids: ``(N,)`` place in the conversation.
        lengths: of the segments, in order; they sum to N.
        ancestors: of each segment, the segments it continues, from the first.
        predictors: ``(M,)`` index of the token whose hidden state predicts a trained token.
        targets: ``(M,)`` the trained token's id.
        weights: ``(M,)`` what its negative log-likelihood is multiplied by: the sum over the rows that share it.
        terms: the same for losses that need to know more of each row.
    """

    token_ids: Ints
    position_ids: Ints
    lengths: tuple[int, ...]
    ancestors: tuple[tuple[int, ...], ...]
    predictors: Ints
    targets: Ints
    weights: NDArray[np.float64]
    terms: Terms | None = None


def build_tree(
    rows: Sequence[Example], *, segment_tokens: int = SEGMENT_TOKENS, rope_border: int | None = None
) -> Tree:
    """The tree of some rows; each distinct trained token of it carries the sum of the rows' weights.

    Args:
        rows: training rows, each with a trained token after its first.
        segment_tokens: share a prefix only where that saves at least so many tokens.
        rope_border: rows of more tokens are read to their end, so that the model sees how long they are.
    """
    ids = [np.asarray(row.token_ids, np.int64) for row in rows]
    weights = [np.asarray(row.weight, np.float64) for row in rows]
    # What comes after the last trained token decides nothing.
    read = [
        len(weight)
        if rope_border is not None and len(weight) > rope_border
        else int(np.flatnonzero(weight).max(initial=1))
        for weight in weights
    ]
    segments, path = _segments([row_ids[:length] for row_ids, length in zip(ids, read, strict=True)], segment_tokens)
    starts = np.cumsum([0, *(s.end - s.start for s in segments)])
    places = [_places(segments, starts, path[row]) for row in range(len(rows))]
    predictors, targets, summed, place_T = _trained(ids, weights, places)
    return Tree(
        token_ids=np.concatenate([ids[s.row][s.start : s.end] for s in segments]),
        position_ids=np.concatenate([np.arange(s.start, s.end) for s in segments]),
        lengths=tuple(s.end - s.start for s in segments),
        ancestors=tuple(_chain(segments, index)[:-1] for index in range(len(segments))),
        predictors=predictors,
        targets=targets,
        weights=summed,
        terms=terms_of(rows, place_T),
    )


def _segments(read: Sequence[Ints], segment_tokens: int) -> tuple[list[_Segment], list[int]]:
    """The segments, parents first, and of each row the segment it ends in."""
    made: list[_Segment] = []
    path = [-1] * len(read)
    # Rows that agree up to ``start`` and continue segment ``parent`` there.
    open_sets = [(list(range(len(read))), 0, -1)]
    while open_sets:
        members, start, parent = open_sets.pop()
        shared = _common(read, members, start)
        if len(members) > 1 and (shared - start) * (len(members) - 1) < segment_tokens and shared > start:
            # Too little to share by all; parts of the set may share more from here.
            parts = _parts(read, members, shared)
            if len(parts) > 1:
                open_sets += [(part, start, parent) for part in parts]
                continue
        if shared > start:
            made.append(_Segment(members[0], start, shared, parent))
            parent = len(made) - 1
        for member in members:
            if len(read[member]) == shared:
                path[member] = parent
        open_sets += [(part, shared, parent) for part in _parts(read, members, shared) if len(read[part[0]]) > shared]
    return made, path


def _common(read: Sequence[Ints], members: Sequence[int], start: int) -> int:
    """Up to where all ``members`` agree, given that they do up to ``start``."""
    first = read[members[0]]
    end = min(len(read[member]) for member in members)
    for member in members[1:]:
        differs = np.flatnonzero(read[member][start:end] != first[start:end])
        if differs.size:
            end = start + int(differs[0])
    return end


def _parts(read: Sequence[Ints], members: Sequence[int], at: int) -> list[list[int]]:
    """``members`` split by their token at ``at``; those that end there are a part of their own."""
    parts: dict[int, list[int]] = {}
    for member in members:
        parts.setdefault(int(read[member][at]) if len(read[member]) > at else -1, []).append(member)
    return list(parts.values())


def _chain(segments: Sequence[_Segment], last: int) -> tuple[int, ...]:
    chain: list[int] = []
    while last >= 0:
        chain.append(last)
        last = segments[last].parent
    return tuple(reversed(chain))


def _places(segments: Sequence[_Segment], starts: Ints, last: int) -> Ints:
    """Where in the tree's sequence each token lies of the row that ends in segment ``last``."""
    return np.concatenate(
        [np.arange(starts[i], starts[i] + segments[i].end - segments[i].start) for i in _chain(segments, last)]
    )


def _trained(
    ids: Sequence[Ints], weights: Sequence[NDArray[np.float64]], places: Sequence[Ints]
) -> tuple[Ints, Ints, NDArray[np.float64], Ints]:
    """Predictor, target and summed weight of each distinct trained token, and which of them each row's are."""
    trained = [1 + np.flatnonzero(weight[1:]) for weight in weights]
    pairs = np.stack(
        [
            np.concatenate([place[at - 1] for place, at in zip(places, trained, strict=True)]),
            np.concatenate([row_ids[at] for row_ids, at in zip(ids, trained, strict=True)]),
        ]
    )
    each = np.concatenate([weight[at] for weight, at in zip(weights, trained, strict=True)])
    (predictors, targets), inverse = np.unique(pairs, axis=1, return_inverse=True)
    place_T = inverse.ravel()
    return predictors, targets, np.bincount(place_T, weights=each, minlength=len(predictors)).astype(float), place_T


def join_trees(trees: Sequence[Tree]) -> Tree:
    """Several trees side by side in one sequence; none sees another."""
    tokens = np.cumsum([0, *(len(tree.token_ids) for tree in trees)])
    segments = np.cumsum([0, *(len(tree.lengths) for tree in trees)])
    return Tree(
        token_ids=np.concatenate([tree.token_ids for tree in trees]),
        position_ids=np.concatenate([tree.position_ids for tree in trees]),
        lengths=tuple(length for tree in trees for length in tree.lengths),
        ancestors=tuple(
            tuple(int(first) + above for above in chain)
            for tree, first in zip(trees, segments[:-1], strict=True)
            for chain in tree.ancestors
        ),
        predictors=np.concatenate([tree.predictors + at for tree, at in zip(trees, tokens[:-1], strict=True)]),
        targets=np.concatenate([tree.targets for tree in trees]),
        weights=np.concatenate([tree.weights for tree in trees]),
        terms=_join_terms(trees),
    )


def _join_terms(trees: Sequence[Tree]) -> Terms | None:
    terms = [tree.terms for tree in trees if tree.terms is not None]
    if len(terms) < len(trees):
        return None
    tokens = np.cumsum([0, *(len(tree.targets) for tree in trees)])
    replies = np.cumsum([0, *(int(each.reply_T.max(initial=-1)) + 1 for each in terms)])
    moved = [
        each._replace(place_T=each.place_T + place, reply_T=each.reply_T + reply)
        for each, place, reply in zip(terms, tokens[:-1], replies[:-1], strict=True)
    ]
    return Terms(*map(np.concatenate, zip(*moved, strict=True)))
