"""Online multi-turn RL: TRL's ``GRPOTrainer`` on conversations held in drift's environments by drift's turn loop.

The protocol is that of UFO (2507.14295): a whole conversation is one action sequence, the environment's words are read
and not trained, and its one reward is the shaped return of DRIFT Eq. 12.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback

from drift.baselines.config import OnlineConfig
from drift.baselines.shared import METRICS, Log, optimizer_arguments, quiet, stoppable, trl_version
from drift.chat import TemplateChat, extends
from drift.dataset.outcomes import outcomes
from drift.environments.base import EnvironmentFactory, task_hash
from drift.errors import TrainingError
from drift.manifest import read_manifest, write_json, write_manifest
from drift.policies import model_path
from drift.policies.base import derive_seed
from drift.policies.hf import HFPolicy, fingerprint, load_model
from drift.rollouts.episode import Assignment, episode
from drift.training.config import KIND
from drift.training.fit import saving
from drift.training.ranks import only_one
from drift.training.run import SPEC, is_finished
from drift.types import Task, Trajectory
from drift.weights.returns import trajectory_return

ROUNDS = "rounds.jsonl"


class Live:
    """Holds a round's conversations with the model as it is, and gives TRL what it trains on.

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
            held = asyncio.run(self._hold(todo, self._policy))
        finally:
            model.train(training)
        self.round += 1
        return self._rows(held, trainer.processing_class)

    async def _hold(self, todo: Sequence[Assignment], policy: HFPolicy) -> list[Trajectory]:
        try:
            held = (episode(each, self._factory, policy, self._config.sampling) for each in todo)
            return list(await asyncio.gather(*held))
        finally:
            close = getattr(self._factory, "aclose", None)
            if close is not None:
                await close()

    def _rows(self, held: Sequence[Trajectory], tokenizer: Any) -> dict[str, list[Any]]:
        end = tokenizer.eos_token_id
        rows = [training_row(trajectory, end) for trajectory in held]
        returns = shaped_returns(held, self._config)
        known = [value for value in returns if value is not None]
        counted = Counter(
            conversations=len(held),
            failed=len(held) - len(known),
            successes=sum(t.success for t in held),
            tokens_sampled=sum(sum(row["env_mask"]) for row in rows),
            tokens_trained=self._config.passes * sum(len(r["prompt_ids"]) + len(r["completion_ids"]) for r in rows),
        )
        if not known:
            raise TrainingError(
                f"every conversation of round {self.round} failed in the environment: {held[0].error}. "
                "Put it through drift check."
            )
        self.counts += counted
        self.last = {"return": sum(known) / len(known), "success": counted["successes"] / len(held)}
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
    first = trajectory.turns[0]
    ids: list[int] = []
    logprobs: list[float] = []
    mask: list[int] = []
    for before, turn in zip((None, *trajectory.turns), trajectory.turns, strict=False):
        if before is not None and not extends(before, turn):
            raise TrainingError(
                f"{trajectory.id}: the model's chat template rewrites what was said before, so a conversation is not "
                "one row of ids, which GRPO in TRL needs. Use a template that keeps history."
            )
        read = turn.prompt_ids[len(first.prompt_ids) + len(ids) :]
        said = turn.completion.token_ids
        ids += [*read, *said]
        logprobs += [0.0] * len(read) + list(turn.completion.logprobs or [0.0] * len(said))
        mask += [0] * len(read) + [int(trajectory.error is None)] * len(said)
    return {"prompt_ids": list(first.prompt_ids), "completion_ids": ids, "logprobs": logprobs, "env_mask": mask}


def shaped_returns(held: Sequence[Trajectory], config: OnlineConfig) -> list[float | None]:
    """The return of each conversation, as DRIFT weighs it (Eq. 12); ``None`` where the environment failed."""
    found = outcomes(held)
    returns_N = trajectory_return(
        found.success_N if config.base == "success" else found.reward_N,
        found.turns_N,
        found.distinct_N,
        found.failures_N,
        gamma=config.gamma,
        repetition=config.repetition,
        format_failure=config.format_failure,
        graded_N=found.graded_N,
    )
    values = iter(returns_N.tolist())
    return [next(values) if t.error is None and t.turns else None for t in held]


def shaped_return(shaped_return: list[float | None], **kwargs: Any) -> list[float | None]:
    """TRL's reward function: the return that came with the conversation."""
    return shaped_return


