"""Policies: ways to sample a reply."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from drift.errors import ConfigError, require, unknown_name
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


# Kinds of policy whose model runs elsewhere, under a name of its own.
SERVERS = ("openai", "openai-chat")


def make_policy(model: Any, settings: Mapping[str, Any] | None = None, *, device: str = "auto") -> AnyPolicy:
    """The policy that ``model`` names or is.

    Args:
        model: ``default`` for the small one that comes with the package, a model folder, a hub id, ``NAME:ARGUMENT``
            for a registered kind of policy, ``ARGUMENT`` being its first argument; ``module:attribute``; a class; or an
            object with ``complete`` or ``reply``.
        settings: of that kind of policy, each of which it must know. ``engine`` names the kind where ``model`` does
            not: ``hf`` (unless given), ``vllm``, ``openai``, any that is registered, or ``module:attribute``. Of a
            model on a server, ``model`` is the name it has there, and ``adapter`` a LoRA adapter of it that the server
            is told to load.
        device: where it computes, if it computes here.

    Raises:
        ConfigError: an unknown name or setting, with the nearest known one; or something that is no policy.
        PolicyError: the model can't be used, or the server won't load the adapter.
    """
    kind, given = _placed(model, settings or {}, device)
    adapter = given.pop("adapter", "") if kind == "openai" else ""
    if adapter:
        from drift.policies.adapters import load_on_server

        given["model"] = load_on_server(adapter, **_server_of(given))
    made = POLICIES.make(kind, given, where="policy")
    sound = hasattr(made, "complete") or hasattr(made, "reply")
    require(sound, "model", model, "a policy: an object with complete, or with reply (see CONTRIBUTING.md)")
    return made  # type: ignore[no-any-return]


def check_policy(model: Any, settings: Mapping[str, Any], *, device: str = "auto") -> None:
    """Find wrong what can be without loading weights or starting an engine; arguments and errors of ``make_policy``.

    Names, settings and the files of a model folder; a server is asked whether it serves the model. What more a kind of
    policy knows of its settings it says in a static method ``check``, which takes the arguments of the policy.
    """
    kind, given = _placed(model, settings, device)
    adapter = given.pop("adapter", "") if kind == "openai" else ""
    if adapter:
        from drift.policies.adapters import check_server

        check_server(**_server_of(given))
        return
    POLICIES.check(kind, given, where="policy")
    if kind in SERVERS:
        POLICIES.make(kind, given, where="policy")


def _placed(model: Any, settings: Mapping[str, Any], device: str) -> tuple[Any, dict[str, Any]]:
    """The kind of policy that ``model`` is, and all its arguments by name."""
    given = dict(settings)
    kind, argument = kind_of(model, given.pop("engine", None))
    if argument is None:
        return kind, given
    parameters = list(inspect.signature(POLICIES.find(kind)).parameters)
    if "device" in parameters and device != "auto":
        given.setdefault("device", device)
    if kind in SERVERS and settings.get("engine"):
        if "tokenizer" in parameters:
            given.setdefault("tokenizer", argument)
        argument = given.pop("model", "") or argument
    elif "model" in given:
        raise ConfigError(f"policy.model: got {given['model']!r}, expected nothing: the model is {model!r}.")
    return kind, {parameters[0]: tuple(argument.split("|")) if kind == "scripted" else argument, **given}


def _server_of(given: Mapping[str, Any]) -> dict[str, Any]:
    return {key: given[key] for key in ("url", "key_env") if key in given}


def settings_for(name: str, settings: Mapping[str, Any], models: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the model called ``name``, one of ``models`` by name.

    Those under its own name, before those of all: of these each model takes what its kind knows, and the first alone
    the name that a server has for it. A setting that no kind of them knows stays, so that ``make_policy`` refuses it.
    """
    own = {each: dict(settings[each]) for each in models if isinstance(settings.get(each), Mapping)}
    shared = {key: value for key, value in settings.items() if key not in own}

    def takes(each: str, key: str) -> bool:
        if key == "engine":
            return _is_plain(models[each])
        if key == "model" and each != next(iter(models)):
            return False
        return _takes(models[each], own.get(each, {}).get("engine") or shared.get("engine"), key)

    taken = {key for each in models for key in shared if takes(each, key)}
    kept = {key: value for key, value in shared.items() if key not in taken or takes(name, key)}
    return {**kept, **own.get(name, {})}


def _is_plain(model: Any) -> bool:
    """Whether ``model`` says nothing of the kind of policy."""
    return isinstance(model, str | os.PathLike) and ":" not in os.fspath(model)


def _takes(model: Any, engine: Any, setting: str) -> bool:
    kind, _ = kind_of(model, engine if _is_plain(model) else None)
    if kind == "openai" and setting == "adapter":
        return True
    if isinstance(kind, str):
        kind = load_attribute(kind, "policy") if ":" in kind else POLICIES.get(kind)
    parameters = inspect.signature(kind).parameters if callable(kind) else {}
    return setting in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())


def kind_of(model: Any, engine: Any = None, *, where: str = "model") -> tuple[Any, str | None]:
    """Which kind of policy ``model`` is and that kind's first argument; of one's own, itself and ``None``.

    Args:
        model: as for ``make_policy``.
        engine: the kind of a model that does not say its own; ``hf`` unless given.
        where: the setting that names the model, for messages.

    Raises:
        ConfigError: no model at all, no such engine, or an engine for a model that says its kind.
    """
    if engine:
        if not isinstance(engine, str):
            words = "hf, vllm, openai or another kind of policy; arguments of vLLM's engine are policy.arguments"
            raise ConfigError(f"policy.engine: got {engine!r}, expected {words}.")
        if engine not in POLICIES.names() and ":" not in engine:
            raise unknown_name("engine", engine, POLICIES.names(), where="policy.engine")
        expected = f"nothing, as {model!r} says itself what it is. Give the model without it, or no engine"
        require(_is_plain(model), "policy.engine", engine, expected)
    if isinstance(model, os.PathLike):
        model = os.fspath(model)
    if not isinstance(model, str):
        return model, None
    require(bool(model), where, model, "default, a model folder, a hub id, NAME:ARGUMENT or module:attribute")
    kind, colon, argument = model.partition(":")
    if not colon:
        return engine or "hf", model_path(model)
    if kind in POLICIES.names():
        return kind, model_path(argument) if kind in ("hf", "vllm") else argument
    if not kind.replace(".", "").replace("_", "").isalnum() or not argument.replace(".", "").isidentifier():
        raise unknown_name("policy", kind, POLICIES.names(), where=where)
    if difflib.get_close_matches(kind, POLICIES.names(), cutoff=0.7) and find_spec(kind.partition(".")[0]) is None:
        raise unknown_name("policy", kind, POLICIES.names(), where=f"{where} {model!r}")
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
    "SERVERS",
    "AnyPolicy",
    "Policy",
    "Sampling",
    "TextPolicy",
    "check_policy",
    "derive_seed",
    "kind_of",
    "make_policy",
    "model_name",
    "model_path",
    "settings_for",
]
