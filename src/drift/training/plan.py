"""Which rows go into which optimizer step, on which rank, in which forward pass: all decided before training starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drift.training.tree import Tree, grow, join
from drift.types import Example

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Step:
    """The rows of one optimizer step.

    Attributes:
        ranks: indices of the rows that each rank computes; rows that are not worth computing are in none.
        rows: how many rows the step counts, the latter included: what the loss is divided by.
    """

    ranks: tuple[Ints, ...]
    rows: int


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What a plan needs to know of N rows.

    Attributes:
        group_N: ``(N,)`` the prompt of each row, as a number.
        length_N: ``(N,)`` its tokens; 0 for one that is not worth computing.
    """

    group_N: Ints
    length_N: Ints


def plan_steps(rows: Rows, *, batch_size: int, steps: int, seed: int, ranks: int, together: int) -> list[Step]:
    """The optimizer steps of a whole training run. The same arguments give the same plan, on every rank.

    Each pass over the data takes it in a new order. Rows of one prompt come in runs, so that what they share is
    computed once; the last step of a pass takes what is left.

    Args:
        rows: the rows.
        batch_size: rows per step, over all ranks.
        steps: how many steps.
        seed: of the order.
        ranks: processes that share each step.
        together: rows of one prompt in a run; 1 shuffles all rows.
    """
    made: list[Step] = []
    for order in _passes(rows, seed, together):
        for start in range(0, len(order), batch_size):
            if len(made) == steps:
                return made
            chosen = order[start : start + batch_size]
            made.append(Step(ranks=_share(rows, chosen[rows.length_N[chosen] > 0], ranks), rows=len(chosen)))
        if len(made) == steps:
            return made
    raise AssertionError("passes do not end")


def _passes(rows: Rows, seed: int, together: int) -> Iterator[Ints]:
    """The order of the rows in each pass over the data, without end."""
    count, total = 0, len(rows.group_N)
    while True:
        random = np.random.Generator(np.random.PCG64([seed, count]))
        # By prompt, and within it in a random order with rows that are not computed last: a run should share.
        order = random.permutation(total)
        order = order[np.lexsort((rows.length_N[order] == 0, rows.group_N[order]))]
        groups = rows.group_N[order]
        first = np.flatnonzero(np.diff(groups, prepend=groups[0] - 1))
        place = np.arange(total) - np.repeat(first, np.diff(first, append=total))
        run_N = np.cumsum((place % together) == 0) - 1
        yield order[np.argsort(random.permutation(run_N[-1] + 1)[run_N], kind="stable")]
        count += 1


def _share(rows: Rows, chosen: Ints, ranks: int) -> tuple[Ints, ...]:
    """Part rows among ranks, prompts whole where that keeps the load even: the longest first, to the idlest rank."""
    if ranks == 1:
        return (chosen,)
    runs = np.split(chosen, 1 + np.flatnonzero(np.diff(rows.group_N[chosen]))) if len(chosen) else []
    most = max(1, int(np.ceil(len(chosen) / ranks)))
    pieces = [run[at : at + most] for run in runs for at in range(0, len(run), most)]
    load = [0] * ranks
    given: list[list[int]] = [[] for _ in range(ranks)]
    for piece in sorted(pieces, key=lambda piece: (-int(rows.length_N[piece].sum()), int(piece[0]))):
        idlest = load.index(min(load))
        given[idlest] += map(int, piece)
        load[idlest] += int(rows.length_N[piece].sum())
    return tuple(np.array(share, np.int64) for share in given)


def pack(rows: Sequence[Example], tokens_per_batch: int) -> list[Tree]:
    """Trees of at most ``tokens_per_batch`` tokens that hold all rows: what one rank computes, a pass at a time.

    A prompt whose rows don't fit one pass is parted, and its prefix then computed once in each. A row longer than the
    budget is a pass of its own.
    """
    groups: dict[str, list[Example]] = {}
    for row in rows:
        groups.setdefault(row.group_id, []).append(row)
    trees = [tree for group in groups.values() for tree in _fitting(group, tokens_per_batch)]
    # First fit, the largest first: few passes, little left over in each.
    passes: list[list[Tree]] = []
    free: list[int] = []
    for tree in sorted(trees, key=lambda tree: -len(tree.token_ids)):
        size = len(tree.token_ids)
        place = next((at for at, left in enumerate(free) if left >= size), None)
        if place is None:
            passes.append([])
            free.append(tokens_per_batch)
            place = len(passes) - 1
        passes[place].append(tree)
        free[place] -= size
    return [join(trees) for trees in passes]


def _fitting(rows: list[Example], tokens: int) -> list[Tree]:
    tree = grow(rows)
    if len(tree.token_ids) <= tokens or len(rows) == 1:
        return [tree]
    # Neighbours in the order of their ids share most.
    ordered = sorted(rows, key=lambda row: row.token_ids)
    middle = len(ordered) // 2
    return _fitting(ordered[:middle], tokens) + _fitting(ordered[middle:], tokens)


def pack_padded(rows: Sequence[Example], tokens_per_batch: int) -> list[list[Example]]:
    """Rows of like length together, at most ``tokens_per_batch`` tokens with their padding: the plain way."""
    passes: list[list[Example]] = []
    for row in sorted(rows, key=lambda row: -len(row.token_ids)):
        fits = passes and (len(passes[-1]) + 1) * len(passes[-1][0].token_ids) <= tokens_per_batch
        if fits:
            passes[-1].append(row)
        else:
            passes.append([row])
    return passes
