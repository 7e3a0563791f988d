"""An adapter merged into its base, as an ordinary model folder."""

from __future__ import annotations

import json
from pathlib import Path

from drift.artifacts import MODEL
from drift.errors import ConfigError
from drift.manifest import MANIFEST, read_manifest
from drift.policies import model_path


def merge_adapter(adapter: Path, out: Path, *, model: str = "") -> Path:
    """Write the base model with ``adapter`` added to its weights to ``out``; returns it.

    Args:
        adapter: a folder as PEFT saves it, or a model folder of drift train that holds ``adapter/``.
        out: a new or empty directory.
        model: the base; the one the adapter, or the training it came from, names unless given.

    Raises:
        ConfigError: ``out`` holds something, or no base is named.
        PolicyError: no such adapter or model.
    """
    from transformers import AutoTokenizer

    from drift.policies.stored import NO_CODE, adapter_facts
    from drift.training.checkpoints import saving
    from drift.training.quantized import merged_into

    place = adapter / "adapter" if (adapter / "adapter" / "adapter_config.json").is_file() else adapter
    adapter_facts(str(place))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"out: {out} is there already and is not empty. Give another directory.")
    trained = place.parent if (place.parent / MANIFEST).is_file() else None
    named = json.loads((place / "adapter_config.json").read_text()).get("base_model_name_or_path")
    base = model or (read_manifest(trained, MODEL)["model"] if trained else named)
    if not base:
        raise ConfigError(f"model: {place} does not say what it is an adapter of. Give the model it was trained on.")
    base = model_path(str(base))
    with saving(out):
        merged_into(base, place).save_pretrained(out)
        # As it is stored: the one that samples pads on the left.
        AutoTokenizer.from_pretrained(base, **NO_CODE).save_pretrained(out)
    return out
