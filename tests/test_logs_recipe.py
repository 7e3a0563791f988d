"""A recipe that learns from logged conversations: import, weights, training, a page; measured only where one can be."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import drift
from drift.cli import main
from drift.errors import ConfigError
from drift.manifest import read_manifest
from drift.reporting.console import print_summary

SMALL = ["--max_steps", "4", "--training.batch_size", "8", "--learning_rate", "1e-4"]


def log(path: Path) -> Path:
    """Four answers to each of six sums, of which those near the right one are rated higher."""
    rows = [
        {"messages": [{"role": "user", "content": f"What is {a} + 20?"}, {"role": "assistant", "content": f"{a + by}"}]}
        | {"rating": 5 - abs(20 - by), "ticket": f"{a}-{by}"}
        for a in range(11, 17)
        for by in range(20, 24)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_logs_are_imported_weighed_and_trained_on_by_one_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = log(tmp_path / "log.jsonl"), tmp_path / "run"
    command = ["run", "logs", "--data", str(file), "--data.columns.reward", "rating", "--out", str(out), *SMALL]
    # What can't be read is tried again with other columns.
    assert main([*command, "--data.columns.reward", "stars"]) == 1
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "24 conversations" in printed and "4 steps on 24 rows." in printed and "Nothing was measured" in printed
    recipe = yaml.safe_load((out / "recipe.yaml").read_text())
    assert recipe["environment"] is None
    assert recipe["data"] == {"file": str(file), "format": "auto", "columns": {"reward": "rating"}}
    page = " ".join((out / "report.html").read_text().split())
    assert "log.jsonl, format auto: trajectories 24" in page and "reward (γ 1, λ 0) → swift" in page
    assert "Held-out" not in page and "<h1>drift: run</h1>" in page
    assert read_manifest(out / "rollouts", "trajectories")["spec"]["ids"] == "retokenized"
    # Swift standardises 5, 4, 3 and 2; what is below the mean is bounded.
    weights = drift.Artifact(out / "weights", "weights").to_pandas().sort_values("id")
    for _, found in weights.groupby("group_id")["weights"]:
        first, second, *others = (float(each[0]) for each in found)
        assert (first, second) == pytest.approx((3 / 5**0.5, 1 / 5**0.5)) and max(others) < 0
    # Five per cent of six prompts are none.
    assert not (out / "likelihood").exists()
    stamp = (out / "model" / "model.safetensors").stat().st_mtime_ns
    assert main(command) == 0 and (out / "model" / "model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(ConfigError, match=r"another recipe: data\.columns\.reward"):
        drift.run("logs", data={"file": file, "columns": {"reward": "score"}}, out=out)


def test_prompts_that_were_held_out_are_measured_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = log(tmp_path / "log.jsonl"), tmp_path / "run"
    keys: dict[str, Any] = {"weights.steps": [{"hold_out": 0.4}], "max_steps": 8, "training.batch_size": 8}
    drift.run(
        "logs",
        data={"file": file, "columns": {"reward": "rating"}},
        learning_rate=1e-3,
        out=out,
        dtype="float32",
        **keys,
    )
    held = read_manifest(out / "likelihood", "likelihood")
    assert held["prompts"] in (1, 2, 3, 4) and held["conversations"] == 4 * held["prompts"] == 2 * held["good"]
    rows = {(row["policy"], row["metric"]): row for row in json.loads((out / "likelihood/estimates.json").read_text())}
    base, tuned = (
        {name: rows[policy, f"held_out/nll_{name}"]["value"] for name in ("good", "bad")}
        for policy in ("base", "tuned")
    )
    assert tuned["bad"] - tuned["good"] > base["bad"] - base["good"]
    page = " ".join((out / "report.html").read_text().split())
    assert "Held-out replies of the log" in page and "how good its own replies are is not known" in page
    stamp = (out / "likelihood" / "manifest.json").stat().st_mtime_ns
    drift.report(out)
    assert (out / "likelihood" / "manifest.json").stat().st_mtime_ns == stamp
    print_summary(out)
    assert "held-out conversations" in capsys.readouterr().out


def test_where_there_is_an_environment_too_what_logs_gave_is_measured(tmp_path: Path) -> None:
    data = {"file": log(tmp_path / "log.jsonl"), "columns": {"reward": "rating"}}
    plan: dict[str, Any] = {"max_steps": 2, "training.batch_size": 8, "evaluation.tasks": 6, "evaluation.samples": 0}
    run = drift.run("logs", data=data, environment="arithmetic", max_new_tokens=12, out=tmp_path / "run", **plan)
    assert run is not None
    assert list(run.evaluation.manifest["policies"]) == ["base", "tuned"] and run.kind == "evaluation"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, r"data\.file: got '', expected the file of logged conversations: --data FILE"),
        ({"data": "nowhere.jsonl"}, r"data\.file: got 'nowhere\.jsonl', expected a file"),
        ({"data": {"file": ".", "colums": {}}}, r"unknown setting 'colums' in data\. Did you mean 'columns'"),
        ({"data": {"file": ".", "format": "mesages"}}, r"Did you mean 'messages'"),
        ({"data": {"file": ".", "columns": {"rewrd": "a"}}}, r"Did you mean 'reward'"),
        ({"data": ".", "rounds": 2}, r"rounds: got 2, expected 1 with data"),
        ({"data": ".", "model": "openai-chat:gpt"}, r"model: got 'openai-chat:gpt', expected default, a model folder"),
    ],
)
def test_what_is_wrong_with_logs_is_told_before_anything_is_written(
    keys: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        drift.run("logs", out=tmp_path / "run", **keys)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=r"^(environment: got None|data|rounds|unknown|model)"):
        drift.compare("logs", out=tmp_path / "run", **keys)


def test_a_page_of_conversations_and_weights_alone(tmp_path: Path) -> None:
    data = drift.read_logs(log(tmp_path / "log.jsonl"), columns={"reward": "rating"}, out=tmp_path / "run" / "rollouts")
    drift.weigh(data, "refit", outcome="reward")
    page = Path(drift.report(tmp_path / "run")).read_text()
    assert "Nothing was measured" in page and "trajectories 24" in page and "refit" in page
