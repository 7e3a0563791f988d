import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift.dataset.outcomes import outcomes
from drift.training.config import PLANS
from drift.training.examples import build_examples
from drift.training.plan import OptimizerStep, PlanOptions, Rows, pack, pack_padded, plan_steps, steps_per_pass
from drift.training.rows import RowFile, write_rows
from drift.types import Example, Trajectory
from drift.weights.config import WeightConfig
from drift.weights.schemes import SCHEMES
from drift.weights.stage import compute_weights

Make = Callable[..., Trajectory]
MASSES = st.one_of(st.sampled_from([1.0, 0.25, 3.0, 1e-6, 40.0]), st.floats(1e-3, 1e3))
BATCHES = st.sampled_from([1, 2, 3, 5, 8, 20, 59, 60, 500])
TOGETHER = st.sampled_from([1, 3, 4, 16])


@st.composite
def some_rows(draw: st.DrawFn, largest: int = 60) -> Rows:
    count = draw(st.integers(1, largest))

    def many(each: st.SearchStrategy[float]) -> list[float]:
        return draw(st.lists(each, min_size=count, max_size=count))

    return Rows(
        group_N=np.array(many(st.integers(0, 9)), np.int64),
        length_N=np.array(many(st.sampled_from([3, 50, 700])), np.int64),
        mass_N=np.array(many(MASSES), float),
    )


def options(plan: str, batch_size: int, rows: Rows, *, together: int = 1, ranks: int = 1, seed: int = 0) -> PlanOptions:
    """A third of the conversations have no weight, and so no row."""
    conversations = len(rows.group_N) * 3 // 2
    return PlanOptions(
        plan=plan, batch_size=batch_size, conversations=conversations, together=together, ranks=ranks, seed=seed
    )


def factors(step: OptimizerStep) -> dict[int, float]:
    """The factor of each row of a step, whatever rank computes it."""
    pairs = [
        pair
        for share, own in zip(step.ranks, step.factors, strict=True)
        for pair in zip(share.tolist(), own.tolist(), strict=True)
    ]
    assert len(dict(pairs)) == len(pairs), "a row is computed twice"
    return dict(pairs)


def totals(steps: Sequence[OptimizerStep], rows: Rows) -> np.ndarray:
    """``(M,)`` the factors of each row, added up over steps."""
    total_N = np.zeros(len(rows.group_N))
    for step in steps:
        for row, factor in factors(step).items():
            total_N[row] += factor
    return total_N


@settings(max_examples=40, deadline=None)
@given(some_rows(), BATCHES, st.integers(0, 5), TOGETHER, st.sampled_from(PLANS))
def test_every_step_computes_rows_and_ranks_share_them(
    rows: Rows, batch_size: int, seed: int, together: int, plan: str
) -> None:
    chosen = options(plan, batch_size, rows, together=together, seed=seed)
    count = 2 * math.ceil(steps_per_pass(rows, chosen)) + 1
    alone = plan_steps(rows, count, chosen)
    total, batch = len(rows.group_N), min(batch_size, len(rows.group_N))
    conversations = total * 3 // 2
    whole = round(total / batch) or 1
    divisor = conversations / whole if plan == "balanced" else batch * conversations / total
    assert len(alone) == count
    for step in alone:
        assert step.rows == len(factors(step)) >= 1
        assert step.divisor == pytest.approx(divisor, rel=1e-12)
        if plan != "balanced":
            assert step.rows <= batch
    for ranks in (2, 3):
        shared = plan_steps(rows, count, options(plan, batch_size, rows, together=together, ranks=ranks, seed=seed))
        for step, single in zip(shared, alone, strict=True):
            assert len(step.ranks) == len(step.factors) == ranks
            assert factors(step) == factors(single) and step.divisor == single.divisor


