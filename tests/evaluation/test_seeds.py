import numpy as np
import pytest

from drift.evaluation.intervals import bootstrap
from drift.evaluation.metrics import Ratio
from drift.evaluation.seeds import draw_together


def ratio(top: list[float], bottom: list[float]) -> Ratio:
    return Ratio(numerator_P=np.array(top, float), denominator_P=np.array(bottom, float))


# Three seeds: the first two share prompt b, the last has prompts of its own, in an order of its own.
CELLS = [
    (("a", "b", "c"), ratio([1, 0, 2], [2, 2, 2])),
    (("b", "d"), ratio([3, 1], [4, 1])),
    (("z", "y"), ratio([0, 1], [1, 1])),
]


def naive(seed: int, resamples: int) -> list[list[float]]:
    """One draw at a time: how often each prompt was drawn, then each ratio's sums over its own prompts in a loop."""
    prompts = sorted({prompt for names, _ in CELLS for prompt in names})
    times = np.random.default_rng(seed).multinomial(len(prompts), [1 / len(prompts)] * len(prompts), size=resamples)
    rows = []
    for drawn in times:
        count = dict(zip(prompts, drawn.tolist(), strict=True))
        row = []
        for names, cell in CELLS:
            top = bottom = 0.0
            for name, a, b in zip(names, cell.numerator_P, cell.denominator_P, strict=True):
                top, bottom = top + count[name] * a, bottom + count[name] * b
            row.append(top / bottom if bottom else float("nan"))
        rows.append(row)
    return rows


def test_a_prompt_counts_alike_in_every_ratio_it_belongs_to():
    drawn = draw_together(CELLS, 7, resamples=60)
    assert drawn.shape == (60, 3)
    np.testing.assert_allclose(drawn, naive(7, 60), rtol=1e-12)
    # Two of five prompts: now and then none of them is drawn, and then there is nothing to divide by.
    assert np.isnan(draw_together(CELLS, 7, resamples=200)[:, 1:]).any()


def test_the_same_prompts_in_all_seeds_are_drawn_as_one_bootstrap_draws_them():
    rng = np.random.default_rng(0)
    prompts = [f"{n:02}" for n in range(20)]
    cells = [(prompts, ratio(rng.integers(0, 2, 20).tolist(), [1] * 20)) for _ in range(3)]
    np.testing.assert_array_equal(draw_together(cells, 3), bootstrap([cell for _, cell in cells], 3))


@pytest.mark.parametrize(("shared", "sign"), [(30, "together"), (0, "apart")])
def test_seeds_that_share_prompts_vary_together_and_others_don_t(shared: int, sign: str):
    # The same outcomes on shared prompts: draws are then the same; on prompts of their own they are independent.
    top = [float(n % 3 == 0) for n in range(30)]
    names = [f"{n:03}" for n in range(60 - shared)]
    cells = [(names[:30], ratio(top, [1] * 30)), (names[-30:], ratio(top, [1] * 30))]
    drawn = draw_together(cells, 1)
    found = float(np.corrcoef(drawn.T)[0, 1])
    # The standard error of a correlation of 2,000 independent draws is 0.022.
    assert found == pytest.approx(1.0) if sign == "together" else abs(found) < 0.1


def test_no_ratios_give_no_columns():
    assert draw_together([], 0, resamples=5).shape == (5, 0)
