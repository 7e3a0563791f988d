"""Which rows go into which optimizer step, on which rank, in which forward pass: all decided before training starts."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drift.training.tree import Tree, build_tree, join_trees
from drift.types import Example

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, kw_only=True)
class OptimizerStep:
    """The rows of one optimizer step; its loss is ``(1/divisor) Σ_rows factor · Σ_t w_t · −log p``.

    Attributes:
        ranks: indices of the rows that each rank computes, each once.
        factors: for each of them, what its weights are multiplied by.
        divisor: what the loss is divided by, over all ranks.
    """

    ranks: tuple[Ints, ...]
    factors: tuple[Floats, ...]
    divisor: float

    @property
    def rows(self) -> int:
        """How many rows the step computes."""
        return sum(map(len, self.ranks))


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What a plan needs to know of M rows, all of which have a weight.

    Attributes:
        group_N: ``(M,)`` the prompt of each row, as a number.
        length_N: ``(M,)`` its tokens.
        mass_N: ``(M,)`` its ``|w|``, the largest of its replies'.
    """

    group_N: Ints
    length_N: Ints
    mass_N: Floats


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """How rows are planned.

    Attributes:
        plan: ``uniform``, ``balanced`` or ``drawn``; see ``plan_steps``.
        batch_size: B, rows of a step, over all ranks.
        conversations: N, how many conversations were weighed, those of weight 0 included: the loss is a mean over them.
        together: rows of one prompt that follow one another; 1 mixes all rows.
        ranks: processes that share each step.
        seed: of what is random.
    """

    plan: str
    batch_size: int
    conversations: int
    together: int
    ranks: int
    seed: int


def steps_per_pass(rows: Rows, options: PlanOptions) -> float:
    """Optimizer steps that pass over the data once, or draw as many rows as there are."""
    exact = len(rows.group_N) / min(options.batch_size, len(rows.group_N))
    return max(1, round(exact)) if options.plan == "balanced" else exact


def plan_steps(rows: Rows, steps: int, options: PlanOptions) -> list[OptimizerStep]:
    """The optimizer steps of a whole training run. The same arguments give the same plan, on every rank.

    Every step is an estimate of the gradient of ``L = (1/N) Σ_rows Σ_t w_t · −log p``, and every step computes rows::

        uniform    B rows in a random order, which goes on over the end of a pass       divisor B·N/M
        balanced   each row once a pass, Σ|w| of the n = M/B steps as equal as whole
                   rows allow                                                           divisor N/n
        drawn      B draws, a row with |w| on average M·|w|/Σ|w| times a pass; what is
                   drawn has the weight w/|w| times the mean of |w|                     divisor B·N/M

    On average over seeds a step has the gradient of L, whichever step it is and however few rows there are. Under
    ``drawn`` the draws of a row in a pass differ from their expectation by less than 1 (systematic sampling), and a row
    that is drawn several times in one step is computed once. Where B exceeds M, a step is a pass.

    Args:
        rows: the rows.
        steps: how many steps.
        options: how.
    """
    assert len(rows.group_N) and rows.mass_N.min() > 0, "rows without weight are none"
    total, batch = len(rows.group_N), min(options.batch_size, len(rows.group_N))
    chosen: Iterator[Ints]
    if options.plan == "balanced":
        count = int(steps_per_pass(rows, options))
        chosen, divisor = _balanced(rows, count, options), options.conversations / count
    else:
        chosen, divisor = _batches(_sequence(rows, options), batch), batch * options.conversations / total
    per_draw_N = rows.mass_N.mean() / rows.mass_N if options.plan == "drawn" else np.ones(total)
    planned = []
    for step in itertools.islice(chosen, steps):
        distinct, times = _distinct(step)
        shares = _share(rows, distinct, options.ranks)
        drawn_N = dict(zip(distinct.tolist(), (times * per_draw_N[distinct]).tolist(), strict=True))
        factors = tuple(np.array([drawn_N[row] for row in share.tolist()]) for share in shares)
        planned.append(OptimizerStep(ranks=shares, factors=factors, divisor=divisor))
    return planned


def _distinct(rows: Ints) -> tuple[Ints, Ints]:
    """Rows in their order, each once, and how often each is there."""
    _, first, times = np.unique(rows, return_index=True, return_counts=True)
    order = np.argsort(first)
    return rows[first[order]], times[order]


def _sequence(rows: Rows, options: PlanOptions) -> Iterator[Ints]:
    """The rows of each pass in the order in which they are computed, without end; M of them in every pass."""
    total, drawn = len(rows.group_N), np.arange(len(rows.group_N))
    begin = np.random.Generator(np.random.PCG64([options.seed, 2**32]))
    # Rows lie on a ring, as long as M·|w|/Σ|w| each; a pass draws what M equidistant points fall on.
    ring, shift = begin.permutation(total), float(begin.random())
    edges = np.concatenate([[0.0], np.cumsum(total * rows.mass_N[ring] / rows.mass_N.sum())])
    edges = np.minimum(edges, total)
    edges[-1] = total
    for count in itertools.count():
        random = np.random.Generator(np.random.PCG64([options.seed, count]))
        times_N = np.ones(total, np.int64)
        if options.plan == "drawn":
            # The points move on by the golden ratio, so that over passes they fall evenly too.
            points = np.floor(edges + (shift + count * GOLDEN) % 1)
            times_N[ring] = np.diff(points).astype(np.int64)
            drawn = np.repeat(np.arange(total), times_N)
        # Where in the pass: anywhere, and a row that is drawn several times, at even intervals.
        first, each = np.cumsum(times_N) - times_N, np.repeat(np.maximum(times_N, 1), times_N)
        when = (np.arange(total) - np.repeat(first, times_N) + np.repeat(random.random(total), times_N)) / each
        order = np.argsort(when)
        if options.together > 1:
            order = np.concatenate(_runs(rows.group_N[drawn], when, options.together, random))
        # A pass begins anywhere in its order: every place then has every draw with the same chance.
        yield np.roll(drawn[order], random.integers(total))


