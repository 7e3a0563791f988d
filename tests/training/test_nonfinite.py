"""Numbers that are not finite, all weights 0, groups of one: what is done, and what is said."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from drift.api import train, weigh
from drift.checksums import sum_of
from drift.dataset.store import TrajectoryWriter
from drift.errors import ConfigError, DatasetError, TrainingError
from drift.policies.fingerprint import fingerprint
from drift.policies.hf import load_model
from drift.training.config import TrainingConfig
from drift.types import Trajectory
from drift.weights.config import WeightConfig
from drift.weights.schemes import SCHEMES
from drift.weights.table import read_weights

Make = Callable[..., Trajectory]
# A token that one trajectory has sampled, and no other.
RARE = 250
# What the only conversation of a prompt weighs: its share of Ẑ times K = 1, the best there is, e^0; or (r − μ) = 0.
LONE = {
    "drift": 1.0,
    "drift_averaged": 1.0,
    "bolt": 1.0,
    "star_gate": 1.0,
    "awr": 1.0,
    "swift": 0.0,
    "group_relative": 0.0,
    "asymre": 0.1,
}


def settings(**change: object) -> TrainingConfig:
    small: dict[str, object] = {"max_steps": 40, "batch_size": 4, "save_steps": 1, "warmup": 0.0, "rows_together": 1}
    small["arguments"] = {"logging_steps": 40}
    return TrainingConfig(**{**small, "plan": "uniform", "learning_rate": 1e-3, **change})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The tiny model, whose embedding of one token is no number: only rows that hold the token have no loss."""
    folder = tmp_path_factory.mktemp("poisoned")
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with torch.no_grad():
        model.model.embed_tokens.weight[RARE] = math.nan
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def stored(folder: Path, trajectories: list[Trajectory], model: Path) -> Path:
    policy = fingerprint(*load_model(str(model)))
    with TrajectoryWriter(folder, {"policy": policy}, []) as writer:
        for trajectory in trajectories:
            writer.append(trajectory)
        writer.finish()
    return folder


def mixed(make: Make, count: int = 24, **more: object) -> list[Trajectory]:
    return [make(f"t{i}", k, ("1", "2"), solved=k == 0, **more) for i in range(count // 4) for k in range(4)]


def with_token(trajectory: Trajectory, token: int) -> Trajectory:
    from dataclasses import replace

    last = trajectory.turns[-1]
    ids = (*last.completion.token_ids, token, 5)
    turn = replace(last, completion=replace(last.completion, token_ids=ids, logprobs=None))
    return replace(trajectory, turns=(*trajectory.turns[:-1], turn))


@pytest.mark.parametrize("share", [True, False])
def test_a_loss_that_is_no_number_names_its_trajectory_and_spoils_no_checkpoint(
    poisoned: Path, tmp_path: Path, make_trajectory: Make, share: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Such a model is refused before; here it stands for one in which finite weights overflow.
    monkeypatch.setattr("drift.policies.stored.check_finite", lambda *_: None)
    made = mixed(make_trajectory)
    made[14] = with_token(made[14], RARE)
    data = stored(tmp_path / "data", made, poisoned)
    weights, out = weigh(data, scheme="sft", out=tmp_path / "weights"), tmp_path / "model"
    with pytest.raises(TrainingError) as caught:
        train(data, weights, out=out, model=str(poisoned), config=settings(attention="auto" if share else "sdpa"))
    said = re.fullmatch(
        r"went wrong by step (\d+): loss is nan, in the batch with t3#2\. "
        r"(The last checkpoint stays: checkpoint-(\d+)|There is no checkpoint yet)\. Lower training.learning_rate, .*",
        str(caught.value),
    )
    assert said, str(caught.value)
    step = int(said[1])
    # Six steps pass over the 24 rows once. This seed meets the row after the first step, so that there is one to keep.
    assert 2 <= step <= 6 and int(said[3]) == step - 1
    for checkpoint in (out / "checkpoints").glob("checkpoint-*"):
        kept = AutoModelForCausalLM.from_pretrained(checkpoint).state_dict()
        spoiled = {name: int((~torch.isfinite(value)).sum()) for name, value in kept.items()}
        # The one row that was no number from the start.
        assert {name: count for name, count in spoiled.items() if count} == {"model.embed_tokens.weight": 32}
    assert not (out / "manifest.json").exists() and not (out / "model.safetensors").exists()


def test_a_gradient_that_overflows_stops_before_the_step(
    tiny_model: Path, tmp_path: Path, make_trajectory: Make
) -> None:
    # Losses of some 1e30 are numbers; squares of their gradients are not.
    data = stored(tmp_path / "data", mixed(make_trajectory, rewards=(0.0, 1e30)), tiny_model)
    weights = weigh(data, scheme="refit", outcome="reward", out=tmp_path / "weights")
    for norm in (1.0, 0.0):
        out = tmp_path / f"model-{norm}"
        with pytest.raises(
            TrainingError, match=r"^went wrong by step 1: grad_norm is (inf|nan), in the batch with t\d#\d"
        ):
            train(
                data,
                weights,
                out=out,
                model=str(tiny_model),
                config=settings(arguments={"logging_steps": 40, "max_grad_norm": norm}),
            )
        assert not list((out / "checkpoints").glob("checkpoint-*"))


def test_a_parameter_that_overflows_is_not_saved(tiny_model: Path, tmp_path: Path, make_trajectory: Make) -> None:
    data = stored(tmp_path / "data", mixed(make_trajectory), tiny_model)
    weights = weigh(data, scheme="sft", out=tmp_path / "weights")
    for steps in (1, 0):
        out = tmp_path / f"model-{steps}"
        with pytest.raises(TrainingError, match=r"^went wrong by step 1: parameter \S+ and \d+ more is not finite"):
            train(
                data,
                weights,
                out=out,
                model=str(tiny_model),
                config=settings(learning_rate=1e39, save_steps=steps, max_steps=1),
            )
        assert not list((out / "checkpoints").glob("checkpoint-*")) and not (out / "model.safetensors").exists()


def test_a_weight_that_is_no_number_is_named(tiny_model: Path, tmp_path: Path, make_trajectory: Make) -> None:
    data = stored(tmp_path / "data", mixed(make_trajectory), tiny_model)
    weights = weigh(data, scheme="sft", out=tmp_path / "weights")
    path, manifest = weights / "weights.parquet", weights / "manifest.json"
    table = pq.read_table(path)
    values = table.column("weights").to_pylist()
    values[3][1], values[7][0] = math.nan, math.inf
    pq.write_table(table.set_column(table.schema.get_field_index("weights"), "weights", pa.array(values)), path)
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "file_sum": sum_of(path)}))
    name = table.column("id")[3].as_py()
    with pytest.raises(
        DatasetError, match=f"2 weights are not finite; a reply of conversation '{name}' has nan, expected"
    ):
        train(data, weights, out=tmp_path / "model", model=str(tiny_model), config=settings())


