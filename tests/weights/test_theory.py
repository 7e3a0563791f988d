"""DRIFT's theorems on a policy small enough to enumerate."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from drift.dataset.outcomes import Outcomes
from drift.weights.returns import trajectory_return
from drift.weights.schemes import (
    SCHEMES,
    drift_weights,
    group_relative_weights,
    refit_weights,
    rft_weights,
    swift_weights,
)

# Two turns, three replies each; reply 0 is right and ends the episode, so there are 1 + 2·3 trajectories.
ACTIONS = 3
MAX_TURNS = 2
RIGHT = 0
TRAJECTORIES = [(RIGHT,), *itertools.product([1, 2], range(ACTIONS))]
HISTORIES = [(), (1,), (2,)]


def returns():
    """DRIFT Eq. 12 of every trajectory, with the published γ and λ."""
    success_N, first_N = (np.array([path[at] == RIGHT for path in TRAJECTORIES]) for at in (-1, 0))
    turns_N, distinct_N = (np.array([len(kind(path)) for path in TRAJECTORIES]) for kind in (list, set))
    none_N = np.zeros(len(TRAJECTORIES))
    outcomes = Outcomes(
        ids=[str(path) for path in TRAJECTORIES],
        groups=["p"] * len(TRAJECTORIES),
        sample_N=np.arange(len(TRAJECTORIES)),
        success_N=success_N,
        known_N=none_N == 0,
        reward_N=none_N,
        turns_N=turns_N,
        graded_N=turns_N,
        distinct_N=distinct_N,
        failures_N=none_N,
        first_success_N=first_N,
        first_known_N=none_N == 0,
        first_reward_N=none_N,
        first_graded_N=none_N == 0,
        first_read_N=none_N == 0,
        rejected_T=np.zeros(turns_N.sum(), bool),
    )
    return trajectory_return(outcomes, outcome="success", gamma=0.9, repetition=0.5, format_failure=0.0)


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


def minimise(weights_N, path_N):
    """What the weighted loss of a group, whose mean is the expectation under p_ref, is least at: p(τ), and the loss."""
    weights_N, path_N = torch.tensor(np.asarray(weights_N)), torch.tensor(path_N)
    logits_HA = random_logits(7).requires_grad_(True)
    optimiser = torch.optim.LBFGS(
        [logits_HA], max_iter=500, tolerance_grad=1e-11, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimiser.zero_grad()
        # Every turn of τ counts.
        loss = -(weights_N * log_probabilities(logits_HA)[path_N]).mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    return log_probabilities(logits_HA.detach()).exp().numpy(), closure().item()


@pytest.mark.parametrize("beta", [0.1, 0.5, 3.0])
def test_theorem_5_minimising_the_weighted_loss_reaches_the_optimum(beta):
    R = returns()
    path_N = enumerating_group()
    reached, least = minimise(drift_weights(R[path_N], np.zeros(len(path_N)), beta=beta), path_N)
    _, optimum = exact_optimum(REFERENCE, R, beta)
    assert np.abs(reached - np.array(optimum)).max() < 1e-6
    # The least a cross-entropy against p* can be is its entropy.
    assert least == pytest.approx(-math.fsum(p * math.log(p) for p in optimum), abs=1e-10)
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


# --- the other schemes -----------------------------------------------------------------------------------------------

P_REF = np.array([float(p) for p in REFERENCE])
REFERENCE_HA = torch.tensor([[float(p) for p in row] for row in RATIONAL_HA], dtype=torch.float64).log()


@pytest.mark.parametrize("shift", [0.3, 1.0, 5.0])
def test_refit_reaches_the_maximiser_of_its_bound(shift):
    # Returns above 0. By Gibbs' inequality E_ref[r log p] is largest at p ∝ p_ref r.
    r = returns() + shift
    path_N = enumerating_group()
    reached, _ = minimise(refit_weights(r[path_N], np.zeros(len(path_N))), path_N)
    maximiser = P_REF * r / math.fsum(P_REF * r)
    assert np.abs(reached - maximiser).max() < 1e-6
    # Its value is E_ref[r²]/E_ref[r], which is never below E_ref[r], and not the best there is.
    value = math.fsum(maximiser * r)
    assert value == pytest.approx(math.fsum(P_REF * r**2) / math.fsum(P_REF * r), rel=1e-12)
    assert math.fsum(P_REF * r) < value < r.max()


def test_refits_bound_holds_for_any_policy_and_is_tight_at_the_reference_alone():
    r = returns() + 0.3
    constant = math.fsum(P_REF * r) - math.fsum(P_REF * r * np.log(P_REF))

    def bound(log_p):
        return math.fsum(P_REF * r * log_p) + constant

    for seed in range(20):
        log_p = log_probabilities(random_logits(seed)).numpy()
        assert math.fsum(np.exp(log_p) * r) > bound(log_p) + 1e-3
    assert bound(np.log(P_REF)) == pytest.approx(math.fsum(P_REF * r), abs=1e-12)


def test_refit_with_shifted_returns_forgets_the_worst_trajectories():
    R, path_N = returns(), enumerating_group()
    weights_N = refit_weights(R[path_N], np.zeros(len(path_N)), shift=True)
    reached, _ = minimise(weights_N, path_N)
    r = R - R.min()
    assert np.abs(reached - P_REF * r / math.fsum(P_REF * r)).max() < 1e-4
    assert reached[R.min() == R].max() < 1e-4


def test_rejection_sampling_reaches_the_reference_given_success():
    path_N = enumerating_group()
    success = np.array([path[-1] == RIGHT for path in TRAJECTORIES])
    weights_N = rft_weights(returns()[path_N], np.zeros(len(path_N)), success_N=success[path_N])
    reached, _ = minimise(weights_N, path_N)
    assert np.abs(reached - P_REF * success / math.fsum(P_REF * success)).max() < 1e-4


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_bolt_reaches_the_tilted_first_reply(beta):
    path_N = enumerating_group()
    first_N = np.array([path[0] for path in TRAJECTORIES])[path_N]
    weights_N = SCHEMES["bolt"].function((first_N == RIGHT).astype(float), np.zeros(len(path_N)), beta=beta)
    # A categorical loss over first replies is least at the weighted frequencies.
    reached = np.bincount(first_N, weights=weights_N) / len(path_N)
    tilted = [float(p) * math.exp((reply == RIGHT) / beta) for reply, p in enumerate(RATIONAL_HA[0])]
    assert reached == pytest.approx([t / math.fsum(tilted) for t in tilted], rel=1e-12)


def objective(logits_HA, weights):
    """E_ref[w log p] over the enumerated trajectories."""
    return (torch.tensor(P_REF * weights) * log_probabilities(logits_HA)).sum()


def gradient(function, logits_HA):
    at = logits_HA.clone().requires_grad_(True)
    (found,) = torch.autograd.grad(function(at), at)
    return found


def value_gradient():
    """∇V at p_ref, V the expected return."""
    R = torch.tensor(returns())
    return gradient(lambda logits_HA: (log_probabilities(logits_HA).exp() * R).sum(), REFERENCE_HA)


def test_swifts_first_step_is_the_policy_gradient_over_sigma():
    R, path_N = returns(), enumerating_group()
    weights_N = swift_weights(R[path_N], np.zeros(len(path_N)))
    weights = np.array([weights_N[path_N == path][0] for path in range(len(TRAJECTORIES))])
    found = gradient(lambda logits_HA: objective(logits_HA, weights), REFERENCE_HA)
    sigma = math.sqrt(math.fsum(P_REF * (R - math.fsum(P_REF * R)) ** 2))
    assert torch.allclose(found, value_gradient() / sigma, rtol=0, atol=1e-12)
    assert float(found.abs().max()) > 0.1
    # Away from p_ref it is not: the weights stay those of p_ref's mean.
    elsewhere = random_logits(3)
    here = gradient(lambda logits_HA: objective(logits_HA, weights), elsewhere)
    true = gradient(lambda x: (log_probabilities(x).exp() * torch.tensor(R)).sum(), elsewhere)
    assert float(torch.nn.functional.cosine_similarity(here.flatten(), true.flatten(), dim=0)) < 0.99


def test_swift_has_no_maximiser_and_drift_has_one():
    R, path_N = returns(), enumerating_group()
    weights_N = swift_weights(R[path_N], np.zeros(len(path_N)))
    weights = np.array([weights_N[path_N == path][0] for path in range(len(TRAJECTORIES))])
    drift_N = drift_weights(R[path_N], np.zeros(len(path_N)), beta=0.5)
    drift = np.array([drift_N[path_N == path][0] for path in range(len(TRAJECTORIES))])
    bad = TRAJECTORIES.index((1, 1))
    assert weights[bad] < 0

    def at(depth, weights):
        """The loss where the reply 1 after the history (1,) has a logit lower by ``depth``."""
        logits_HA = REFERENCE_HA.clone()
        logits_HA[HISTORIES.index((1,)), 1] -= depth
        return -float(objective(logits_HA, weights))

    for depth in (50, 500, 5000):
        slope = (at(2 * depth, weights) - at(depth, weights)) / depth
        assert slope == pytest.approx(P_REF[bad] * weights[bad], rel=1e-9)  # below 0, for ever
        assert at(depth, drift) > at(0, drift)


def expected_step(weighting, m):
    """The mean over all groups of m trajectories from p_ref of (1/m) Σ w ∇log p, by enumeration."""
    total = torch.zeros_like(REFERENCE_HA)
    R = returns()
    scores = [gradient(lambda x, n=n: log_probabilities(x)[n], REFERENCE_HA) for n in range(len(TRAJECTORIES))]
    for group in itertools.product(range(len(TRAJECTORIES)), repeat=m):
        weights = weighting(R[list(group)], np.zeros(m))
        chance = math.prod(P_REF[n] for n in group)
        for n, weight in zip(group, weights.tolist(), strict=True):
            total += chance * weight / m * scores[n]
    return total


@pytest.mark.parametrize("m", [2, 3, 4])
def test_of_m_trajectories_group_relative_weights_step_along_the_policy_gradient_less_an_mth(m):
    found = expected_step(group_relative_weights, m)
    assert torch.allclose(found, (1 - 1 / m) * value_gradient(), rtol=0, atol=1e-12)


def test_of_few_trajectories_swift_steps_elsewhere_than_the_policy_gradient():
    # Of two trajectories with different returns one weighs 1 and the other −1, however far they lie apart.
    assert swift_weights([1.0, 0.9, 7.0, -7.0], [0, 0, 1, 1]).tolist() == pytest.approx([1, -1, 1, -1], rel=1e-12)
    true = value_gradient().flatten()
    cosines = [
        float(torch.nn.functional.cosine_similarity(expected_step(swift_weights, m).flatten(), true, dim=0))
        for m in (2, 3, 4)
    ]
    assert cosines == sorted(cosines) and cosines[0] > 0.9 and cosines[-1] < 0.9999
