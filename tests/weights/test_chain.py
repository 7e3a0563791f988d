"""The chain in memory: outcome, return, scheme, turns and steps, each by hand, and functions of one's own."""

import dataclasses
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from drift.dataset.outcomes import Outcomes, outcomes, read_outcomes
from drift.dataset.store import TrajectoryWriter
from drift.errors import ConfigError
from drift.recipe import Recipe
from drift.rollouts.config import RolloutConfig
from drift.types import Trajectory
from drift.weights.auto import temperature_of
from drift.weights.config import WeightConfig
from drift.weights.stage import compute_weights, weigh_dataset
from drift.weights.steps import stopping_factors
from drift.weights.table import FILE, read_weights
from drift.weights.turns import Conversations

Make = Callable[..., Trajectory]
Made = Callable[..., list[Trajectory]]
# All weights as they come from the scheme, also the smallest.
ALL: dict[str, Any] = {"steps": [{"skip_small": None}]}


def stored(folder: Path, trajectories: list[Trajectory], shard_size: int = 5, **spec: Any) -> Path:
    with TrajectoryWriter(folder, {"trajectories": len(trajectories), **spec}, [], shard_size=shard_size) as writer:
        for trajectory in trajectories:
            writer.append(trajectory)
        writer.finish()
    return folder


def last_replies(weights_T: np.ndarray, found: Outcomes) -> list[float]:
    """The weight of each conversation's last reply; the others have none."""
    ends = np.cumsum(found.turns_N, dtype=int) - 1
    assert np.count_nonzero(weights_T) == np.count_nonzero(weights_T[ends])
    return weights_T[ends].tolist()


# --- what weights are ------------------------------------------------------------------------------------------------


def test_drift_weights_of_conversations_follow_equations_12_and_13(data: list[Trajectory]) -> None:
    found = outcomes(data)
    result = compute_weights(found, WeightConfig(beta=0.2, **ALL))
    expected = [1.0, 0.81 - 0.5 * (1 - 2 / 3), 0.0, -0.5 * (1 - 1 / 3), 0.0, -0.25, 1.0, 1.0]
    assert result.returns_N == pytest.approx(expected, abs=1e-12)
    weights = last_replies(result.weights_T, found)
    for group in ([0, 1, 2, 3], [4, 5], [6, 7]):
        z = sum(math.exp(expected[i] / 0.2) for i in group) / len(group)
        assert [weights[i] for i in group] == pytest.approx([math.exp(expected[i] / 0.2) / z for i in group], rel=1e-12)


def test_the_reward_can_be_the_outcome_for_conversations_that_carry_one(make_trajectory: Make) -> None:
    logged = [make_trajectory("a", k, ("1", "2"), rewards=(0.1 * k, 0.3)) for k in range(3)]
    result = compute_weights(outcomes(logged), WeightConfig(scheme="refit", outcome="reward", gamma=0.5))
    assert result.returns_N == pytest.approx([0.15, 0.2, 0.25])
    # Both replies of each.
    assert result.weights_T.tolist() == np.repeat(result.returns_N, 2).tolist()


def test_prompts_that_teach_nothing_are_kept_or_dropped_as_told_and_counted(data: list[Trajectory]) -> None:
    found = outcomes(data)
    kept = compute_weights(found, WeightConfig(**ALL))
    assert (np.array(last_replies(kept.weights_T, found)) > 0).all() and kept.report["steps"] == []
    report = kept.report
    assert (report["groups_without_success"], report["groups_with_equal_returns"], report["groups"]) == (1, 1, 3)
    assert report["mixed_share"] == pytest.approx(1 / 3)
    dropped = compute_weights(found, WeightConfig(steps=["drop_unsolved", {"skip_small": None}]))
    weights = last_replies(dropped.weights_T, found)
    assert weights[4:6] == [0, 0] and weights[:4] + weights[6:] == pytest.approx(
        [w for at, w in enumerate(last_replies(kept.weights_T, found)) if at not in (4, 5)], rel=1e-15
    )
    # Two of eight conversations, and of a weight of 8 in all that of one prompt: 2.
    (taken,) = dropped.report["steps"]
    assert (taken["step"], taken["conversations"]) == ("drop_unsolved", 2)
    assert taken["share"] == pytest.approx(2 / 8, rel=1e-12)


