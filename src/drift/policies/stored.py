"""What is known of a model folder without loading its weights: where it lies, what ends a reply, its fingerprint."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from drift.errors import PolicyError
from drift.policies.hf import NO_CODE, digest_of, end_ids, loading, local_folder, refuse_pickles

_MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
# Keys of an adapter's configuration that say where it was made, not what it does.
_ADAPTER_ORIGIN = ("base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version")


class StoredModel:
    """A model folder with its tokenizer, read without its weights.

    Attributes:
        folder: where the files are; those of a hub id are fetched first.
        tokenizer: the model's own.
        config: the model's configuration.
        end_ids: every id that ends a reply.

    Raises:
        PolicyError: no such model, not a causal language model, or no tokenizer.
    """

    def __init__(self, model: str) -> None:
        self.folder = local_folder(model) or _fetched(model)
        with loading(model):
            self.config = AutoConfig.from_pretrained(self.folder, **NO_CODE)
            self.tokenizer: Any = AutoTokenizer.from_pretrained(self.folder, padding_side="left", **NO_CODE)
            with torch.device("meta"):
                self._empty = AutoModelForCausalLM.from_config(self.config, **NO_CODE)
        if (self.folder / "generation_config.json").is_file():
            self._empty.generation_config = GenerationConfig.from_pretrained(self.folder)
        self.end_ids = end_ids(self._empty, self.tokenizer)

    def fingerprint(self) -> str:
        """The fingerprint that the ``hf`` policy gives the same model, read from a few values of each parameter.

        Where the files have something else than the model's parameters by name (quantized weights, experts that are
        merged when loaded) the hash is of what the files have, starts with ``files-``, and equals no other kind's.

        Raises:
            PolicyError: the files are damaged.
        """
        try:
            stored = _tensors(self.folder)
            wanted = {name: tuple(p.shape) for name, p in self._empty.named_parameters()}
            quantized = getattr(self.config, "quantization_config", None) is not None
            plain = not quantized and all(stored.get(name, (None, None))[1] == wanted[name] for name in wanted)
            names = wanted if plain else stored
            facts = "" if plain else json.dumps(self.config.to_dict(), sort_keys=True, default=str)
            digest = digest_of(self.tokenizer, ((name, _read(stored[name][0], name)) for name in sorted(names)), facts)
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise PolicyError(f"the weights in {self.folder} can't be read: {error}. Fetch them again.") from error
        return ("hf-" if plain else "files-") + digest


def adapter_facts(adapter: str) -> tuple[Path, int, str]:
    """Folder, rank and hash of a LoRA adapter as peft saves it.

    Raises:
        PolicyError: not such a folder.
    """
    folder = Path(adapter).expanduser()
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
        rank = max(int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values()), 1)
        weights = (folder / "adapter_model.safetensors").read_bytes()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PolicyError(
            f"adapter {adapter!r} can't be read: {error}. "
            "Give a folder with adapter_config.json and adapter_model.safetensors, as peft and drift train save them."
        ) from error
    kept = {key: value for key, value in config.items() if key not in _ADAPTER_ORIGIN}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode() + weights)
    return folder, rank, digest.hexdigest()[:16]


def _fetched(model: str) -> Path:
    """The folder that a hub id's files are fetched into."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(model, allow_patterns=list(_MODEL_FILES)))
    except (OSError, ValueError) as error:
        raise PolicyError(
            f"model {model!r} can't be fetched from the hub: {error}. "
            "Check the name, and that the hub can be reached; or give a folder."
        ) from error
    refuse_pickles(folder)
    return folder


def _tensors(folder: Path) -> dict[str, tuple[Path, tuple[int, ...]]]:
    """File and shape of every tensor stored in a folder."""
    index = folder / "model.safetensors.index.json"
    files = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else []
    tensors = {}
    for path in [folder / name for name in files] or sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensors[name] = (path, tuple(file.get_slice(name).get_shape()))
    if not tensors:
        raise ValueError("no *.safetensors in the folder")
    return tensors


def _read(path: Path, name: str) -> torch.Tensor:
    # Mapped, not read: only the pages of the values that are hashed come into memory.
    with safe_open(path, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor
