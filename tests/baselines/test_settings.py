"""Settings, batches and training rows of what TRL trains, without TRL."""

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from drift.baselines.collators import SampledLabels, SampledPairs
from drift.baselines.config import OnlineConfig, PreferenceConfig
from drift.baselines.live import Live, training_row
from drift.baselines.preference import balance, train_preference
from drift.baselines.shared import Log, check_arguments, trl_arguments, trl_version
from drift.environments.arithmetic import Arithmetic
from drift.errors import ConfigError, TrainingError
from drift.exports.config import ExportConfig
from drift.exports.conversations import shaped_returns
from drift.policies import DEFAULT_MODEL
from drift.policies.base import Sampling, derive_seed
from drift.policies.hf import HFPolicy, load_model
from drift.rollouts.episode import Assignment, episode
from drift.types import Trajectory

Make = Callable[..., Trajectory]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "preference.beta"),
        ({"ids": "any"}, "preference.ids"),
        ({"batch_size": 0}, "preference.batch_size"),
        ({"batch_size": 32, "micro_batch_size": 12}, "a divisor of the 32 rows"),
        ({"desirable": -1.0}, "preference.desirable"),
        ({"max_steps": 0, "epochs": 0.0}, "preference.epochs"),
    ],
)
def test_preference_settings_are_checked(settings: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PreferenceConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rounds": 0}, "online.rounds"),
        ({"samples": 1}, "Returns are compared within a prompt"),
        ({"tasks": 8, "prompts": 16}, "at least the 16 prompts of a round"),
        ({"prompts": 8, "samples": 4, "minibatches": 5}, "a divisor of the 32 conversations"),
        ({"prompts": 8, "samples": 4, "minibatches": 2, "micro_batch_size": 5}, "a divisor of the 16 rows"),
        ({"clip": 0.0}, "online.clip"),
        ({"gamma": 1.5}, "online.gamma"),
        ({"loss": "ppo"}, "online.loss"),
        ({"scale": "all"}, "online.scale"),
        ({"outcome": "luck"}, "online.outcome"),
        ({"kl": -0.1}, "online.kl"),
        ({"sampling": Sampling(temperature=0.0)}, "Greedy replies"),
    ],
)
def test_online_settings_are_checked(settings: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OnlineConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"warmup": 2.0}, "warmup"),
        ({"dtype": "float16"}, "dtype"),
        ({"arguments": {"lr_scheduler_type": "cosine"}}, "arguments.lr_scheduler_type: .* Use schedule"),
        ({"arguments": {"per_device_train_batch_size": 4}}, "Use batch_size, prompts or micro_batch_size"),
    ],
)
@pytest.mark.parametrize("config", [PreferenceConfig, OnlineConfig])
def test_settings_of_every_training_are_checked(config: Any, settings: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"{config.where}.{message}" if "Use batch" not in message else message):
        config(**settings)


def test_settings_of_transformers_are_known_before_a_model_is_loaded() -> None:
    check_arguments(OnlineConfig(arguments={"weight_decay": 0.0, "gradient_checkpointing": True}))
    with pytest.raises(ConfigError, match=r"'weight_decai' in online.arguments. Did you mean 'weight_decay'"):
        check_arguments(OnlineConfig(arguments={"weight_decai": 0.1}))


def test_arguments_take_the_place_of_ours(tmp_path: Path) -> None:
    ours = trl_arguments(OnlineConfig(), tmp_path, seed=1, device="cpu")
    assert (ours["weight_decay"], ours["max_grad_norm"], ours["logging_steps"]) == (0.1, 1.0, 10)
    given = {"max_grad_norm": 0.5, "gradient_checkpointing": True}
    found = trl_arguments(OnlineConfig(arguments=given), tmp_path, seed=1, device="cpu")
    assert found == {**ours, **given}
    assert TrainingArguments(**found).max_grad_norm == 0.5


def test_settings_are_plain_values_for_manifests() -> None:
    values = OnlineConfig(sampling=Sampling(stop=("x",)), arguments={"weight_decay": 0.0}).to_dict()
    assert values["sampling"]["stop"] == ["x"] and values["learning_rate"] is None
    assert (values["arguments"]["weight_decay"], values["arguments"]["max_grad_norm"]) == (0.0, 1.0)
    config = PreferenceConfig(format="kto", gamma=0.8)
    assert config.to_dict()["format"] == "kto" and config.rows == ExportConfig(format="kto", gamma=0.8)


