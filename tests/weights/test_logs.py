"""Weights of logs: what counts, what is not known, what each is measured against, and what messages count for."""

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.baselines import measure

import drift
from drift.dataset.columns import WORDS
from drift.dataset.expected import FOLDS, PENALTIES, expected_values
from drift.dataset.outcomes import outcome_values, outcomes
from drift.dataset.store import TrajectoryWriter, read_trajectories
from drift.errors import ConfigError
from drift.types import Trajectory
from drift.weights.config import WeightConfig
from drift.weights.returns import baseline_values
from drift.weights.stage import compute_weights, weigh_dataset
from drift.weights.table import read_weights

Make = Callable[..., Trajectory]
ALL: dict[str, Any] = {"steps": [{"bound_negative": None}, {"skip_small": None}]}


@pytest.fixture
def rated(make_trajectory: Make) -> Callable[..., Trajectory]:
    """A logged conversation: its rating and, as far as given, what else the log says."""

    def make(
        prompt: str,
        rating: float,
        sample: int = 0,
        success: bool | None = None,
        replies: int = 1,
        counts: tuple[float, ...] = (),
        rewards: tuple[float, ...] = (),
        **info: Any,
    ) -> Trajectory:
        given = rewards or (0.0,) * (replies - 1) + (rating,)
        one = make_trajectory(prompt, sample, ("1",) * replies, rewards=given)
        turns = []
        for at, turn in enumerate(one.turns):
            last = at == replies - 1
            step = dataclasses.replace(
                turn.step, graded=False, answer=None, success=success if last else False, info=info if last else {}
            )
            turns.append(dataclasses.replace(turn, step=step, loss_weight=counts[at] if counts else 1.0))
        return dataclasses.replace(one, turns=tuple(turns))

    return make


def stored(folder: Path, trajectories: list[Trajectory]) -> Path:
    with TrajectoryWriter(folder, {"import": {"format": "messages"}}, [], shard_size=3) as writer:
        for trajectory in trajectories:
            writer.append(trajectory)
        writer.finish()
    return folder


def test_what_counts_is_the_reward_where_no_success_is_known(tmp_path: Path, rated: Callable[..., Trajectory]) -> None:
    log = [rated(f"question {n} about {'hard' if n % 2 else 'easy'}", n % 4 + n % 2) for n in range(12)]
    folder = stored(tmp_path / "log", log)
    manifest = weigh_dataset(folder, WeightConfig(), tmp_path / "w")
    assert (manifest["chain"]["outcome"], manifest["chain"]["baseline"]) == ("reward", "fitted")
    assert manifest["automatic"] == ["outcome", "baseline"] and manifest["chain"]["gamma"] == 1
    weights = [each[0] for each in read_weights(tmp_path / "w", folder).values()]
    assert len(set(weights)) > 2 and min(weights) < 0.5 < 2 < max(weights)
    # As the same conversations in memory, in order.
    found = outcomes(sorted(log, key=lambda t: t.task_id), words=True)
    assert compute_weights(found, WeightConfig()).weights_T.tolist() == pytest.approx(weights, rel=1e-9)


def test_what_is_not_known_is_neither_a_success_nor_a_failure(tmp_path: Path, rated: Callable[..., Trajectory]) -> None:
    log = [rated("a", 1, 0, True), rated("a", 0, 1, False), rated("a", 5, 2), rated("b", 5, 0)]
    folder = stored(tmp_path / "log", log)
    manifest = weigh_dataset(folder, WeightConfig(scheme="rft"), tmp_path / "w")
    assert manifest["excluded"] == {"failed": 0, "unlabelled": 2} and manifest["chain"]["outcome"] == "success"
    assert read_weights(tmp_path / "w", folder) == {"a#0": [1.0], "a#1": [0.0]}
    # Plain fine-tuning asks for no outcome, and takes all of them.
    assert compute_weights(outcomes(log), WeightConfig(scheme="sft")).weights_T.tolist() == [1, 1, 1, 1]
    # What counts as a success can be said.
    config = WeightConfig(scheme="rft", outcome={"reward": 1, "above": 3})
    assert compute_weights(outcomes(log), config).weights_T.tolist() == [0, 0, 1, 1]
    unknown = outcomes([rated("a", 1), rated("b", 0)])
    for settings in ({"scheme": "rft"}, {"scheme": "sft", "steps": ["drop_unsolved"]}, {"outcome": "success"}):
        with pytest.raises(ConfigError, match=r"no conversation says whether it succeeded.*outcome: \{reward: 1"):
            compute_weights(unknown, WeightConfig(**settings))


