import numpy as np
import pytest

from drift.errors import DatasetError
from drift.evaluation.estimates import estimate_all
from drift.evaluation.metrics import runs_of
from drift.types import Completion, Step, Trajectory, Turn

METRICS = {
    *(f"multi@{k}" for k in (1, 2, 3)),
    *(f"accuracy@{t}" for t in (1, 2, 3)),
    *(f"corrected@{t}" for t in (2, 3)),
    "turns_to_success",
    "turns",
    "distinct_answers",
    "format_failures",
    "reply_tokens",
    "reward",
    "repeated_replies",
    "repeated_4grams",
    "looped_4grams",
    "cut_off",
}


def conversation(task, sample, solved_at, *, error=None):
    """Three turns at most, right at ``solved_at`` (0: never)."""
    turns = []
    for t in range(1, (solved_at or 3) + 1):
        success = t == solved_at
        step = Step(messages=(), reward=float(success), done=success, success=success, answer=f"{t}")
        reply = Completion(text="", token_ids=(1, 2, 3, 4), logprobs=None, finish_reason="stop")
        turns.append(Turn(prompt_ids=(0,), completion=reply, step=step))
    return Trajectory(
        id=f"{task}#{sample}",
        task_id=task,
        group_id=task,
        sample=sample,
        policy="p",
        seed=0,
        messages=(),
        turns=tuple(turns),
        stop_reason="success" if solved_at else "turns",
        error=error,
    )


def policy(solved_at_by_prompt, *, samples=1, failed=0):
    """Runs of a policy whose K samples of a prompt all end the same way, and some conversations that failed."""
    made = [
        conversation(f"t{i:04}", k, solved_at)
        for i, solved_at in enumerate(solved_at_by_prompt)
        for k in range(samples)
    ]
    return runs_of([*made, *(conversation("t0000", 100 + n, 1, error="it broke") for n in range(failed))])


def estimates(runs, **changed):
    rows = estimate_all(runs, **{"mode": "greedy", "max_turns": 3, "baseline": next(iter(runs))} | changed)
    return {(row.policy, row.metric): row for row in rows}


def random_policy(prompts, share, seed):
    """Solves each prompt at turn 1 with probability ``share``, else never."""
    return (np.random.default_rng(seed).random(prompts) < share).astype(int)


def test_there_is_one_row_per_policy_and_metric_and_one_per_difference():
    found = estimates({"base": policy([1, 0]), "drift": policy([1, 2]), "sft": policy([0, 0])}, mode="sampled")
    policies = ["base", "drift", "sft", "drift - base", "sft - base"]
    assert set(found) == {(name, f"sampled/{metric}") for name in policies for metric in METRICS}
    assert len(found) == 5 * len(METRICS)


def test_values_match_a_hand_count():
    # base: right at turn 1, turn 3, never; drift: turn 1, turn 2, turn 2.
    found = estimates({"base": policy([1, 3, 0]), "drift": policy([1, 2, 2])})
    assert found["base", "greedy/multi@1"].value == pytest.approx(1 / 3, rel=1e-12)
    assert found["base", "greedy/multi@3"].value == pytest.approx(2 / 3, rel=1e-12)
    assert found["drift", "greedy/multi@3"].value == 1.0
    assert found["drift - base", "greedy/multi@3"].value == pytest.approx(1 / 3, rel=1e-12)
    assert found["drift - base", "greedy/turns"].value == pytest.approx(5 / 3 - 7 / 3, rel=1e-12)
    assert found["drift - base", "greedy/turns_to_success"].value == pytest.approx(5 / 3 - 2, rel=1e-12)


def test_an_interval_has_the_width_of_the_binomial_formula():
    solved = random_policy(500, 0.6, 0)
    row = estimates({"base": policy(solved)})["base", "greedy/multi@1"]
    error = (solved.mean() * (1 - solved.mean()) / 500) ** 0.5
    assert row.low < row.value < row.high
    assert row.high - row.low == pytest.approx(2 * 1.96 * error, rel=0.01)


