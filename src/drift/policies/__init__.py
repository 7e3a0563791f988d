"""Policies: ways to sample a reply."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any

from drift.errors import require, unknown_name
from drift.policies.base import DEFAULT_MODEL, AnyPolicy, Policy, Sampling, TextPolicy, derive_seed
from drift.registry import Registry, load_attribute, path_of

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


def make_policy(model: Any, settings: Mapping[str, Any] | None = None, *, device: str = "auto") -> AnyPolicy:
    """The policy that ``model`` names or is.

    Args:
        model: ``default`` for the small one that comes with the package, a model folder, a hub id, ``NAME:ARGUMENT``
            for a registered kind of policy, ``ARGUMENT`` being its first argument; ``module:attribute``; a class; or an
            object with ``complete`` or ``reply``.
        settings: of that kind of policy, each of which it must know.
        device: where it computes, if it computes here.

    Raises:
        ConfigError: an unknown name or setting, with the nearest known one; or something that is no policy.
    """
    kind, argument = kind_of(model)
    where, given = "policy", dict(settings or {})
    if argument is None:
        made = POLICIES.make(kind, given, where=where)
        sound = hasattr(made, "complete") or hasattr(made, "reply")
        require(sound, "model", model, "a policy: an object with complete, or with reply (see CONTRIBUTING.md)")
        return made  # type: ignore[no-any-return]
    parameters = list(inspect.signature(POLICIES.get(kind)).parameters)
    first: object = tuple(argument.split("|")) if kind == "scripted" else argument
    if "device" in parameters and device != "auto":
        given.setdefault("device", device)
    made = POLICIES.make(kind, {parameters[0]: first, **given}, where=where)
    return made  # type: ignore[no-any-return]


def settings_for(model: Any, settings: Mapping[str, Any], models: Iterable[Any]) -> dict[str, Any]:
    """Those of ``settings`` that ``model``, one of ``models``, takes: each of them takes what its kind knows.

    A setting that none of them takes stays, so that ``make_policy`` refuses it.
    """
    taken = {key for each in models for key in settings if _takes(each, key)}
    return {key: value for key, value in settings.items() if key not in taken or _takes(model, key)}


def _takes(model: Any, setting: str) -> bool:
    kind, _ = kind_of(model)
    if isinstance(kind, str):
        kind = load_attribute(kind, "policy") if ":" in kind else POLICIES.get(kind)
    parameters = inspect.signature(kind).parameters if callable(kind) else {}
    return setting in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())


def kind_of(model: Any) -> tuple[Any, str | None]:
    """Which kind of policy ``model`` is and that kind's first argument; of one's own, itself and ``None``.

    Raises:
        ConfigError: no model at all.
    """
    if isinstance(model, os.PathLike):
        model = os.fspath(model)
    if not isinstance(model, str):
        return model, None
    require(bool(model), "model", model, "default, a model folder, a hub id, NAME:ARGUMENT or module:attribute")
    kind, colon, argument = model.partition(":")
    if not colon:
        return "hf", model_path(model)
    if kind in POLICIES.names():
        return kind, model_path(argument) if kind in ("hf", "vllm") else argument
    if not kind.replace(".", "").replace("_", "").isalnum() or not argument.replace(".", "").isidentifier():
        raise unknown_name("policy", kind, POLICIES.names(), where="model")
    if difflib.get_close_matches(kind, POLICIES.names(), cutoff=0.7) and find_spec(kind.partition(".")[0]) is None:
        raise unknown_name("policy", kind, POLICIES.names(), where=f"model {model!r}")
    return model, None


def model_name(model: Any) -> str:
    """``model`` as manifests name it: as it was given, or ``module:name`` of a class or object of one's own."""
    return os.fspath(model) if isinstance(model, str | os.PathLike) else path_of(model)


def model_path(model: str | os.PathLike[str]) -> str:
    """``model``, with ``default`` resolved to the folder of the policy that comes with the package."""
    return str(DEFAULT_MODEL) if model == "default" else os.fspath(model)


__all__ = [
    "DEFAULT_MODEL",
    "POLICIES",
    "AnyPolicy",
    "Policy",
    "Sampling",
    "TextPolicy",
    "derive_seed",
    "kind_of",
    "make_policy",
    "model_name",
    "model_path",
    "settings_for",
]