def test_a_learning_rate_that_is_left_open_depends_on_the_model() -> None:
    assert OnlineConfig().resolved("default").learning_rate == 3e-4
    assert OnlineConfig().resolved("org/model").learning_rate == 1e-6
    assert PreferenceConfig().resolved("default").learning_rate == 1e-6
    given = OnlineConfig(learning_rate=1e-5)
    assert given.resolved("default") == given.resolved("org/model") == given


def test_without_trl_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from importlib.metadata import PackageNotFoundError

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("drift.baselines.shared.version", missing)
    with pytest.raises(ConfigError, match=r"pip install 'drift-rl\[trl\]'"):
        train_preference(tmp_path, tmp_path / "out", model="default", config=PreferenceConfig(), seed=1)
    monkeypatch.setattr("drift.baselines.shared.version", lambda name: "2.0.0")
    with pytest.raises(ConfigError, match=r"trl 2.0.0 is installed, expected 1.16"):
        trl_version()


@pytest.mark.parametrize(
    ("good", "bad", "expected"), [(30, 90, (3.0, 1.0)), (90, 30, (1.0, 3.0)), (5, 5, (1.0, 1.0)), (0, 4, (4.0, 1.0))]
)
def test_the_rarer_kind_weighs_as_much_in_all(good: int, bad: int, expected: tuple[float, float]) -> None:
    found = balance(good, bad, PreferenceConfig())
    assert found == expected
    assert not good or found[0] * good == pytest.approx(found[1] * bad)
    assert balance(good, bad, PreferenceConfig(desirable=2.0, undesirable=0.5)) == (2.0, 0.5)


def test_pairs_are_laid_out_chosen_first_with_the_environments_words_masked() -> None:
    rows = [
        {"sampled_ids": {"prompt": [1, 2], "chosen": [3, 9, 4], "chosen_mask": [1, 0, 1],
                         "rejected": [5], "rejected_mask": [1]}, "ref_chosen_logps": -1.0, "ref_rejected_logps": -2.0},
        {"sampled_ids": {"prompt": [6], "chosen": [7], "chosen_mask": [1],
                         "rejected": [8, 9, 9, 8], "rejected_mask": [1, 0, 0, 1]},
         "ref_chosen_logps": -3.0, "ref_rejected_logps": -4.0},
    ]  # fmt: skip
    batch = SampledPairs(0)(rows)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 9, 4], [6, 7, 0, 0, 0], [1, 2, 5, 0, 0], [6, 8, 9, 9, 8]]
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1] * 5]
    assert batch["completion_mask"].tolist() == [
        [0, 0, 1, 0, 1], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 1, 0, 0, 1],
    ]  # fmt: skip
    assert batch["ref_chosen_logps"].tolist() == [-1.0, -3.0]
    assert batch["ref_rejected_logps"].tolist() == [-2.0, -4.0]


