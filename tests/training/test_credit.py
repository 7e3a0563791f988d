"""Training on first replies alone, and on conversations whose mistakes are left out or pushed away."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM

from drift.api import train
from drift.dataset.store import TrajectoryWriter
from drift.dataset.table import WeightTable
from drift.dataset.weighing import weigh_dataset
from drift.errors import ConfigError
from drift.manifest import read_manifest
from drift.policies.hf import fingerprint, load_model
from drift.training.config import TrainingConfig
from drift.training.examples import count_rejected, rows_of
from drift.training.weighting import weights_to_train
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
        ("pushed", {"turns": "credited", "rejected": -0.5, "max_negative_share": None}),
    ):
        out = train(folder, tmp_path / "w", out=tmp_path / name, base=str(tiny_model), config=settings(**change))
        rises.append(score(out, made[0], 0) - score(tiny_model, made[0], 0))
    assert rises[0] > rises[1] + 0.5 > rises[2] + 1.0
    # Left out, the mistake is what it is when last replies alone are trained.
    out = train(folder, tmp_path / "w", out=tmp_path / "last", base=str(tiny_model), config=settings())
    assert score(out, made[0], 0) - score(tiny_model, made[0], 0) == pytest.approx(rises[1], abs=1e-3)


def test_the_bound_on_negative_weights_holds_for_rejected_replies_as_for_negative_conversations(
    make_trajectory: Make,
) -> None:
    """Every trained row is added up by prompt, with Swift-like weights of both signs and 0 to 3 rejected replies."""
    rng = np.random.default_rng(3)
    made = [
        make_trajectory(f"t{n}", k, ("7",) * int(rng.integers(1, 5)), k % 3 == 0) for n in range(6) for k in range(5)
    ]
    weights_N = rng.normal(size=len(made)) + np.repeat([0.6, 0.6, 0.6, 0.0, 0.0, -9.0], 5)
    ids, groups = (pa.chunked_array([[getattr(t, name) for t in made]]) for name in ("id", "group_id"))
    table = WeightTable(ids=ids, groups=groups, weights_N=weights_N)
    rejections = {trajectory.id: count_rejected(trajectory) for trajectory in made}
    for share, rejected in ((0.1, -0.5), (0.1, -1.0), (0.0, -0.3), (100.0, -0.5)):
        config = TrainingConfig(turns="credited", rejected=rejected, max_negative_share=share, skip_mass=0.0)
        found = weights_to_train(table, config, 1, rejections)
        negative = dict.fromkeys(groups.to_pylist(), 0.0)
        for at, trajectory in enumerate(made):
            weight, pushed = float(found.weights_N[at]), float(found.rejected_N[at])
            for row in rows_of(trajectory, weight, turns="credited", normalization="mean", rejected=pushed):
                negative[trajectory.group_id] -= sum(value for value in row.weight if value < 0)
        for group, down in negative.items():
            own = [(w, t) for w, t in zip(weights_N, made, strict=True) if t.group_id == group]
            up = sum(w for w, _ in own if w > 0)
            before = sum(max(-w, 0.0) - rejected * abs(w) * (len(t.turns) - 1) for w, t in own)
            assert down == pytest.approx(min(before, share * up), rel=1e-9, abs=1e-12)
        assert np.array_equal(found.weights_N[weights_N > 0], weights_N[weights_N > 0])
        assert found.record["max_negative_share"]["rejected_replies"] == sum(rejections.values())


def test_pushing_rejected_replies_away_is_bounded_by_default(
    data: tuple[Path, list[Trajectory]], tiny_model: Path, tmp_path: Path
) -> None:
    folder, made = data
    weigh_dataset(folder, WeightConfig(scheme="rft"), tmp_path / "w")
    falls = {}
    for share in (None, 0.1, 0.0):
        config = settings(turns="credited", rejected=-1.0, max_negative_share=share)
        out = train(folder, tmp_path / "w", out=tmp_path / f"m{share}", base=str(tiny_model), config=config)
        falls[share] = score(tiny_model, made[0], 0) - score(out, made[0], 0)
        told = read_manifest(out, "model").get("max_negative_share")
        # Half of the conversations have one rejected reply, and every one weighs 1.
        expected = {"negative_weights": 0, "bounded_groups": 4, "negative_share": 0.5, "rejected_replies": 8}
        assert told == (None if share is None else expected)
    assert falls[None] > falls[0.1] + 0.2 and falls[0.1] > falls[0.0]
