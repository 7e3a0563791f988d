"""drift: better multi-turn conversation without online RL.

Sample conversations once from a fixed policy, weigh each by its return, fine-tune on them with the weights, measure.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if sys.platform == "win32":
    raise ImportError(
        "drift runs on Linux and macOS, not on Windows. Use the Windows Subsystem for Linux (wsl --install)."
    )

if TYPE_CHECKING:
    from drift.api import (
        evaluate,
        export,
        preview,
        rank,
        read_logs,
        report,
        rollout,
        train,
        train_online,
        train_preference,
        view,
        weigh,
    )
    from drift.artifacts import Artifact, Page, Run
    from drift.audit import check
    from drift.comparison.run import compare
    from drift.dataset.store import as_hf_dataset
    from drift.environments.base import Environment, EnvironmentFactory
    from drift.environments.replies import verify
    from drift.errors import DriftError
    from drift.evaluation.config import EvaluationConfig
    from drift.pipeline import run
    from drift.policies.base import Policy, Sampling, TextPolicy
    from drift.publishing.hub import push
    from drift.recipe import Recipe
    from drift.rollouts.config import ClusterConfig, RolloutConfig
    from drift.scaffold import new
    from drift.training.config import TrainingConfig
    from drift.types import Completion, Message, Step, Task, Trajectory, Turn
    from drift.weights.config import WeightConfig

__version__ = "0.1.0"
_FROM = {
    "api": (
        "evaluate", "export", "preview", "rank", "read_logs", "report", "rollout", "train", "train_online",
        "train_preference", "view", "weigh",
    ),
    "artifacts": ("Artifact", "Page", "Run"),
    "audit": ("check",),
    "comparison.run": ("compare",),
    "dataset.store": ("as_hf_dataset",),
    "environments.base": ("Environment", "EnvironmentFactory"),
    "environments.replies": ("verify",),
    "errors": ("DriftError",),
    "evaluation.config": ("EvaluationConfig",),
    "pipeline": ("run",),
    "policies.base": ("Policy", "Sampling", "TextPolicy"),
    "publishing.hub": ("push",),
    "recipe": ("Recipe",),
    "rollouts.config": ("ClusterConfig", "RolloutConfig"),
    "scaffold": ("new",),
    "training.config": ("TrainingConfig",),
    "types": ("Completion", "Message", "Step", "Task", "Trajectory", "Turn"),
    "weights.config": ("WeightConfig",),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _FROM.items() for name in names}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    # Loaded when first asked for, so that `import drift` and `drift --help` stay quick.
    if name in _MODULE_OF:
        from importlib import import_module

        return getattr(import_module(f"drift.{_MODULE_OF[name]}"), name)
    import difflib

    near = [known for known in __all__ if name.startswith(known)] or difflib.get_close_matches(name, __all__, n=1)
    raise AttributeError(f"module 'drift' has no attribute {name!r}.{f' Did you mean {near[0]!r}?' if near else ''}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