def test_what_each_step_takes_and_adds_is_told(make_trajectory: Make) -> None:
    # Rewards 4, −1, −1 and 0: less their mean of 0.5, weights 3.5, −1.5, −1.5 and −0.5 of one reply each.
    logged = [make_trajectory("a", k, ("1",), rewards=(value,)) for k, value in enumerate([4.0, -1.0, -1.0, 0.0])]
    steps = [{"bound_negative": 0.5}, {"skip_small": 0.1}, {doubled: {"by": 3}}]
    config = WeightConfig(scheme="group_relative", outcome="reward", steps=steps)
    result = compute_weights(outcomes(logged), config)
    # Down at most 1.75: halved. The smallest holds 0.25 of 5.25, less than a tenth.
    assert result.weights_T.tolist() == [10.5, -2.25, -2.25, 0.0]
    bound, skip, own = result.report["steps"]
    assert bound == {"step": {"bound_negative": {"share": 0.5}}, "conversations": 0, "share": pytest.approx(1.75 / 7)}
    assert skip == {"step": {"skip_small": {"share": 0.1}}, "conversations": 1, "share": pytest.approx(0.25 / 5.25)}
    # What adds weight takes less than nothing.
    assert own["step"] == {f"{__name__}:doubled": {"by": 3}} and own["share"] == pytest.approx(-2)
    assert result.report["negative_weights"] == 2 and result.report["zero_weights"] == 1
    assert result.chain["steps"] == [each["step"] for each in result.report["steps"]]


def doubled(weights_T: np.ndarray, data: Conversations, *, by: float = 2.0) -> np.ndarray:
    """A step of one's own."""
    return weights_T * by


def test_diagnostics_go_by_the_largest_weight_of_a_conversations_replies(make_trajectory: Make) -> None:
    conversations = [
        make_trajectory("a", 0, ("1", "5"), True),
        make_trajectory("a", 1, ("2",)),
        make_trajectory("b", 0, ("1", "2", "3")),
    ]
    config = WeightConfig(scheme="sft", turns={"credited": -0.5}, steps=[{"bound_negative": None}])
    result = compute_weights(outcomes(conversations), config)
    assert result.weights_T.tolist() == [-0.5, 1, 1, -0.5, -0.5, 1]
    assert result.report["negative_weights"] == 0 and result.report["ess"] == 3
    spread = {f"{__name__}:downwards": {}}
    pushed = compute_weights(outcomes(conversations), WeightConfig(scheme="sft", turns=spread, steps=config.steps))
    # −2 outweighs 1, which is as far from 0 as −1 is: then it is the positive one.
    assert pushed.weights_T.tolist() == [1, -1, 1, 1, -1, -2]
    assert pushed.report["negative_weights"] == 1 and pushed.report["ess"] == pytest.approx(16 / 6)


def downwards(weights_N: np.ndarray, data: Conversations) -> np.ndarray:
    """1 for the first reply, and less from one to the next: 1, −1, −2."""
    turn_T = np.arange(data.turns_N.sum()) - np.repeat(np.cumsum(data.turns_N) - data.turns_N, data.turns_N)
    return np.where(turn_T == 0, 1.0, -turn_T) * np.repeat(weights_N, data.turns_N)


def test_a_grouped_scheme_needs_two_conversations_of_a_prompt(make_trajectory: Make) -> None:
    alone = outcomes([make_trajectory("a", 0, ("1",), True), make_trajectory("b", 0, ("1",))])
    for scheme in ("drift", "drift_averaged", "bolt", "star_gate", "swift", "group_relative", "awr"):
        said = f"'{scheme}' compares conversations of one prompt, and no prompt has more"
        with pytest.raises(ConfigError, match=said):
            compute_weights(alone, WeightConfig(scheme=scheme, baseline="task"))
    assert compute_weights(alone, WeightConfig(scheme="rft")).weights_T.tolist() == [1, 0]


def test_weights_that_are_all_zero_are_refused(make_trajectory: Make) -> None:
    failed = outcomes([make_trajectory("a", k, ("1",)) for k in range(2)])
    with pytest.raises(
        ConfigError, match="leaves every weight 0: 1 of 1 prompts have no success, 1 have equal returns"
    ):
        compute_weights(failed, WeightConfig(scheme="rft"))
    with pytest.raises(ConfigError, match="scheme 'sft' leaves every weight 0"):
        compute_weights(failed, WeightConfig(scheme="sft", steps=["drop_unsolved"]))


