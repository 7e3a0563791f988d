"""drift: better multi-turn conversation without online RL.

Sample conversations once from a fixed policy, weigh each by its return, fine-tune on them with the weights, measure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drift.api import (
        evaluate,
        export,
        import_conversations,
        report,
        rollout,
        train,
        train_online,
        train_preference,
        weigh,
    )
    from drift.comparison import compare
    from drift.pipeline import run_recipe

__version__ = "0.1.0"
__all__ = [
    "compare",
    "evaluate",
    "export",
    "import_conversations",
    "report",
    "rollout",
    "run_recipe",
    "train",
    "train_online",
    "train_preference",
    "weigh",
]
_ELSEWHERE = {"compare": "drift.comparison", "run_recipe": "drift.pipeline"}


def __getattr__(name: str) -> Any:
    # Loaded when first asked for, so that `import drift` and `drift --help` stay quick.
    if name in __all__:
        from importlib import import_module

        return getattr(import_module(_ELSEWHERE.get(name, "drift.api")), name)
    raise AttributeError(f"module 'drift' has no attribute {name!r}")
