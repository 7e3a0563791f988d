"""QLoRA: a base model whose linear layers lie quantized in memory, to train an adapter on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from drift.errors import ConfigError, PolicyError
from drift.policies.hf import load_model
from drift.policies.stored import NO_CODE, model_folder, wants_code


def check_quantization() -> None:
    """Raise ``ConfigError`` unless bitsandbytes is installed and works here."""
    try:
        import bitsandbytes  # noqa: F401
    except (ImportError, RuntimeError) as error:
        raise ConfigError(
            f"training.lora.bits: bitsandbytes is missing or does not work here ({error}). "
            "Run: pip install 'drift-rl[qlora]', or set training.lora.bits to 0."
        ) from error


def load_quantized(model: str, *, bits: int, dtype: str, device: str, attention: str | None = None) -> tuple[Any, Any]:
    """Load a causal LM in 4 bits (NF4, twice quantized: QLoRA, arXiv 2305.14314) or in 8, and its tokenizer.

    Embeddings, norms and the LM head keep their precision; nothing of the base can be trained.

    Args:
        model: a folder, or a hub id, that is not quantized itself.
        bits: 4 or 8.
        dtype: ``float32`` or ``bfloat16``, in which products are computed.
        device: ``cpu``, ``cuda``, …, or ``auto``: CUDA if there is one.
        attention: transformers' name of an attention implementation; ``None`` takes the model's own.

    Raises:
        ConfigError: bitsandbytes is missing or does not work here.
        PolicyError: the model can't be loaded.
    """
    place = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    check_quantization()
    from peft import prepare_model_for_kbit_training

    compute = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    settings = BitsAndBytesConfig(
        load_in_4bit=bits == 4,
        load_in_8bit=bits == 8,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
    folder = model_folder(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", **NO_CODE)
        loaded = AutoModelForCausalLM.from_pretrained(
            folder,
            quantization_config=settings,
            dtype=compute,
            device_map={"": place},
            attn_implementation=attention,
            use_safetensors=True,
            **NO_CODE,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise wants_code(model, error) or PolicyError(
            f"model {model!r} can't be loaded in {bits} bits: {error}. Set training.lora.bits to 0."
        ) from error
    return prepare_model_for_kbit_training(loaded, use_gradient_checkpointing=False), tokenizer


def merged_into(model: str, adapter: Path) -> Any:
    """``model`` as it is stored, in float32 on the CPU, with ``adapter`` added to its weights."""
    from peft import PeftModel

    base, _ = load_model(model, dtype="float32", device="cpu")
    return merged(PeftModel.from_pretrained(base, adapter))


def merged(model: Any) -> Any:
    """The model inside a PEFT model, the adapter added to its weights.

    An adapter on the embeddings or the LM head changes one of a tied pair: the two are then no longer tied.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    lm = model.get_base_model()
    ends = (lm.get_input_embeddings(), lm.get_output_embeddings())
    if any(isinstance(end, BaseTunerLayer | ModulesToSaveWrapper) for end in ends):
        head = ends[1].get_base_layer() if isinstance(ends[1], BaseTunerLayer) else ends[1]
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
        lm.config.tie_word_embeddings = lm.config.get_text_config().tie_word_embeddings = False
        lm.all_tied_weights_keys = {}
    return model.merge_and_unload()
