import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

from drift.cli import main
from drift.errors import PolicyError
from drift.policies import DEFAULT_MODEL
from drift.policies.fingerprint import end_ids, fingerprint
from drift.policies.hf import load_model
from drift.policies.soundness import check_finite
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


@pytest.mark.parametrize(
    ("dtype", "value"), [("float32", "nan"), ("float32", "-inf"), ("float16", "inf"), ("bfloat16", "nan")]
)
def test_weights_that_are_not_finite_are_refused_by_name_before_anything_is_written(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: str, value: str
) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    path = model / "model.safetensors"
    weights = {name: tensor.to(getattr(torch, dtype)) for name, tensor in load_file(path).items()}
    name = sorted(weights)[5]
    sound = fingerprint_of(str(tiny_model))
    # The largest number there is stays one, though not in bfloat16.
    weights[name].view(-1)[0] = torch.finfo(weights[name].dtype).max
    save_file(weights, path, metadata={"format": "pt"})
    assert fingerprint_of(str(model)) not in ("", sound)
    weights[name].view(-1)[-1] = float(value)
    save_file(weights, path, metadata={"format": "pt"})
    log = tmp_path / "log.jsonl"
    messages = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]
    log.write_text(json.dumps({"messages": messages, "reward": 1, "group_id": "a"}))
    data, made = str(tmp_path / "data"), str(tmp_path / "weights")
    assert main(["import", str(log), "--model", str(tiny_model), "--out", data]) == 0
    assert main(["weigh", data, "--scheme", "sft", "--out", made]) == 0
    capsys.readouterr()
    for command in (
        ["rollout", "arithmetic", "--model", str(model)],
        ["import", str(log), "--model", str(model)],
        ["train", data, made, "--model", str(model), "--any_policy"],
        ["evaluate", "arithmetic", "--models", json.dumps({"base": "default", "tuned": str(model)})],
        ["run", "quickstart", "--model", str(model)],
    ):
        out = tmp_path / command[0]
        assert main([*command, "--out", str(out)]) == PolicyError.exit_code
        assert f"{path}: the tensor {name} holds NaN or infinity" in capsys.readouterr().err
        assert not [each for each in out.rglob("*") if each.suffix in (".parquet", ".safetensors", ".arrow")], command


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_floats_of_one_byte_are_looked_at_too(tmp_path: Path, dtype: str) -> None:
    tensor = torch.ones(8).to(getattr(torch, dtype))
    check_finite(tensor, "one", tmp_path)
    tensor.view(torch.uint8)[3] = 0x7F
    with pytest.raises(PolicyError, match="the tensor one holds NaN"):
        check_finite(tensor, "one", tmp_path)


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
    with pytest.raises(PolicyError, match="the tensor a holds NaN or infinity"):
        adapter_facts(write("broken", 4, float("nan"), "here"))
