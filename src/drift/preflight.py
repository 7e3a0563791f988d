"""What any stage of a recipe would refuse, found before the first: nobody likes to be told after hours of rollouts."""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from drift.api import read_logs
from drift.environments import make_environment
from drift.environments.base import EnvironmentFactory, close_episode, open_episode, start_episode
from drift.errors import ConfigError, DriftError, require, unknown_name
from drift.evaluation.run import check_quality, held_out_tasks
from drift.event_loop import run_to_end
from drift.manifest import MANIFEST
from drift.policies import SERVERS, model_path, settings_for
from drift.recipe import Recipe
from drift.rollouts.config import TASKS
from drift.rollouts.run import draw_tasks
from drift.rollouts.setup import PROMPT_SETTINGS
from drift.serving import check_model, check_tuned, engine_of
from drift.types import Task


def check_recipe(recipe: Recipe, out: Path | None = None) -> list[str]:
    """Look at everything that a stage would refuse, without long work: names, settings, libraries, device, sizes.

    Args:
        recipe: the recipe.
        out: directory of the run, on whose disk there must be room.

    Returns:
        Sentences about what the run will want, and what could not be looked at.

    Raises:
        ConfigError: what is wrong: all of it, where it is several things.
        PolicyError: the same, of a model alone.
    """
    from drift.policies.hf import check_device

    faults, notes = _Faults(), list[str]()
    factory: EnvironmentFactory | None = None
    tasks: list[Task] = []
    with faults:
        check_model(recipe)
        check_tuned(recipe)
    with faults:
        check_device(recipe.device)
    with faults:
        _check_training(recipe)
    with faults:
        if recipe.data is not None:
            check_data(recipe.data)
    with faults:
        if recipe.environment:
            factory = make_environment(recipe.environment)
            tasks = _draw(recipe, factory)
    with faults:
        if recipe.environment and (recipe.evaluation.kl or recipe.evaluation.judge):
            models = {"base": recipe.model, "tuned": recipe.model}
            settings = {name: settings_for(name, recipe.policy, models) for name in models}
            check_quality(models, settings, recipe.evaluation, recipe.sampling)
    with faults:
        if recipe.cluster.address and find_spec("ray") is None:
            raise ConfigError("cluster: the ray package is missing. Run: pip install 'drift-rl[ray]'.")
    # What is wrong with the model, or can't be made, is told already.
    if not faults.found:
        notes += _check_sizes(recipe, factory, tasks, out, faults)
    faults.settle()
    return notes


class _Faults:
    """What is wrong, one thing after the other, told together."""

    def __init__(self) -> None:
        self.found: list[DriftError] = []

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if not isinstance(error, DriftError | ValueError):
            return False
        told = error if isinstance(error, DriftError) else ConfigError(str(error))
        if str(told) not in map(str, self.found):
            self.found.append(told)
        return True

    def settle(self) -> None:
        """Raise what was found."""
        if len(self.found) == 1:
            raise self.found[0]
        if self.found:
            listed = "".join(f"\n- {error}" for error in self.found)
            raise ConfigError(f"{len(self.found)} things stand in the way:{listed}")


def _draw(recipe: Recipe, factory: EnvironmentFactory) -> list[Task]:
    held_out_tasks(factory, recipe.evaluation, recipe.seed)
    if recipe.data is not None:
        return []
    return draw_tasks(factory, "train", recipe.rollouts.tasks, recipe.seed, default=TASKS)


def _check_training(recipe: Recipe) -> None:
    """What the libraries that train would refuse; they take seconds to load."""
    from drift.policies.hf import check_attention
    from drift.training.arguments import check_settings, check_values
    from drift.training.sharding import prepare_engine

    config = recipe.training
    check_settings(config, recipe.device)
    check_values(config)
    prepare_engine(config, recipe.device)
    if config.attention != "auto":
        check_attention(model_path(recipe.model), config.attention, device=recipe.device)


def _check_sizes(
    recipe: Recipe, factory: EnvironmentFactory | None, tasks: list[Task], out: Path | None, faults: _Faults
) -> list[str]:
    """Context, memory and disk, against what the model's configuration says of it."""
    from drift.policies.stored import context_limit, settings_of_model

    model, notes = model_path(recipe.model), list[str]()
    settings = settings_of_model(model)
    if settings is None:
        return [f"the hub can't be reached: whether there is a model {model}, and what it wants, was not looked at."]
    with faults:
        limit = context_limit(settings)
        if factory is not None and recipe.data is None and limit:
            notes += _check_context(recipe, factory, tasks[0], limit)
    with faults:
        notes += _check_room(recipe, settings, out)
    return notes