def test_first_replies_are_weighed_as_if_conversations_had_ended_there(make_trajectory: Make) -> None:
    conversations = [
        make_trajectory("a", 0, ("5",), True),
        make_trajectory("a", 1, ("1", "5"), True),
        make_trajectory("a", 2, (None, "5"), True),
        make_trajectory("b", 0, ("1", "1")),
        make_trajectory("b", 1, ("2", "5"), True),
    ]
    found = outcomes(conversations)
    result = compute_weights(found, WeightConfig(scheme="bolt", beta=0.5, format_failure=0.1, **ALL))
    assert result.returns_N == pytest.approx([1, 0, -0.1, 0, 0], abs=1e-12)
    raw = [math.exp(r / 0.5) for r in (1, 0, -0.1)]
    first = [*(3 * each / sum(raw) for each in raw), 1, 1]
    assert result.weights_T == pytest.approx([first[0], first[1], 0, first[2], 0, first[3], 0, first[4], 0], rel=1e-12)
    assert (result.report["groups_without_success"], result.report["mixed_share"]) == (1, 0.5)
    # Prompt b has no success at turn 1.
    steps = ["drop_unsolved", *ALL["steps"]]
    dropped = compute_weights(found, WeightConfig(scheme="bolt", beta=0.5, steps=steps)).weights_T
    assert dropped[5:].tolist() == [0] * 4 and (dropped[[0, 1, 3]] > 0).all()
    # Corrections at turn 2: of conversations that were graded wrong at turn 1 and right at the second and last.
    star = compute_weights(found, WeightConfig(scheme="star"))
    assert last_replies(star.weights_T, found) == [0, 1, 1, 0, 1]
    # The best of each prompt, all its replies; b's has one success.
    best = compute_weights(found, WeightConfig(scheme="star_gate"))
    assert best.weights_T.tolist() == [1, 0, 0, 0, 0, 0, 0, 1, 1]


def test_prompts_without_success_can_be_shrunk(data: list[Trajectory]) -> None:
    found = outcomes(data)
    kept = compute_weights(found, WeightConfig(**ALL))
    shrunken = compute_weights(found, WeightConfig(steps=[{"shrink_unsolved": 4}, {"skip_small": None}]))
    old, new = (last_replies(each.weights_T, found) for each in (kept, shrunken))
    assert new[:4] + new[6:] == old[:4] + old[6:]
    tilted = [math.exp(r / 0.1) for r in kept.returns_N]
    own, shared = sum(tilted[4:6]) / 2, sum(tilted) / 8
    expected = [each / ((2 * own + 4 * shared) / 6) for each in tilted[4:6]]
    assert new[4:6] == pytest.approx(expected, rel=1e-9) and sum(expected) < 0.01


def test_the_same_answer_has_one_worth_however_it_was_put_and_judged(make_trajectory: Make) -> None:
    # One prompt whose verifier takes 4 for right once in three times; 5 is taken always.
    conversations = [make_trajectory("a", k, ("4", "6") if k else ("4",), not k) for k in range(3)]
    conversations += [make_trajectory("a", 3 + k, ("5",), True) for k in range(3)]
    one = conversations[0]
    said = dataclasses.replace(one.turns[0].completion, text="Surely <answer>4</answer>")
    conversations[0] = dataclasses.replace(one, turns=(dataclasses.replace(one.turns[0], completion=said),))
    found = outcomes(conversations, spoken=True)
    config = WeightConfig(scheme="drift_averaged", beta=0.25, repetition=0.0, gamma=0.9, **ALL)
    result = compute_weights(found, config)
    assert result.returns_N.tolist() == [1, 0, 0, 1, 1, 1]
    tilted = [math.exp(4 / 3)] * 3 + [math.exp(4)] * 3
    expected = [6 * value / sum(tilted) for value in tilted]
    assert last_replies(result.weights_T, found) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ConfigError, match=r"'drift_averaged' asks for reply_T, which there is not\. Known: .*turns_N"):
        compute_weights(outcomes(conversations), config)


