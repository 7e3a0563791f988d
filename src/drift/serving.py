"""Who samples the models of a recipe: its own, and what it becomes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from drift.errors import ConfigError, require
from drift.policies import SERVERS, check_policy, kind_of, settings_for
from drift.recipe import Recipe
from drift.rollouts.setup import Setup


def engine_of(recipe: Recipe, name: str = "base") -> str:
    """The kind of policy that samples the base, or the tuned model."""
    settings = settings_for(name, recipe.policy, {"base": recipe.model, "tuned": recipe.model})
    return str(settings.get("engine") or "hf")


def unseen_weights(recipe: Recipe) -> bool:
    """Whether a server samples, whose weights can't be seen: that they are the model's is what the recipe says."""
    return engine_of(recipe) in SERVERS


def needs_own_process(recipe: Recipe) -> bool:
    """Whether training must leave the device to an engine, or to workers, when it ends."""
    engines = {engine_of(recipe), engine_of(recipe, "tuned")}
    return bool(recipe.cluster.address) or not engines <= {"hf", *SERVERS}


def loads_adapter(recipe: Recipe) -> bool:
    """Whether the server that samples the base is to load the tuned model, as an adapter."""
    own = recipe.policy.get("tuned") or {}
    return engine_of(recipe, "tuned") in SERVERS and not own.keys() & {"engine", "url", "model", "adapter"}


def served(recipe: Recipe, model: Path | None) -> tuple[Setup, dict[str, Any]]:
    """The base and the tuned model in the folder ``model`` by name, and who samples them with which settings."""
    setup, tuned = recipe.setup, str(model or recipe.model)
    if model is not None and loads_adapter(recipe):
        own = {**(recipe.policy.get("tuned") or {}), "adapter": str(model / "adapter")}
        setup, tuned = replace(setup, policy={**recipe.policy, "tuned": own}), recipe.model
    return setup, {"base": recipe.model, "tuned": tuned}


def who_samples(recipe: Recipe, model: Path | None = None) -> Setup:
    """The environment and the recipe's own model, or the tuned one in the folder ``model``."""
    setup, models = served(recipe, model)
    name = "base" if model is None else "tuned"
    return replace(setup, model=models[name], policy=settings_for(name, setup.policy, models))


def check_model(recipe: Recipe) -> None:
    """Raise ``ConfigError`` for a model that can't be trained, or an engine whose replies can't be trained on."""
    kind, model = kind_of(recipe.model)
    if kind != "hf" or model is None or ":" in str(recipe.model):
        advice = {
            "openai-chat": "Its replies are text alone: drift rollout, then drift import --format trajectories for the "
            "model that is to be trained.",
            "openai": f"Give the model that it serves, and policy: {{engine: openai, model: {model}}}.",
        }
        advice |= {each: f"Give model: {model}, and policy: {{engine: {each}}}." for each in ("hf", "vllm")}
        expected = "default, a model folder, or a hub id: what can be trained"
        require(False, "model", recipe.model, expected, advice.get(str(kind), ""))
    folder = Path(str(model)).expanduser()
    if str(model).startswith((".", "/", "~")) and not (folder / "config.json").is_file():
        raise ConfigError(f"model: no model in {folder}. Give a folder that holds config.json, or a hub id.")
    require(
        engine_of(recipe) != "openai-chat",
        "policy.engine",
        "openai-chat",
        "hf, vllm, openai or another that tells the token ids, which training needs",
    )


def check_tuned(recipe: Recipe, *, adapter: bool | None = None) -> None:
    """Find wrong what of the engines can be before anything is sampled: how the base and the tuned model are served.

    Args:
        recipe: whose.
        adapter: whether the training gives an adapter; as the recipe says unless given.

    Raises:
        ConfigError: a setting that can't be, or a server that can't be told to load the tuned model.
        PolicyError: a model that can't be used, or no server there.
    """
    if not recipe.environment:
        check_policy(recipe.model, {"dtype": recipe.policy.get("dtype", "auto")}, device=recipe.device)
        return
    models, loads = {"base": recipe.model, "tuned": recipe.model}, loads_adapter(recipe)
    has_one = bool(recipe.training.lora) if adapter is None else adapter
    if loads and not (has_one and recipe.rounds == 1):
        raise ConfigError(
            f"policy.engine: the tuned model can't be measured: a server that runs loads no more than an adapter of "
            f"the model it serves, and this training gives {'several models' if has_one else 'a whole one'}. Train an "
            "adapter in one round (training.lora), or say where the tuned model is sampled: "
            "policy.tuned: {engine: hf}, or {url: …} of a server that you start on it when it is trained."
        )
    kl = recipe.evaluation.kl
    require(not (loads and kl), "evaluation.kl", kl, "0 where a server loads the tuned model: its logits can't be had")
    elsewhere = engine_of(recipe, "tuned") in SERVERS and not loads
    for name in ("base",) if elsewhere else models:
        settings = settings_for(name, recipe.policy, models)
        own = {"adapter": "adapter"} if loads and name == "tuned" else {}
        check_policy(recipe.model, {**settings, **own}, device=recipe.device)
