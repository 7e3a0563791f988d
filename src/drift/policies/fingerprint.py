"""The fingerprint of a model: a hash of everything that can change what it replies, wherever it lies.

It covers every weight and persistent buffer, the configuration, the tokenizer's vocabulary and rules, the chat template
and the ids that end a reply. Floats are rounded to bfloat16 first, so that a model is itself in any precision it is
loaded or saved in; what is left out of the configuration changes no logits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

from drift.errors import PolicyError

PREFIX = "model-"
# Keys of a configuration, at any depth, that say how a model is stored, loaded or trained and not what it computes.
_NO_LOGITS = {
    "_attn_implementation",
    "_name_or_path",
    "architectures",
    "bos_token_id",
    "chunk_size_feed_forward",
    "dtype",
    # These end replies by way of ``end_ids``.
    "eos_token_id",
    "id2label",
    "initializer_range",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pad_token_id",
    "problem_type",
    "return_dict",
    "router_aux_loss_coef",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}


def fingerprint(model: Any, tokenizer: Any) -> str:
    """The fingerprint of a model that is loaded, with the weights of the moment.

    That of the folder it came from (``stored.fingerprint_of``) is the same, but where transformers stores the weights
    under other names or shapes than it computes with.
    """
    digests = {name: tensor_digest(tensor) for name, tensor in tensors_of(model).items()}
    return combined(model.config, tokenizer, end_ids(model, tokenizer), digests)


def combined(config: Any, tokenizer: Any, ends: list[int], digests: Mapping[str, str]) -> str:
    """The fingerprint of a model by its parts; ``digests`` are those of its tensors by name."""
    facts = {
        "config": _changing_logits(config.to_dict()),
        "tokenizer": _tokenizer_facts(tokenizer),
        "ends": ends,
        "tensors": dict(digests),
    }
    return PREFIX + hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def tensors_of(model: Any) -> dict[str, torch.Tensor]:
    """Every parameter and persistent buffer by name; what several names share is there under the first."""
    named, seen = {}, set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, torch.Tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            named[name] = tensor
    return named


def tensor_digest(tensor: torch.Tensor) -> str:
    """Hash of a tensor's shape and all its values, floats as bfloat16."""
    values = tensor.detach().flatten()
    kind = "float" if values.is_floating_point() else str(values.dtype)
    if values.is_floating_point():
        values = values.to(torch.bfloat16)
    digest = hashlib.sha256(f"{kind}{tuple(tensor.shape)}".encode())
    digest.update(values.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Every id that ends a reply: the generation settings' and the tokenizer's own."""
    listed = model.generation_config.eos_token_id
    ids = listed if isinstance(listed, list) else [] if listed is None else [listed]
    if tokenizer.eos_token_id is not None:
        ids = [*ids, tokenizer.eos_token_id]
    if not ids:
        raise PolicyError(
            "the model names no end-of-turn token, so no reply would ever end. Set tokenizer.eos_token and save it."
        )
    return sorted(set(map(int, ids)))


def _changing_logits(config: Any) -> Any:
    """A configuration without the keys that change no logits, and without those that are ``None``."""
    if not isinstance(config, Mapping):
        return config
    kept = {key: value for key, value in config.items() if value is not None and key not in _NO_LOGITS}
    return {
        str(key): _changing_logits(value)
        for key, value in kept.items()
        if not str(key).endswith(("dropout", "dropout_prob", "pdrop"))
    }


def _tokenizer_facts(tokenizer: Any) -> dict[str, Any]:
    """What decides which ids a conversation has, and which text a reply."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else {}
    return {
        # How the last batch was padded and cut is kept in the same place as the rules.
        "rules": {key: value for key, value in rules.items() if key not in ("padding", "truncation")},
        "vocabulary": hashlib.sha256(repr(sorted(tokenizer.get_vocab().items())).encode()).hexdigest(),
        "added": {str(number): repr(token) for number, token in tokenizer.added_tokens_decoder.items()},
        "special": sorted(set(tokenizer.all_special_ids)),
        "template": tokenizer.chat_template,
    }