def test_the_temperature_that_was_found_is_what_weights_are_made_with(
    data: list[Trajectory], make_trajectory: Make
) -> None:
    # Of prompts a, b and c, whose returns differ, 2 of 4, none of 2 and 3 of 3 succeeded.
    found = outcomes([*data, make_trajectory("c", 3, ("1", "7"), True)])
    auto = compute_weights(found, WeightConfig(beta="auto", **ALL))
    beta = temperature_of(auto.returns_N, found.group_index(), found.success_N)[0]
    assert beta > 0 and auto.chain["settings"] == {"beta": beta}
    assert auto.report["beta"] == {"value": beta, "effective_share": pytest.approx(0.5, rel=1e-12)}
    given = compute_weights(found, WeightConfig(beta=beta, **ALL))
    assert auto.weights_T.tobytes() == given.weights_T.tobytes()
    assert "beta" not in given.report and given.chain["settings"] == {"beta": beta}


def test_limits_of_the_temperature_are_no_numbers(make_trajectory: Make) -> None:
    same = outcomes([make_trajectory("a", k, ("1",), True) for k in range(3)])
    alike = compute_weights(same, WeightConfig(beta="auto"))
    assert alike.weights_T.tolist() == [1, 1, 1]
    assert alike.report["beta"] == {"value": None, "effective_share": None} and alike.chain["settings"] == {
        "beta": None
    }
    # Nothing succeeded: the best alone.
    failed = outcomes([make_trajectory("a", k, ("1", "1") if k else ("1",)) for k in range(3)])
    best = compute_weights(failed, WeightConfig(beta="auto"))
    assert best.weights_T.tolist() == [3, 0, 0, 0, 0]
    assert best.report["beta"] == {"value": 0.0, "effective_share": 0.0}
    assert json.loads(json.dumps(best.report, allow_nan=False)) == best.report


# --- adaptive sampling -----------------------------------------------------------------------------------------------


def test_what_adaptive_sampling_did_is_undone_when_its_data_are_weighed(tmp_path: Path, make_trajectory: Make) -> None:
    conversations = [make_trajectory("a", k, ("1",), k == 0) for k in range(4)]
    conversations += [make_trajectory("b", k, ("1",), True) for k in range(2)]
    folder = stored(tmp_path / "data", conversations, first=2)
    manifest = weigh_dataset(folder, WeightConfig(scheme="sft"), tmp_path / "w")
    # One success of four: it was among the first two for sure, the failures once in three.
    weights = read_weights(tmp_path / "w", folder)
    expected = {"a#0": 1, **{f"a#{k}": 1 / 3 for k in (1, 2, 3)}, "b#0": 1, "b#1": 1}
    assert {name: each[0] for name, each in weights.items()} == pytest.approx(expected, rel=1e-12)
    assert manifest["chain"]["steps"] == ["undo_adaptive", {"skip_small": {"share": 0.001}}]
    # Of six conversations those of four count a third less: two of six in all.
    undone = manifest["diagnostics"]["steps"][0]
    assert (undone["step"], undone["conversations"]) == ("undo_adaptive", 0)
    assert undone["share"] == pytest.approx(2 / 6, rel=1e-12)


@pytest.mark.parametrize("scheme", ["drift", "rft", "sft"])
@pytest.mark.parametrize("turns", ["terminal", "all"])
def test_weights_of_adaptive_data_count_prompts_alike_and_divide_by_the_corrected_partition(
    make_trajectory: Make, scheme: str, turns: str
) -> None:
    # Two first: prompt a was undecided and got five, prompt b was decided.
    conversations = [make_trajectory("a", k, ("1",) if k in (1, 3) else ("1", "2"), k in (1, 3)) for k in range(5)]
    conversations += [make_trajectory("b", k, ("1", "1", "1"), False) for k in range(2)]
    found, beta = outcomes(conversations), {"beta": 0.5} if scheme == "drift" else {}
    config = WeightConfig(scheme=scheme, turns=turns, gamma=0.9, **beta, **ALL)
    undone, plain = compute_weights(found, config, first=2), compute_weights(found, config)
    ends = np.cumsum(found.turns_N) - 1
    weights_N, plain_N = undone.weights_T[ends], plain.weights_T[ends]
    assert weights_N[5:].tolist() == plain_N[5:].tolist()
    factors_N = stopping_factors([t.success for t in conversations[:5]], [True] * 2 + [False] * 3, np.zeros(5, np.intp))
    if scheme == "drift":
        raw = [c * math.exp(r / 0.5) for c, r in zip(factors_N, undone.returns_N, strict=False)]
        partition = math.fsum(raw) / 2  # (1/k) Σ c e^{R/β}
        assert weights_N[:5] == pytest.approx([each / partition for each in raw], rel=1e-12)
        assert weights_N[:5].sum() == pytest.approx(2, rel=1e-12) and weights_N[5:].sum() == pytest.approx(2)
    else:
        assert weights_N[:5] == pytest.approx(factors_N * plain_N[:5], rel=1e-12)
    if turns == "all":
        assert undone.weights_T.tolist() == np.repeat(weights_N, found.turns_N).tolist()


