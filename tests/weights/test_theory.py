"""DRIFT's theorems on a policy small enough to enumerate."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from drift.weights.returns import trajectory_return
from drift.weights.schemes import drift_weights

# Two turns, three replies each; reply 0 is right and ends the episode, so there are 1 + 2·3 trajectories.
ACTIONS = 3
MAX_TURNS = 2
RIGHT = 0
TRAJECTORIES = [(RIGHT,), *itertools.product([1, 2], range(ACTIONS))]
HISTORIES = [(), (1,), (2,)]


def returns():
    """DRIFT Eq. 12 of every trajectory, with the published γ and λ."""
    return trajectory_return(
        [path[-1] == RIGHT for path in TRAJECTORIES],
        [len(path) for path in TRAJECTORIES],
        [len(set(path)) for path in TRAJECTORIES],
        [0] * len(TRAJECTORIES),
        gamma=0.9,
        repetition=0.5,
        format_failure=0.0,
    )


def incidence():
    """Which (history, reply) pairs each trajectory passes through, (trajectories, H, A), so that log p(τ) is a sum."""
    passes = torch.zeros(len(TRAJECTORIES), len(HISTORIES), ACTIONS, dtype=torch.float64)
    for row, path in enumerate(TRAJECTORIES):
        for t, action in enumerate(path):
            passes[row, HISTORIES.index(path[:t]), action] = 1
    return passes


PASSES = incidence()


def log_probabilities(logits_HA):
    """log p(τ) of every trajectory under a softmax policy that has its own logits for each history."""
    return torch.einsum("nha,ha->n", PASSES, torch.log_softmax(logits_HA, dim=1))


def random_logits(seed):
    return torch.tensor(np.random.default_rng(seed).normal(size=(len(HISTORIES), ACTIONS)) * 1.5)


# p_ref as exact fractions, so that a finite group can hold trajectories in exactly that proportion.
RATIONAL_HA = [
    [Fraction(1, 5), Fraction(3, 5), Fraction(1, 5)],
    [Fraction(1, 6), Fraction(1, 2), Fraction(1, 3)],
    [Fraction(1, 4), Fraction(1, 4), Fraction(1, 2)],
]
REFERENCE = [
    math.prod(RATIONAL_HA[HISTORIES.index(path[:t])][path[t]] for t in range(len(path))) for path in TRAJECTORIES
]


def exact_optimum(p_ref, R, beta):
    """Z and p* ∝ p_ref e^{R/β}, by a plain loop (Thm 1)."""
    unnormalised = [float(p) * math.exp(r / beta) for p, r in zip(p_ref, R, strict=True)]
    Z = math.fsum(unnormalised)
    return Z, [u / Z for u in unnormalised]


def test_the_toy_policy_is_a_distribution_over_the_enumerated_trajectories():
    assert sum(REFERENCE) == 1
    for seed in range(5):
        assert float(log_probabilities(random_logits(seed)).exp().sum()) == pytest.approx(1, abs=1e-14)


def test_returns_of_the_toy_trajectories_match_equation_12_by_hand():
    by_path = dict(zip(TRAJECTORIES, returns(), strict=True))
    expected = {(0,): 1, (1, 0): 0.9, (2, 0): 0.9, (1, 1): -0.25, (2, 2): -0.25, (1, 2): 0, (2, 1): 0}
    assert by_path == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("beta", [0.1, 0.5, 3.0])
@pytest.mark.parametrize("seed", range(5))
def test_theorem_2_objective_equals_beta_log_z_minus_beta_kl_to_the_optimum(seed, beta):
    R = returns()
    log_ref = log_probabilities(random_logits(100 + seed)).numpy()
    log_theta = log_probabilities(random_logits(seed)).numpy()
    p_ref, p_theta = np.exp(log_ref), np.exp(log_theta)
    objective = math.fsum(p_theta * R) - beta * math.fsum(p_theta * (log_theta - log_ref))
    Z, optimum = exact_optimum(p_ref, R, beta)
    divergence = math.fsum(p_theta * (log_theta - np.log(optimum)))
    assert objective == pytest.approx(beta * math.log(Z) - beta * divergence, abs=1e-10)
    # At p* itself the divergence is gone and J is at its largest, β log Z.
    assert objective < beta * math.log(Z)


def enumerating_group(scale=1):
    """A group that holds each trajectory in exact proportion to p_ref."""
    size = scale * math.lcm(*(p.denominator for p in REFERENCE))
    copies = [int(p * size) for p in REFERENCE]
    assert [Fraction(c, size) for c in copies] == REFERENCE
    return np.repeat(np.arange(len(TRAJECTORIES)), copies)


@pytest.mark.parametrize("beta", [0.1, 0.5, 3.0])
def test_weights_of_a_group_that_enumerates_p_ref_are_the_exact_importance_weights(beta):
    R = returns()
    path_N = enumerating_group()
    weights_N = drift_weights(R[path_N], np.zeros(len(path_N)), beta=beta)
    Z, _ = exact_optimum(REFERENCE, R, beta)
    assert weights_N == pytest.approx([math.exp(R[path] / beta) / Z for path in path_N], rel=1e-12)


@pytest.mark.parametrize("beta", [0.1, 0.5, 3.0])
def test_theorem_5_minimising_the_weighted_loss_reaches_the_optimum(beta):
    R = returns()
    path_N = enumerating_group()
    weights_N = torch.tensor(drift_weights(R[path_N], np.zeros(len(path_N)), beta=beta))
    logits_HA = random_logits(7).requires_grad_(True)
    optimiser = torch.optim.LBFGS(
        [logits_HA], max_iter=500, tolerance_grad=1e-11, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimiser.zero_grad()
        # The mean over a group in exact proportion to p_ref is the expectation; every turn of τ counts.
        loss = -(weights_N * log_probabilities(logits_HA)[torch.tensor(path_N)]).mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    _, optimum = exact_optimum(REFERENCE, R, beta)
    reached = log_probabilities(logits_HA.detach()).exp().numpy()
    assert np.abs(reached - np.array(optimum)).max() < 1e-6
    # The least a cross-entropy against p* can be is its entropy.
    assert closure().item() == pytest.approx(-math.fsum(p * math.log(p) for p in optimum), abs=1e-10)
    # The test would be empty if the start, or p_ref, were already there.
    assert np.abs(np.array([float(p) for p in REFERENCE]) - optimum).max() > 0.05


def rollouts_needed(beta, epsilon, delta, low, high):
    """Prop. 7: K ≥ Δ_β² log(2/δ) / (2ε²)."""
    spread = math.exp(high / beta) - math.exp(low / beta)
    return math.ceil(spread**2 * math.log(2 / delta) / (2 * epsilon**2))


def estimated_partitions(R, p, K, draws, beta, rng):
    """Ẑ of ``draws`` groups of K trajectories, read back from the weights: Ẑ = e^{R/β} / w."""
    path_N = rng.choice(len(p), size=draws * K, p=p)
    group_N = np.repeat(np.arange(draws), K)
    weights_N = drift_weights(R[path_N], group_N, beta=beta)
    first_G = np.arange(draws) * K
    return np.exp(R[path_N[first_G]] / beta) / weights_N[first_G]


@pytest.mark.parametrize("worst_case", [False, True], ids=["toy policy", "mass on both extremes"])
def test_proposition_7_k_rollouts_estimate_z_within_epsilon(worst_case):
    beta, epsilon, delta, draws = 0.5, 0.8, 0.1, 1000
    R, p = returns(), np.array([float(q) for q in REFERENCE])
    if worst_case:
        # Hoeffding's bound is nearest to tight with half the mass on either end of the range.
        R, p = np.array([R.min(), R.max()]), np.array([0.5, 0.5])
    Z, _ = exact_optimum(p, R, beta)
    K = rollouts_needed(beta, epsilon, delta, R.min(), R.max())
    rng = np.random.default_rng(0)
    within = np.abs(estimated_partitions(R, p, K, draws, beta, rng) - Z) <= epsilon
    assert within.mean() >= 1 - delta
    # With a twentieth of the rollouts the promise is broken, so the check above can fail.
    fewer = np.abs(estimated_partitions(R, p, K // 20, draws, beta, rng) - Z) <= epsilon
    assert fewer.mean() < 1 - delta
