"""What is known of a model folder without loading its weights: where it lies, what ends a reply, its fingerprint."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging

from drift.chat import TemplateChat
from drift.checksums import damaged_files, sum_of_bytes
from drift.errors import ConfigError, DriftError, PolicyError, StorageError
from drift.files import inside
from drift.manifest import write_json
from drift.policies.fingerprint import combined, end_ids, tensor_digest, tensors_of
from drift.policies.soundness import check_config, check_finite, check_vocabulary

# Always given: without it, transformers asks at the terminal whether a model folder's own code may run.
NO_CODE: dict[str, Any] = {"trust_remote_code": False}
_MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
# Keys of an adapter's configuration that say where it was made, not what it does.
_ADAPTER_ORIGIN = ("base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version")

# What ``check_stored`` found nothing wrong with.
_SOUND: set[str] = set()


def local_folder(model: str) -> Path | None:
    """The folder that ``model`` names, its files checked; ``None`` for a hub id; raises ``PolicyError``."""
    folder = Path(model).expanduser()
    if not (folder / "config.json").is_file():
        if model.startswith((".", "/", "~")) or model.count("/") != 1:
            problem = "a folder without config.json" if folder.is_dir() else "nothing there"
            raise PolicyError(
                f"model {model!r}: {problem}. Give a folder that holds a model, or a hub id like owner/name."
            )
        return None
    damage = damaged_files(folder)
    if damage:
        raise PolicyError(
            f"the model in {folder} is damaged: {'; '.join(damage)}. Train it again, or restore the files."
        )
    refuse_pickles(folder)
    check_config(folder)
    return folder


def model_folder(model: str) -> Path:
    """As ``local_folder``; the files of a hub id are fetched, and looked at like those of a folder."""
    return local_folder(model) or _fetched(model)


def refuse_pickles(folder: Path) -> None:
    """Raise ``PolicyError`` for a model folder that has only pickled weights: reading these can run anything."""
    pickled = sorted(path.name for name in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(name))
    if not list(folder.glob("*.safetensors")) and pickled:
        raise PolicyError(
            f"the model in {folder} has its weights as {pickled[0]}, expected *.safetensors: reading pickled weights "
            "can run code. Convert them where you trust them: AutoModelForCausalLM.from_pretrained(FOLDER)"
            ".save_pretrained(OUT), and the tokenizer likewise."
        )


def wants_code(model: str, error: Exception) -> PolicyError | None:
    """The error to raise where transformers refused to run the code that comes with a model, as it always must."""
    if "trust_remote_code" not in str(error):
        return None
    return PolicyError(
        f"the model {model!r} wants code that comes with it to be run, which drift never does. Use a model that "
        "transformers knows, or serve this one yourself and give it as openai:NAME."
    )


@contextmanager
def loading(model: str) -> Iterator[None]:
    """A context in which what transformers raises for a model or tokenizer becomes a ``PolicyError`` that names it."""
    if sys.flags.optimize > 1:
        raise ConfigError("PYTHONOPTIMIZE=2 (python -OO) takes away docstrings that transformers reads. Leave it out.")
    try:
        with without_bars():
            yield
    except DriftError:
        raise
    except Exception as error:
        # A configuration or tokenizer that somebody wrote makes transformers raise anything.
        raise wants_code(model, error) or PolicyError(
            f"model {model!r} can't be loaded as a causal language model: {error}. "
            "Check the name, that the files are whole, and that the hub can be reached if it is not a folder."
        ) from error


@contextmanager
def without_bars() -> Iterator[None]:
    """A context in which transformers draws no progress bars: of weights that load in a second they tell nothing."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        # The hub's library warns where bars are switched on against its variable.
        if shown and "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ:
            logging.enable_progress_bar()


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
        self.folder = model_folder(model)
        with loading(model):
            self.config = AutoConfig.from_pretrained(self.folder, **NO_CODE)
            self.tokenizer: Any = AutoTokenizer.from_pretrained(self.folder, padding_side="left", **NO_CODE)
            with torch.device("meta"):
                self._empty = AutoModelForCausalLM.from_config(self.config, **NO_CODE)
        if (self.folder / "generation_config.json").is_file():
            self._empty.generation_config = GenerationConfig.from_pretrained(self.folder)
        self.end_ids = end_ids(self._empty, self.tokenizer)
        check_vocabulary(self.tokenizer, self._empty, self.end_ids, model)

    def fingerprint(self) -> str:
        """The model's fingerprint (``drift.policies.fingerprint``), computed once and kept in the user's cache.

        Where the files have something else than the model's parameters by name (quantized weights, experts that are
        merged when loaded), it is of all that the files have.

        Raises:
            PolicyError: the files are damaged, or a weight in them is NaN or infinite.
        """
        times = _file_times(self.folder)
        kept = _kept(self.folder, times)
        if kept:
            return kept
        try:
            shapes = _shapes(self.folder)
            wanted = {name: tuple(tensor.shape) for name, tensor in tensors_of(self._empty).items()}
            found = {name: shape for shapes_of_file in shapes.values() for name, shape in shapes_of_file.items()}
            quantized = getattr(self.config, "quantization_config", None) is not None
            plain = not quantized and all(found.get(name) == wanted[name] for name in wanted)
            digests = _digests(shapes, set(wanted if plain else found))
        except PolicyError:
            raise
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise PolicyError(f"the weights in {self.folder} can't be read: {error}. Fetch them again.") from error
        if (self.folder / "adapter_config.json").is_file():
            # transformers adds an adapter that lies in the folder to the weights.
            digests["adapter"] = adapter_facts(str(self.folder))[2]
        made = combined(self._empty.config, self.tokenizer, self.end_ids, digests)
        _keep(self.folder, times, made)
        return made


