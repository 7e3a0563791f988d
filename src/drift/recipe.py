"""The pipeline as configuration: one frozen record per stage, read from YAML, overridden on the command line."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drift.errors import ConfigError, require, unknown_name
from drift.evaluation.config import QualitySettings
from drift.policies.base import Sampling
from drift.registry import plain
from drift.rollouts.config import ClusterSettings
from drift.secrets import refuse_secrets
from drift.training.config import TrainingConfig
from drift.weights.config import WeightConfig


@dataclass(frozen=True, kw_only=True)
class EnvironmentChoice:
    """Which environment.

    Args:
        name: a registered environment.
        settings: its own settings.
    """

    name: str = "arithmetic"
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        refuse_secrets(self.settings, "environment.settings")


@dataclass(frozen=True, kw_only=True)
class PolicyChoice:
    """Which policy is sampled, trained and measured against.

    Args:
        model: default (the small one that comes with drift), a model folder, or a hub id.
        dtype: auto, float32, bfloat16 or float16.
        device: auto, cpu, cuda, …
        batch_size: the most requests in one batch of generation.
        settings: settings of another kind of policy, for a model given as NAME:ARGUMENT, such as openai:NAME.
    """

    model: str = "default"
    dtype: str = "auto"
    device: str = "auto"
    batch_size: int = 128
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        refuse_secrets(self.settings, "policy.settings")


@dataclass(frozen=True, kw_only=True)
class RolloutSettings:
    """What is sampled to learn from.

    Args:
        tasks: number of tasks of the train split.
        samples: K, conversations per task.
        first: adaptive sampling: so many conversations of every task first, the rest only for prompts that these leave
            undecided (neither all right nor all wrong); weights correct for it. 0 samples every prompt K times.
        sampling: how replies are drawn.
        concurrency: the most conversations open at once; with a cluster, on each worker.
        cluster: workers on many machines that hold the conversations, here and in the evaluation.
    """

    tasks: int = 1800
    samples: int = 16
    first: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    concurrency: int = 512
    cluster: ClusterSettings = field(default_factory=ClusterSettings)

    def __post_init__(self) -> None:
        require(self.tasks >= 1, "rollouts.tasks", self.tasks, "a whole number ≥ 1")
        require(self.samples >= 1, "rollouts.samples", self.samples, "a whole number ≥ 1")
        require(self.concurrency >= 1, "rollouts.concurrency", self.concurrency, "a whole number ≥ 1")
        sound = self.first == 0 or 2 <= self.first <= self.samples
        require(sound, "rollouts.first", self.first, f"0, or a whole number from 2 to samples ({self.samples})")


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What the result is measured on. Replies are drawn as in the rollouts, and greedily.

    Args:
        tasks: number of held-out tasks, of the test split.
        samples: sampled conversations per task; 0 measures greedy alone.
        quality: what of the replies' language is measured beyond what is counted anyway.
    """

    tasks: int = 500
    samples: int = 4
    quality: QualitySettings = field(default_factory=QualitySettings)

    def __post_init__(self) -> None:
        require(self.tasks >= 1, "evaluation.tasks", self.tasks, "a whole number ≥ 1")
        require(self.samples >= 0, "evaluation.samples", self.samples, "a whole number ≥ 0")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run: sample, weigh, fine-tune, measure, report.

    Args:
        seed: every random choice of the run derives from it.
        rounds: how often to roll out and train: the steps are shared among the rounds, and each after the first rolls
            out the same tasks again with the model of the one before (DRIFT App. D.5).
        environment: who the policy talks to.
        policy: the model.
        rollouts: what is sampled.
        weights: how it is weighed.
        training: how the model is fine-tuned.
        evaluation: what the result is measured on.
    """

    seed: int = 1
    rounds: int = 1
    environment: EnvironmentChoice = field(default_factory=EnvironmentChoice)
    policy: PolicyChoice = field(default_factory=PolicyChoice)
    rollouts: RolloutSettings = field(default_factory=RolloutSettings)
    weights: WeightConfig = field(default_factory=WeightConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)

    def __post_init__(self) -> None:
        require(self.rounds >= 1, "rounds", self.rounds, "a whole number ≥ 1")
        steps, epochs = self.training.max_steps, self.training.epochs
        require(bool(epochs) or steps >= self.rounds, "rounds", self.rounds, f"at most the {steps} steps of training")
        self.weights.check_adaptive(self.rollouts.first)
        if self.weights.chain.scheme.grouped:
            require(
                self.rollouts.samples >= 2,
                "rollouts.samples",
                self.rollouts.samples,
                f"at least 2 with the scheme {self.weights.scheme!r}, which compares conversations of one prompt",
                "16 is the published value.",
            )


def to_dict(recipe: Any) -> dict[str, Any]:
    """A recipe as plain nested values."""
    values: dict[str, Any] = plain(dataclasses.asdict(recipe))
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
    import yaml

    if not path.is_file():
        known = ", ".join(sorted(built_in_recipes()))
        raise ConfigError(f"recipe {str(path)!r}: no such file. Give a YAML file, or one of the built-in {known}.")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"recipe {path} is not YAML: {error}.") from error
    values = {} if values is None else values
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path}: got {values!r}, expected keys and values (in {path}).")
    return typing.cast(dict[str, Any], values)


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