def test_outcomes_are_added_up_clipped_normalised_and_cut(rated: Callable[..., Trajectory]) -> None:
    log = [rated("a", 7, 0, True, tone=0.5), rated("a", 1, 1, False, tone=True), rated("b", -9, 0, None, tone=2)]
    found = outcomes([*log, rated("b", 3, 1, True)], notes=("tone", "missing"))
    assert outcome_values(found, "reward").tolist() == [7, 1, -9, 3]
    nan = math.nan
    for outcome, expected in (
        ("success", [1, 0, nan, 1]),
        ({"reward": 1, "clip": [0, 5]}, [5, 1, 0, 3]),
        ({"reward": 0.5, "success": 2, "tone": 1}, [3.5 + 2 + 0.5, 0.5 + 0 + 1, nan, nan]),
        ({"reward": 1, "normalize": True}, ((np.array([7, 1, -9, 3]) - 0.5) / np.std([7, 1, -9, 3])).tolist()),
        ({"tone": 1, "above": 0.9}, [0, 1, 1, nan]),
    ):
        assert outcome_values(found, outcome) == pytest.approx(expected, nan_ok=True)
    with pytest.raises(ConfigError, match="the log notes no 'missing' of any conversation"):
        outcome_values(found, {"missing": 1})
    worded = outcomes([rated("a", 1, tone="kind")], notes=("tone",))
    with pytest.raises(ConfigError, match="the log notes 'kind' as 'tone', expected a number"):
        outcome_values(worded, {"tone": 1})


def test_what_a_log_says_a_reply_counts_for_multiplies_its_weight(
    tmp_path: Path, rated: Callable[..., Trajectory]
) -> None:
    log = [rated("a", 2, 0, replies=3, counts=(0.0, 1.0, 0.25)), rated("a", 1, 1, replies=2)]
    config = WeightConfig(scheme="refit", outcome="reward", **ALL)
    manifest = weigh_dataset(stored(tmp_path / "log", log), config, tmp_path / "w")
    assert read_weights(tmp_path / "w", tmp_path / "log") == {"a#0": [0.0, 2.0, 0.5], "a#1": [1.0, 1.0]}
    assert manifest["diagnostics"]["zero_weights"] == 0


def test_replies_can_be_weighed_by_their_own_rewards(tmp_path: Path, rated: Callable[..., Trajectory]) -> None:
    log = [rated("a", 0, replies=3, rewards=(1.0, 0.0, 0.5)), rated("b", 0, replies=2, rewards=(0.25, 1.0))]
    folder = stored(tmp_path / "log", log)
    weigh_dataset(folder, WeightConfig(scheme="refit", turns="own", **ALL), tmp_path / "w")
    table = read_weights(tmp_path / "w", folder)
    assert table == {"a#0": [1.0, 0.0, 0.5], "b#0": [0.25, 1.0]}
    # By its return to go: 1 + 0/2 + 0.5/4, …
    to_go_T = compute_weights(
        outcomes(log, replies=True), WeightConfig(scheme="refit", turns={"own": 0.5}, **ALL)
    ).weights_T
    assert to_go_T.tolist() == [1.125, 0.25, 0.5, 0.75, 1.0]
    config = WeightConfig(scheme="group_relative", turns="own", baseline="leave_one_out", **ALL)
    weights_T = compute_weights(outcomes(log, replies=True), config).weights_T
    gaps = np.array([1 - 0.25, 0 - 0.75, 0.5 - 0.5, 0.25 - 1.0, 1.0 - 0.25])
    assert weights_T == pytest.approx(gaps - gaps.mean())


# --- baselines -------------------------------------------------------------------------------------------------------


def test_each_baseline_is_of_others_alone(rated: Callable[..., Trajectory]) -> None:
    log = [rated("a", 5, 0, topic="x"), rated("a", 3, 1, topic="x"), rated("b", 1, 0, topic="y"), rated("c", 0, 0)]
    found = outcomes(log, notes=("topic",))
    for baseline, expected in (
        ("leave_one_out", [3, 5, 8 / 3, 3]),
        ("dataset", [4 / 3, 2, 8 / 3, 3]),
        ({"column": "topic"}, [3, 5, 8 / 3, 3]),
    ):
        config = WeightConfig(scheme="group_relative", outcome="reward", baseline=baseline, **ALL)
        result = compute_weights(found, config)
        gap_N = np.array([5, 3, 1, 0]) - expected
        assert result.weights_T == pytest.approx(gap_N - gap_N.mean()) and result.returns_N.tolist() == [5, 3, 1, 0]
    # Returns that are all the same stay so, however the sums were rounded.
    same = outcomes([rated(name, 0.1) for name in "abcdefg"])
    assert set(compute_weights(same, WeightConfig(baseline="dataset")).weights_T) == {1.0}
    with pytest.raises(ConfigError, match="scheme 'swift' leaves every weight 0"):
        compute_weights(same, WeightConfig(scheme="swift", baseline="dataset"))


def test_leaving_one_out_is_as_in_a_loop_and_of_all_others_where_there_is_none(
    rated: Callable[..., Trajectory],
) -> None:
    rng = np.random.default_rng(0)
    returns_N, index_N = rng.normal(size=40), rng.integers(0, 15, 40)
    for at, found in enumerate(baseline_values("leave_one_out", returns_N, index_N, outcomes([rated("a", 1.0)]))):
        others = [r for n, r in enumerate(returns_N) if n != at and index_N[n] == index_N[at]]
        assert found == pytest.approx(np.mean(others or np.delete(returns_N, at)), rel=1e-12)