def check_stored(model: str, arguments: Mapping[str, Any] | None = None, system: str = "") -> None:
    """Look whether a model folder has a configuration, a chat template that takes these, and sound weights.

    A folder is looked at where its files changed since the last time in this process, and its weights where they did
    since the last time at all. Nothing is fetched: of a hub id nothing is known before.

    Raises:
        ConfigError: the template knows no such argument.
        PolicyError: no such folder, what is in it can't be read, a weight is NaN or infinite, or the template leaves
            ``system`` out.
    """
    folder = Path(model).expanduser()
    if not (folder / "config.json").is_file():
        local_folder(model)
        return
    asked = repr((folder.resolve(), _file_times(folder), arguments, system))
    if asked not in _SOUND:
        stored = StoredModel(model)
        TemplateChat(stored.tokenizer, source=model, arguments=arguments, system=system)
        stored.fingerprint()
        _SOUND.add(asked)


def fingerprint_of(model: str) -> str:
    """The fingerprint of a model folder or a hub id; reads its files only where they changed since the last time.

    Raises:
        PolicyError: no such model, its files are damaged, or a weight in them is NaN or infinite.
    """
    folder = Path(model).expanduser()
    if not (folder / "config.json").is_file() and local_folder(model) is None:
        folder = _fetched(model, again=False)
    return _kept(folder, _file_times(folder)) or StoredModel(str(folder)).fingerprint()


def settings_of_model(model: str) -> Any:
    """The configuration of a model folder or a hub id, without its weights; ``None`` where the hub can't be reached.

    Raises:
        PolicyError: no such model, or not one that transformers knows.
    """
    source = str(local_folder(model) or "")
    if not source:
        from huggingface_hub import HfApi, hf_hub_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

        reached = True
        try:
            try:
                # A download that can't begin is tried for half a minute; this question is asked once.
                HfApi().model_info(model, timeout=5)
            except (HFValidationError, RepositoryNotFoundError):
                raise
            except Exception:
                # What a network does wrong has other classes with each library that speaks to it.
                reached = False
            source = str(Path(hf_hub_download(model, "config.json", local_files_only=not reached)).parent)
        except LocalEntryNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise PolicyError(
                f"model {model!r} can't be fetched from the hub: {error}. Check its name, and that you may read it."
            ) from error
    with loading(model):
        return AutoConfig.from_pretrained(source, **NO_CODE)


