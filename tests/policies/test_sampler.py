import math

import numpy as np
import pytest
import torch

from drift.errors import ConfigError
from drift.policies.base import Sampling, derive_seed
from drift.policies.sampler import MARGIN, pick


def naive_pick(logits: list[float], uniform: float, temperature: float, top_p: float) -> int:
    """Walk the cumulative distribution of the nucleus, token by token, in plain Python."""
    top = max(logits)
    masses = [math.exp((value - top) / temperature) for value in logits]
    probabilities = [mass / sum(masses) for mass in masses]
    kept: set[int] = set()
    before = 0.0
    for token in sorted(range(len(logits)), key=lambda token: -probabilities[token]):
        if before >= top_p:
            break
        kept.add(token)
        before += probabilities[token]
    target = uniform * sum(probabilities[token] for token in kept)
    reached = 0.0
    for token in range(len(logits)):
        if token in kept:
            reached += probabilities[token]
            if reached > target:
                return token
    raise AssertionError("a cumulative distribution ends at 1")


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.2])
def test_pick_is_the_inverse_of_the_nucleus_distribution(temperature: float, top_p: float) -> None:
    rng = np.random.default_rng(7)
    logits_BV = rng.normal(size=(200, 11)) * 3
    uniforms_B = rng.random(200)
    sampling = Sampling(temperature=temperature, top_p=top_p)
    tokens_B, _ = pick(torch.tensor(logits_BV), torch.tensor(uniforms_B), sampling)
    expected = [
        naive_pick(row.tolist(), uniform, temperature, top_p)
        for row, uniform in zip(logits_BV, uniforms_B, strict=True)
    ]
    assert tokens_B.tolist() == expected


def test_greedy_takes_the_largest_logit_and_its_lead_is_the_margin() -> None:
    tokens_B, margin_B = pick(torch.tensor([[0.0, 3.0, 1.0]]), torch.zeros(1).double(), Sampling(temperature=0))
    assert tokens_B.tolist() == [1]
    assert margin_B.tolist() == [2.0]


def test_margin_is_the_distance_to_the_nearest_boundary() -> None:
    # Probabilities 0.2, 0.5, 0.3: boundaries at 0.2 and 0.7.
    logits = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64).log().repeat(3, 1)
    tokens_B, margin_B = pick(logits, torch.tensor([0.25, 0.65, 0.19], dtype=torch.float64), Sampling())
    assert tokens_B.tolist() == [1, 1, 0]
    assert margin_B.tolist() == pytest.approx([0.05, 0.05, 0.01], abs=1e-12)


def test_margin_counts_the_edge_of_the_nucleus() -> None:
    # Ordered probabilities 0.5, 0.3, 0.2 have 0, 0.5, 0.8 before them; top-p 0.79 is 0.01 from taking a third token.
    logits = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64).log()
    _, margin_B = pick(logits, torch.tensor([0.3], dtype=torch.float64), Sampling(top_p=0.79))
    assert margin_B.item() == pytest.approx(0.01, abs=1e-12)


def test_noise_below_the_margin_changes_no_decision_above_it() -> None:
    rng = np.random.default_rng(3)
    logits_BV = torch.tensor(rng.normal(size=(2000, 50)) * 2)
    uniforms_B = torch.tensor(rng.random(2000))
    tokens_B, margin_B = pick(logits_BV, uniforms_B, Sampling())
    noisy_B, _ = pick(logits_BV + torch.tensor(rng.uniform(-1e-5, 1e-5, size=(2000, 50))), uniforms_B, Sampling())
    moved_B = tokens_B != noisy_B
    assert not (moved_B & (margin_B >= MARGIN)).any()


def test_seeds_differ_by_run_task_sample_and_turn() -> None:
    seeds = {
        derive_seed(derive_seed(run, f"task-{task}", sample), turn)
        for run in range(3)
        for task in range(20)
        for sample in range(16)
        for turn in range(5)
    }
    assert len(seeds) == 3 * 20 * 16 * 5
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeds_keep_parts_apart() -> None:
    assert derive_seed(1, "a", 12) != derive_seed(1, "a1", 2)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"stop": ("",)}, "stop"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings: dict[str, float], name: str) -> None:
    with pytest.raises(ConfigError, match=f"sampling.{name}: got"):
        Sampling(**settings)  # type: ignore[arg-type]
