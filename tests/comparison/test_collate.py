import numpy as np
import pytest

from drift.comparison.collate import Side
from drift.evaluation.comparisons import holm, over_seeds
from drift.evaluation.metrics import Runs, metrics, runs_of

SEEDS = (1, 2, 3)
PROMPTS = 150


def runs(make, chance: float, seed: int, prompts: list[str]) -> Runs:
    """One conversation for each prompt, solved with this chance; hard prompts are hard for every method."""
    found = []
    for number, prompt in enumerate(prompts):
        ease = np.random.default_rng([7, number]).random()
        solved = bool(np.random.default_rng([seed, number, int(1000 * chance)]).random() < chance + 0.2 * (ease - 0.5))
        found.append(make(prompt, answers=("1",) if solved else ("1", "2"), solved=solved))
    return runs_of(found)


def side(make, chances: dict[str, float], *, shared: bool) -> tuple[Side, dict[int, dict[str, Runs]]]:
    held = {}
    for seed in SEEDS:
        prompts = [f"{0 if shared else seed}-{number:03}" for number in range(PROMPTS)]
        held[seed] = {name: runs(make, chance, seed, prompts) for name, chance in chances.items()}
    return Side("greedy", held, 2), held


CHANCES = {"base": 0.2, "sft": 0.5, "drift": 0.85, "rft": 0.52}


@pytest.mark.parametrize("shared", [True, False])
def test_rows_and_differences_are_those_of_the_metrics(make_trajectory, shared: bool) -> None:
    found, held = side(make_trajectory, CHANCES, shared=shared)
    rows = {(row["method"], row["metric"]): row for row in found.rows()}
    differences = {(row["method"], row["metric"]): row for row in found.differences("sft")}
    solved = {name: [float((held[seed][name].solved_at_N > 0).mean()) for seed in SEEDS] for name in CHANCES}
    for name in CHANCES:
        row = rows[name, "greedy/multi@2"]
        assert row["by_seed"] == pytest.approx(solved[name]) and row["value"] == pytest.approx(np.mean(solved[name]))
        assert 0 <= row["low"] < row["value"] < row["high"] <= 1
        if name == "sft":
            continue
        gain = differences[name, "greedy/multi@2"]
        assert gain["value"] == pytest.approx(np.mean(solved[name]) - np.mean(solved["sft"]))
        ratios = [[metrics(held[seed][method], 2)["multi@2"] for seed in SEEDS] for method in (name, "sft")]
        if shared:
            other = over_seeds(ratios[0], ratios[1])
            assert (gain["low"], gain["high"]) == pytest.approx((other.low, other.high), abs=1e-7)


def test_the_correction_is_over_methods_and_not_over_the_base(make_trajectory) -> None:
    found, _ = side(make_trajectory, CHANCES, shared=True)
    rows = [row for row in found.differences("sft") if row["metric"] == "greedy/multi@2"]
    assert [row["method"] for row in rows] == ["base", "drift", "rft"]
    assert rows[0]["p_holm"] is None and rows[0]["p_value"] < 0.05
    expected = holm([row["p_value"] for row in rows[1:]])
    assert [row["p_holm"] for row in rows[1:]] == pytest.approx(expected.tolist())
    assert rows[1]["p_holm"] < 0.05 < rows[2]["p_holm"]
    # A row that failed is compared with nothing.
    assert found.differences("awr") == []


def test_one_far_ahead_wins_and_two_close_ones_don_t(make_trajectory) -> None:
    assert side(make_trajectory, CHANCES, shared=True)[0].best("multi@2") == {
        "method": "drift",
        "winner": True,
        "not_told_apart": [],
    }
    close, _ = side(make_trajectory, {"base": 0.2, "sft": 0.5, "awr": 0.85, "rft": 0.86}, shared=True)
    best = close.best("multi@2")
    assert best["method"] in ("awr", "rft") and not best["winner"]
    assert best["not_told_apart"] == [{"awr": "rft", "rft": "awr"}[best["method"]]]


def test_one_method_alone_is_no_winner(make_trajectory) -> None:
    found, _ = side(make_trajectory, {"base": 0.2, "sft": 0.5}, shared=True)
    assert found.best("multi@2") == {"method": "sft", "winner": False, "not_told_apart": []}
    nothing, _ = side(make_trajectory, {"base": 0.2}, shared=True)
    assert nothing.best("multi@2")["method"] is None


def test_a_metric_that_nothing_can_be_measured_on_is_null(make_trajectory) -> None:
    # All solved at once: nobody was wrong at turn 1, so nothing could be corrected.
    held = {seed: {"base": runs_of([make_trajectory("t", answers=("1",), solved=True)])} for seed in SEEDS}
    rows = {row["metric"]: row for row in Side("greedy", held, 2).rows()}
    assert rows["greedy/corrected@2"]["value"] is None and rows["greedy/corrected@2"]["low"] is None
    assert rows["greedy/multi@2"]["value"] == rows["greedy/multi@2"]["high"] == 1.0
    # One prompt, right in every seed, is next to nothing.
    assert rows["greedy/multi@2"]["low"] < 0.5