def _runs(group_N: Ints, when_N: Floats, together: int, random: np.random.Generator) -> list[Ints]:
    """Places of rows in runs of one prompt each, by when a random one of their rows comes."""
    order = np.lexsort((when_N, group_N))
    groups = group_N[order]
    first = np.flatnonzero(np.diff(groups, prepend=groups[:1] - 1))
    place = np.arange(len(order)) - np.repeat(first, np.diff(first, append=len(order)))
    begin = np.flatnonzero(place % together == 0)
    picked = begin + (random.random(len(begin)) * np.diff(begin, append=len(order))).astype(np.int64)
    runs = np.split(order, begin[1:])
    return [runs[at] for at in np.argsort(when_N[order[picked]])]


def _batches(passes: Iterator[Ints], size: int) -> Iterator[Ints]:
    """The rows of all passes one after the other, ``size`` at a time."""
    left = np.zeros(0, np.int64)
    for rows in passes:
        left = np.concatenate([left, rows])
        whole = len(left) - len(left) % size
        yield from (left[at : at + size] for at in range(0, whole, size))
        left = left[whole:]


def _balanced(rows: Rows, count: int, options: PlanOptions) -> Iterator[Ints]:
    """The rows of ``count`` steps a pass: the heaviest run first, always to the step that is lightest so far."""
    total = len(rows.group_N)
    for number in itertools.count():
        random = np.random.Generator(np.random.PCG64([options.seed, number]))
        runs = _runs(rows.group_N, random.random(total), options.together, random) if options.together > 1 else []
        if len(runs) < count:
            runs = list(np.arange(total)[:, None])
        mass = np.array([rows.mass_N[run].sum() for run in runs])
        shuffled = random.permutation(len(runs))
        steps: list[list[Ints]] = [[] for _ in range(count)]
        lightest = [(0.0, int(place), at) for at, place in enumerate(random.permutation(count))]
        heapq.heapify(lightest)
        for run in shuffled[np.argsort(-mass[shuffled], kind="stable")].tolist():
            load, place, at = heapq.heappop(lightest)
            steps[at].append(runs[run])
            heapq.heappush(lightest, (load + float(mass[run]), place, at))
        yield from (np.concatenate(step) for step in steps)


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


def pack(rows: Sequence[Example], tokens_per_batch: int, rope_border: int | None = None) -> list[Tree]:
    """Trees of at most ``tokens_per_batch`` tokens with all rows: what one rank computes, a pass at a time.

    A prompt whose rows don't fit one pass is split, and its prefix then computed once in each. A row longer than the
    budget is a pass of its own. Rows of at most ``rope_border`` tokens share no pass with longer ones.
    """
    groups: dict[tuple[str, bool], list[Example]] = {}
    for row in rows:
        groups.setdefault((row.group_id, _is_long(row, rope_border)), []).append(row)
    trees = [
        (is_long, tree)
        for (_, is_long), group in groups.items()
        for tree in _trees_within(group, tokens_per_batch, rope_border)
    ]
    # First fit, the largest first: few passes, little left over in each.
    passes: list[list[Tree]] = []
    free: list[int] = []
    sides: list[bool] = []
    for is_long, tree in sorted(trees, key=lambda pair: -len(pair[1].token_ids)):
        size = len(tree.token_ids)
        place = next((at for at, left in enumerate(free) if left >= size and sides[at] == is_long), None)
        if place is None:
            passes.append([])
            free.append(tokens_per_batch)
            sides.append(is_long)
            place = len(passes) - 1
        passes[place].append(tree)
        free[place] -= size
    return [join_trees(trees) for trees in passes]


def _is_long(row: Example, rope_border: int | None) -> bool:
    return rope_border is not None and len(row.token_ids) > rope_border


def _trees_within(rows: list[Example], tokens: int, rope_border: int | None) -> list[Tree]:
    tree = build_tree(rows, rope_border=rope_border)
    if len(tree.token_ids) <= tokens or len(rows) == 1:
        return [tree]
    # Neighbours in the order of their ids share most.
    ordered = sorted(rows, key=lambda row: row.token_ids)
    middle = len(ordered) // 2
    return _trees_within(ordered[:middle], tokens, rope_border) + _trees_within(ordered[middle:], tokens, rope_border)


def pack_padded(rows: Sequence[Example], tokens_per_batch: int, rope_border: int | None = None) -> list[list[int]]:
    """Places of rows of like length, together at most ``tokens_per_batch`` tokens with their padding: the plain way.

    Rows of at most ``rope_border`` tokens share no pass with longer ones.
    """
    passes: list[list[int]] = []
    for at in sorted(range(len(rows)), key=lambda at: -len(rows[at].token_ids)):
        longest = rows[passes[-1][0]] if passes else rows[at]
        fits = passes and (len(passes[-1]) + 1) * len(longest.token_ids) <= tokens_per_batch
        if fits and _is_long(longest, rope_border) == _is_long(rows[at], rope_border):
            passes[-1].append(at)
        else:
            passes.append([at])
    return passes