@settings(max_examples=40, deadline=None)
@given(some_rows(), BATCHES, st.integers(0, 5), TOGETHER)
def test_uniform_takes_every_row_once_before_any_a_second_time(
    rows: Rows, batch_size: int, seed: int, together: int
) -> None:
    total, batch = len(rows.group_N), min(batch_size, len(rows.group_N))
    steps = plan_steps(rows, 3 * math.ceil(total / batch), options("uniform", batch_size, rows, together=together))
    for end in range(len(steps) + 1):
        passes, more = divmod(end * batch, total)
        times = Counter(totals(steps[:end], rows).tolist())
        # After so many rows, ``more`` of them are one pass further than the others.
        assert times == +Counter({float(passes): total - more, float(passes + 1): more})


def naive_loads(mass_N: Sequence[float], count: int) -> list[float]:
    """Longest processing time first: one row at a time, the heaviest left, to the step that has least."""
    loads = [0.0] * count
    for mass in sorted(mass_N, reverse=True):
        loads[loads.index(min(loads))] += mass
    return sorted(loads)


@settings(max_examples=40, deadline=None)
@given(some_rows(), BATCHES, st.integers(0, 5), TOGETHER)
def test_balanced_takes_each_row_once_a_pass_in_steps_of_equal_mass(
    rows: Rows, batch_size: int, seed: int, together: int
) -> None:
    chosen = options("balanced", batch_size, rows, together=together, seed=seed)
    count = int(steps_per_pass(rows, chosen))
    assert count == max(1, round(len(rows.group_N) / min(batch_size, len(rows.group_N))))
    steps = plan_steps(rows, 3 * count, chosen)
    for start in range(0, 3 * count, count):
        of_pass = steps[start : start + count]
        assert totals(of_pass, rows).tolist() == [1.0] * len(rows.group_N)
        loads = sorted(float(rows.mass_N[list(factors(step))].sum()) for step in of_pass)
        # A step that got the last row it has was the lightest before.
        heaviest = [sum(sorted(rows.mass_N[rows.group_N == group].tolist())[-together:]) for group in set(rows.group_N)]
        assert loads[-1] - loads[0] <= max(heaviest) * (1 + 1e-9)
        if together == 1:
            assert loads == pytest.approx(naive_loads(rows.mass_N.tolist(), count), rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(some_rows(20), st.integers(0, 5), TOGETHER)
def test_drawn_rows_come_in_proportion_to_their_mass(rows: Rows, seed: int, together: int) -> None:
    total, mean = len(rows.group_N), float(rows.mass_N.mean())
    rate_N = total * rows.mass_N / rows.mass_N.sum()
    # One draw a step, and M of them a pass.
    passes = 24
    steps = plan_steps(rows, passes * total, options("drawn", 1, rows, together=together, seed=seed))
    for step in steps:
        ((row, factor),) = factors(step).items()
        assert factor * rows.mass_N[row] == pytest.approx(mean, rel=1e-9)
    drawn = np.array([int(step.ranks[0][0]) for step in steps]).reshape(passes, total)
    times = np.array([np.bincount(of_pass, minlength=total) for of_pass in drawn])
    assert np.abs(times - rate_N).max() < 1 + 1e-9
    # Over p passes far nearer than the √p of independent ones: multiples of the golden ratio differ by some 0.6 ln p.
    so_far = np.arange(1, passes + 1)[:, None]
    assert (np.abs(np.cumsum(times, axis=0) - so_far * rate_N) < 1 + 0.7 * np.log(so_far) + 1e-9).all()


def test_rows_drawn_several_times_in_a_step_are_computed_once_with_all_their_weight() -> None:
    # The first row has 6 of 9 in all: it is drawn twice in each pass of 3 draws, and the others once in two passes.
    rows = Rows(group_N=np.zeros(3, np.int64), length_N=np.full(3, 9), mass_N=np.array([6.0, 1.5, 1.5]))
    steps = plan_steps(rows, 200, options("drawn", 3, rows))
    draws = 0
    for step in steps:
        found = factors(step)
        times = {row: factor * rows.mass_N[row] / 3.0 for row, factor in found.items()}
        assert all(value == pytest.approx(round(value), abs=1e-9) and value >= 1 for value in times.values())
        # Each draw counts the mean of |w|, whatever row it is of.
        assert sum(factor * rows.mass_N[row] for row, factor in found.items()) == pytest.approx(9.0)
        draws += round(times.get(0, 0))
    assert draws == pytest.approx(400, abs=2)


# Prompts of 1, 1, 3 and 7 rows; and two rows, of which one comes in every pass and one in every second.
MANY = ([0.2, 5.0, 1.0, 0.5, 0.7, 2.0, 1.0, 1.0, 0.3, 1.0, 3.0, 0.4], [0, 1, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3], 5)
FEW = ([1.0, 3.0], [0, 1], 1)


@pytest.mark.parametrize("seeds", [250, pytest.param(700, marks=pytest.mark.slow)])
@pytest.mark.parametrize("plan", PLANS)
# Prompts of one row have none that could follow one another.
@pytest.mark.parametrize(("data", "together"), [(MANY, 1), (MANY, 4), (FEW, 1)], ids=["many", "many in runs", "few"])
def test_every_step_is_unbiased(data: tuple[list[float], list[int], int], together: int, plan: str, seeds: int) -> None:
    """Over seeds, each row counts 1/N in each step, the first one too, however prompts and weights differ in size."""
    masses, groups, batch_size = data
    total, count = len(masses), 4
    rows = Rows(group_N=np.array(groups), length_N=np.full(total, 9), mass_N=np.array(masses))
    values = np.zeros((seeds, count, total))
    for seed in range(seeds):
        chosen = options(plan, batch_size, rows, together=together, seed=seed)
        for at, step in enumerate(plan_steps(rows, count, chosen)):
            values[seed, at, step.ranks[0]] = step.factors[0] / step.divisor
    error = values.std(axis=0) / math.sqrt(seeds)
    # The largest of 48 normal numbers is beyond 4.5 once in 3 000 times.
    assert (np.abs(values.mean(axis=0) - 1 / (total * 3 // 2)) < 4.5 * error).all()


def turns_of(order: Sequence[int]) -> int:
    """How often the prompt changes, prompts having 8 rows each, with the last row before the first."""
    return sum(a // 8 != b // 8 for a, b in itertools.pairwise([*order, order[0]]))


def test_rows_of_a_prompt_come_in_runs_and_each_pass_is_another_order() -> None:
    rows = Rows(group_N=np.repeat(np.arange(20), 8), length_N=np.full(160, 9), mass_N=np.ones(160))

    def orders(together: int) -> list[list[int]]:
        return [list(step.ranks[0]) for step in plan_steps(rows, 3, options("uniform", 160, rows, together=together))]

    for order in orders(8):
        # A pass begins anywhere, and so within a run.
        assert turns_of(order) == 20
    for order in orders(4):
        shifts = [[*order[at:], *order[:at]] for at in range(4)]
        parted = [[shift[at : at + 4] for at in range(0, 160, 4)] for shift in shifts]
        assert any(all(len({row // 8 for row in run}) == 1 for run in runs) for runs in parted)
        assert turns_of(order) > 30
    assert turns_of(orders(1)[0]) > 140
    for together in (1, 4, 8):
        first, second, third = orders(together)
        assert first != second != third and orders(together)[0] == first


@pytest.mark.parametrize("plan", ["balanced", "drawn"])
def test_steps_of_other_plans_hold_runs_too(plan: str) -> None:
    rows = Rows(group_N=np.repeat(np.arange(20), 8), length_N=np.full(160, 9), mass_N=np.ones(160))
    prompts = {}
    for together in (1, 8):
        steps = plan_steps(rows, 10, options(plan, 16, rows, together=together))
        prompts[together] = sum(len({row // 8 for row in factors(step)}) for step in steps) / 10
    # 16 rows are two or three runs of one prompt each, or rows of about 11 prompts.
    assert prompts[8] <= 3.0 < 9.0 < prompts[1]


def test_the_longest_prompts_are_shared_out_evenly() -> None:
    rng = random.Random(0)
    lengths = [rng.choice([40, 80, 900]) for _ in range(16) for _ in range(8)]
    rows = Rows(group_N=np.repeat(np.arange(16), 8), length_N=np.array(lengths), mass_N=np.ones(128))
    (step,) = plan_steps(rows, 1, options("uniform", 128, rows, together=8, ranks=2))
    loads = [sum(lengths[row] for row in rank) for rank in step.ranks]
    assert max(loads) < 1.15 * min(loads)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_step_is_empty_whatever_gave_the_weights(tmp_path: Path, make_trajectory: Make, scheme: str) -> None:
    rng = random.Random(scheme)
    made = []
    for prompt in range(40):
        solved = rng.choice([0.0, 0.1, 0.5, 1.0])
        for k in range(rng.randint(2, 8)):
            answers = tuple(str(rng.randrange(9)) for _ in range(rng.randint(1, 4)))
            made.append(make_trajectory(f"t{prompt}", k, answers, rng.random() < solved))
    spoken = scheme == "drift_averaged"
    # Refit takes no negative returns.
    config = WeightConfig(scheme=scheme, repetition=0.0 if scheme == "refit" else None)
    weighed = outcomes(made, spoken=spoken)
    weights_T, ends = compute_weights(weighed, config).weights_T, np.cumsum(weighed.turns_N)
    weights = {name: part.tolist() for name, part in zip(weighed.ids, np.split(weights_T, ends[:-1]), strict=True)}
    counts: Counter[str] = Counter()
    write_rows(tmp_path / "rows.arrow", build_examples(made, weights, counts, normalization="sum", max_length=None))
    rows = RowFile(tmp_path / "rows.arrow").facts
    weighty = [name for name, values in weights.items() if any(values)]
    assert len(rows.group_N) == counts["rows"] == len(weighty) and counts["conversations"] == len(made)
    # In the order of their ids.
    assert rows.mass_N.tolist() == [max(map(abs, weights[name])) for name in sorted(weighty)]
    for plan, batch_size in itertools.product(PLANS, (4, 8, 16, 64, 256)):
        chosen = PlanOptions(
            plan=plan, batch_size=batch_size, conversations=counts["conversations"], together=4, ranks=2, seed=3
        )
        steps = plan_steps(rows, 3 * math.ceil(steps_per_pass(rows, chosen)), chosen)
        assert min(step.rows for step in steps) >= 1, (plan, batch_size)


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
                    mass=1.5 + sample,
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
    padded = [[rows[at] for at in places] for places in pack_padded(rows, budget)]
    assert sorted(row.trajectory_id for batch in padded for row in batch) == sorted(row.trajectory_id for row in rows)
    assert all(len(batch) * len(batch[0].token_ids) <= max(budget, longest) for batch in padded)


def test_rows_come_back_from_their_file_in_the_order_of_their_ids(tmp_path: Path) -> None:
    made = examples()
    # A conversation whose template rewrote history has two rows, which stay in their order.
    second = Example(
        trajectory_id=made[7].trajectory_id, group_id="1", token_ids=(1, 2), sampled=(False, True), weight=(0.0, -0.3),
        mass=0.3,
    )  # fmt: skip
    shuffled = random.Random(1).sample(made, len(made))
    write_rows(tmp_path / "rows.arrow", [*shuffled, second])
    found = RowFile(tmp_path / "rows.arrow")
    expected = sorted([*made, second], key=lambda row: row.trajectory_id)
    assert list(found) == expected
    assert found.facts.length_N.tolist() == [len(row.token_ids) for row in expected]
    assert found.facts.mass_N.tolist() == [row.mass for row in expected]
    groups = [row.group_id for row in found]
    assert [len({*pair}) for pair in zip(found.facts.group_N, groups, strict=True)] == [2] * len(groups)
    assert len(set(zip(found.facts.group_N.tolist(), groups, strict=True))) == 6
