import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

from drift.errors import PolicyError
from drift.policies import DEFAULT_MODEL
from drift.policies.fingerprint import end_ids, fingerprint
from drift.policies.hf import load_model
from drift.policies.stored import StoredModel, adapter_facts, fingerprint_of


def test_a_folder_has_the_fingerprint_and_end_tokens_of_the_model_loaded_from_it(
    tiny_model: Path, tmp_path: Path
) -> None:
    ending = tmp_path / "ending"
    shutil.copytree(tiny_model, ending)
    GenerationConfig(eos_token_id=[1, 7]).save_pretrained(ending)
    for folder in (tiny_model, DEFAULT_MODEL, ending):
        loaded = load_model(str(folder))
        stored = StoredModel(str(folder))
        assert stored.fingerprint() == fingerprint(*loaded)
        assert stored.end_ids == end_ids(*loaded)
        # A tokenizer and a configuration take no memory for the weights.
        assert all(parameter.is_meta for parameter in stored._empty.parameters())
    assert StoredModel(str(ending)).end_ids == [1, 7]


def test_weights_in_several_files_are_read_alike_and_a_changed_value_is_seen(tiny_model: Path, tmp_path: Path) -> None:
    parted = tmp_path / "parted"
    model, tokenizer = load_model(str(tiny_model))
    model.save_pretrained(parted, max_shard_size="20KB")
    tokenizer.save_pretrained(parted)
    assert len(list(parted.glob("*.safetensors"))) > 1
    before = StoredModel(str(tiny_model)).fingerprint()
    assert StoredModel(str(parted)).fingerprint() == before
    path = next(iter(sorted(parted.glob("*.safetensors"))))
    weights = load_file(path)
    name = sorted(weights)[0]
    save_file({**weights, name: weights[name] + 0.1}, path, metadata={"format": "pt"})
    assert StoredModel(str(parted)).fingerprint() != before


def test_weights_under_other_names_are_hashed_as_files(tiny_model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    path = other / "model.safetensors"
    weights = load_file(path)
    save_file({f"packed.{name}": tensor for name, tensor in weights.items()}, path, metadata={"format": "pt"})
    found = StoredModel(str(other)).fingerprint()
    assert found == fingerprint_of(str(other)) != fingerprint_of(str(tiny_model))
    assert found == StoredModel(str(other)).fingerprint()
    save_file({f"packed.{name}": tensor + 1 for name, tensor in weights.items()}, path, metadata={"format": "pt"})
    assert StoredModel(str(other)).fingerprint() != found


def test_what_is_not_a_whole_model_is_named(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="nothing there"):
        StoredModel("./nowhere")
    with pytest.raises(PolicyError, match=r"without config\.json"):
        StoredModel(str(tmp_path))
    with pytest.raises(PolicyError, match="can't be fetched from the hub"):
        StoredModel("owner/no-such-model")
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    (broken / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(PolicyError, match=r"weights in .* can't be read"):
        StoredModel(str(broken)).fingerprint()
    (broken / "model.safetensors").unlink()
    with pytest.raises(PolicyError, match=r"no \*\.safetensors"):
        StoredModel(str(broken)).fingerprint()


def test_an_adapters_rank_and_hash_follow_what_it_does_and_not_where_it_was_made(tmp_path: Path) -> None:
    def write(name: str, rank: int, value: float, base: str, **more: object) -> str:
        folder = tmp_path / name
        folder.mkdir()
        facts = {"r": rank, "lora_alpha": 8, "base_model_name_or_path": base, **more}
        (folder / "adapter_config.json").write_text(json.dumps(facts))
        save_file({"a": torch.full((2, 2), value)}, folder / "adapter_model.safetensors")
        return str(folder)

    _, rank, digest = adapter_facts(write("one", 4, 0.5, "here"))
    assert rank == 4
    assert adapter_facts(write("moved", 4, 0.5, "there"))[2] == digest
    assert adapter_facts(write("changed", 4, 0.6, "here"))[2] != digest
    assert adapter_facts(write("pattern", 4, 0.5, "here", rank_pattern={"q_proj": 24}))[1] == 24
    with pytest.raises(PolicyError, match="adapter 'nowhere' can't be read"):
        adapter_facts("nowhere")
