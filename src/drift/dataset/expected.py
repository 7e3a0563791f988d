"""What the words of a prompt lead one to expect of its conversations: a cross-fitted ridge regression."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from drift.dataset.columns import WORDS
from drift.errors import ConfigError

# Parts of the prompts that a fit leaves out in turn; penalties of its ridge, of which the best is taken.
FOLDS, PENALTIES = 5, (0.3, 1.0, 3.0, 10.0, 30.0)
ROWS = 2048
Floats = NDArray[np.float64]


def expected_values(values_N: Floats, index_N: NDArray[np.intp], words: pa.ChunkedArray) -> Floats:
    """The value that the words of a prompt lead one to expect, fitted on other prompts (cross-fitting).

    Ridge regression of the value v on a bag of hashed words, ``min Σ (v − a − x·b)² + λ|b|²`` with |x| = 1. Prompts
    are parted in ``FOLDS``; what is said of one fold comes from the others. λ is the one of ``PENALTIES``, or ∞ (their
    mean), with the least squared error over all folds.

    Args:
        values_N: ``(N,)`` v.
        index_N: ``(N,)`` prompt of each, 0…G−1.
        words: ``(N,)`` lists of the hashed words of each opening, below ``WORDS``.
    """
    fold_N = index_N % FOLDS
    if len(np.unique(fold_N)) < 2:
        raise ConfigError("weights.baseline: got fitted, and there is one prompt alone. Use leave_one_out, or null.")
    # Augmented by a 1 and by the return: one matrix of sums holds all that a fit needs.
    sums_F = np.zeros((FOLDS, WORDS + 2, WORDS + 2))
    for at in range(0, len(values_N), ROWS):
        rows, fold = _bags(words, at, values_N), fold_N[at : at + ROWS]
        for each in np.unique(fold):
            part = rows[fold == each]
            sums_F[each] += part.T @ part
    # Words that no opening has are left out, which is most of the work where there are few.
    used = np.append(np.flatnonzero(sums_F.sum(axis=0).diagonal()[:WORDS]), [WORDS, WORDS + 1])
    sums_F = sums_F[:, used][:, :, used]
    fits = np.stack([_ridge(sums_F.sum(axis=0) - sums_F[each]) for each in range(FOLDS)])
    error_P = np.zeros(len(PENALTIES) + 1)
    for places, found_RP in _said(words, values_N, fold_N, fits, used):
        error_P += ((found_RP - values_N[places, None]) ** 2).sum(axis=0)
    # Once more, for the best alone: there may be too much of all to be held.
    best = int(error_P.argmin())
    found_N = np.empty(len(values_N))
    for places, found_RP in _said(words, values_N, fold_N, fits[:, :, best : best + 1], used):
        found_N[places] = found_RP[:, 0]
    return found_N


def _said(
    words: pa.ChunkedArray, values_N: Floats, fold_N: NDArray[np.intp], fits: Floats, used: NDArray[np.intp]
) -> Iterator[tuple[NDArray[np.intp], Floats]]:
    """Places of some conversations, and ``(R, P)`` what each of P fits of other folds says of them."""
    for at in range(0, len(values_N), ROWS):
        rows, fold = _bags(words, at, values_N)[:, used[:-1]], fold_N[at : at + ROWS]
        for each in np.unique(fold):
            here = np.flatnonzero(fold == each)
            yield at + here, rows[here] @ fits[each]


def _bags(words: pa.ChunkedArray, at: int, values_N: Floats) -> Floats:
    """Rows of the regression: a bag of words of length 1, a 1, and the return."""
    part = words.slice(at, ROWS)
    length_N = np.asarray(pc.list_value_length(part))
    rows = np.zeros((len(part), WORDS + 2))
    rows[np.repeat(np.arange(len(part)), length_N), np.asarray(pc.list_flatten(part))] = 1.0
    rows /= np.sqrt(np.maximum(rows.sum(axis=1, keepdims=True), 1.0))
    rows[:, -2:] = np.stack([np.ones(len(part)), values_N[at : at + ROWS]], axis=1)
    return rows


def _ridge(sums: Floats) -> Floats:
    """``(W + 1, P)`` coefficients of W words and the constant under each penalty, the last of which is ∞."""
    count = max(sums[-2, -2], 1.0)
    mean = sums[-2] / count
    centred = sums - count * np.outer(mean, mean)
    x, y = centred[:-2, :-2], centred[:-2, -1]
    found = [np.linalg.solve(x + penalty * np.eye(len(y)), y) for penalty in PENALTIES] + [np.zeros(len(y))]
    return np.stack([np.append(each, mean[-1] - mean[:-2] @ each) for each in found], axis=1)
