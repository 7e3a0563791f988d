import dataclasses
import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import drift
from drift.api import report
from drift.dataset.store import TrajectoryWriter
from drift.environments.guess import Guess
from drift.errors import ConfigError, DatasetError
from drift.evaluation.config import EvaluationConfig
from drift.evaluation.run import check_unseen, evaluate_policies
from drift.policies.base import Sampling
from drift.reporting.advice import loud_lines, next_steps
from drift.reporting.facts import read_facts, table, verdict
from drift.reporting.meanings import meaning
from drift.reporting.plots import curve
from drift.rollouts.setup import Setup
from drift.types import Trajectory
from drift.weights.table import read_weights

HOSTILE = "</div><script>alert(1)</script><img src=http://evil.example/x>{{ 7*7 }}\u202e\x07<answer>50</answer>"


def evaluation(folder: Path, policies: dict[str, str], samples: int = 2) -> Path:
    config, sampling = EvaluationConfig(tasks=40, samples=samples), Sampling(max_new_tokens=200)
    evaluate_policies(Setup(environment="guess"), policies, config, sampling, folder / "evaluation", seed=1)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real evaluation of two scripted policies; the second guesses differently each time, so it solves more."""
    folder = tmp_path_factory.mktemp("run")
    numbers = "|".join(f"<answer>{n}</answer>" for n in range(1, 100))
    return evaluation(folder, {"base": "scripted:no answer here", "tuned": f"scripted:{HOSTILE}|{numbers}"})


def test_estimates_have_one_row_per_policy_and_metric_and_their_difference(run: Path) -> None:
    rows = json.loads((run / "evaluation" / "estimates.json").read_text())
    names = {(row["policy"], row["metric"]) for row in rows}
    assert len(names) == len(rows)
    for mode in ("greedy", "sampled"):
        for metric in (*(f"multi@{k}" for k in range(1, 6)), "accuracy@1", "corrected@5", "turns", "format_failures"):
            assert {(p, f"{mode}/{metric}") for p in ("base", "tuned", "tuned - base")} <= names
    by = {(row["policy"], row["metric"]): row for row in rows}
    assert by["base", "greedy/format_failures"]["value"] == 1.0
    assert by["base", "sampled/multi@5"]["trajectories"] == 80 and by["base", "sampled/multi@5"]["prompts"] == 40
    assert by["base", "greedy/turns_to_success"]["value"] is None


def test_the_page_needs_nothing_else_and_runs_nothing(run: Path) -> None:
    page = report(run).path.read_text()
    assert "default-src 'none'" in page
    assert not re.findall(r"<(script|iframe|object|link|img)\b", page)
    assert not re.findall(
        r"""(?:src|href)=["']?(?!#)[^"'\s>]+""", re.sub(r"&lt;.*?&gt;", "", page).replace("xlink:", "")
    )


def test_what_models_say_is_shown_as_text(run: Path) -> None:
    page = report(run).path.read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "{{ 7*7 }}" in page


def test_the_page_tells_the_verdict_the_curves_and_the_costs(run: Path) -> None:
    page = report(run, out=run / "other.html").path.read_text()
    facts = read_facts(run)
    assert verdict(facts) in page.replace("&#39;", "'")
    assert page.count("<svg") == 2
    for word in ("multi@5", "corrected@3", "evaluation", "Conversations before and after", "guess"):
        assert word in page


def test_a_curve_has_a_gap_where_nothing_was_measured() -> None:
    with_gap = curve([{"step": 0, "nll": 1.0}, {"step": 10, "nll": None}, {"step": 20, "nll": 0.8}], "nll", "held out")
    assert "held out" in with_gap and with_gap.count("<use") > curve([{"step": 0, "nll": 1.0}], "nll", "x").count(
        "<use"
    )


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.01, 0.2, "is better than"), (-0.2, -0.01, "is worse than"), (-0.1, 0.2, "can't be told apart from")],
)
def test_a_winner_is_named_only_where_the_interval_says_so(run: Path, low: float, high: float, words: str) -> None:
    facts = read_facts(run)
    rows: dict[Any, Any] = {key: dict(row) for key, row in facts.rows.items()}
    rows["tuned - base", "greedy/multi@5"] |= {"value": (low + high) / 2, "low": low, "high": high}
    object.__setattr__(facts, "rows", rows)
    assert f"tuned {words} base" in verdict(facts)


