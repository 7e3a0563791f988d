"""A conversation's weight over its replies, beside a loop over replies."""

import re

import numpy as np
import pytest

from drift.errors import ConfigError
from drift.weights.turns import TURNS, credited, every, first, terminal


def by_conversation(values_T, data):
    values, ends = values_T.tolist(), np.cumsum(data.turns_N).tolist()
    return [values[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def spread(name, weights_N, data, rejected=0.0):
    """The definition, a reply at a time."""
    spread_weights = []
    mistakes = by_conversation(data.rejected_T, data)
    for weight, turns, mistaken in zip(weights_N.tolist(), data.turns_N.tolist(), mistakes, strict=True):
        for turn in range(turns):
            if name == "terminal":
                spread_weights.append(weight if turn == turns - 1 else 0.0)
            elif name == "first":
                spread_weights.append(weight if turn == 0 else 0.0)
            elif name == "credited" and mistaken[turn]:
                spread_weights.append(rejected * abs(weight))
            else:
                spread_weights.append(weight)
    return spread_weights


@pytest.mark.parametrize(
    ("name", "settings"),
    [("terminal", {}), ("all", {}), ("first", {}), *(("credited", {"rejected": r}) for r in (0.0, -0.3, -1.0))],
)
def test_weights_are_spread_as_a_loop_over_replies_does(random_conversations, name, settings):
    data = random_conversations(1)
    weights_N = np.random.default_rng(2).normal(size=len(data.turns_N))
    assert data.rejected_T.sum() > 5000
    found_T = TURNS[name](weights_N, data, **settings)
    assert found_T.tolist() == spread(name, weights_N, data, **settings)


def test_a_hand_count(random_conversations):
    # Three conversations of 2, 1 and 3 turns; the first replies of the first and the last were mistakes.
    mistakes = np.array([True, False, False, True, False, False])
    data = random_conversations(0, 3, turns_N=np.array([2, 1, 3]), rejected_T=mistakes)
    weights_N = np.array([2.0, -1.0, -4.0])
    assert terminal(weights_N, data).tolist() == [0, 2, -1, 0, 0, -4]
    assert first(weights_N, data).tolist() == [2, 0, -1, -4, 0, 0]
    assert every(weights_N, data).tolist() == [2, 2, -1, -4, -4, -4]
    assert credited(weights_N, data).tolist() == [0, 2, -1, 0, -4, -4]
    # A mistake is pushed away, also on the way to a failure whose weight is negative.
    assert credited(weights_N, data, rejected=-0.5).tolist() == [-1, 2, -1, -2, -4, -4]


def test_totals_and_values_by_reply_are_those_of_a_loop(random_conversations):
    data = random_conversations(3, 500)
    values_T = np.random.default_rng(4).normal(size=int(data.turns_N.sum()))
    assert data.total(values_T) == pytest.approx([sum(each) for each in by_conversation(values_T, data)], rel=1e-12)
    expected = [group for group, turns in zip(data.group_N, data.turns_N, strict=True) for _ in range(turns)]
    assert data.by_reply(data.group_N).tolist() == expected


@pytest.mark.parametrize("rejected", [0.1, -1.5])
def test_a_mistake_is_pushed_away_at_most_by_the_whole_weight(random_conversations, rejected):
    data = random_conversations(0, 3)
    said = f"weights.turns.credited: got {rejected}, expected a number from -1 to 0"
    with pytest.raises(ConfigError, match=re.escape(said)):
        credited(np.ones(3), data, rejected=rejected)
