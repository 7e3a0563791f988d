import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from drift.api import report
from drift.cli import main
from drift.dataset.store import read_trajectories
from drift.environments.arithmetic import Arithmetic
from drift.errors import ConfigError, EnvironmentFault
from drift.evaluation.config import EvaluationConfig
from drift.evaluation.divergences import measure_divergence
from drift.evaluation.run import evaluate_policies
from drift.manifest import read_manifest
from drift.policies.base import DEFAULT_MODEL, Sampling
from drift.reporting.facts import read_facts, table
from drift.rollouts.setup import Setup
from drift.types import Trajectory
from drift.verifiers.judge import CRITERIA

SCORES = "".join(f"<{name}>{at + 3}</{name}>" for at, name in enumerate(CRITERIA))
SHORT = Sampling(max_new_tokens=8)
SCRIPTED = {"base": "scripted:<answer>1</answer>|<answer>22</answer>", "tuned": "scripted:<answer>33</answer>|hm"}


def evaluated(out: Path, policies: dict[str, str], max_turns: int = 5, **changes) -> dict:
    sampling = changes.pop("sampling", Sampling(max_new_tokens=16))
    config = EvaluationConfig(**{"tasks": 12, "samples": 2, **changes})
    setup = Setup(environment={"name": "arithmetic", "max_turns": max_turns})
    evaluate_policies(setup, policies, config, sampling, out, seed=1)
    return {(row["policy"], row["metric"]): row for row in json.loads((out / "estimates.json").read_text())}


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default policy with a little noise on its weights."""
    folder = tmp_path_factory.mktemp("noisy")
    shutil.copytree(DEFAULT_MODEL, folder, dirs_exist_ok=True)
    model = AutoModelForCausalLM.from_pretrained(DEFAULT_MODEL, dtype=torch.float32)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.004 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def measured(noisy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    out = tmp_path_factory.mktemp("run") / "evaluation"
    policies = {"base": "default", "tuned": str(noisy), "copy": "default"}
    return evaluated(out, policies, max_turns=2, sampling=SHORT, kl=20), out


def naive_kl(first: Any, second: Any, trajectory: Trajectory) -> tuple[float, int]:
    """Nats of a conversation, and its tokens, one prefix at a time."""
    total, tokens = 0.0, 0
    for turn in trajectory.turns:
        for at in range(len(turn.completion.token_ids)):
            prefix = torch.tensor([[*turn.prompt_ids, *turn.completion.token_ids[:at]]])
            with torch.no_grad():
                p, q = (torch.log_softmax(model(input_ids=prefix).logits[0, -1], -1) for model in (first, second))
            total += float((p.exp() * (p - q)).sum())
            tokens += 1
    return total, tokens


@pytest.fixture(scope="module")
def looped(measured: tuple[dict, Path], noisy: Path) -> dict[str, list[tuple[Trajectory, float, int]]]:
    """Every conversation with what the loop finds, by metric."""
    base, tuned = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64).eval() for path in (DEFAULT_MODEL, noisy)
    )
    return {
        metric: [(t, *naive_kl(first, second, t)) for t in read_trajectories(measured[1] / "sampled" / policy)]
        for metric, policy, first, second in (
            ("kl_base_tuned", "base", base, tuned),
            ("kl_tuned_base", "tuned", tuned, base),
        )
    }


@pytest.mark.slow
def test_both_divergences_are_those_of_a_loop_over_prefixes(measured: tuple[dict, Path], looped: dict) -> None:
    rows, _ = measured
    for metric, held in looped.items():
        # Twenty of 24 conversations: the first of each task, and the second of eight of them.
        row = rows["tuned", f"sampled/{metric}"]
        assert (row["prompts"], row["trajectories"]) == (12, 20)
        firsts, seconds = (sum(nats for t, nats, _ in held if t.sample == sample) / 12 for sample in (0, 1))
        # What is in the estimate beside the first ones is eight of the twelve second ones.
        low, high = (12 * firsts + 0) / 20, (12 * firsts + 12 * seconds) / 20
        assert low < row["value"] < high and row["value"] == pytest.approx((firsts + seconds) / 2, rel=0.25)
        assert row["low"] <= row["value"] <= row["high"]
    for metric in ("kl_base_tuned", "kl_tuned_base", "kl_base_tuned_per_token"):
        assert rows["copy", f"sampled/{metric}"]["value"] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.slow
def test_all_conversations_match_the_loop_exactly(measured: tuple[dict, Path], noisy: Path, looped: dict) -> None:
    held = {name: read_trajectories(measured[1] / "sampled" / name) for name in ("base", "tuned")}
    found, facts = measure_divergence(
        held, {"base": str(DEFAULT_MODEL), "tuned": str(noisy)}, EvaluationConfig(kl=99), dtype="float32", device="cpu"
    )
    assert facts["conversations"] == {"base": 24, "tuned": 24}
    for metric, each in looped.items():
        nats, tokens = sum(nats for _, nats, _ in each), sum(tokens for *_, tokens in each)
        for name, expected in ((metric, nats / len(each)), (f"{metric}_per_token", nats / tokens)):
            ratio = found[0].ratios[name]
            assert ratio.numerator_P.sum() / ratio.denominator_P.sum() == pytest.approx(expected, rel=1e-3)


def test_the_divergence_is_shown_without_a_row_of_the_base(measured: tuple[dict, Path]) -> None:
    run = measured[1].parent
    shown = {row["metric"]: row for row in table(read_facts(run), "sampled")}
    row = shown["kl base tuned"]
    assert row["main"] and row["cells"][0] == ("", "") and float(row["cells"][1][0]) > 0
    assert "kl base tuned" in report(run).path.read_text()
    assert read_manifest(measured[1], "evaluation")["quality"]["kl"]["conversations"]["base"] == 20


@pytest.mark.parametrize(
    ("policies", "changes", "message"),
    [
        ({"base": "default"}, {}, "0 with one policy alone"),
        ({"base": "default", "tuned": "scripted:hm"}, {}, "'tuned' is 'scripted:hm', whose probabilities"),
        ({"base": "default", "tuned": "default"}, {"samples": 0}, "evaluation.samples"),
        ({"base": "default", "tuned": "default"}, {"sampling": Sampling(temperature=0.7)}, "temperature 0.7"),
    ],
)
def test_a_divergence_that_can_not_be_had_is_refused_before_anything_is_sampled(
    tmp_path: Path, policies: dict, changes: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluated(tmp_path, policies, kl=5, **changes)
    assert not list(tmp_path.iterdir())


def test_models_of_other_vocabularies_are_not_compared(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="different vocabularies"):
        evaluated(tmp_path, {"base": "default", "tuned": str(tiny_model)}, tasks=2, kl=2)


def judge(reply: str, **more) -> dict:
    return {"policy": f"scripted:{reply}", "retries": 0, **more}


def scores_of(out: Path, policy: str) -> dict[str, dict]:
    rows = map(json.loads, (out / "judge" / f"{policy}.jsonl").read_text().splitlines())
    return {row["id"]: row for row in rows}


def test_six_scores_of_each_policy_and_their_differences(tmp_path: Path) -> None:
    # The scripted judge's reply hangs on the seed, which is that of the text: some texts get an 8, some a 2.
    sampled = {"sampling": {"temperature": 1.0}}
    texts = f"{SCORES}<score>8</score>|{SCORES}<score>2</score>"
    rows = evaluated(tmp_path, SCRIPTED, judge=judge(texts, **sampled))
    found = {name: scores_of(tmp_path, name) for name in SCRIPTED}
    for name in SCRIPTED:
        assert len(found[name]) == 12
        for at, criterion in enumerate(CRITERIA):
            assert rows[name, f"greedy/judge_{criterion}"]["value"] == at + 3
        overall = np.mean([row["scores"]["overall"] for row in found[name].values()])
        assert rows[name, "greedy/judge_overall"]["value"] == pytest.approx(overall, rel=1e-12) and 2 < overall < 8
    change = rows["tuned - base", "greedy/judge_overall"]
    values = [rows[name, "greedy/judge_overall"]["value"] for name in ("tuned", "base")]
    assert change["value"] == pytest.approx(values[0] - values[1], abs=1e-12)
    assert change["low"] < change["value"] < change["high"]
    told = read_manifest(tmp_path, "evaluation")["quality"]["judge"]
    assert (told["tasks"], told["scored"], told["counts"]["calls"]) == (12, 12, 24)
    shown = {row["metric"]: row for row in table(read_facts(tmp_path), "greedy")}
    assert shown["judge accuracy"]["main"] and shown["judge accuracy"]["cells"][0][0] == "3.0"


def test_what_one_policy_has_no_score_for_counts_for_none(tmp_path: Path) -> None:
    sampled = {"sampling": {"temperature": 1.0}}
    texts = f"{SCORES}<score>8</score>|hm|<pedagogy>1</pedagogy><score>4</score>"
    rows = evaluated(tmp_path, SCRIPTED, tasks=40, judge=judge(texts, **sampled))
    kept = defaultdict(list)
    base, tuned = (scores_of(tmp_path, name) for name in SCRIPTED)
    for name in base:
        for criterion in (*CRITERIA, "overall"):
            both = [found[name]["scores"].get(criterion) for found in (base, tuned)]
            if None not in both:
                kept[criterion].append(both)
    assert 0 < len(kept["accuracy"]) < len(kept["pedagogy"]) < 40
    for criterion, both in kept.items():
        for at, name in enumerate(SCRIPTED):
            row = rows[name, f"greedy/judge_{criterion}"]
            assert row["value"] == pytest.approx(np.mean([pair[at] for pair in both]), rel=1e-12)
            assert row["prompts"] == len(both)
    told = read_manifest(tmp_path, "evaluation")["quality"]["judge"]
    assert told["scored"] == len(kept["overall"]) and told["counts"]["unscored"] > 0


def test_a_conversation_is_graded_once_by_the_same_judge(tmp_path: Path) -> None:
    grading = judge("<score>8</score>", tasks=5)
    first = evaluated(tmp_path, SCRIPTED, judge=grading)
    before = {name: (tmp_path / "judge" / f"{name}.jsonl").read_bytes() for name in SCRIPTED}
    again = evaluated(tmp_path, SCRIPTED, judge=grading)
    assert first == again
    assert before == {name: (tmp_path / "judge" / f"{name}.jsonl").read_bytes() for name in SCRIPTED}
    assert read_manifest(tmp_path, "evaluation")["quality"]["judge"]["counts"].get("calls", 0) == 0
    # Another rubric is another question; a damaged file is judged anew.
    other = judge("<score>3</score>", rubric="Is it short?", tasks=5)
    assert evaluated(tmp_path, SCRIPTED, judge=other)["base", "greedy/judge_overall"]["value"] == 3
    (tmp_path / "judge" / "base.jsonl").write_text('{"key": ')
    evaluated(tmp_path, SCRIPTED, judge=other)
    assert read_manifest(tmp_path, "evaluation")["quality"]["judge"]["counts"]["calls"] == 5


def test_the_judge_is_told_the_right_answer(tmp_path: Path) -> None:
    task = Arithmetic().tasks("test", 1, 1)[0]
    assert Arithmetic().reference(task) == str(task.payload["answer"])


def test_a_judge_that_never_scores_says_so(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match=r"scored no task for every policy \(calls 24, no_score 24, unscored 24"):
        evaluated(tmp_path, SCRIPTED, judge=judge("hm"))
    with pytest.raises(ConfigError, match="overall"):
        evaluated(tmp_path, SCRIPTED, judge=judge("hm", criteria=["overall"]))


def test_an_evaluation_without_them_is_as_it_was(tmp_path: Path) -> None:
    rows = evaluated(tmp_path, SCRIPTED)
    assert not [name for _, name in rows if "kl_" in name or "judge_" in name]
    assert "quality" not in read_manifest(tmp_path, "evaluation") and not (tmp_path / "judge").exists()


def test_the_command_line_takes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["evaluate", "arithmetic", "--out", str(tmp_path), "--tasks", "3", "--samples", "1"]
    line += ["--models", "{base: default, copy: default}", "--max_new_tokens", "16"]
    line += ["--kl", "3", "--judge.policy", "scripted:<score>6</score>"]
    assert main(line) == 0
    assert "kl base tuned" in capsys.readouterr().out
    rows = {(row["policy"], row["metric"]): row for row in json.loads((tmp_path / "estimates.json").read_text())}
    assert rows["copy", "greedy/judge_overall"]["value"] == 6
    assert rows["copy", "sampled/kl_tuned_base"]["value"] == pytest.approx(0, abs=1e-9)
