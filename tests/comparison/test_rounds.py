from dataclasses import replace
from pathlib import Path

import pytest

from drift.evaluation.config import EvaluationConfig
from drift.manifest import read_manifest
from drift.pipeline import run_recipe
from drift.policies.base import Sampling
from drift.recipe import Recipe
from drift.reporting.facts import costs, read_facts
from drift.rollouts.config import RolloutConfig
from drift.training.config import TrainingConfig
from drift.weights.config import WeightConfig


@pytest.mark.slow
def test_a_recipe_of_two_rounds_goes_on_and_its_report_counts_both(tmp_path: Path) -> None:
    recipe = Recipe(
        rounds=2,
        sampling=Sampling(max_new_tokens=16),
        rollouts=RolloutConfig(tasks=8, samples=4),
        weights=WeightConfig(scheme="sft"),
        training=TrainingConfig(max_steps=5, batch_size=8, learning_rate=1e-3, arguments={"logging_steps": 1}),
        evaluation=EvaluationConfig(tasks=8, samples=0),
    )
    run_recipe(recipe, tmp_path)
    rounds = [tmp_path / "round-1", tmp_path / "round-2"]
    models = [read_manifest(folder / "model", "model") for folder in rounds]
    rollouts = [
        read_manifest(tmp_path / "rollouts", "trajectories"),
        read_manifest(rounds[1] / "rollouts", "trajectories"),
    ]
    assert [model["steps"] for model in models] == [3, 2]
    # Each round trains the model that sampled its rollouts.
    assert [m["spec"]["model"] for m in models] == [r["spec"]["policy"] for r in rollouts]
    assert models[0]["spec"]["model"] != models[1]["spec"]["model"]
    tuned = read_manifest(tmp_path / "evaluation/greedy/tuned", "trajectories")["spec"]["policy"]
    assert tuned not in [model["spec"]["model"] for model in models]

    facts = read_facts(tmp_path)
    shown = {row["stage"]: row["tokens"] for row in costs(facts)}
    for number, (model, held) in enumerate(zip(models, rollouts, strict=True), 1):
        assert shown[f"rollouts, round {number}"] == f"{held['cost']['tokens_sampled']:,} sampled"
        assert shown[f"training, round {number}"] == f"{model['cost']['tokens_trained']:,} trained"
    assert facts.curve and facts.model == models[1]

    # Run again nothing changes; with one round it is another recipe.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    run_recipe(recipe, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == before
    single = tmp_path / "one"
    run_recipe(replace(recipe, rounds=1, training=replace(recipe.training, max_steps=2)), single)
    assert (single / "model" / "config.json").is_file() and not (single / "round-1").exists()
