"""Conversations of a model under training, by drift's turn loop, as the rows that TRL trains it on."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

from drift.baselines.config import OnlineConfig
from drift.environments.base import EnvironmentFactory
from drift.errors import TrainingError
from drift.event_loop import run_to_end
from drift.exports.conversations import one_row, shaped_returns
from drift.policies.base import derive_seed
from drift.policies.hf import HFPolicy
from drift.rollouts.episode import Assignment, episode
from drift.types import Task, Trajectory


class Live:
    """Has a round's conversations with the model as it is, and gives TRL what it trains on.

    Args:
        factory: the environment.
        tasks: what its prompts are; TRL knows them by their ids.
        config: how.
        seed: of the run.
        source: how messages name the model.
    """

    def __init__(
        self, factory: EnvironmentFactory, tasks: Sequence[Task], config: OnlineConfig, *, seed: int, source: str
    ) -> None:
        self._factory, self._config, self._seed, self._source = factory, config, seed, source
        self.tasks = {task.id: task for task in tasks}
        self.max_turns = factory.max_turns
        self._policy: HFPolicy | None = None
        self.round = 0
        self.counts: Counter[str] = Counter()
        self.last: dict[str, float] = {}

    def __call__(self, prompts: Sequence[str], trainer: Any) -> dict[str, list[Any]]:
        """TRL's ``rollout_func``: one conversation for each of ``prompts``, which are ids of tasks.

        Returns:
            ``prompt_ids``, ``completion_ids`` (all from the first reply to the last), ``logprobs``, ``env_mask`` (1
            where the policy sampled) and ``shaped_return``, ``None`` for a conversation whose environment failed.
        """
        model = trainer.accelerator.unwrap_model(trainer.model)
        if self._policy is None:
            self._policy = HFPolicy.of(
                model, trainer.processing_class, source=self._source, batch_size=self._config.generation_batch
            )
        seen: Counter[str] = Counter()
        todo = []
        for task_id in prompts:
            seed = derive_seed(self._seed, "online", self.round, task_id, seen[task_id])
            todo.append(Assignment(task=self.tasks[task_id], sample=seen[task_id], seed=seed))
            seen[task_id] += 1
        training = model.training
        model.eval()
        try:
            trajectories = run_to_end(self._converse(todo, self._policy))
        finally:
            model.train(training)
        self.round += 1
        return self._rows(trajectories, trainer.processing_class)

    async def _converse(self, todo: Sequence[Assignment], policy: HFPolicy) -> list[Trajectory]:
        try:
            episodes = (episode(each, self._factory, policy, self._config.sampling) for each in todo)
            return list(await asyncio.gather(*episodes))
        finally:
            # The model is trained next: what is kept of its conversations is of no use, and training wants the memory.
            await policy.aclose()
            close = getattr(self._factory, "aclose", None)
            if close is not None:
                await close()

    def _rows(self, trajectories: Sequence[Trajectory], tokenizer: Any) -> dict[str, list[Any]]:
        end = tokenizer.eos_token_id
        rows = [training_row(each, end) for each in trajectories]
        returns = shaped_returns(trajectories, self._config)
        known = [value for value in returns if value is not None]
        counted = Counter(
            conversations=len(trajectories),
            failed=len(trajectories) - len(known),
            successes=sum(t.success for t in trajectories),
            tokens_sampled=sum(sum(row["env_mask"]) for row in rows),
            tokens_trained=self._config.passes * sum(len(r["prompt_ids"]) + len(r["completion_ids"]) for r in rows),
        )
        if not known:
            raise TrainingError(
                f"every conversation of round {self.round} failed in the environment: {trajectories[0].error}. "
                "Put it through drift check."
            )
        self.counts += counted
        self.last = {"return": sum(known) / len(known), "success": counted["successes"] / len(trajectories)}
        return {**{key: [row[key] for row in rows] for key in rows[0]}, "shaped_return": returns}


def training_row(trajectory: Trajectory, end_id: int) -> dict[str, list[Any]]:
    """One conversation as TRL trains it: what was read before the first reply, and all from there on.

    Token layout, for prompt P, replies A and the environment's words F::

        prompt_ids     = P0
        completion_ids = A0 + F0 + A1 + F1 + … + AL
        env_mask       =  1 +  0 +  1 +  0 + … +  1

    A conversation without a reply, or whose environment failed, has a mask of 0 throughout.

    Args:
        trajectory: the conversation.
        end_id: stands where nothing was said, since TRL wants at least one id.

    Raises:
        TrainingError: the chat template rewrites history, so that no one row is what the policy saw.
    """
    if not trajectory.turns:
        return {"prompt_ids": [end_id], "completion_ids": [end_id], "logprobs": [0.0], "env_mask": [0]}
    row = one_row(trajectory.turns)
    if row is None:
        raise TrainingError(
            f"{trajectory.id}: the model's chat template rewrites what was said before, so a conversation is not "
            "one row of ids, which GRPO in TRL needs. Use a template that keeps history."
        )
    ids, sampled, logprobs = row
    mask = [0] * len(sampled) if trajectory.error else sampled
    prompt = list(trajectory.turns[0].prompt_ids)
    return {"prompt_ids": prompt, "completion_ids": ids, "logprobs": logprobs, "env_mask": mask}