def test_identical_samples_of_a_prompt_do_not_narrow_the_interval():
    solved = random_policy(60, 0.5, 1)
    one = estimates({"base": policy(solved)})["base", "greedy/multi@1"]
    eight = estimates({"base": policy(solved, samples=8)})["base", "greedy/multi@1"]
    assert (eight.low, eight.high) == pytest.approx((one.low, one.high), rel=1e-12)
    assert (one.trajectories, eight.trajectories) == (60, 480)
    assert one.prompts == eight.prompts == 60


def test_differences_of_correlated_policies_are_narrower_than_unpaired_ones():
    base = random_policy(300, 0.5, 2)
    better = np.maximum(base, random_policy(300, 0.1, 3))
    found = estimates({"base": policy(base), "drift": policy(better)})
    difference = found["drift - base", "greedy/multi@1"]
    assert difference.value == pytest.approx(better.mean() - base.mean(), rel=1e-12)
    width = difference.high - difference.low
    # The closed form of the paired error, and the width that independent policies would have.
    assert width == pytest.approx(2 * 1.96 * (better - base).std() / 300**0.5, rel=0.1)
    alone = [found[name, "greedy/multi@1"] for name in ("base", "drift")]
    unpaired = sum((row.high - row.low) ** 2 for row in alone) ** 0.5
    assert width < 0.5 * unpaired


def test_a_policy_compared_with_itself_differs_by_nothing_and_the_interval_says_how_sure_that_is():
    found = estimates({"base": policy([1, 2, 0, 3] * 5), "copy": policy([1, 2, 0, 3] * 5)})
    for metric in METRICS - {"repeated_4grams", "looped_4grams"}:
        row = found["copy - base", f"greedy/{metric}"]
        assert row.value == 0.0 and row.low == -row.high
        assert (row.high > 0.01) == (metric not in {"turns", "turns_to_success", "reply_tokens"})


def test_a_reward_from_0_to_1_is_a_share_and_any_other_is_not():
    found = estimates({"base": policy([1] * 50)})
    reward, solved = found["base", "greedy/reward"], found["base", "greedy/multi@3"]
    assert (reward.low, reward.high) == (solved.low, 1.0) and 0.88 < solved.low < 0.94
    turns = found["base", "greedy/turns"]
    assert (turns.low, turns.high) == (1.0, 1.0)
    assert estimates({"base": policy([1])})["base", "greedy/turns"].low is None


def test_any_policy_may_be_the_baseline():
    runs = {"a": policy([1, 0, 0]), "b": policy([1, 1, 0])}
    forward = estimates(runs, baseline="a")["b - a", "greedy/multi@1"]
    backward = estimates(runs, baseline="b")["a - b", "greedy/multi@1"]
    assert (backward.value, backward.low, backward.high) == (-forward.value, -forward.high, -forward.low)


def test_different_prompts_are_refused_because_they_can_not_be_paired():
    with pytest.raises(DatasetError, match=r"'drift' and 'base' were evaluated on different tasks \(2 and 3"):
        estimates({"base": policy([1, 0, 1]), "drift": policy([1, 0])})
    other = runs_of([conversation("another", 0, 1), conversation("t0001", 0, 1)])
    with pytest.raises(DatasetError, match="different tasks"):
        estimates({"base": policy([1, 0]), "drift": other})


def test_failed_conversations_are_counted_beside_the_estimate_and_not_in_it():
    found = estimates({"base": policy([1, 0], failed=3)})["base", "greedy/multi@1"]
    assert (found.value, found.trajectories, found.excluded, found.prompts) == (0.5, 2, 3, 2)


def test_a_metric_with_nothing_to_measure_is_none_with_its_interval():
    # Everybody right at once: nothing was corrected, for one policy nor for the difference.
    found = estimates({"base": policy([1, 1, 1]), "drift": policy([1, 1, 2])})
    for name in ("base", "drift - base"):
        row = found[name, "greedy/corrected@3"]
        assert (row.value, row.low, row.high) == (None, None, None)
    assert found["drift", "greedy/corrected@3"].value == 1.0


def test_an_evaluation_in_which_every_conversation_failed_has_no_values_and_is_no_crash():
    runs = runs_of([conversation("a", k, 1, error="it broke") for k in range(4)])
    rows = estimates({"base": runs})
    assert {(row.value, row.low, row.high) for row in rows.values()} == {(None, None, None)}
    assert {(row.prompts, row.trajectories, row.excluded) for row in rows.values()} == {(0, 0, 4)}
