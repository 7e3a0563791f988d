"""Who talks to whom: an environment and a policy, by names and settings that any machine makes the same things of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from drift import __version__
from drift.environments import environment_record, make_environment
from drift.environments.base import EnvironmentFactory
from drift.policies import make_policy
from drift.policies.base import AnyPolicy

PROMPT_SETTINGS = ("chat_template_kwargs", "system", "prefill")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """An environment and a policy, not made yet.

    Args:
        environment: as for ``make_environment``.
        model: as for ``make_policy``.
        policy: settings of the policy.
        device: where the policy computes, if it computes here.
        version: of drift, which must be the same on every machine.
    """

    environment: Any = "arithmetic"
    model: Any = "default"
    policy: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"
    version: str = __version__

    def make_policy(self) -> AnyPolicy:
        """Make the policy."""
        return make_policy(self.model, self.policy, device=self.device)

    def make_environment(self) -> EnvironmentFactory:
        """Make the environment."""
        return make_environment(self.environment)

    @property
    def prompts(self) -> dict[str, Any]:
        """What the policy's prompts have beside the conversations, by setting, for manifests."""
        return {key: self.policy[key] for key in PROMPT_SETTINGS if self.policy.get(key)}

    @property
    def record(self) -> dict[str, Any]:
        """Name and settings of the environment, for manifests."""
        return environment_record(self.environment)