# Training sees weights, whatever gave them: none below 0, some, and those of a prompt.
TRAINED = ("sft", "swift", "drift")


@pytest.mark.parametrize(
    ("scheme", "trained"),
    [(name, name in TRAINED) for name in SCHEMES]
    + [pytest.param(name, True, marks=pytest.mark.slow) for name in SCHEMES if name not in TRAINED],
)
def test_groups_of_one(tiny_model: Path, tmp_path: Path, make_trajectory: Make, scheme: str, trained: bool) -> None:
    alone = [make_trajectory(f"a{i}", 0, ("1", "2"), solved=i % 2 == 0) for i in range(6)]
    data = stored(tmp_path / "alone", alone, tiny_model)
    found = tmp_path / "weights"
    if SCHEMES[scheme].grouped:
        with pytest.raises(ConfigError, match="no prompt has more than one"):
            weigh(data, scheme=scheme, out=found)
        data = stored(tmp_path / "mixed", [*alone, *mixed(make_trajectory)], tiny_model)
        table = read_weights(weigh(data, scheme=scheme, out=found).path, data)
        weight = table
        lone = {tuple(weight[name]) for name in weight if name.startswith("a")}
        own = LONE[scheme]
        assert lone == {{"terminal": (0.0, own), "first": (own, 0.0), "all": (own, own)}[SCHEMES[scheme].turns]}
    else:
        table = read_weights(weigh(data, scheme=scheme, out=found).path, data)
    assert np.isfinite(table.weights_T).all() and (table.weights_T != 0).any()
    if not trained:
        return
    model = train(
        data,
        found,
        out=tmp_path / "model",
        model=str(tiny_model),
        config=settings(max_steps=2, save_steps=0),
    )
    lines = (model / "metrics.jsonl").read_text().splitlines()
    assert all(math.isfinite(json.loads(line)["loss"]) for line in lines)


def test_all_weights_zero_is_refused_in_words(tiny_model: Path, tmp_path: Path, make_trajectory: Make) -> None:
    failures = [make_trajectory(f"t{i}", k, ("1", "2"), solved=False) for i in range(4) for k in range(4)]
    data = stored(tmp_path / "data", failures, tiny_model)
    for change in (
        {"scheme": "rft"},
        {"scheme": "drift", "steps": ["drop_unsolved"]},
        {"scheme": "swift", "repetition": 0.0},
    ):
        with pytest.raises(ConfigError, match=r"leaves every weight 0: 4 of 4 prompts have no success"):
            weigh(data, config=WeightConfig(**change), out=tmp_path / "weights")  # type: ignore[arg-type]
        assert not (tmp_path / "weights" / "manifest.json").exists()


def test_returns_that_differ_by_rounding_alone_are_told(
    tmp_path: Path, tiny_model: Path, make_trajectory: Make
) -> None:
    near = [0.3, 0.1 + 0.2, 0.3, 0.3]
    made = [make_trajectory(f"t{i}", k, ("1",), rewards=(near[k],)) for i in range(2) for k in range(4)]
    data = stored(tmp_path / "data", made, tiny_model)
    found = json.loads(
        (weigh(data, scheme="refit", outcome="reward", out=tmp_path / "w") / "manifest.json").read_text()
    )
    assert sorted(found["diagnostics"]["return_histogram"]["counts"]) == [0] * 19 + [8]


@pytest.mark.parametrize("reward", [1e200, -1e200, 1e308])
def test_a_reward_too_large_to_be_squared_is_named(
    tmp_path: Path, tiny_model: Path, make_trajectory: Make, reward: float
) -> None:
    made = [
        make_trajectory(f"t{i}", k, ("1",), rewards=(reward if i + k == 4 else 0.5,))
        for i in range(2)
        for k in range(4)
    ]
    data = stored(tmp_path / "data", made, tiny_model)
    for scheme in ("drift", "swift", "refit")[: 3 if reward > 0 else 2]:
        with pytest.raises(
            ConfigError, match=r"the return of trajectory 't1#3' is -?1e\+\d+, expected at most 1e\+100"
        ):
            weigh(data, scheme=scheme, outcome="reward", out=tmp_path / "weights")