def test_labelled_rows_also_carry_the_completion_of_the_row_before() -> None:
    rows = [
        {"sampled_ids": {"prompt": [1, 2], "completion": [3, 9, 4], "completion_mask": [1, 0, 1]}, "label": True},
        {"sampled_ids": {"prompt": [6], "completion": [7], "completion_mask": [1]}, "label": False},
    ]
    batch = SampledLabels(0)(rows)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 9, 4], [6, 7, 0, 0, 0]]
    assert batch["completion_mask"].tolist() == [[0, 0, 1, 0, 1], [0, 1, 0, 0, 0]]
    assert batch["KL_input_ids"].tolist() == [[1, 2, 7, 0], [6, 3, 9, 4]]
    assert batch["KL_completion_mask"].tolist() == [[0, 0, 1, 0], [0, 1, 0, 1]]
    assert batch["KL_attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch["label"].tolist() == [True, False]


def test_a_conversation_becomes_one_row_with_the_environments_words_masked(make_trajectory: Make) -> None:
    row = training_row(make_trajectory("a", 0, ("1", "5"), True), end_id=0)
    first, second = list(b"<answer>1</answer>"), list(b"<answer>5</answer>")
    assert row["prompt_ids"] == [1, 2, 3]
    assert row["completion_ids"] == [*first, 9, 8, *second]
    assert row["env_mask"] == [1] * 18 + [0, 0] + [1] * 18
    assert row["logprobs"] == [-0.5] * 18 + [0.0, 0.0] + [-0.5] * 18


def test_a_conversation_that_failed_is_not_trained(make_trajectory: Make) -> None:
    failed = make_trajectory("a", 0, ("1",), error="environment.step raised OSError: gone")
    assert set(training_row(failed, end_id=0)["env_mask"]) == {0}
    silent = make_trajectory("a", 1, (), error="environment.start raised OSError: gone")
    assert training_row(silent, end_id=7) == {
        "prompt_ids": [7], "completion_ids": [7], "logprobs": [0.0], "env_mask": [0],
    }  # fmt: skip
    solved = make_trajectory("a", 2, ("1", "1", "5"), True)
    found = shaped_returns([failed, silent, solved], OnlineConfig())
    assert found[:2] == [None, None] and found[2] == pytest.approx(0.81 - 0.5 / 3)


def test_a_template_that_rewrites_history_is_refused(make_trajectory: Make) -> None:
    told = make_trajectory("a", 0, ("1", "5"), True)
    rewritten = replace(told, turns=(told.turns[0], replace(told.turns[1], prompt_ids=(4, 5, 6))))
    with pytest.raises(TrainingError, match="a#0: the model's chat template rewrites what was said before"):
        training_row(rewritten, end_id=0)


def test_a_round_is_held_with_the_weights_of_the_moment_and_seeds_of_its_own() -> None:
    model, tokenizer = load_model(str(DEFAULT_MODEL), dtype="float32")
    trainer: Any = SimpleNamespace(
        accelerator=SimpleNamespace(unwrap_model=lambda model: model), model=model, processing_class=tokenizer
    )
    factory, sampling = Arithmetic(), Sampling(max_new_tokens=16)
    tasks = factory.tasks("train", 4, 2)
    config = OnlineConfig(tasks=4, prompts=2, samples=3, sampling=sampling)
    prompts = [task.id for task in tasks[:2] for _ in range(3)]
    live = Live(factory, tasks, config, seed=5, source="default")
    model.train()
    first, second = live(prompts, trainer), live(prompts, trainer)
    assert model.training
    assert first["completion_ids"] != second["completion_ids"]

    async def naive() -> list[Trajectory]:
        policy = HFPolicy(str(DEFAULT_MODEL))
        todo = [
            Assignment(task=task, sample=k, seed=derive_seed(5, "online", 0, task.id, k))
            for task in tasks[:2]
            for k in range(3)
        ]
        return [await episode(each, factory, policy, sampling) for each in todo]

    held = asyncio.run(naive())
    assert [row["completion_ids"] for row in (training_row(t, 1) for t in held)] == first["completion_ids"]
    assert first["shaped_return"] == pytest.approx(shaped_returns(held, config))
    assert live.counts["conversations"] == 12 and live.counts["failed"] == 0
    assert live.counts["tokens_sampled"] == sum(map(sum, first["env_mask"] + second["env_mask"]))
    # Other weights, other conversations under the same seeds: nothing of the first model is kept.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    again = Live(factory, tasks, config, seed=5, source="default")(prompts, trainer)
    assert again["completion_ids"] != first["completion_ids"]
    live.round = 0
    assert live(prompts, trainer)["completion_ids"] == again["completion_ids"]


def test_a_round_in_which_all_fails_stops_the_training() -> None:
    class Broken(Arithmetic):
        def start(self, task: Any) -> Any:
            raise OSError("no such game")

    model, tokenizer = load_model(str(DEFAULT_MODEL), dtype="float32")
    trainer: Any = SimpleNamespace(
        accelerator=SimpleNamespace(unwrap_model=lambda model: model), model=model, processing_class=tokenizer
    )
    factory = Broken()
    tasks = factory.tasks("train", 2, 2)
    live = Live(factory, tasks, OnlineConfig(tasks=2, prompts=1, samples=2), seed=1, source="default")
    with pytest.raises(TrainingError, match=r"every conversation of round 1 failed in the environment: .*no such game"):
        live([tasks[0].id] * 2, trainer)


def test_a_loss_that_is_not_finite_stops_and_other_numbers_are_kept(tmp_path: Path) -> None:
    log = Log(tmp_path / "metrics.jsonl", "test")
    state: Any = SimpleNamespace(global_step=3, max_steps=5)
    log.on_train_begin(None, state, None)
    log.on_log(None, state, None, logs={"loss": 0.5, "kl": math.nan})
    log.on_log(None, state, None, logs={"train_runtime": 1.0})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 3, "loss": 0.5, "kl": null}\n'
    with pytest.raises(TrainingError, match="went wrong by step 3: loss is nan"):
        log.on_log(None, state, None, logs={"loss": math.nan})
    log.on_train_end(None, state, None)
