import numpy as np
import pytest

from drift.evaluation.comparisons import align, over_seeds
from drift.evaluation.intervals import spread
from drift.evaluation.metrics import Ratio


def ratio(top: list[float], bottom: list[float], least: float | None = None) -> Ratio:
    return Ratio(numerator_P=np.array(top, float), denominator_P=np.array(bottom, float), least=least)


def test_a_ratio_is_placed_at_its_own_prompts() -> None:
    # The first two share prompt b, the last has prompts of its own, in an order of its own.
    cells = [
        (("a", "b"), ratio([1, 0], [2, 2], 0.0)),
        (("b", "d"), ratio([3, 1], [4, 1])),
        (("z", "y"), ratio([0, 1], [1, 2])),
    ]
    found = align(cells)
    assert [one.numerator_P.tolist() for one in found] == [[1, 0, 0, 0, 0], [0, 3, 1, 0, 0], [0, 0, 0, 1, 0]]
    assert [one.denominator_P.tolist() for one in found] == [[2, 2, 0, 0, 0], [0, 4, 1, 0, 0], [0, 0, 0, 2, 1]]
    assert [one.least for one in found] == [0.0, None, None]
    assert align([]) == []


@pytest.mark.parametrize("least", [0.0, None])
def test_prompts_that_are_none_of_its_own_change_nothing(least: float | None) -> None:
    own = ratio([1, 0, 2, 2], [2, 2, 2, 2], least)
    (placed,) = align([(("a", "c", "e", "f"), own)])
    among = align([(("a", "c", "e", "f"), own), (("b", "d"), ratio([0, 1], [1, 1], least))])[0]
    assert spread([placed]) == spread([own])
    assert spread([among]).ends() == pytest.approx(spread([own]).ends(), rel=1e-12)


def test_seeds_that_share_prompts_vary_together_and_others_don_t() -> None:
    top, names = [float(n % 3 == 0) for n in range(30)], [f"{n:03}" for n in range(60)]
    one = ratio(top, [1.0] * 30)
    together = over_seeds(align([(names[:30], one), (names[:30], one)]))
    apart = over_seeds(align([(names[:30], one), (names[30:], one)]))
    assert together.from_prompts == pytest.approx(spread([one]).variance, rel=1e-12)
    # Half the variance, with 60/59 for 30/29.
    assert apart.from_prompts == pytest.approx(spread([one]).variance / 2 * (60 / 59) / (30 / 29), rel=1e-12)
