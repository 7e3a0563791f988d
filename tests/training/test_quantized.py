"""An adapter trained on a base model that lies in memory in 4 or 8 bits, with the real bitsandbytes."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from drift.api import train
from drift.errors import ConfigError
from drift.manifest import read_manifest
from drift.policies import DEFAULT_MODEL as MODEL
from drift.training.config import TrainingConfig

SETTINGS = {"max_steps": 8, "batch_size": 8, "tokens_per_batch": 200, "learning_rate": 1e-3, "save_steps": 4}


def test_settings_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"training\.lora\.bits: got 3"):
        TrainingConfig(lora={"r": 2, "bits": 3})
    with pytest.raises(ConfigError, match=r"training\.engine: got 'fsdp', expected ddp with lora\.bits"):
        TrainingConfig(engine="fsdp", lora={"r": 2, "bits": 4})


@pytest.mark.qlora
@pytest.mark.parametrize("bits", [4, 8])
def test_the_adapter_fits_the_model_as_it_is_stored(weighed: tuple[Path, Path], tmp_path: Path, bits: int) -> None:
    from peft import PeftModel

    from drift.training.quantized import load_quantized

    def trained(name: str, lora: dict[str, Any]) -> Path:
        return train(*weighed, out=tmp_path / name, any_policy=True, config=TrainingConfig(**SETTINGS, lora=lora))

    out, plain = (
        trained("quantized", {"r": 4, "lora_alpha": 32, "bits": bits}),
        trained("plain", {"r": 4, "lora_alpha": 32}),
    )
    # The same policy and rows, whatever the base is kept in.
    first, second = (read_manifest(folder, "model") for folder in (out, plain))
    assert first["spec"]["base"] == second["spec"]["base"] and first["counts"] == second["counts"]

    def logits(model: Any) -> torch.Tensor:
        with torch.inference_mode():
            found: torch.Tensor = model.eval()(torch.tensor([[5, 40, 50, 60]])).logits
        return found

    stored = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (MODEL, out, plain)]
    base, merged, plainly = map(logits, stored)
    adapted = logits(PeftModel.from_pretrained(stored[0], out / "adapter"))
    assert torch.allclose(adapted, merged, atol=1e-4)
    # Trained on a rounded base it goes nearly where it goes on the base itself.
    moved, theirs = (merged - base).flatten(), (plainly - base).flatten()
    assert torch.nn.functional.cosine_similarity(moved, theirs, dim=0) > 0.9

    quantized, _ = load_quantized(str(MODEL), bits=bits, dtype="float32", device="cpu")
    kinds = {type(module).__name__ for name, module in quantized.named_modules() if name.endswith("_proj")}
    assert kinds == {"Linear4bit" if bits == 4 else "Linear8bitLt"}


def test_a_missing_library_is_named_with_its_extra(
    weighed: tuple[Path, Path], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"pip install 'drift-rl\[qlora\]'"):
        train(
            *weighed,
            out=tmp_path / "q",
            model=str(tiny_model),
            config=TrainingConfig(**SETTINGS, lora={"r": 2, "bits": 4}),
        )
