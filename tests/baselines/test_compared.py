from pathlib import Path

import pytest

from drift.comparison import Comparison, run_comparison
from drift.comparison.methods import find_methods
from drift.evaluation.config import EvaluationConfig
from drift.manifest import read_manifest
from drift.policies.base import Sampling
from drift.recipe import Recipe
from drift.reporting.comparison import read_comparison
from drift.rollouts.config import RolloutConfig
from drift.training.config import TrainingConfig

pytestmark = [pytest.mark.trl, pytest.mark.timeout(600)]


def test_methods_of_trl_stand_beside_weightings(tmp_path: Path) -> None:
    recipe = Recipe(
        sampling=Sampling(max_new_tokens=16),
        rollouts=RolloutConfig(tasks=16, samples=4),
        training=TrainingConfig(max_steps=3, batch_size=8, learning_rate=1e-3),
        evaluation=EvaluationConfig(tasks=12, samples=0),
    )
    methods = find_methods(["sft", "dpo", "kto", "grpo"], {})
    run_comparison(Comparison(recipe=recipe, methods=methods, seeds=(1,)), tmp_path)
    found = read_comparison(tmp_path)
    assert found.values["failed"] == {} and {"dpo", "kto", "grpo"} <= set(found.methods)
    folder = tmp_path / "seed-1"
    rollouts = read_manifest(folder / "rollouts", "trajectories")
    models = {name: read_manifest(folder / f"methods/{name}/model", "model") for name in methods}
    for name in ("dpo", "kto"):
        assert models[name]["spec"]["dataset_hash"] == rollouts["dataset_hash"]
    assert {model["spec"]["base"] for model in models.values()} == {rollouts["spec"]["policy"]}
    # Online training has a step for each round of 16 × 4, of which 64 rollouts are one.
    assert {name: model["steps"] for name, model in models.items()} == {"sft": 3, "dpo": 3, "kto": 3, "grpo": 1}
    costs = found.values["costs"]
    # Online learns from conversations of its own; the others from the shared ones.
    assert costs["grpo"]["tokens_generated"] == models["grpo"]["cost"]["tokens_sampled"]
    assert costs["dpo"]["tokens_generated"] == costs["sft"]["tokens_generated"] == rollouts["cost"]["tokens_sampled"]
    assert all(costs[name]["tokens_trained"] > 0 for name in methods)

    before = {path: path.stat().st_mtime_ns for path in (folder / "methods").rglob("*") if path.is_file()}
    run_comparison(Comparison(recipe=recipe, methods=methods, seeds=(1,)), tmp_path)
    assert {path: path.stat().st_mtime_ns for path in before} == before
