import itertools
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift.training.plan import Rows, pack, pack_padded, plan_steps
from drift.training.rows import RowFile, write_rows
from drift.types import Example


@st.composite
def some_rows(draw: st.DrawFn) -> Rows:
    count = draw(st.integers(1, 60))
    group_N = np.array(draw(st.lists(st.integers(0, 9), min_size=count, max_size=count)), np.int64)
    length_N = np.array(draw(st.lists(st.sampled_from([0, 3, 50, 700]), min_size=count, max_size=count)), np.int64)
    return Rows(group_N=group_N, length_N=length_N)


@settings(max_examples=200, deadline=None)
@given(some_rows(), st.integers(1, 20), st.integers(0, 5), st.integers(1, 3), st.sampled_from([1, 3, 16]))
def test_every_pass_holds_every_row_once_and_ranks_share_each_step(
    rows: Rows, batch_size: int, seed: int, ranks: int, together: int
) -> None:
    count = len(rows.group_N)
    per_pass = -(-count // batch_size)
    steps = plan_steps(rows, batch_size=batch_size, steps=2 * per_pass + 1, seed=seed, ranks=ranks, together=together)
    assert len(steps) == 2 * per_pass + 1
    computed = {row for row in range(count) if rows.length_N[row]}
    for start in (0, per_pass):
        of_pass = steps[start : start + per_pass]
        assert sum(step.rows for step in of_pass) == count
        assert Counter(row for step in of_pass for rank in step.ranks for row in rank) == Counter(computed)
    assert all(len(step.ranks) == ranks and step.rows <= batch_size for step in steps)
    # However many ranks there are, a step holds the same rows.
    alone = plan_steps(rows, batch_size=batch_size, steps=len(steps), seed=seed, ranks=1, together=together)
    for step, single in zip(steps, alone, strict=True):
        assert sorted(row for rank in step.ranks for row in rank) == sorted(single.ranks[0])


def test_rows_of_a_prompt_come_in_runs_and_each_pass_is_another_order() -> None:
    rows = Rows(group_N=np.repeat(np.arange(20), 8), length_N=np.full(160, 9))

    def orders(together: int) -> list[list[int]]:
        steps = plan_steps(rows, batch_size=160, steps=3, seed=1, ranks=1, together=together)
        return [list(step.ranks[0]) for step in steps]

    for order in orders(8):
        assert sum(a // 8 != b // 8 for a, b in itertools.pairwise(order)) == 19
    for order in orders(4):
        runs = [order[at : at + 4] for at in range(0, 160, 4)]
        assert all(len({row // 8 for row in run}) == 1 for run in runs)
        assert sum(a // 8 != b // 8 for a, b in itertools.pairwise(order)) > 30
    assert sum(a // 8 != b // 8 for a, b in itertools.pairwise(orders(1)[0])) > 140
    for together in (1, 4, 8):
        first, second, third = orders(together)
        assert first != second != third and orders(together)[0] == first


def test_what_is_not_computed_is_in_runs_of_its_own() -> None:
    rows = Rows(group_N=np.repeat(np.arange(10), 16), length_N=np.tile([0, 9], 80))
    (step,) = plan_steps(rows, batch_size=160, steps=1, seed=0, ranks=1, together=4)
    computed = step.ranks[0]
    assert all(len({row // 16 for row in computed[at : at + 4]}) == 1 for at in range(0, 80, 4))


def test_the_longest_prompts_are_shared_out_evenly() -> None:
    rng = random.Random(0)
    lengths = [rng.choice([40, 80, 900]) for _ in range(16) for _ in range(8)]
    rows = Rows(group_N=np.repeat(np.arange(16), 8), length_N=np.array(lengths))
    (step,) = plan_steps(rows, batch_size=128, steps=1, seed=0, ranks=2, together=8)
    loads = [sum(lengths[row] for row in rank) for rank in step.ranks]
    assert max(loads) < 1.15 * min(loads)


def examples(seed: int = 0) -> list[Example]:
    rng = random.Random(seed)
    made = []
    for group in range(6):
        prompt = [rng.randrange(100) for _ in range(40)]
        for sample in range(5):
            ids = prompt + [rng.randrange(100) for _ in range(rng.randint(1, 60))]
            weight = (0.0,) * 40 + (1.5,) * (len(ids) - 40)
            made.append(
                Example(
                    trajectory_id=f"{group}#{sample}",
                    group_id=str(group),
                    token_ids=tuple(ids),
                    sampled=tuple(w != 0 for w in weight),
                    weight=weight,
                )
            )
    return made


@pytest.mark.parametrize("budget", [1, 100, 250, 10_000])
def test_passes_keep_to_their_budget_and_train_every_token(budget: int) -> None:
    rows = examples()
    trees = pack(rows, budget)
    trained = sum(1 for row in rows for weight in row.weight if weight)
    assert sum(tree.weights.sum() for tree in trees) == pytest.approx(1.5 * trained)
    longest = max(len(row.token_ids) for row in rows)
    for tree in trees:
        assert len(tree.token_ids) <= max(budget, longest - 1)
    computed = sum(len(tree.token_ids) for tree in trees)
    if budget == 10_000:
        # Each prompt once, and the last token of each row never.
        assert len(trees) == 1 and computed == 6 * 40 + trained - len(rows)
    padded = pack_padded(rows, budget)
    assert sorted(row.trajectory_id for batch in padded for row in batch) == sorted(row.trajectory_id for row in rows)
    assert all(len(batch) * len(batch[0].token_ids) <= max(budget, longest) for batch in padded)


def test_rows_come_back_from_their_file_in_the_order_of_their_ids(tmp_path: Path) -> None:
    made = examples()
    made[7] = Example(trajectory_id=made[7].trajectory_id, group_id="1", token_ids=(), sampled=(), weight=())
    shuffled = random.Random(1).sample(made, len(made))
    write_rows(tmp_path / "rows.arrow", shuffled)
    found = RowFile(tmp_path / "rows.arrow")
    assert list(found) == sorted(made, key=lambda row: row.trajectory_id)
    assert found.facts.length_N.tolist() == [len(row.token_ids) for row in found]
    groups = [row.group_id for row in found]
    assert [len({*pair}) for pair in zip(found.facts.group_N, groups, strict=True)] == [2] * len(groups)
    assert len(set(zip(found.facts.group_N.tolist(), groups, strict=True))) == 6