def test_undoing_comes_first_unless_it_is_named(data: list[Trajectory]) -> None:
    found = outcomes([t for t in data if t.sample < 2 or t.group_id == "a"])

    def names(steps: list[Any]) -> list[str]:
        record = compute_weights(found, WeightConfig(steps=steps), first=2).chain["steps"]
        return [each if isinstance(each, str) else next(iter(each)) for each in record]

    assert names(["drop_unsolved"]) == ["undo_adaptive", "drop_unsolved", "skip_small"]
    assert names(["drop_unsolved", "undo_adaptive"]) == ["drop_unsolved", "undo_adaptive", "skip_small"]
    with pytest.raises(ConfigError, match="undo_adaptive is for adaptive sampling, and every prompt was sampled alike"):
        compute_weights(found, WeightConfig(steps=["undo_adaptive"]))


@pytest.mark.parametrize("settings", [{"baseline": "dataset"}, {"scheme": "drift_averaged"}])
def test_adaptive_sampling_can_be_undone_for_tasks_alone(data: list[Trajectory], settings: dict[str, Any]) -> None:
    said = r"rollouts\.first: got 2, expected 0 with weights\.baseline \w+ and weights\.scheme \w+\. Adaptive"
    with pytest.raises(ConfigError, match=said):
        compute_weights(outcomes(data, spoken=True), WeightConfig(**settings), first=2)
    # A recipe is refused before anything is rolled out.
    with pytest.raises(ConfigError, match=said):
        Recipe(rollouts=RolloutConfig(first=2), weights=WeightConfig(**settings))


# --- functions of one's own ------------------------------------------------------------------------------------------


def test_a_scheme_of_ones_own_sees_all_prompts_at_once_in_the_order_of_tasks_and_samples(
    tmp_path: Path, random_trajectories: Made
) -> None:
    folder = stored(tmp_path / "data", random_trajectories(3))
    found, seen = read_outcomes(folder, spoken=True), []

    def ranks(
        returns_N: np.ndarray,
        group_N: np.ndarray,
        *,
        success_N: np.ndarray,
        reward_N: np.ndarray,
        turns_N: np.ndarray,
        sample_N: np.ndarray,
        first_wrong_N: np.ndarray,
        rejected_T: np.ndarray,
        reply_T: np.ndarray,
        feedback_T: np.ndarray,
        beta: float = 2.0,
        height: float,
    ) -> np.ndarray:
        seen.append(
            (success_N, reward_N, turns_N, sample_N, first_wrong_N, rejected_T, reply_T, feedback_T, beta, height)
        )
        return np.unique(returns_N, return_inverse=True)[1] + group_N.max() + 0.5 * success_N

    config = WeightConfig(scheme={ranks: {"height": 4}}, beta=3.0, turns="all", **ALL)  # type: ignore[dict-item]
    manifest = weigh_dataset(folder, config, tmp_path / "w")
    (given,) = seen
    expected = (
        *(found.success_N, found.reward_N, found.turns_N, found.sample_N),
        *(found.first_graded_N & ~found.first_success_N, found.rejected_T, found.reply_T, found.feedback_T),
    )
    for value, wanted in zip(given, (*expected, 3.0, 4), strict=True):
        assert np.asarray(value).tolist() == np.asarray(wanted).tolist()
    table = pq.read_table(tmp_path / "w" / FILE)
    order = {value: rank for rank, value in enumerate(sorted(set(table.column("return").to_pylist())))}
    last = len(set(table.column("group_id").to_pylist())) - 1
    for row, success in zip(table.to_pylist(), found.success_N.tolist(), strict=True):
        assert set(row["weights"]) == {order[row["return"]] + last + 0.5 * success}
    assert manifest["chain"]["scheme"].endswith(".<locals>.ranks")


