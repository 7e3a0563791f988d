"""Online multi-turn RL: TRL's ``GRPOTrainer`` on conversations in drift's environments by drift's turn loop.

The protocol is that of UFO (2507.14295): a whole conversation is one action sequence, the environment's words are read
and not trained, and its one reward is the shaped return of DRIFT Eq. 12.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from drift.baselines.config import OnlineConfig
from drift.baselines.live import Live
from drift.baselines.shared import METRICS, Log, check_arguments, quiet, train_and_save, trl_arguments, trl_version
from drift.chat import TemplateChat
from drift.environments.base import EnvironmentFactory, task_hash
from drift.files import append_json
from drift.manifest import read_manifest, write_json, write_manifest
from drift.policies import model_path
from drift.policies.hf import load_model
from drift.policies.stored import fingerprint_of
from drift.training.checkpoints import saving
from drift.training.config import KIND, SPEC
from drift.training.distributed import locked
from drift.training.run import is_finished

ROUNDS = "rounds.jsonl"


def shaped_return(shaped_return: list[float | None], **kwargs: Any) -> list[float | None]:
    """TRL's reward function: the return that came with the conversation."""
    return shaped_return


def train_online(
    environment: Mapping[str, Any],
    factory: EnvironmentFactory,
    out: Path,
    *,
    model: str,
    config: OnlineConfig,
    seed: int,
    device: str = "auto",
) -> dict[str, Any]:
    """Train ``model`` with GRPO on conversations that it has while it is trained, and save it to ``out``.

    ``rounds.jsonl`` says after each round what it had cost by then and what its conversations were worth.

    Args:
        environment: name and settings, for the record.
        factory: the environment.
        out: the model folder; one that holds this very training is left as it is.
        model: the model to start from: ``default``, a folder (one that DRIFT trained, say) or a hub id.
        config: how.
        seed: decides tasks, their order and every conversation.
        device: where to sample and train.

    Returns:
        The manifest.

    Raises:
        ConfigError: TRL is not installed, transformers has no such setting, or there are not as many tasks.
        DatasetError: ``out`` holds another training.
        TrainingError: every conversation of a round failed, the chat template rewrites history, or the loss stopped
            being finite.
        Interrupted: Ctrl-C.
    """
    library = trl_version()
    check_arguments(config)
    config = config.resolved(model)
    tasks = factory.tasks("train", config.tasks, seed)
    with locked(out):
        loaded, tokenizer = load_model(model_path(model), dtype="float32", device=device)
        TemplateChat(tokenizer, source=model)
        spec = {
            "model": fingerprint_of(model_path(model)),
            "environment": dict(environment),
            "task_hash": task_hash(tasks),
            "config": config.to_dict(),
            "seed": seed,
        }
        if is_finished(out, spec):
            return read_manifest(out, KIND)
        write_json(out / SPEC, spec)
        live = Live(factory, tasks, config, seed=seed, source=model)
        meter = _Meter(out, live, config, tokenizer)
        with quiet():
            arguments = trl_arguments(config, out, seed=seed, device=device)
            trainer = _trainer(loaded, tokenizer, live, config, arguments, [Log(out / METRICS, "online"), meter])
            train_and_save(trainer, out, tokenizer)
        content = {
            "spec": spec,
            "model": model,
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
    model: Any, tokenizer: Any, live: Live, config: OnlineConfig, arguments: dict[str, Any], callbacks: list[Any]
) -> Any:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    step = config.prompts * config.samples // config.minibatches
    micro = min(config.micro_batch_size, step)
    settings = GRPOConfig(
        **arguments,
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
    return GRPOTrainer(
        model=model,
        args=settings,
        reward_funcs=shaped_return,
        train_dataset=Dataset.from_dict({"prompt": list(live.tasks)}),
        processing_class=tokenizer,
        rollout_func=live,
        callbacks=callbacks,
    )


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
        append_json(self._out / ROUNDS, row)
        if self._config.save_rounds and done % self._config.save_rounds == 0:
            folder = self._out / "rounds" / str(done)
            with saving(folder):
                kwargs["model"].save_pretrained(folder)
                self._tokenizer.save_pretrained(folder)
        self._start += time.monotonic() - now
        self._processor += time.process_time() - used
