import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from drift.training.tree import Tree, build_tree, join_trees
from drift.types import Example


def row(ids: list[int], weights: list[float], group: str = "g") -> Example:
    return Example(
        trajectory_id="t",
        group_id=group,
        token_ids=tuple(ids),
        sampled=tuple(weight != 0 for weight in weights),
        weight=tuple(weights),
    )


def contexts(tree: Tree) -> dict[tuple[tuple[int, ...], int], float]:
    """What the tree trains: the sum of weights of each (what a token sees, target), walked one token at a time."""
    starts = np.cumsum([0, *tree.lengths])
    segment_of = np.repeat(np.arange(len(tree.lengths)), tree.lengths)
    found: dict[tuple[tuple[int, ...], int], float] = {}
    for predictor, target, weight in zip(tree.predictors, tree.targets, tree.weights, strict=True):
        segment = segment_of[predictor]
        seen: list[int] = []
        for above in tree.ancestors[segment]:
            seen += tree.token_ids[starts[above] : starts[above + 1]].tolist()
        seen += tree.token_ids[starts[segment] : predictor + 1].tolist()
        assert tree.position_ids[predictor] == len(seen) - 1
        key = (tuple(seen), int(target))
        assert key not in found
        found[key] = float(weight)
    return found


def expected(rows: list[Example]) -> dict[tuple[tuple[int, ...], int], float]:
    """The same, row by row."""
    found: dict[tuple[tuple[int, ...], int], float] = {}
    for each in rows:
        for at in range(1, len(each.token_ids)):
            if each.weight[at]:
                key = (each.token_ids[:at], each.token_ids[at])
                found[key] = found.get(key, 0.0) + each.weight[at]
    return found


def close(a: dict[tuple[tuple[int, ...], int], float], b: dict[tuple[tuple[int, ...], int], float]) -> bool:
    return a.keys() == b.keys() and all(abs(a[key] - b[key]) < 1e-9 for key in a)


@st.composite
def some_rows(draw: st.DrawFn) -> list[Example]:
    """Rows over a tiny alphabet, so that they share prefixes of every length, end inside one another, and repeat."""
    rows = []
    for _ in range(draw(st.integers(1, 8))):
        ids = draw(st.lists(st.integers(0, 2), min_size=2, max_size=14))
        weights = [0.0] + [draw(st.sampled_from([0.0, 1.0, -0.5, 2.25])) for _ in ids[1:]]
        weights[-1] = draw(st.sampled_from([1.0, -2.0]))
        rows.append(row(ids, weights))
    return rows


@settings(max_examples=80, deadline=None)
@given(some_rows(), st.integers(0, 8))
def test_a_tree_trains_what_its_rows_train(rows: list[Example], segment_tokens: int) -> None:
    tree = build_tree(rows, segment_tokens=segment_tokens)
    assert close(contexts(tree) if segment_tokens <= 1 else merged(tree), expected(rows))
    assert len(tree.token_ids) == sum(tree.lengths) <= sum(len(each.token_ids) - 1 for each in rows)


def merged(tree: Tree) -> dict[tuple[tuple[int, ...], int], float]:
    """Like ``contexts``, for trees that hold a prefix more than once because sharing it would not pay."""
    found: dict[tuple[tuple[int, ...], int], float] = {}
    for at in range(len(tree.predictors)):
        one = Tree(
            token_ids=tree.token_ids,
            position_ids=tree.position_ids,
            lengths=tree.lengths,
            ancestors=tree.ancestors,
            predictors=tree.predictors[at : at + 1],
            targets=tree.targets[at : at + 1],
            weights=tree.weights[at : at + 1],
        )
        for key, weight in contexts(one).items():
            found[key] = found.get(key, 0.0) + weight
    return found


@settings(max_examples=60, deadline=None)
@given(some_rows(), some_rows())
def test_trees_side_by_side_do_not_see_one_another(first: list[Example], second: list[Example]) -> None:
    together = merged(join_trees([build_tree(first), build_tree(second)]))
    apart: dict[tuple[tuple[int, ...], int], float] = {}
    for rows in (first, second):
        for key, weight in expected(rows).items():
            apart[key] = apart.get(key, 0.0) + weight
    assert close(together, apart)


def test_a_prompt_and_a_shared_first_answer_are_there_once() -> None:
    random.seed(0)
    prompt, answer = list(range(100)), list(range(200, 230))
    tails = [[300 + i, *range(400, 410 + i)] for i in range(3)]
    rows = [row(prompt + answer + tail, [0.0] * 130 + [1.0] * len(tail)) for tail in tails]
    rows.append(row([*prompt, 500, 501], [0.0] * 100 + [1.0, 1.0]))
    tree = build_tree(rows)
    # The last token of each row is predicted and not read.
    assert sorted(tree.lengths) == sorted([100, 30, *(len(tail) - 1 for tail in tails), 1])
    assert sorted(map(len, tree.ancestors)) == [0, 1, 1, 2, 2, 2]


def test_what_is_too_short_to_be_worth_a_segment_is_computed_again() -> None:
    rows = [row([1, 2, 3, 4, tail, tail], [0.0, 0.0, 0.0, 0.0, 1.0, 1.0]) for tail in (5, 6)]
    assert len(build_tree(rows, segment_tokens=5).lengths) == 2
    assert build_tree(rows, segment_tokens=4).lengths == (4, 1, 1)
    # By three rows the same four tokens save eight.
    three = [*rows, row([1, 2, 3, 4, 7, 7], [0.0, 0.0, 0.0, 0.0, 1.0, 1.0])]
    assert build_tree(three, segment_tokens=5).lengths[0] == 4