def test_what_is_expected_of_a_prompt_is_a_ridge_regression_on_other_prompts(rated: Callable[..., Trajectory]) -> None:
    rng = np.random.default_rng(1)
    texts = [" ".join(f"w{word}" for word in rng.integers(0, 30, 6)) for _ in range(60)]
    log = [rated(text, text.count("w1") + rng.normal(0, 0.1), k) for text in texts for k in range(2)]
    found = outcomes(log, words=True)
    index_N, values_N = found.group_index(), found.reward_N
    expected = expected_values(values_N, index_N, found.words)
    bags = np.zeros((len(log), WORDS))
    for row, words in enumerate(found.words.to_pylist()):
        bags[row, words] = 1 / math.sqrt(len(words))
    bags = bags[:, bags.any(axis=0)]
    by_penalty = []
    for penalty in PENALTIES:
        guess = np.empty(len(log))
        for fold in range(FOLDS):
            out = index_N % FOLDS == fold
            mean, level = bags[~out].mean(axis=0), values_N[~out].mean()
            rows = np.vstack([bags[~out] - mean, math.sqrt(penalty) * np.eye(bags.shape[1])])
            slopes = np.linalg.lstsq(rows, np.append(values_N[~out] - level, np.zeros(bags.shape[1])), rcond=None)[0]
            guess[out] = level + (bags[out] - mean) @ slopes
        by_penalty.append(guess)
    best = min(by_penalty, key=lambda guess: ((guess - values_N) ** 2).sum())
    assert expected == pytest.approx(best, abs=1e-9) and np.var(values_N - expected) < 0.8 * np.var(values_N)
    # A conversation's own return, and those of its prompt, change nothing of what is expected of it.
    changed = values_N + np.where(index_N == 0, 100.0, 0.0)
    moved = expected_values(changed, index_N, found.words)[index_N == 0]
    assert any(moved == pytest.approx(guess[index_N == 0]) for guess in [*by_penalty, np.full(len(log), np.nan)]) or (
        np.ptp(moved) == pytest.approx(0)
    )
    with pytest.raises(ConfigError, match="one prompt alone"):
        expected_values(values_N[:2], index_N[:2], found.words.slice(0, 2))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"scheme": "rft", "baseline": "fitted"}, "expected task with the scheme rft"),
        ({"scheme": "star_gate", "baseline": "dataset"}, "expected task with the scheme star_gate"),
        ({"baseline": {"columns": "x"}}, "expected task, leave_one_out, dataset, fitted, or {column: NAME}"),
        ({"outcome": {"reward": "much"}}, "weights.outcome.reward: got 'much', expected a number"),
        ({"outcome": {"reward": 1, "clip": [5, 0]}}, "weights.outcome.clip: got [5, 0], expected two numbers"),
        ({"outcome": {"reward": 1, "normalize": 2}}, "weights.outcome.normalize: got 2, expected true or false"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        WeightConfig(**settings)


def test_with_one_conversation_a_prompt_words_make_up_for_what_others_would_tell() -> None:
    # Two seeds are too few: on one machine awr's baselines came out in this order, and on another not.
    found = [measure(seed, 400) for seed in range(6)]
    mean = {name: float(np.mean([run[name] for run in found])) for name in found[0]}
    for scheme in ("drift", "awr", "swift, negatives unbounded"):
        assert mean[f"{scheme}: K=1 fitted"] > mean[f"{scheme}: K=1 dataset"] > 0.15
        assert mean[f"{scheme}: K=1 fitted"] > 0.8 * mean[f"{scheme}: K=4 task"]
    assert abs(mean["sft: K=1"]) < 0.05


def test_what_a_log_notes_comes_in_and_can_be_named(tmp_path: Path) -> None:
    rows = [
        {
            "messages": [{"role": "user", "content": f"Question {n}?"}, {"role": "assistant", "content": "Yes."}],
            "reward": n,
            "topic": "ab"[n % 2],
            "scores": {"clarity": n * 0.5},
        }
        for n in range(6)
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    columns = {"notes": ["topic", "scores.clarity"]}
    data = drift.read_logs(tmp_path / "log.jsonl", out=tmp_path / "data", columns=columns)
    settings: dict[str, Any] = {"outcome": {"reward": 1, "scores.clarity": 2}, "baseline": {"column": "topic"}, **ALL}
    weights = drift.weigh(data, "group_relative", out=tmp_path / "w", **settings)
    given = {t.turns[0].step.reward: read_weights(weights.path, data.path)[t.id] for t in read_trajectories(data)}
    returns_N = np.arange(6) * 2.0
    gap_N = [r - (returns_N[n % 2 :: 2].sum() - r) / 2 for n, r in enumerate(returns_N)]
    assert [given[n][0] for n in range(6)] == pytest.approx(np.array(gap_N) - np.mean(gap_N))
