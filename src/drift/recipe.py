"""The pipeline as configuration: one frozen record per stage, read from YAML, overridden on the command line."""

from __future__ import annotations

import dataclasses
import functools
import os
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from drift.environments import environment_record, split_settings
from drift.errors import ConfigError, require, unknown_name
from drift.evaluation.config import EvaluationConfig
from drift.keywords import make_record
from drift.policies import model_name
from drift.policies.base import Sampling
from drift.registry import is_plain, plain
from drift.rollouts.config import CONCURRENCY, ClusterConfig, RolloutConfig
from drift.rollouts.setup import Setup
from drift.secrets import refuse_secrets
from drift.training.config import TrainingConfig
from drift.weights.config import WeightConfig
from drift.yaml_files import read_mapping

# Keys of a recipe that are records themselves.
SECTIONS = ("sampling", "rollouts", "weights", "training", "evaluation")
# Keys that hold settings of what they name: those of others, which no recipe knows.
NAMED = ("environment", "data", "policy", "cluster")
# What the name is under which such a key is given as a text alone.
_SHORT = {"environment": "name", "data": "file"}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run: sample, weigh, fine-tune, measure, report.

    Args:
        seed: every random choice of the run derives from it.
        rounds: how often to roll out and train: the steps are shared among the rounds, and each after the first rolls
            out the same tasks again with the model of the one before (DRIFT App. D.5).
        model: the model that is sampled, trained and measured against: default (the small one that comes with drift), a
            folder, or a hub id.
        device: where it computes: auto, cpu, cuda, …
        policy: settings of the policy that samples: engine (hf unless given, vllm or openai), dtype and more; under
            base and tuned those of the one model alone, as {engine: openai, tuned: {engine: hf}}.
        environment: who the policy talks to, by name, as {name: guess, width: 20} with its own settings. Arithmetic
            unless given; with data none.
        data: logged conversations to learn from in place of rollouts: a file, or {file: log.jsonl, columns: {reward:
            rating}} with the settings of drift import. Without an environment nothing is measured.
        concurrency: the most conversations open at once; with a cluster, on each worker.
        sampling: how replies are drawn, in the rollouts and in the evaluation.
        cluster: workers on many machines that hold the conversations: {address: auto}, with workers, gpus and cpus.
        rollouts: how many conversations are sampled.
        weights: how they are weighed.
        training: how the model is fine-tuned.
        evaluation: what the result is measured on.
    """

    seed: int = 1
    rounds: int = 1
    model: Any = "default"
    device: str = "auto"
    policy: dict[str, Any] = field(default_factory=dict)
    environment: Any = None
    data: Any = None
    concurrency: int = CONCURRENCY
    sampling: Sampling = field(default_factory=Sampling)
    cluster: Any = field(default_factory=ClusterConfig)
    rollouts: RolloutConfig = field(default_factory=RolloutConfig)
    weights: WeightConfig = field(default_factory=WeightConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        self._take_short_forms()
        refuse_secrets(split_settings(self.environment)[1] if self.environment else {}, "environment")
        for name in ("model", "policy", "data"):
            refuse_secrets(getattr(self, name), name)
        require(self.rounds >= 1, "rounds", self.rounds, "a whole number ≥ 1")
        require(self.concurrency >= 1, "concurrency", self.concurrency, "a whole number ≥ 1")
        steps, epochs = self.training.max_steps, self.training.epochs
        require(bool(epochs) or steps >= self.rounds, "rounds", self.rounds, f"at most the {steps} steps of training")
        if self.data is not None:
            require(self.rounds == 1, "rounds", self.rounds, "1 with data: nobody can be asked for more of them")
            return
        self.weights.check_adaptive(self.rollouts.first)
        scheme = self.weights.chain.scheme
        if scheme.grouped:
            require(
                self.rollouts.samples >= 2,
                "rollouts.samples",
                self.rollouts.samples,
                f"at least 2 with the scheme {scheme.name!r}, which compares conversations of one prompt",
                "16 is the published value.",
            )

    def _take_short_forms(self) -> None:
        """What may be given in short, or left out, as it is."""
        given: dict[str, Any] = {}
        if isinstance(self.cluster, Mapping):
            given["cluster"] = make_record(ClusterConfig, self.cluster)
        if self.data is not None:
            data = self.data if isinstance(self.data, Mapping) else {"file": self.data}
            given["data"] = {**data, "file": os.fspath(data.get("file") or "")}
        if self.data is None and not self.environment:
            given["environment"] = {"name": "arithmetic"}
        for name, value in given.items():
            object.__setattr__(self, name, value)

    @property
    def setup(self) -> Setup:
        """Who talks to whom."""
        return Setup(environment=self.environment, model=self.model, policy=self.policy, device=self.device)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain nested values; what is an object by the name of its class."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        values["model"] = model_name(self.model)
        if self.environment:
            environment = environment_record(self.environment)
            values["environment"] = {"name": environment["name"], **environment["settings"]}
        return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    return plain(value)


def make_recipe(values: Mapping[str, Any], where: str) -> Recipe:
    """The recipe of nested ``values``, checked by their types; objects stay what they are.

    Raises:
        ConfigError: an unknown key, a value of the wrong type, or a recipe that makes no sense; names the key.
    """
    from argparse import ArgumentError

    check_keys(values, Recipe, where)
    flat = flatten(values)
    objects = {key: value for key, value in flat.items() if not is_plain(value)}
    parser = _parser()
    try:
        parsed = parser.parse_object(nested({key: value for key, value in flat.items() if key not in objects}))
        recipe = Recipe(**vars(parser.instantiate(parsed)))
    except ArgumentError as error:
        raise ConfigError(f"recipe {where}: {' '.join(str(error).split())}.") from error
    changed: Recipe = change(recipe, objects)
    return changed


@functools.cache
def _parser() -> Any:
    """What knows the types of a recipe's keys; made once, since that takes as long as all the rest of a recipe."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Recipe, as_group=False)
    return parser