def context_limit(config: Any) -> int | None:
    """The most tokens a model was made for, also where it reads more than text; ``None`` where it says none."""
    limit = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return int(limit) if limit else None


def adapter_facts(adapter: str) -> tuple[Path, int, str]:
    """Folder, rank and hash of a LoRA adapter as peft saves it.

    Raises:
        PolicyError: not such a folder, or a weight in it is NaN or infinite.
    """
    folder = Path(adapter).expanduser()
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
        rank = max(int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values()), 1)
        path = folder / "adapter_model.safetensors"
        weights = path.read_bytes()
        tensors = load(weights)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise PolicyError(
            f"adapter {adapter!r} can't be read: {error}. "
            "Give a folder with adapter_config.json and adapter_model.safetensors, as peft and drift train save them."
        ) from error
    for name, tensor in tensors.items():
        check_finite(tensor, name, path)
    kept = {key: value for key, value in config.items() if key not in _ADAPTER_ORIGIN}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode() + weights)
    return folder, rank, digest.hexdigest()[:16]


def _fetched(model: str, *, again: bool = True) -> Path:
    """The folder that a hub id's files are fetched into; ``again`` looks for newer ones and for those not there yet."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(model, allow_patterns=list(_MODEL_FILES), local_files_only=not again))
    except (OSError, ValueError) as error:
        if not again:
            return _fetched(model)
        raise PolicyError(
            f"model {model!r} can't be fetched from the hub: {error}. "
            "Check the name, and that the hub can be reached; or give a folder."
        ) from error
    refuse_pickles(folder)
    check_config(folder)
    return folder


def _shapes(folder: Path) -> dict[Path, dict[str, tuple[int, ...]]]:
    """Shape of every tensor by name in each of the files that transformers would load."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        files = [whole]
    elif index.is_file():
        files = [inside(folder, name) for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError("no *.safetensors in the folder")
    shapes: dict[Path, dict[str, tuple[int, ...]]] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            shapes[path] = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return shapes


def _digests(shapes: Mapping[Path, Mapping[str, Any]], names: set[str]) -> dict[str, str]:
    """The digest of each of ``names``, all finite, several files at a time."""

    def read(path: Path) -> dict[str, str]:
        found = {}
        with safe_open(path, framework="pt") as file:
            for name in (name for name in shapes[path] if name in names):
                tensor = file.get_tensor(name)
                check_finite(tensor, name, path)
                found[name] = tensor_digest(tensor)
        return found

    with ThreadPoolExecutor(max_workers=4) as threads:
        return {name: digest for found in threads.map(read, shapes) for name, digest in found.items()}


def _file_times(folder: Path) -> dict[str, list[int]]:
    """Size and times of every file that can be part of the model; another content has another time of change."""
    times = {}
    for path in sorted(path for pattern in _MODEL_FILES for path in folder.glob(pattern)):
        facts = path.stat()
        times[path.name] = [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns]
    return times


def _cache_file(folder: Path) -> Path:
    root = Path(os.environ.get("DRIFT_CACHE") or "~/.cache/drift").expanduser()
    return root / "fingerprints" / f"{sum_of_bytes(os.fsencode(folder.resolve()))}.json"


def _kept(folder: Path, times: Mapping[str, list[int]]) -> str:
    """The fingerprint that was kept for the files as they are now, or nothing."""
    try:
        kept = json.loads(_cache_file(folder).read_text())
        known = kept["finite"] and kept["files"] == times and kept["transformers"] == version("transformers")
        return str(kept["fingerprint"]) if known else ""
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return ""


def _keep(folder: Path, times: Mapping[str, list[int]], made: str) -> None:
    try:
        content = {"fingerprint": made, "finite": True, "transformers": version("transformers"), "files": times}
        write_json(_cache_file(folder), content)
    except (StorageError, RuntimeError):
        # No home, or one that can't be written to: it is computed each time.
        return
