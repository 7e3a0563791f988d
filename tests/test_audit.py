"""A real run directory, damaged in one place at a time."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from drift.audit import Finding, audit, remove_incomplete
from drift.cli import main
from drift.dataset.store import shards
from drift.errors import DatasetError, PolicyError
from drift.evaluation.config import EvaluationConfig
from drift.manifest import read_manifest
from drift.pipeline import run_recipe
from drift.policies.base import Sampling
from drift.policies.hf import load_model
from drift.recipe import Recipe
from drift.rollouts.config import RolloutConfig
from drift.training.checkpoints import whole_checkpoint
from drift.training.config import TrainingConfig

RECIPE = Recipe(
    environment={"name": "arithmetic", "max_turns": 2},
    sampling=Sampling(max_new_tokens=16),
    rollouts=RolloutConfig(tasks=6, samples=4),
    training=TrainingConfig(max_steps=4, batch_size=8, save_steps=2, learning_rate=1e-4),
    evaluation=EvaluationConfig(tasks=4, samples=0),
)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def wrong(run: Path, findings: list[Finding] | None = None) -> list[tuple[str, str, str]]:
    found = [finding for finding in findings or audit(run) if finding.state != "ok"]
    return [(finding.path.relative_to(run).as_posix(), finding.state, finding.detail) for finding in found]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_finished_run_is_in_order_and_every_stage_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert wrong(run) == []
    assert main(["check", str(run)]) == 0
    out = capsys.readouterr().out
    for stage in ("rollouts: trajectories: 24", "weights: weights: 24", "model: model: 4 steps", "evaluation: "):
        assert stage in out
    with pytest.raises(DatasetError, match=r"no manifest\.json in it or below"):
        audit(run / "model" / "checkpoints")


def edit(name: str, change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    def apply(run: Path) -> None:
        path = run / name / "manifest.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return apply


def other_settings(run: Path) -> None:
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["weights"]["beta"] = 0.7
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def other_data(run: Path) -> None:
    shutil.rmtree(run / "rollouts")
    shutil.copytree(run / "evaluation/greedy/base", run / "rollouts")


def twice(run: Path) -> None:
    shard = shards(run / "rollouts")[0]
    shutil.copy(shard, shard.with_name("000009.parquet"))


DAMAGE: list[tuple[Callable[[Path], object], str, str, str]] = [
    (lambda run: flip(shards(run / "rollouts")[0]), "rollouts/shards/000000-", "damaged", "Delete it if you have no"),
    (lambda run: flip(run / "weights" / "weights.parquet"), "weights", "damaged", "its checksum is"),
    (lambda run: flip(run / "model" / "model.safetensors"), "model", "damaged", "model.safetensors has the checksum"),
    (
        lambda run: flip(run / "model/checkpoints/checkpoint-4/optimizer.pt"),
        "model/checkpoints/checkpoint-4",
        "damaged",
        "Training passes it over",
    ),
    (lambda run: shards(run / "rollouts")[0].unlink(), "rollouts", "damaged", "a shard is missing"),
    (twice, "rollouts", "damaged", ""),
    (lambda run: (run / "evaluation/estimates.json").write_text("{"), "evaluation/estimates.json", "damaged", "again"),
    (lambda run: (run / "weights/manifest.json").write_text("{"), "weights/manifest.json", "damaged", ""),
    (edit("model", lambda m: m.update(schema_version=99)), "model/manifest.json", "damaged", "schema version 99"),
    (edit("rollouts", lambda m: m.update(dataset_hash="0" * 64)), "rollouts", "damaged", "the manifest says 0000"),
    (edit("rollouts", lambda m: m.update(complete=False)), "rollouts", "unfinished", "of 24 trajectories"),
    (edit("weights", lambda m: m.update(weights_hash="1" * 64)), "weights", "damaged", "the manifest says 1111"),
    (edit("weights", lambda m: m.pop("weights_hash")), "weights", "damaged", "lacks or spoils 'weights_hash'"),
    (edit("weights", lambda m: m.update(dataset_hash="2")), "weights", "damaged", "was changed after it was written"),
    (other_data, "weights", "mismatch", "its data is not what it was made of"),
    (other_data, "model", "mismatch", "its data is not what it was made of"),
    (lambda run: (run / "rollouts/tasks.jsonl").write_text(""), "rollouts/tasks.jsonl", "damaged", "not the tasks"),
    (other_settings, "weights", "mismatch", "beta: None -> 0.7"),
]


@pytest.mark.parametrize(("damage", "path", "state", "detail"), DAMAGE)
def test_each_kind_of_damage_is_found_where_it_is(
    run: Path, damage: Callable[[Path], object], path: str, state: str, detail: str
) -> None:
    damage(run)
    findings = audit(run)
    found = wrong(run, findings)
    assert [row for row in found if row[0].startswith(path) and row[1] == state and detail in row[2]], found
    # Nothing of this is provably incomplete.
    before = sorted(run.rglob("*"))
    assert remove_incomplete(findings) == [] and sorted(run.rglob("*")) == before
    assert main(["check", str(run), "--repair", "true"]) == 1


def test_what_is_incomplete_is_removed_and_the_same_command_makes_it_again(
    finished: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = shards(run / "rollouts")[0]
    shard.write_bytes(shard.read_bytes()[:200])
    (run / "weights" / f".weights.parquet.{16 * '0'}.tmp").write_bytes(b"half")
    (run / "model" / "checkpoints" / "unfinished").mkdir()
    assert main(["check", str(run)]) == 1
    assert "Run the same with --repair to" in capsys.readouterr().out
    assert main(["check", "--repair", str(run)]) == 1, "a shard is still missing"
    assert capsys.readouterr().out.count("removed    ") == 3
    run_recipe(RECIPE, run)
    assert wrong(run) == []
    assert (
        read_manifest(run / "rollouts", "trajectories")["dataset_hash"]
        == (read_manifest(finished / "rollouts", "trajectories")["dataset_hash"])
    )


def test_a_damaged_model_is_not_loaded_and_a_damaged_checkpoint_not_gone_on_from(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(run / "model" / "model.safetensors")
    with pytest.raises(PolicyError, match=r"is damaged: model\.safetensors has the checksum"):
        load_model(str(run / "model"))
    newest = run / "model/checkpoints/checkpoint-4"
    flip(newest / "model.safetensors")
    assert whole_checkpoint(run / "model") == newest.with_name("checkpoint-2")
    assert "checkpoint-4 is damaged and not gone on from: model.safetensors" in capsys.readouterr().err
