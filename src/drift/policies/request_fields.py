"""The fields of a request to a server: what is asked for, said in full, and without what the server refuses. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drift.policies.base import Sampling
from drift.policies.server_errors import ServerError

# Some servers take seeds of 32 bits with a sign, and refuse a request with a larger one.
_SEEDS = 2**31
_VLLM = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
# Values that switch a sampler off, by the server's own names. What is not sent, a server takes from its model's folder
# or its own defaults, and replies would come from another distribution than the one asked for.
_NEUTRAL: dict[str, dict[str, Any]] = {
    "vllm": _VLLM,
    "sglang": _VLLM,
    "llamacpp": {
        "top_k": 0,
        "min_p": 0.0,
        "repeat_penalty": 1.0,
        "typical_p": 1.0,
        "top_n_sigma": -1.0,
        "xtc_probability": 0.0,
        "dry_multiplier": 0.0,
        "dynatemp_range": 0.0,
        "mirostat": 0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    },
    "": {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "repeat_penalty": 1.0},
}
# Fields that a reply can do without: a server that refuses one is asked again without it.
_OPTIONAL = frozenset({name for values in _NEUTRAL.values() for name in values}) | {
    "seed",
    "logprobs",
    "return_token_ids",
    "include_stop_str_in_output",
    "no_stop_trim",
}


class RequestFields:
    """What is sent to one server; it learns what the server refuses.

    Args:
        model: the name under which the server serves it.
        software: what serves it, as lists of models call it: ``vllm``, ``sglang``, ``llamacpp``, or anything else.
        own: the user's: further fields, or other values for ours; ``None`` leaves a field out.
    """

    def __init__(self, model: str, software: str, own: Mapping[str, Any]) -> None:
        self._model, self._own = model, own
        self._neutral = _NEUTRAL.get(software, _NEUTRAL[""])
        self._keep_stop = {
            "include_stop_str_in_output": True,
            **({"no_stop_trim": True} if software == "sglang" else {}),
        }
        self._left_out: set[str] = set()
        self._renamed: dict[str, str] = {}

    def of(self, sampling: Sampling, seed: int) -> dict[str, Any]:
        """The fields of every request: the sampling, every other sampler switched off, and a seed of 31 bits."""
        return {
            "model": self._model,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed % _SEEDS,
            **self._neutral,
            **({"stop": list(sampling.stop), **self._keep_stop} if sampling.stop else {}),
        }

    def accepted(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """``fields`` as the user and the server want them."""
        named = {self._renamed.get(key, key): value for key, value in {**fields, **self._own}.items()}
        return {key: value for key, value in named.items() if value is not None and key not in self._left_out}

    def adapt(self, error: ServerError, request: Mapping[str, Any]) -> list[str]:
        """What was changed so that ``request``, which was refused, can be sent again: ``left_out_<field>``,
        ``renamed_<field>``; empty if nothing can be.
        """
        if error.kind != "fields":
            return []
        if "max_tokens" in error.fields and "max_completion_tokens" in error.words:
            self._renamed["max_tokens"] = "max_completion_tokens"
            return ["renamed_max_tokens"]
        # At 1 these say what a server does by itself.
        optional = _OPTIONAL | {name for name in ("temperature", "top_p") if request.get(name) == 1}
        fields = sorted(name for name in error.fields & optional if name not in self._own)
        self._left_out.update(fields)
        return [f"left_out_{name}" for name in fields]
