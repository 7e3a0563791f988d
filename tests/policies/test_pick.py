import math
from collections import Counter

import numpy as np
import pytest
import torch

from drift.errors import ConfigError
from drift.policies.base import Sampling, derive_seed
from drift.policies.pick import TOLERANCE, decide, gumbel_noise, pick

CUTS = [{}, {"top_p": 0.8}, {"top_k": 4}, {"min_p": 0.1}, {"top_k": 6, "top_p": 0.7, "min_p": 0.02}, {"top_p": 0.01}]


def exact(logits: list[float], temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0):
    """The distribution to draw from, token by token in plain Python."""
    masses = [math.exp((value - max(logits)) / temperature) for value in logits]
    order = sorted(range(len(logits)), key=lambda token: -masses[token])
    left = order[: top_k or None]
    total, before, kept = sum(masses[token] for token in left), 0.0, []
    for token in left:
        if before < top_p * total and masses[token] >= min_p * max(masses):
            kept.append(token)
        before += masses[token]
    total = sum(masses[token] for token in kept)
    return [masses[token] / total if token in kept else 0.0 for token in range(len(logits))]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.0])
def test_draws_follow_the_exact_distribution(cut: dict[str, float], temperature: float) -> None:
    logits, draws = np.random.default_rng(7).normal(size=23) * 2, 6000
    chances = exact(logits.tolist(), temperature, **cut)
    sampling = Sampling(temperature=temperature, **cut)
    # Half of the draws have seeds of their own, half are places of one reply.
    seeds, places = [*range(draws // 2), *[5] * (draws // 2)], [0] * (draws // 2) + [*range(draws // 2)]
    tokens_B, logprobs_B, _ = pick(torch.tensor(logits).expand(draws, -1), seeds, places, sampling)
    counts = Counter(tokens_B.tolist())
    assert {token for token in counts if chances[token] == 0} == set()
    likely = [token for token, chance in enumerate(chances) if chance * draws >= 5]
    chi_square = sum((counts[t] - draws * chances[t]) ** 2 / (draws * chances[t]) for t in likely)
    # Mean n and variance 2n; 5 standard deviations above is out of reach.
    assert chi_square < len(likely) + 5 * (2 * len(likely)) ** 0.5
    plain = torch.tensor(logits).log_softmax(-1)
    assert torch.allclose(logprobs_B, plain[tokens_B], atol=1e-9)


def test_noise_is_standard_gumbel_and_a_rows_own() -> None:
    whole = gumbel_noise(range(300), [4] * 300, 0, 1, 500)
    assert whole.mean() == pytest.approx(0.57722, abs=0.01) and whole.var() == pytest.approx(math.pi**2 / 6, abs=0.03)
    assert np.array_equal(whole[[7, 3]], gumbel_noise([7, 3], [4, 4], 0, 1, 500))
    others = [gumbel_noise([7], [4], 1, 1, 9), gumbel_noise([7], [4], 0, 0, 9), gumbel_noise([7], [5], 0, 1, 9)]
    assert len({row[0, 0] for row in (*others, whole[7:8])}) == 4
    assert np.isfinite(gumbel_noise([2**63 - 1], [0], 0, 0, 10)).all()


@pytest.mark.parametrize("sampling", [Sampling(temperature=0), *(Sampling(**cut) for cut in CUTS)])
def test_logits_a_little_off_change_no_pick_that_is_sure(sampling: Sampling) -> None:
    rng = np.random.default_rng(3)
    logits_BV, seeds, places = torch.tensor(rng.normal(size=(3000, 40)) * 3), [*range(3000)], [0] * 3000
    tokens_B, _, sure_B = pick(logits_BV, seeds, places, sampling)
    # Half of the tolerance on either side of a difference; then so much that some pick must move.
    for size, moves in ((8 * TOLERANCE / 2, False), (3e-2, True)):
        noisy_B, _, _ = pick(logits_BV + torch.tensor(rng.uniform(-size, size, (3000, 40))), seeds, places, sampling)
        assert bool(((tokens_B != noisy_B) & sure_B).any()) is moves
    assert (~sure_B).float().mean() < 5e-3


def test_few_picks_are_in_doubt_however_large_the_vocabulary() -> None:
    torch.manual_seed(0)
    for top_p in (1.0, 0.9):
        *_, sure_B = pick(torch.randn(400, 30000) * 4, [*range(400)], [0] * 400, Sampling(top_p=top_p))
        assert (~sure_B).sum() <= 3


def test_what_is_in_doubt_is_decided_by_the_logits_of_the_row_alone() -> None:
    near = torch.tensor([[5.0, 5.0 + 1e-6, 1.0], [1.0, 2.0, 3.0]])
    asked = []

    def alone(row: int) -> torch.Tensor:
        asked.append(row)
        return torch.tensor([5.0, 4.0, 1.0])

    assert decide(near, [0, 0], [0, 0], Sampling(temperature=0), alone)[0] == [0, 2] and asked == [0]
    assert decide(near, [0, 0], [0, 0], Sampling(temperature=0), None)[0] == [1, 2]


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.5])
def test_where_there_is_no_distribution_the_log_probability_is_nan(temperature: float) -> None:
    for bad in (math.nan, math.inf):
        logits = torch.tensor([[0.0, bad, 1.0], [0.0, 1.0, -math.inf], [-math.inf] * 3])
        _, logprobs_B, _ = pick(logits, [1, 2, 3], [0, 0, 0], Sampling(temperature=temperature))
        assert torch.isfinite(logprobs_B).tolist() == [False, True, False]


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
        ({"top_k": -1}, "top_k"),
        ({"min_p": 1.1}, "min_p"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"stop": ("",)}, "stop"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings: dict[str, float], name: str) -> None:
    with pytest.raises(ConfigError, match=f"sampling.{name}: got"):
        Sampling(**settings)  # type: ignore[arg-type]