def recipe_values(recipe: Any) -> dict[str, Any]:
    """Nested values of what ``run`` takes as a recipe: a built-in name, a YAML file, a mapping, or a ``Recipe``."""
    if isinstance(recipe, Recipe):
        return {each.name: getattr(recipe, each.name) for each in fields(recipe)}
    if isinstance(recipe, Mapping):
        check_keys(recipe, Recipe, "recipe")
        return dict(recipe)
    return load_values(find_recipe(os.fspath(recipe)))


def override(
    values: Mapping[str, Any], given: Mapping[str, Any], where: str, arguments: Sequence[str] = ()
) -> dict[str, Any]:
    """``values`` with the keys in ``given`` changed.

    Args:
        values: nested values of a recipe.
        given: by key: dotted (``weights.beta``), nested, or the last part of a key that is the only one of its name
            (``beta``).
        where: what the keys are of, for messages.
        arguments: what may be given beside the keys, for messages.

    Raises:
        ConfigError: a key that no recipe has, or a last part that several keys have; names the nearest known one.
    """
    known = keys_of(Recipe)
    flat = flatten(values)
    if "environment" in given or "environment.name" in flatten(given):
        # Settings belong to their own environment.
        flat = {key: value for key, value in flat.items() if not key.startswith("environment.")}
    for key, value in given.items():
        whole = [name for name in known if name == key or name.endswith(f".{key}")]
        if key in Recipe.__dataclass_fields__ or "." in key:
            flat |= flatten(nested({key: value}))
        elif len(whole) == 1:
            flat[whole[0]] = value
        elif whole:
            raise ConfigError(f"{where}: {key} may be {' or '.join(whole)}. Say which.")
        else:
            raise unknown_name(
                "key", key, {*arguments, *known, *(name.rpartition(".")[2] for name in known)}, where=where
            )
    return nested(flat)


def change(record: Any, changes: Mapping[str, Any]) -> Any:
    """A copy of a frozen record with dotted keys changed, all of them at once; raises ``ConfigError`` as it does."""
    own: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        head, _, rest = key.partition(".")
        if rest:
            inner.setdefault(head, {})[rest] = value
        else:
            own[head] = value
    for head, values in inner.items():
        old = getattr(record, head)
        own[head] = {**old, **values} if isinstance(old, Mapping) else change(old, values)
    return dataclasses.replace(record, **own) if own else record


def keys_of(record: type, prefix: str = "") -> dict[str, Any]:
    """Every dotted key of a settings record, and its type; mappings of others' settings are one key."""
    found: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(record).items():
        inner = dataclasses.is_dataclass(hint)
        found |= keys_of(typing.cast(type, hint), f"{prefix}{name}.") if inner else {f"{prefix}{name}": hint}
    return found


def flatten(values: Mapping[str, Any], sections: Sequence[str] = ()) -> dict[str, Any]:
    """Nested values as dotted keys: those of sections and of ``NAMED`` keys; other mappings stay whole."""
    sections = sections or SECTIONS
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if dataclasses.is_dataclass(value) and not isinstance(value, type) and key in (*sections, "cluster"):
            value = {each.name: getattr(value, each.name) for each in fields(value)}
        if key in _SHORT and isinstance(value, str | os.PathLike):
            value = {_SHORT[key]: value}
        if key in (*sections, *NAMED) and isinstance(value, Mapping):
            flat |= {f"{key}.{name}": item for name, item in value.items()}
        else:
            flat[key] = value
    return flat


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as nested values."""
    values: dict[str, Any] = {}
    for key, value in flat.items():
        at = values
        *heads, last = key.split(".")
        for head in heads:
            at = at.setdefault(head, {})
        at[last] = value
    return values


def load_values(path: Path) -> dict[str, Any]:
    """Read a recipe file and refuse keys that no recipe has.

    Raises:
        ConfigError: no such file, not YAML, not a mapping, or an unknown key; names the nearest known key.
    """
    values = read_yaml(path)
    check_keys(values, Recipe, str(path))
    return values


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file; raises ``ConfigError`` where there are none."""
    if path.is_dir():
        raise ConfigError(f"recipe {path} is a directory. Give a file of YAML; a run has {path / 'recipe.yaml'}.")
    if not path.is_file():
        known = [*built_in_recipes(), *built_in_comparisons()]
        raise unknown_name("recipe", str(path), known, where="the built-in ones, and there is no such file")
    return read_mapping(path)


def check_keys(values: Any, record: type, where: str, prefix: str = "") -> None:
    """Raise ``ConfigError`` for a key of ``values`` that ``record`` or a record within it does not have."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{prefix.rstrip('.') or where}: got {values!r}, expected keys and values (in {where}).")
    hints = typing.get_type_hints(record)
    for key, value in values.items():
        if key not in hints:
            raise unknown_name("key", f"{prefix}{key}", [prefix + known for known in hints], where=where)
        if dataclasses.is_dataclass(hints[key]):
            check_keys(value, typing.cast(type, hints[key]), where, f"{prefix}{key}.")


def built_in_recipes() -> dict[str, Path]:
    """Recipes that come with the package, by name."""
    folder = Path(__file__).parent / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def built_in_comparisons() -> dict[str, Path]:
    """Comparisons that come with the package, by name."""
    folder = Path(__file__).parent / "recipes" / "comparisons"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """The file of a recipe given by path or by built-in name."""
    return built_in_recipes().get(name, Path(name))