def test_what_there_is_not_can_not_be_asked_for(data: list[Trajectory]) -> None:
    def curious(returns_N: np.ndarray, group_N: np.ndarray, *, mood_N: np.ndarray) -> np.ndarray:
        return mood_N

    said = r"curious' asks for mood_N, which there is not\. Known: group_N, returns_N, success_N, turns_N"
    with pytest.raises(ConfigError, match=said):
        compute_weights(outcomes(data), WeightConfig(scheme=curious))  # type: ignore[arg-type]


def test_functions_of_a_module_in_the_working_directory_and_of_another_package_are_run(
    tmp_path: Path, data: list[Trajectory], monkeypatch: pytest.MonkeyPatch, declare: Callable[..., None]
) -> None:
    folder = stored(tmp_path / "data", data)
    source = (
        "import numpy as np\n"
        "def power(returns_N, group_N, *, success_N, exponent):\n"
        "    return (1 + returns_N) ** exponent * success_N\n"
        "def later(weights_N, data, *, decay=0.5):\n"
        "    turn_T = np.arange(data.turns_N.sum()) - np.repeat(np.cumsum(data.turns_N) - data.turns_N, data.turns_N)\n"
        "    return np.repeat(weights_N, data.turns_N) * decay ** turn_T\n"
        "def cliff(weights_T, data, *, steepness):\n"
        "    return np.where(weights_T > 1, weights_T * steepness, weights_T)\n"
    )
    declare(source, schemes={"power": "extra_weights:power"}, turns={"later": "extra_weights:later"})
    here = tmp_path / "here"
    here.mkdir()
    (here / "own_weights.py").write_text(source)
    monkeypatch.chdir(here)
    monkeypatch.delitem(sys.modules, "own_weights", raising=False)
    named = {"scheme": {"power": {"exponent": 2}}, "turns": {"later": 0.25}, "steps": [{"own_weights:cliff": 10}]}
    manifest = weigh_dataset(folder, WeightConfig(**named), tmp_path / "w")
    # a#0: (1 + 1)² · 10; a#1 at γ = 1 and λ = 0: the same, and a quarter of it from turn to turn, 1 and below as it is.
    weights = read_weights(tmp_path / "w", folder)
    assert weights["a#0"] == [40.0] and weights["a#1"] == [40.0, 1.0, 0.25]
    assert weights["a#2"] == [0.0] * 3 and weights["c#1"] == [40.0]
    chain = manifest["chain"]
    assert (chain["scheme"], chain["settings"]) == ("extra_weights:power", {"exponent": 2})
    assert chain["turns"] == {"later": {"decay": 0.25}}
    assert chain["steps"][0] == {"own_weights:cliff": {"steepness": 10}}


BAD: dict[str, Any] = {
    "nan": (lambda shape: np.full(shape, np.nan), "3 of them not finite"),
    "inf": (lambda shape: np.array([np.inf, *np.ones(shape - 1)]), "1 of them not finite"),
    "large": (lambda shape: np.full(shape, -1e101), r"expected \(3,\) numbers of at most 1e\+100 in size"),
    "short": (lambda shape: np.ones(1), r"of shape \(1,\), 0 of them not finite; expected \(3,\)"),
    "square": (lambda shape: np.ones((shape, 1)), r"of shape \(3, 1\)"),
    "number": (lambda shape: 1.0, r"of shape \(\)"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("link", ["scheme", "turns", "steps"])
def test_what_a_function_gives_must_be_weights(make_trajectory: Make, kind: str, link: str) -> None:
    found, (given, said) = outcomes([make_trajectory("a", k) for k in range(3)]), BAD[kind]

    def wrong(weights: np.ndarray, data: Any) -> Any:
        return given(3)

    settings = {"scheme": "sft", **{link: [wrong] if link == "steps" else wrong}}
    with pytest.raises(ConfigError, match=rf"wrong' gave weights .*{said}.*Correct it, or its settings"):
        compute_weights(found, WeightConfig(**settings))


def test_returns_too_large_to_be_squared_are_refused(make_trajectory: Make) -> None:
    for value in (1e101, -1e101, math.inf, math.nan):
        logged = [make_trajectory("a", k, ("1",), rewards=(value if k == 1 else 1.0,)) for k in range(3)]
        said = f"the return of trajectory 'a#1' is {value:g}, expected at most 1e+100 in size"
        with pytest.raises(ConfigError, match=re.escape(said)):
            compute_weights(outcomes(logged), WeightConfig(scheme="refit", outcome="reward"))