def test_percent_and_plain_metrics_are_told_apart(run: Path) -> None:
    cells = {row["metric"]: row["cells"] for row in table(read_facts(run), "greedy")}
    assert cells["format failures %"][0][0] == "100.0"
    assert cells["turns"][0] == ("5.0", "5.0 to 5.0")
    assert cells["turns to success"][0] == ("n/a", "")
    main = [row["metric"] for row in table(read_facts(run), "greedy") if row["main"]]
    ends = ["corrected@5 %", "turns to success", "distinct answers %", "format failures %"]
    assert main == [*(f"multi@{k} %" for k in range(1, 6)), *ends, "floor@5 %", "above floor@5 %"]


def test_the_floor_of_guessing_stands_in_table_and_plot(run: Path) -> None:
    cells = {row["metric"]: row for row in table(read_facts(run), "greedy")}
    # Twenty numbers to choose from: a share of k/20 within k turns, without an interval, the same for both.
    assert [cells[f"floor@{k} %"]["cells"][0][0] for k in (1, 2, 5)] == ["5.0", "10.0", "25.0"]
    assert cells["floor@5 %"]["difference"] is None and cells["above floor@5 %"]["difference"] is not None
    page = report(run).path.read_text()
    assert page.count("<!-- guessing -->") == 2
    assert re.search(
        r"floor@5 %<small>[^<]*</small></td>(<td>25\.0<small>25\.0 to 25\.0</small></td>){2}<td></td></tr>", page
    )


def test_one_policy_alone_gets_a_report_too(tmp_path: Path) -> None:
    folder = evaluation(tmp_path, {"only": "scripted:<answer>50</answer>"}, samples=0)
    assert "only solves" in report(folder).path.read_text()


def test_a_run_without_an_evaluation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"without manifest\.json"):
        report(tmp_path)


def test_damaged_estimates_are_refused(tmp_path: Path) -> None:
    folder = evaluation(tmp_path, {"only": "scripted:<answer>50</answer>"}, samples=0)
    (folder / "evaluation" / "estimates.json").write_text("[")
    with pytest.raises(DatasetError, match=r"estimates\.json can't be read"):
        report(folder)


def test_tasks_that_were_trained_on_are_not_measured_on(run: Path) -> None:
    tasks = Guess().tasks("test", 10, 1)
    with pytest.raises(ConfigError, match="10 of 10 evaluation tasks were also rolled out"):
        check_unseen(tasks, run / "evaluation" / "greedy" / "base")
    check_unseen(Guess().tasks("train", 10, 1), run / "evaluation" / "greedy" / "base")
    with pytest.raises(DatasetError, match="nothing there, expected trajectories"):
        check_unseen(tasks, run / "nowhere")


def test_every_metric_has_a_meaning_in_a_line(run: Path) -> None:
    facts = read_facts(run)
    names = {name.partition("/")[2] for _, name in facts.rows}
    assert len(names) > 20 and all(meaning(name) for name in names) and meaning("house_metric") == ""
    assert meaning("multi@5") == "solved within 5 turns" and meaning("multi@1") == "solved within 1 turn"
    page = report(run).path.read_text()
    assert all(row["meaning"] in html.unescape(page) for row in table(facts, "sampled"))


