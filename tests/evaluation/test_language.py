from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift.evaluation.intervals import ratio_value
from drift.evaluation.metrics import language_metrics, runs_of
from drift.types import Completion, Step, Trajectory, Turn


def spoken(task, sample, replies, *, text_only=False):
    """A conversation of replies (text, ids, cut off)."""
    turns = tuple(
        Turn(
            prompt_ids=(1,),
            completion=Completion(
                text=text, token_ids=tuple(ids), logprobs=None, finish_reason="length" if cut else "stop"
            ),
            step=Step(messages=(), reward=0.0, done=False, success=False, answer=None),
        )
        for text, ids, cut in replies
    )
    return Trajectory(
        id=f"{task}#{sample}",
        task_id=task,
        group_id=task,
        sample=sample,
        policy="p",
        seed=0,
        messages=(),
        turns=turns,
        stop_reason="turns",
        text_only=text_only,
    )


def values(made):
    return {name: ratio_value(one) for name, one in language_metrics(runs_of(made)).items()}


def naive(made):
    """One n-gram and one reply at a time."""
    repeats = later = cut = replies = grams = again = looped = 0
    for trajectory in made:
        seen_texts, seen = [], []
        for turn in trajectory.turns:
            ids, within = turn.completion.token_ids, []
            for at in range(len(ids) - 3):
                gram = ids[at : at + 4]
                grams += 1
                again += gram in seen
                looped += gram in within
                seen.append(gram)
                within.append(gram)
            repeats += turn.completion.text in seen_texts
            later += bool(seen_texts)
            seen_texts.append(turn.completion.text)
            cut += turn.completion.finish_reason == "length"
            replies += 1
    counts = {
        "repeated_replies": (repeats, later),
        "repeated_4grams": (again, grams),
        "looped_4grams": (looped, grams),
        "cut_off": (cut, replies),
    }
    return {name: top / bottom if bottom else None for name, (top, bottom) in counts.items()}


ids = st.lists(st.integers(1, 3), max_size=14)
replies = st.lists(st.tuples(st.sampled_from(["yes", "no", "\ud800\x00"]), ids, st.booleans()), min_size=1, max_size=4)


@settings(max_examples=80, derandomize=True, deadline=None)
@given(st.lists(replies, min_size=1, max_size=4))
def test_every_count_matches_a_loop(held):
    made = [spoken("ab"[n % 2], n, found) for n, found in enumerate(held)]
    expected = naive(made)
    found = values(made)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == (None if value is None else pytest.approx(value, rel=1e-12))


def test_insisting_and_looping_are_told_apart_by_hand():
    insists = spoken("a", 0, [("It is 7.", [1, 2, 3, 4, 5], False)] * 3)
    # Six 4-grams, two of them distinct; within a reply none repeats.
    assert values([insists]) == pytest.approx(
        {"repeated_replies": 1.0, "repeated_4grams": 4 / 6, "looped_4grams": 0.0, "cut_off": 0.0}
    )
    loops = spoken("a", 0, [("7 7 7 7 7 7 7 7", [7] * 8, True)])
    assert values([loops]) == {
        "repeated_replies": None,
        "repeated_4grams": pytest.approx(4 / 5),
        "looped_4grams": pytest.approx(4 / 5),
        "cut_off": 1.0,
    }


def test_a_policy_that_told_no_ids_has_no_4grams_but_replies():
    found = values([spoken("a", 0, [("no", [], False), ("no", [], False)], text_only=True)])
    assert (found["repeated_4grams"], found["repeated_replies"]) == (None, 1.0)


def test_a_huge_reply_is_counted_in_linear_time():
    # Two million tokens: seconds if every 4-gram is looked at once, years if compared with all others.
    made = [spoken("a", 0, [("x" * 10_000_000, [n % 1000 for n in range(2_000_000)], True)])]
    assert values(made)["repeated_4grams"] == pytest.approx(1 - 1000 / (2_000_000 - 3))


def test_the_counts_of_a_prompt_add_up_over_its_conversations():
    one, other = spoken("a", 0, [("x", [1] * 6, False)]), spoken("a", 1, [("x", [1, 2, 3, 4], False)])
    top = language_metrics(runs_of([one, other, replace(other, id="b#0", task_id="b")]))["repeated_4grams"]
    assert (top.numerator_P.tolist(), top.denominator_P.tolist()) == ([2, 0], [4, 1])
