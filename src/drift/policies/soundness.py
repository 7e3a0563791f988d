"""What is wrong with a model folder, found before a library acts on it: sizes that can't be, code by a name, NaN."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from drift.errors import PolicyError

# Longer files, larger numbers and more layers are in no model; each is tried before a library counts up to it.
MOST_BYTES = 50_000_000
LARGEST = 2**31
MOST_LAYERS = 2000
_COUNTS = re.compile(r"layer|block|expert|depth|stage")


def check_config(folder: Path) -> None:
    """Look at ``config.json`` and what else a library reads before it looks at the weights.

    Raises:
        PolicyError: not JSON, a size that no model has or the files do not, or an implementation that would be fetched
            from the hub and run.
    """
    tensors = -1
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        for key, value in _values(_read(path)):
            if key.endswith("_implementation") and isinstance(value, str) and re.search("[/:|]", value):
                raise PolicyError(
                    f"{path}: {key} is {value!r}, which would fetch code from the hub and run it, which drift never "
                    "does. Take it out of the file."
                )
            if name != "config.json" or isinstance(value, bool) or not isinstance(value, int):
                continue
            if abs(value) >= LARGEST:
                raise PolicyError(f"{path}: {key} is {value}, which no model has. Correct it, or fetch the file again.")
            if _COUNTS.search(key) and value > MOST_LAYERS:
                tensors = _tensors(folder) if tensors < 0 else tensors
                if value > tensors:
                    raise PolicyError(
                        f"{path}: {key} is {value}, and the files have {tensors} tensors. Correct it, or fetch the "
                        "folder again."
                    )


def check_vocabulary(tokenizer: Any, model: Any, ends: list[int], source: str) -> None:
    """Raise ``PolicyError`` where a tokenizer gives ids for which a model has no embedding.

    Special tokens that nothing ordinary writes, such as those of images, may lie beyond.

    Args:
        tokenizer: the model's.
        model: with its input embeddings, which may be empty.
        ends: every id that ends a reply.
        source: how messages name the model.
    """
    rows = int(model.get_input_embeddings().weight.shape[0])
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    wanted = {*ends, *(i for i in (tokenizer.bos_token_id, tokenizer.pad_token_id) if i is not None)}
    beyond = sorted(i for i in {*tokenizer.get_vocab().values(), *wanted} if i >= rows and i not in special - wanted)
    if beyond:
        raise PolicyError(
            f"the tokenizer of {source!r} has {len(beyond)} ids that its model of {rows} has not, the first "
            f"{beyond[0]}. Use the tokenizer that the model was trained with, or resize the model's embeddings."
        )


def check_finite(tensor: torch.Tensor, name: str, path: Path) -> None:
    """Raise ``PolicyError`` where a tensor of the file ``path`` has a value that is NaN or infinite."""
    if not tensor.is_floating_point() or not tensor.numel():
        return
    # Floats of one byte have no order of their own; NaN is the least and the largest of all.
    values = tensor if tensor.dtype.itemsize > 1 else tensor.to(torch.bfloat16)
    if not all(math.isfinite(bound) for bound in torch.aminmax(values)):
        raise PolicyError(
            f"{path}: the tensor {name} holds NaN or infinity, with which no reply means anything. Fetch the file "
            "again, or train the model again with a lower learning rate."
        )


def _read(path: Path) -> Any:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has {path.stat().st_size:,} bytes, expected at most {MOST_BYTES:,}")
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise PolicyError(f"{path} can't be read: {error}. Fetch it again.") from error
    if not isinstance(found, Mapping):
        raise PolicyError(f"{path}: got {str(found)[:80]!r}, expected keys and values. Fetch it again.")
    return found


def _values(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in a JSON value that holds no other, with the key above it."""
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from _values(each, name)
    elif isinstance(value, list):
        for each in value:
            yield from _values(each, key)
    else:
        yield key, value


def _tensors(folder: Path) -> int:
    """How many tensors the files of a folder hold."""
    count = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            count += len(file.keys())
    return count