def train_online(
    environment: Mapping[str, Any],
    factory: EnvironmentFactory,
    out: Path,
    *,
    base: str,
    config: OnlineConfig,
    seed: int,
    device: str = "auto",
) -> dict[str, Any]:
    """Train ``base`` with GRPO on conversations that are held while it is trained, and save it to ``out``.

    ``rounds.jsonl`` says after each round what it had cost by then and what its conversations were worth.

    Args:
        environment: name and settings, for the record.
        factory: the environment.
        out: the model folder; one that holds this very training is left as it is.
        base: the model to start from: ``default``, a folder (one that DRIFT trained, say) or a hub id.
        config: how.
        seed: decides tasks, their order and every conversation.
        device: where to sample and train.

    Returns:
        The manifest.

    Raises:
        ConfigError: TRL is not installed, or there are not as many tasks.
        DatasetError: ``out`` holds another training.
        TrainingError: every conversation of a round failed, the chat template rewrites history, or the loss stopped
            being finite.
        Interrupted: Ctrl-C.
    """
    library = trl_version()
    config = config.resolved(base)
    tasks = factory.tasks("train", config.tasks, seed)
    with only_one(out):
        model, tokenizer = load_model(model_path(base), dtype="float32", device=device)
        TemplateChat(tokenizer, source=base)
        spec = {
            "base": fingerprint(model, tokenizer),
            "environment": dict(environment),
            "task_hash": task_hash(tasks),
            "config": config.to_dict(),
            "seed": seed,
        }
        if is_finished(out, spec):
            return read_manifest(out, KIND)
        write_json(out / SPEC, spec)
        live = Live(factory, tasks, config, seed=seed, source=base)
        meter = _Meter(out, live, config, tokenizer)
        with quiet():
            trainer = _trainer(out, model, tokenizer, live, meter, config, seed=seed, device=device)
            with stoppable(trainer):
                trainer.train()
        with saving(out):
            trainer.accelerator.unwrap_model(trainer.model).save_pretrained(out)
            tokenizer.save_pretrained(out)
        shutil.rmtree(out / "trl", ignore_errors=True)
        content = {
            "spec": spec,
            "base": base,
            "objective": "grpo",
            "trl": library,
            "counts": {key: live.counts[key] for key in ("conversations", "failed", "successes")},
            "rounds": live.round,
            "steps": trainer.state.global_step,
            "cost": meter.cost(),
        }
        write_manifest(out, KIND, content)
        return read_manifest(out, KIND)


def _trainer(
    out: Path,
    model: Any,
    tokenizer: Any,
    live: Live,
    meter: _Meter,
    config: OnlineConfig,
    *,
    seed: int,
    device: str,
) -> Any:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    step = config.prompts * config.samples // config.minibatches
    micro = min(config.micro_batch_size, step)
    arguments = GRPOConfig(
        **optimizer_arguments(config.optimizer, out, seed=seed, device=device),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=step // micro,
        steps_per_generation=config.prompts * config.samples // micro,
        num_generations=config.samples,
        num_iterations=config.passes,
        max_steps=config.rounds * config.minibatches * config.passes,
        # Nothing is cut to it: it is the constant of dr_grpo.
        max_completion_length=live.max_turns * config.sampling.max_new_tokens,
        temperature=config.sampling.temperature,
        top_p=config.sampling.top_p,
        beta=config.kl,
        epsilon=config.clip,
        loss_type=config.loss,
        scale_rewards=config.scale,
        remove_unused_columns=False,
    )
    trainer = GRPOTrainer(
        model=model,
        args=arguments,
        reward_funcs=shaped_return,
        train_dataset=Dataset.from_dict({"prompt": list(live.tasks)}),
        processing_class=tokenizer,
        rollout_func=live,
        callbacks=[Log(out / METRICS, "online"), meter],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


class _Meter(TrainerCallback):  # type: ignore[misc]
    """What training has cost after each round, the time of saving left out, and the models saved on the way."""

    def __init__(self, out: Path, live: Live, config: OnlineConfig, tokenizer: Any) -> None:
        self._out, self._live, self._config, self._tokenizer = out, live, config, tokenizer
        self._start, self._processor = time.monotonic(), time.process_time()

    def cost(self) -> dict[str, Any]:
        return {
            "seconds": round(time.monotonic() - self._start, 3),
            "processor_seconds": round(time.process_time() - self._processor, 3),
            "tokens_sampled": self._live.counts["tokens_sampled"],
            "tokens_trained": self._live.counts["tokens_trained"],
        }

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._start, self._processor = time.monotonic(), time.process_time()
        (self._out / ROUNDS).unlink(missing_ok=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        done, rest = divmod(state.global_step, self._config.minibatches * self._config.passes)
        if rest:
            return
        row = {"round": done, **self.cost(), **self._live.last}
        now, used = time.monotonic(), time.process_time()
        with (self._out / ROUNDS).open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self._config.save_rounds and done % self._config.save_rounds == 0:
            folder = self._out / "rounds" / str(done)
            with saving(folder):
                kwargs["model"].save_pretrained(folder)
                self._tokenizer.save_pretrained(folder)
        self._start += time.monotonic() - now
        self._processor += time.process_time() - used
