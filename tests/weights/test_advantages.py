"""Credit by turn, beside a loop over conversations and beside the exact values of a policy that may stop early."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift.registry import link
from drift.weights.config import WeightConfig
from drift.weights.turns import REGISTRY, advantage

# The policy says 0 (right, ends, worth 1), 1 (gives up, ends, worth 0.25) or 2 (goes on, and hears one of two words).
# At the third turn 2 ends too, worth nothing. One set of chances for each history.
WORTH, TURNS = (1.0, 0.25, 0.0), 3
HEAR = 0.3


@functools.cache
def chances(history):
    return np.random.default_rng([len(history), *(word + 1 for word in history)]).dirichlet((1.0, 0.6, 1.5))


def q_values(history):
    """Q of the three replies to a history of words."""
    on = 0.0
    if len(history) < TURNS - 1:
        values = [float(chances((*history, word)) @ q_values((*history, word))) for word in (0, 1)]
        on = HEAR * values[0] + (1 - HEAR) * values[1]
    return np.array([WORTH[0], WORTH[1], on])


HISTORIES = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1)]


def sampled(random_conversations, prompts, samples, seed):
    """Conversations, what each is worth, and the history and reply of each turn as numbers."""
    rng = np.random.default_rng(seed)
    turns, worth, replies, words, places = [], [], [], [], []
    for _ in range(prompts * samples):
        history = ()
        while True:
            first, second, _ = chances(history).tolist()
            drawn = rng.random()
            reply = 0 if drawn < first else 1 if drawn < first + second else 2
            places.append(HISTORIES.index(history))
            replies.append(reply)
            goes_on = reply == 2 and len(history) < TURNS - 1
            words.append(int(rng.random() >= HEAR) if goes_on else -1)
            if not goes_on:
                break
            history = (*history, words[-1])
        turns.append(len(history) + 1)
        worth.append(WORTH[reply])
    data = random_conversations(
        0,
        len(turns),
        group_N=np.repeat(np.arange(prompts), samples),
        turns_N=np.array(turns),
        reply_T=np.array(replies),
        feedback_T=np.array(words),
    )
    return data, np.array(worth), np.array(places), np.array(replies)


def exact():
    """``(H, 3)`` advantages and ``(H,)`` chances to get to each history."""
    advantages = np.array([q_values(h) - chances(h) @ q_values(h) for h in HISTORIES])
    reach = {(): 1.0}
    for history in HISTORIES[1:]:
        heard = HEAR if history[-1] == 0 else 1 - HEAR
        reach[history] = reach[history[:-1]] * chances(history[:-1])[2] * heard
    return advantages, np.array([reach[history] for history in HISTORIES])


def interval(values_P):
    return values_P.mean(axis=0), values_P.std(axis=0, ddof=1) / np.sqrt(len(values_P))


def ratio(values_T, prompt_T, prompts):
    """The mean over replies and its standard error over prompts, which have as many of them as chance would have it."""
    count_P, sum_P = np.bincount(prompt_T, minlength=prompts), np.bincount(prompt_T, values_T, prompts)
    mean = sum_P.sum() / count_P.sum()
    return mean, np.sqrt(((sum_P - mean * count_P) ** 2).sum()) / count_P.sum()


def test_few_conversations_give_the_policy_gradient_without_bias(random_conversations):
    prompts, samples = 4000, 4
    data, worth_N, place_T, reply_T = sampled(random_conversations, prompts, samples, 1)
    credit_T = advantage(worth_N, data)
    pi_HA = np.array([chances(h) for h in HISTORIES])
    score_THA = np.zeros((len(credit_T), len(HISTORIES), 3))
    score_THA[np.arange(len(credit_T)), place_T] = np.eye(3)[reply_T] - pi_HA[place_T]
    each_P = np.zeros((prompts, len(HISTORIES), 3))
    np.add.at(each_P, data.by_reply(data.group_N), credit_T[:, None, None] * score_THA / samples)
    advantages_HA, reach_H = exact()
    gradient_HA = reach_H[:, None] * pi_HA * advantages_HA
    mean_HA, error_HA = interval(each_P)
    assert np.abs(gradient_HA).max() > 20 * error_HA.max()
    assert (np.abs(mean_HA - gradient_HA) < 4 * error_HA + 1e-12).all()


def test_values_are_right_where_the_policy_stops_and_those_by_turn_index_are_not(random_conversations):
    prompts, samples = 300, 64
    data, worth_N, place_T, reply_T = sampled(random_conversations, prompts, samples, 2)
    credit_T, prompt_T = advantage(worth_N, data), data.by_reply(data.group_N)
    turn_T = np.concatenate([np.arange(n) for n in data.turns_N])
    node_T = prompt_T * TURNS + turn_T
    by_turn_T = data.by_reply(worth_N)
    by_turn_T = by_turn_T - (np.bincount(node_T, by_turn_T) / np.maximum(1, np.bincount(node_T)))[node_T]
    # Giving up at the last turn after each pair of words, where there were enough to compare.
    advantages_HA, _ = exact()
    wrong = 0
    for at, history in enumerate(HISTORIES):
        here = (place_T == at) & (reply_T == 1)
        visits = np.bincount(prompt_T[place_T == at], minlength=prompts)
        here &= (visits > 1)[prompt_T]
        mean, error = ratio(credit_T[here], prompt_T[here], prompts)
        assert abs(mean - advantages_HA[at, 1]) < 4 * error, (history, mean, error)
        naive, error = ratio(by_turn_T[here], prompt_T[here], prompts)
        wrong += abs(naive - advantages_HA[at, 1]) > 6 * error
    assert wrong >= 3


def test_the_error_falls_with_the_square_root_of_how_many_there_are(random_conversations):
    advantages_HA, _ = exact()
    errors = []
    for samples in (64, 256, 1024):
        data, worth_N, place_T, reply_T = sampled(random_conversations, 24_576 // samples, samples, samples)
        gaps_T = advantage(worth_N, data) - advantages_HA[place_T, reply_T]
        errors.append(np.sqrt((gaps_T**2).mean()))
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.25) and errors[1] / errors[2] == pytest.approx(2, rel=0.25)


turn = st.tuples(st.integers(0, 1), st.integers(0, 1))
some = st.lists(
    st.tuples(st.integers(0, 2), st.lists(turn, min_size=1, max_size=4), st.floats(-2, 2)), min_size=1, max_size=20
)


@given(some)
@settings(max_examples=80, deadline=None)
def test_credit_is_that_of_a_loop(random_conversations, found):
    groups, turns, weights = map(list, zip(*found, strict=True))
    _, group_N = np.unique(groups, return_inverse=True)
    data = random_conversations(
        0,
        len(found),
        group_N=group_N,
        turns_N=np.array(list(map(len, turns))),
        reply_T=np.array([reply for each in turns for reply, _ in each]),
        feedback_T=np.array([word for each in turns for _, word in each]),
    )

    def mean(values):
        return sum(values) / len(values)

    expected = []
    for i, mine in enumerate(turns):
        members = [j for j in range(len(found)) if groups[j] == groups[i]]
        value = weights[i]
        for t, (reply, _) in enumerate(mine):
            here = [j for j in members if turns[j][:t] == mine[:t] and len(turns[j]) > t]
            others = [weights[j] for j in here if j != i]
            value = mean(others) if others else value
            through = [j for j in here if turns[j][t][0] == reply]
            expected.append(mean([weights[j] for j in through]) - value)
            others = [weights[j] for j in through if j != i]
            value = mean(others) if others else value
    assert advantage(np.array(weights), data).tolist() == pytest.approx(expected, abs=1e-9)


def test_it_is_found_by_name_and_its_negative_weights_are_bounded():
    assert link("advantage", REGISTRY, "weights.turns").function is advantage
    chain = WeightConfig(scheme="rft", turns="advantage").chain
    assert [each.name for each in chain.steps] == ["bound_negative", "skip_small"] and chain.asks_what_was_said()
