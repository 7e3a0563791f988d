import json
from collections.abc import Callable
from pathlib import Path

import pytest

from drift.api import report
from drift.dataset.store import read_trajectories
from drift.errors import EnvironmentFault
from drift.evaluation.config import EvaluationConfig
from drift.evaluation.run import evaluate_policies, on_common_prompts
from drift.policies.base import Sampling
from drift.reporting.facts import read_facts, table
from drift.rollouts.setup import Setup
from drift.types import Trajectory

POLICIES = {
    "base": "scripted:<answer>A</answer>|<answer>B</answer>|hm",
    "tuned": "scripted:<answer>B</answer>|<answer>A</answer>|Because.",
}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    def write(name: str, start: int) -> str:
        rows = [
            {
                "question": f"Which is number {n}?",
                "choices": {"text": ["oak", "iron", "ice"], "label": list("ABC")},
                "answerKey": "AB"[n % 2],
            }
            for n in range(start, start + 40)
        ]
        path = tmp_path / name
        path.write_text("\n".join(map(json.dumps, rows)))
        return str(path)

    return {"train_file": write("train.jsonl", 0), "test_file": write("test.jsonl", 40)}


def evaluated(files: dict[str, str], judge: dict, out: Path) -> dict:
    setup = Setup(environment={"name": "reasoning", **files, "judge": judge})
    config = EvaluationConfig(tasks=40, samples=1)
    evaluate_policies(setup, POLICIES, config, Sampling(max_new_tokens=64), out, seed=1)
    rows = json.loads((out / "estimates.json").read_text())
    return {(row["policy"], row["metric"]): row for row in rows}


def test_what_a_judge_can_not_score_is_left_out_for_all_policies_and_counted(files: dict, tmp_path: Path) -> None:
    judge = {"policy": "scripted:<score>8</score>|<score>2</score>|hm", "sampling": {"temperature": 1.0}}
    out = tmp_path / "evaluation"
    found = evaluated(files, {**judge, "rubric": "Right?", "retries": 0}, out)
    for mode in ("greedy", "sampled"):
        held = {name: read_trajectories(out / mode / name) for name in POLICIES}
        good = {name: {t.task_id: t for t in of if t.error is None} for name, of in held.items()}
        common = good["base"].keys() & good["tuned"].keys()
        assert 0 < len(common) < min(map(len, good.values()))
        for name, of in good.items():
            row = found[name, f"{mode}/reward"]
            rewards = [of[task].turns[-1].step.reward for task in common]
            assert row["value"] == pytest.approx(sum(rewards) / len(rewards), rel=1e-12)
            assert (row["prompts"], row["trajectories"], row["excluded"]) == (
                len(common),
                len(common),
                40 - len(common),
            )
            solved = [of[task].success for task in common]
            assert found[name, f"{mode}/multi@3"]["value"] == pytest.approx(sum(solved) / len(solved), rel=1e-12)
        difference = found["tuned - base", f"{mode}/reward"]
        values = [found[name, f"{mode}/reward"]["value"] for name in ("tuned", "base")]
        assert difference["value"] == pytest.approx(values[0] - values[1], abs=1e-12)


def test_a_report_of_conversations_that_are_asked_for_an_answer_once(files: dict, tmp_path: Path) -> None:
    found = evaluated(files, {"policy": "scripted:<score>6</score>"}, tmp_path / "evaluation")
    for k in (1, 2):
        assert found["base", f"greedy/multi@{k}"]["value"] is None
        assert found["base", f"greedy/accuracy@{k}"]["value"] is None
    assert found["base", "greedy/multi@3"]["value"] == 0.5
    page = report(tmp_path).path.read_text()
    assert "multi@3" in page and "reward × 100" in page
    rows = {row["metric"]: row for row in table(read_facts(tmp_path), "greedy")}
    assert rows["reward × 100"]["main"] and rows["reward × 100"]["cells"][0][0] == "60.0"
    assert rows["multi@1 %"]["cells"] == [("n/a", ""), ("n/a", "")]


def test_a_judge_that_never_scores_fails_the_evaluation_with_its_counts(files: dict, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match=r"every conversation failed.*judge_no_score 40"):
        evaluated(files, {"policy": "scripted:hm", "retries": 0, "rubric": "Right?"}, tmp_path)


def test_policies_without_one_task_in_common_can_not_be_compared(make_trajectory: Callable[..., Trajectory]) -> None:
    held = {
        "base": [make_trajectory("a"), make_trajectory("b", error="no score")],
        "tuned": [make_trajectory("a", error="no score"), make_trajectory("b")],
    }
    with pytest.raises(EnvironmentFault, match=r"no task on which every policy \(base, tuned\)"):
        on_common_prompts(held)