def write_rollouts(folder: Path, made: list[Trajectory]) -> Path:
    spec = {"tasks": 2, "samples": 3, "sampling": {"temperature": 1.0}, "trajectories": len(made)}
    with TrajectoryWriter(folder / "rollouts", spec, []) as writer:
        for trajectory in made:
            writer.append(trajectory)
        writer.finish({"replies": {"length": 3, "stop": 3}})
    return folder


def test_a_run_that_was_never_measured_has_a_page_that_says_so_aloud(
    tmp_path: Path, make_trajectory: Callable[..., Trajectory]
) -> None:
    wrong = [make_trajectory(task, k, (str(k),)) for task in "ab" for k in range(3)]
    failed = write_rollouts(tmp_path / "failed", wrong)
    page = html.unescape(report(failed).path.read_text())
    assert "Nothing was measured" in page
    assert [line[:17] for line in re.findall(r'class="loud">([^<]*)<', page)] == ["NOTHING SUCCEEDED"]
    advice = next_steps(read_facts(failed))
    assert advice[0].startswith("50% of the replies ran out of tokens") and "drift weigh" in advice[1]
    all_solved = [make_trajectory(task, k, (str(k),), solved=task == "a") for task in "ab" for k in range(3)]
    unmixed = write_rollouts(tmp_path / "unmixed", all_solved)
    assert [line[:18] for line in loud_lines(read_facts(unmixed))] == ["NO PROMPT IS MIXED"]


def test_rollouts_are_shown_with_the_weights_that_were_trained(
    tmp_path: Path, make_trajectory: Callable[..., Trajectory]
) -> None:
    made = [make_trajectory(task, k, ("7", "8"), solved=k < 2) for task in "ab" for k in range(5)]
    run = write_rollouts(tmp_path, made)
    drift.weigh(run / "rollouts", "swift", out=run / "weights")
    facts = read_facts(run)
    weights = read_weights(run / "weights", run / "rollouts")
    assert len(facts.trained) == 8 and not loud_lines(facts)
    for shown in facts.trained:
        assert [said.weight for said in shown.said if said.weight is not None] == list(weights[shown.id])
    page = report(run).path.read_text()
    given = [float(found) for found in re.findall(r"<b>assistant, weight ([-\d.]+)</b>", page)]
    assert given == [float(f"{w:.4g}") for shown in facts.trained for w in weights[shown.id]]


@pytest.mark.parametrize(
    ("value", "low", "high", "words"),
    [
        (0.5, -0.3, -0.1, "got worse"),
        (0.5, -0.1, 0.3, "± 20 points on 40 tasks"),
        (0.97, 0.1, 0.3, "97.0 %: harder"),
        (0.6, 0.1, 0.3, "rounds: 2"),
    ],
)
def test_what_to_try_next_goes_by_the_figures(run: Path, value: float, low: float, high: float, words: str) -> None:
    facts = read_facts(run)
    rows: dict[Any, Any] = {key: dict(row) for key, row in facts.rows.items()}
    rows["tuned", "greedy/multi@5"] |= {"value": value}
    rows["tuned", "greedy/format_failures"] |= {"value": 0.3}
    rows["tuned - base", "greedy/multi@5"] |= {"value": (low + high) / 2, "low": low, "high": high}
    falling = [{"step": n, "loss": 1 - n / 10} for n in range(6)]
    advice = next_steps(dataclasses.replace(facts, rows=rows, curve=falling))
    assert "30% of tuned's replies" in advice[0] and "raise training.max_steps" in advice[1] and words in advice[2]
    risen = [{"step": n, "nll": abs(n - 3.0)} for n in range(6)]
    advice = next_steps(dataclasses.replace(facts, rows=rows, curve=falling, held_out=risen))
    assert "lowest at step 3" in advice[1] and not any("max_steps" in line for line in advice)
    flat = next_steps(dataclasses.replace(facts, curve=[{"step": n, "loss": 2.0**-n} for n in range(20)]))
    assert not any("max_steps" in line for line in flat)