def _check_context(recipe: Recipe, factory: EnvironmentFactory, task: Task, limit: int) -> list[str]:
    """Whether the first task's opening and a reply fit the model's context, and whether a whole conversation does."""
    from drift.chat import TemplateChat
    from drift.policies.hf import load_tokenizer

    if engine_of(recipe) in SERVERS:
        # Its own limit may be another.
        return []
    longest = recipe.sampling.max_new_tokens
    given = settings_for("base", recipe.policy, {"base": recipe.model, "tuned": recipe.model})
    named = {name: given[name] for name in PROMPT_SETTINGS if name in given}
    arguments = named.pop("chat_template_kwargs", None)
    tokenizer = load_tokenizer(model_path(recipe.model))
    chat = TemplateChat(tokenizer, source=str(recipe.model), arguments=arguments, **named)
    try:
        opening = run_to_end(_opening(factory, task))
    except DriftError:
        raise
    except Exception as error:
        # Of this task alone, maybe: rollouts record it, and stop where no conversation can begin.
        return [f"task {task.id!r} can't begin: {type(error).__name__}: {error}. See drift check."]
    prompt = len(chat.first(opening))
    remedy = "Lower it, shorten the prompt, or take a model with a longer context."
    expected = f"at most {limit - prompt}: of the model's context of {limit} tokens the prompt of task {task.id!r} "
    require(prompt + longest <= limit, "sampling.max_new_tokens", longest, f"{expected}takes {prompt}", remedy)
    turns = factory.max_turns
    if prompt + turns * longest <= limit:
        return []
    most = max(1, (limit - prompt) // longest)
    return [
        f"conversations may run out of the model's context of {limit} tokens before their {turns} turns are over: "
        f"{most} replies of {longest} tokens fit after a prompt of {prompt}."
    ]


async def _opening(factory: EnvironmentFactory, task: Task) -> Any:
    episode = start_episode(factory, task, 0)
    try:
        return await open_episode(episode)
    finally:
        await close_episode(episode)


def _check_room(recipe: Recipe, settings: Any, out: Path | None) -> list[str]:
    """Whether memory and disk hold what training wants at least."""
    from drift.training.estimate import estimate, memory_of

    try:
        wanted = estimate(settings, recipe.training, on_cpu=_on_cpu(recipe.device))
    except (NotImplementedError, RuntimeError) as error:
        # Some models and adapters compute with their weights when they are made, and here there are none.
        return [f"what training wants of memory and disk can't be told of this model: {str(error).splitlines()[0]}"]
    memory, name = memory_of(recipe.device)
    least = f"at least {_size(wanted.memory)} of memory"
    what = f"{wanted.trained:,} trained parameters of {wanted.parameters:,}"
    if wanted.memory > memory:
        raise ConfigError(
            f"training: {what} want {least} (weights, gradients and the optimizer's state), and {name} has "
            f"{_size(memory)}. Train an adapter (training.lora.r 16, with bits 4 for less still), shard the model "
            "(training.engine fsdp), or take a smaller one."
        )
    notes = [f"training: {what} want {least}, and {name} has {_size(memory)}."]
    if out is None or list(out.glob(f"model/{MANIFEST}")):
        return notes
    place = next(each for each in (out.resolve(), *out.resolve().parents) if each.exists())
    require(place.is_dir() and os.access(place, os.W_OK), "out", str(out), "a directory that can be written to")
    held = sum(path.stat().st_size for path in out.glob("model/**/*") if path.is_file())
    free, disk = shutil.disk_usage(place).free + held, recipe.rounds * wanted.disk
    if disk > free:
        raise ConfigError(
            f"out: model and checkpoints want {_size(disk)} in {out}, and {_size(free)} are free there. Free "
            "some, give another --out, or keep fewer checkpoints (training.arguments.save_total_limit 1, or "
            "training.save_steps 0)."
        )
    return [*notes, f"model and checkpoints want {_size(disk)} of disk; {_size(free)} are free."]


def _on_cpu(device: str) -> bool:
    import torch

    return device == "cpu" or not torch.cuda.is_available()


def _size(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def check_data(data: Mapping[str, Any]) -> None:
    """Raise ``ConfigError`` for a log that is not there, or settings that ``read_logs`` or its format don't know."""
    from drift.dataset.imports.run import make_reader

    known = inspect.signature(read_logs).parameters.keys() - {"model", "out"}
    for key in data:
        if key not in known:
            raise unknown_name("setting", key, known, where="data")
    file = str(data["file"])
    require(bool(file), "data.file", file, "the file of logged conversations: --data FILE")
    require(Path(file).exists(), "data.file", file, "a file, or a directory of trajectories, that is there")
    make_reader(data.get("format", "auto"), data.get("columns") or {})
