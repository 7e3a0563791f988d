"""What changes a reply changes the fingerprint, and nothing else does."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Gemma3Config, GenerationConfig, Qwen2Config

from drift.errors import DatasetError
from drift.policies import stored as stored_module
from drift.policies.base import model_part, with_template_arguments
from drift.policies.fingerprint import fingerprint
from drift.policies.hf import load_model
from drift.policies.stored import StoredModel, context_limit, fingerprint_of
from drift.training.run import check_policy

Edit = Callable[[Path], None]
PROMPT = torch.tensor([[5, 40, 50, 61, 72, 83, 94, 105, 116, 127]])


def weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Edit:
    """An edit of the tensors in a folder's file."""

    def edit(folder: Path) -> None:
        tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


def config(**changes: Any) -> Edit:
    """An edit of config.json."""
    return in_json("config.json", lambda content: content.update(changes))


def in_json(name: str, change: Callable[[dict[str, Any]], None]) -> Edit:
    """An edit of a JSON file."""

    def edit(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return edit


def add_to(name: str, at: int, value: float) -> Edit:
    """One value of one tensor, of 9,728 in the embedding, 32 in a norm, changed."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(-1)[at] += value

    return weights(change)


def noise_on_most(tensors: dict[str, torch.Tensor]) -> None:
    """All but the values that the fingerprint of the first version looked at."""
    for tensor in tensors.values():
        flat = tensor.view(-1)
        step = max(1, flat.numel() // 1024)
        moved = torch.arange(flat.numel()) % step != 0
        flat[moved] += 0.1


def swap_layers(tensors: dict[str, torch.Tensor]) -> None:
    one, other = (f"model.layers.{at}.mlp.up_proj.weight" for at in (0, 1))
    tensors[one], tensors[other] = tensors[other], tensors[one]


def untied(folder: Path) -> None:
    def with_head(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].flip(0).contiguous()

    weights(with_head)(folder)
    config(tie_word_embeddings=False)(folder)


def swap_ids(content: dict[str, Any]) -> None:
    vocabulary = content["model"]["vocab"]
    one, other = sorted(vocabulary, key=vocabulary.__getitem__)[60:62]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]


def strip_around_added(content: dict[str, Any]) -> None:
    content["added_tokens"][-1]["lstrip"] = True


def added_token(folder: Path) -> None:
    _, tokenizer = load_model(str(folder))
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(folder)


def other_template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text() + " ")


def end_tokens(folder: Path) -> None:
    GenerationConfig(eos_token_id=[1, 7]).save_pretrained(folder)


LOGITS: dict[str, Edit] = {
    "one value of the embedding": add_to("model.embed_tokens.weight", 40 * 32 + 1, 0.5),
    "the last value of the last norm": add_to("model.norm.weight", 31, 0.5),
    "one bias": add_to("model.layers.1.self_attn.q_proj.bias", 5, 0.5),
    "noise on 97 % of the weights": weights(noise_on_most),
    "two layers swapped": weights(swap_layers),
    "a head of its own": untied,
    "theta": config(rope_parameters={"rope_theta": 500.0, "rope_type": "default"}),
    "linear positions": config(rope_parameters={"rope_theta": 10000.0, "rope_type": "linear", "factor": 4.0}),
    "epsilon": config(rms_norm_eps=0.1),
    "activation": config(hidden_act="relu"),
    "heads": config(num_attention_heads=4, num_key_value_heads=2),
    "window": config(use_sliding_window=True, sliding_window=3, layer_types=["sliding_attention"] * 2),
    "layers": config(num_hidden_layers=1, layer_types=["full_attention"]),
    "scale of a norm": weights(
        lambda tensors: tensors.update({"model.norm.weight": tensors["model.norm.weight"] * 1.5})
    ),
}
REPLIES: dict[str, Edit] = {
    "two ids swapped": in_json("tokenizer.json", swap_ids),
    "one merge less": in_json("tokenizer.json", lambda content: content["model"]["merges"].pop()),
    "space around an added token": in_json("tokenizer.json", strip_around_added),
    "one more added token": added_token,
    "the chat template": other_template,
    "the end tokens": end_tokens,
}


def logits(folder: Path) -> torch.Tensor:
    model, _ = load_model(str(folder))
    with torch.inference_mode():
        found: torch.Tensor = model(PROMPT).logits
    return found


@pytest.mark.parametrize("name", [*LOGITS, *REPLIES])
def test_whatever_can_change_a_reply_changes_the_fingerprint(name: str, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "edited"
    shutil.copytree(tiny_model, folder)
    before = fingerprint_of(str(folder))
    assert before == fingerprint_of(str(tiny_model))
    {**LOGITS, **REPLIES}[name](folder)
    if name in LOGITS:
        assert not torch.allclose(logits(folder), logits(tiny_model), atol=1e-5)
    edited = fingerprint_of(str(folder))
    assert edited != before
    # Of a model that is loaded it is the same, and so is that of every kind of policy.
    assert edited == fingerprint(*load_model(str(folder))) == StoredModel(str(folder)).fingerprint()


def touched(folder: Path) -> None:
    for path in folder.iterdir():
        os.utime(path, (1, 1))


def sharded(folder: Path) -> None:
    model, tokenizer = load_model(str(folder))
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    tokenizer.save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1


def with_other_notes(folder: Path) -> None:
    config(transformers_version="4.0", use_cache=False, _name_or_path="there", initializer_range=1.0)(folder)
    (folder / "README.txt").write_text("notes")


SAME: dict[str, Edit] = {
    "copied": lambda folder: None,
    "other times": touched,
    "sharded": sharded,
    "how it was stored": with_other_notes,
    "tensors written again": weights(lambda tensors: None),
    "float64": weights(lambda t: t.update({k: v.double() for k, v in t.items()})),
}


@pytest.mark.parametrize("name", SAME)
def test_what_changes_no_reply_changes_no_fingerprint(name: str, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "edited"
    shutil.copytree(tiny_model, folder)
    SAME[name](folder)
    assert fingerprint_of(str(folder)) == fingerprint_of(str(tiny_model)) == fingerprint(*load_model(str(folder)))
    # A tokenizer that was at work, and any precision that the model is loaded in.
    model, tokenizer = load_model(str(folder), dtype="bfloat16")
    tokenizer(["a", "longer text"], padding=True, truncation=True, max_length=3, split_special_tokens=True)
    assert fingerprint(model, tokenizer) == fingerprint_of(str(tiny_model))


def test_it_is_computed_once_for_a_folder_and_without_a_cache_each_time(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []
    combined = stored_module.combined
    monkeypatch.setattr(stored_module, "combined", lambda *parts: computed.append(1) or combined(*parts))
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)
    monkeypatch.setenv("DRIFT_CACHE", str(tmp_path / "cache"))
    found = [fingerprint_of(str(folder)) for _ in range(3)]
    assert len(set(found)) == 1 and len(computed) == 1
    # A file in the way: nothing can be kept.
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DRIFT_CACHE", str(tmp_path / "file"))
    assert [fingerprint_of(str(folder)) for _ in range(2)] == found[:2] and len(computed) == 3
    # What was kept is damaged: it is computed again.
    monkeypatch.setenv("DRIFT_CACHE", str(tmp_path / "cache"))
    next((tmp_path / "cache" / "fingerprints").iterdir()).write_text("{")
    assert fingerprint_of(str(folder)) == found[0] and len(computed) == 4
    folder.chmod(0o755)


def test_what_the_template_is_given_is_in_the_fingerprint_and_leaves_the_model_known(tmp_path: Path) -> None:
    plain = with_template_arguments("model-1", {})
    given = with_template_arguments("model-1", {"enable_thinking": False})
    assert plain == "model-1" != given
    assert given != with_template_arguments("model-1", {"enable_thinking": True})
    told = [with_template_arguments("model-1", {}, *texts) for texts in (("", ""), ("a", ""), ("", "a"), ("a", "a"))]
    assert told[0] == plain and len({*told, given}) == 5
    assert {model_part(each) for each in (given, *told)} == {"model-1"}
    check_policy("model-1", given, tmp_path, "m")
    with pytest.raises(DatasetError, match="Train that one"):
        check_policy("model-2", given, tmp_path, "m")


def test_data_of_an_earlier_version_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"earlier version of drift.*If they do, say --any_policy"):
        check_policy("model-1", "hf-1", tmp_path, "m")


def test_the_context_of_a_model_that_reads_more_than_text_is_that_of_its_text() -> None:
    assert context_limit(Gemma3Config(text_config={"max_position_embeddings": 4096})) == 4096
    assert context_limit(Qwen2Config(max_position_embeddings=77)) == 77
