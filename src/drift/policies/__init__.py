"""Policies: ways to sample a reply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drift.policies.base import DEFAULT_MODEL, AnyPolicy, Policy, Sampling, TextPolicy, derive_seed
from drift.registry import Registry

POLICIES = Registry(
    "policy",
    "drift.policies",
    {
        "hf": "drift.policies.hf:HFPolicy",
        "openai": "drift.policies.openai:OpenAIPolicy",
        "openai-chat": "drift.policies.openai:OpenAIChatPolicy",
        "scripted": "drift.policies.scripted:ScriptedPolicy",
        "vllm": "drift.policies.vllm:VLLMPolicy",
    },
)


def make_policy(model: str, settings: Mapping[str, Any] | None = None, **usual: Any) -> AnyPolicy:
    """The policy that ``model`` names.

    Args:
        model: ``default`` for the small one that comes with the package, a model folder, a hub id, or
            ``NAME:ARGUMENT`` for a registered kind of policy, ``ARGUMENT`` being its first argument.
        settings: settings of a kind named so, each of which it must know.
        usual: settings that a kind takes if it knows them, for example ``batch_size`` and ``dtype`` for ``hf``.
    """
    kind, colon, argument = model.partition(":")
    if not colon:
        kind, argument, settings = "hf", model_path(model), None
    elif kind in ("hf", "vllm"):
        argument = model_path(argument)
    key = next(iter(_parameters(kind)))
    value: object = tuple(argument.split("|")) if kind == "scripted" else argument
    accepted = {k: v for k, v in usual.items() if k in _parameters(kind)}
    made: AnyPolicy = POLICIES.make(kind, {key: value, **accepted, **(settings or {})}, where="policy.settings")
    return made


def model_path(model: str) -> str:
    """``model``, with ``default`` resolved to the folder of the policy that comes with the package."""
    return str(DEFAULT_MODEL) if model == "default" else model


def _parameters(kind: str) -> list[str]:
    import inspect

    return list(inspect.signature(POLICIES.get(kind)).parameters)


__all__ = [
    "DEFAULT_MODEL",
    "POLICIES",
    "AnyPolicy",
    "Policy",
    "Sampling",
    "TextPolicy",
    "derive_seed",
    "make_policy",
    "model_path",
]
