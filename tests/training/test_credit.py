"""Training on first replies alone, and on conversations whose mistakes are left out or pushed away."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from drift.api import train
from drift.dataset.store import TrajectoryWriter
from drift.dataset.weighing import weigh_dataset
from drift.errors import ConfigError
from drift.manifest import read_manifest
from drift.policies.hf import fingerprint, load_model
from drift.training.config import TrainingConfig
from drift.types import Trajectory
from drift.weights.config import WeightConfig

Make = Callable[..., Trajectory]


@pytest.fixture
def data(tmp_path: Path, tiny_model: Path, make_trajectory: Make) -> tuple[Path, list[Trajectory]]:
    """Prompts solved at turn 1 by some conversations and at turn 2 by others."""
    policy = fingerprint(*load_model(str(tiny_model)))
    made = [
        make_trajectory(f"t{n}", k, ("5",) if k % 2 else ("77", "5"), True, policy=policy)
        for n in range(4)
        for k in range(4)
    ]
    with TrajectoryWriter(tmp_path / "data", {"trajectories": len(made), "policy": policy}, []) as writer:
        for trajectory in made:
            writer.append(trajectory)
        writer.finish()
    return tmp_path / "data", made


def settings(**changes: Any) -> TrainingConfig:
    plain = {"max_steps": 8, "batch_size": 16, "learning_rate": 5e-4, "save_steps": 0}
    return TrainingConfig(**{**plain, **changes})


def score(folder: Path, trajectory: Trajectory, turn: int) -> float:
    """log p of a reply given what came before it."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt, reply = trajectory.turns[turn].prompt_ids, trajectory.turns[turn].completion.token_ids
    ids = torch.tensor([[*prompt, *reply]])
    with torch.inference_mode():
        logprobs = torch.log_softmax(model(ids).logits[0, :-1], -1).gather(-1, ids[0, 1:, None])
    return float(logprobs[len(prompt) - 1 :].sum())


def test_weights_of_first_replies_train_first_replies_alone(
    data: tuple[Path, list[Trajectory]], tiny_model: Path, tmp_path: Path
) -> None:
    folder, made = data
    weigh_dataset(folder, WeightConfig(scheme="bolt"), tmp_path / "w")
    with pytest.raises(ConfigError, match=r"training\.turns: got 'terminal', expected first.*bolt"):
        train(folder, tmp_path / "w", out=tmp_path / "x", base=str(tiny_model), config=settings())
    out = train(folder, tmp_path / "w", out=tmp_path / "m", base=str(tiny_model), config=settings(turns="first"))
    assert read_manifest(out, "model")["turns"] == "first"
    right, mistaken = made[1], made[0]
    rise = [score(out, each, 0) - score(tiny_model, each, 0) for each in (right, mistaken)]
    assert rise[0] > rise[1] + 0.5


def test_mistakes_on_the_way_to_a_success_are_imitated_left_out_or_pushed_away(
    data: tuple[Path, list[Trajectory]], tiny_model: Path, tmp_path: Path
) -> None:
    folder, made = data
    weigh_dataset(folder, WeightConfig(scheme="rft"), tmp_path / "w")
    rises = []
    for name, change in (
        ("all", {"turns": "all"}),
        ("left", {"turns": "credited"}),
        ("pushed", {"turns": "credited", "rejected": -0.5}),
    ):
        out = train(folder, tmp_path / "w", out=tmp_path / name, base=str(tiny_model), config=settings(**change))
        rises.append(score(out, made[0], 0) - score(tiny_model, made[0], 0))
    assert rises[0] > rises[1] + 0.5 > rises[2] + 1.0
    # Left out, the mistake is what it is when last replies alone are trained.
    out = train(folder, tmp_path / "w", out=tmp_path / "last", base=str(tiny_model), config=settings())
    assert score(out, made[0], 0) - score(tiny_model, made[0], 0) == pytest.approx(rises[1], abs=1e-3)
