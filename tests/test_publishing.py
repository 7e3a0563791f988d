"""Handing on: the card, an adapter merged, what goes to the hub; and what editors and shells are told of drift."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import drift
from drift.cli import main
from drift.completion import completion
from drift.errors import ConfigError, DatasetError
from drift.publishing.card import model_card
from drift.recipe import built_in_recipes
from drift.recipe_schema import schema
from drift.verbs import VERBS


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run that trained an adapter, and measured it on two tasks."""
    out = tmp_path_factory.mktemp("hub") / "sums"
    keys: dict[str, Any] = {
        "max_new_tokens": 8, "rollouts.tasks": 3, "rollouts.samples": 2, "max_steps": 2, "training.batch_size": 4,
        "evaluation.tasks": 2, "evaluation.samples": 0, "learning_rate": 1e-2, "training.lora": {"r": 2},
    }  # fmt: skip
    drift.run("quickstart", model=str(tiny_model), out=out, **keys)
    return out


def test_the_card_says_what_the_manifests_say_and_no_path_of_this_machine(run: Path, tiny_model: Path) -> None:
    card = (run / "model" / "README.md").read_text()
    assert card == model_card(run / "model")
    _, head, text = card.split("---\n", 2)
    assert yaml.safe_load(head)["library_name"] == "transformers" and "base_model" not in yaml.safe_load(head)
    estimates = json.loads((run / "evaluation" / "estimates.json").read_text())
    found = {(row["policy"], row["metric"]): row for row in estimates}["tuned", "greedy/multi@5"]
    cell = f"{100 * found['value']:.1f} [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"
    row = next(line for line in text.splitlines() if line.startswith("| multi@5 %"))
    assert row.split(" | ")[2] == cell and "# sums" in text and "2 held-out tasks" in text
    assert "environment `arithmetic`: 3 tasks × 2" in text and "2 optimizer steps of 4" in text
    assert "**NOTHING SUCCEEDED" in text and str(tiny_model.parent) not in card and str(run.parent) not in card
    adapter = (run / "model" / "adapter" / "README.md").read_text()
    assert "library_name: peft" in adapter and "PeftModel.from_pretrained(" in adapter


def test_of_a_model_of_the_hub_the_card_names_it(run: Path, tmp_path: Path) -> None:
    manifest = json.loads((run / "model" / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "model": "owner/name"}))
    for adapter, relation in ((False, "finetune"), (True, "adapter")):
        head = yaml.safe_load(model_card(tmp_path, adapter=adapter).split("---\n")[1])
        assert (head["base_model"], head["base_model_relation"]) == ("owner/name", relation)
    assert "Nothing was measured." in model_card(tmp_path)


def test_an_adapter_is_merged_as_training_merges_it(
    run: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = str(run / "model" / "adapter")
    assert main(["export", adapter, "--merge", "--out", str(tmp_path / "merged")]) == 0
    drift.export(adapter, merge=True, model=str(tiny_model), out=tmp_path / "named")
    trained = load_file(run / "model" / "model.safetensors")
    for name in ("merged", "named"):
        merged = load_file(tmp_path / name / "model.safetensors")
        assert merged.keys() == trained.keys()
        assert all(torch.equal(merged[key], trained[key]) for key in trained)
        assert (tmp_path / name / "tokenizer_config.json").is_file()
    with pytest.raises(ConfigError, match="is there already and is not empty"):
        drift.export(adapter, merge=True, out=tmp_path / "merged")


def test_to_the_hub_go_the_model_and_its_card_alone(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(run / "model"), "me/sums", "--dry_run"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("---\n") and "would upload" in told and "model.safetensors" in told
    assert "manifest.json" not in told and "checkpoint" not in told
    pushed = drift.push(run / "model", "me/sums", adapter=True, dry_run=True)
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} == set(pushed.files)
    # The tests reach no hub.
    with pytest.raises(ConfigError, match=r"me/sums can't be written to: .*hf auth login"):
        drift.push(run / "model", "me/sums")
    with pytest.raises(ConfigError, match="expected OWNER/NAME"):
        drift.push(run / "model", "sums", dry_run=True)
    with pytest.raises(DatasetError):
        drift.push(run / "weights", "me/sums", dry_run=True)


def test_the_schema_takes_the_recipes_that_there_are_and_no_others() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json.loads(schema()))
    for name, path in built_in_recipes().items():
        assert not list(validator.iter_errors(yaml.safe_load(path.read_text()))), name
    whole = drift.Recipe().to_dict()
    assert not [error.message for error in validator.iter_errors(json.loads(json.dumps(whole)))]
    for wrong in (
        {"wieghts": {}},
        {"weights": {"bta": 1}},
        {"training": {"max_steps": "many"}},
        {"training": {"plan": "x"}},
    ):
        assert list(validator.iter_errors(wrong)), wrong


def test_a_shell_completes_verbs_and_options() -> None:
    def completed(*words: str) -> list[str]:
        line = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _drift; echo ${{COMPREPLY[@]}}"
        done = subprocess.run(
            ["bash", "-c", completion("bash") + "\n" + line], capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    assert completed("drift", "''") == list(VERBS) and completed("drift", "train-") == [
        "train-preference",
        "train-online",
    ]
    assert completed("drift", "run", "quickstart", "--weights.be") == ["--weights.beta"]
    fish = completion("fish")
    assert all(f"-a {name} -d '" in fish for name in VERBS) and "-l weights.beta" in fish
    with pytest.raises(ConfigError, match="Did you mean 'fish'"):
        completion("fsh")  # type: ignore[arg-type]
