import asyncio
import re
from collections import defaultdict

import pytest

from drift.environments.guess import LARGEST, Guess
from drift.errors import ConfigError


async def halve(episode):
    """A player that asks for the middle of what is left; returns the steps it got."""
    bounds = re.fullmatch(r"Guess my number between (\d+) and (\d+)\.", episode.opening()[0]["content"])
    low, high = int(bounds.group(1)), int(bounds.group(2))
    steps = []
    while not steps or not steps[-1].done:
        middle = (low + high) // 2
        step = await episode.step(f"<answer>{middle}</answer>")
        steps.append(step)
        if step.done:
            break
        feedback = step.messages[0]["content"]
        assert feedback in ("Too low.", "Too high.")
        low, high = (middle + 1, high) if feedback == "Too low." else (low, middle - 1)
    return steps


def play(episode, replies):
    async def run():
        episode.opening()
        return [await episode.step(reply) for reply in replies]

    return asyncio.run(run())


def every_task(environment):
    return [*environment.all_tasks("train"), *environment.all_tasks("test")]


@pytest.mark.parametrize("width", [2, 20, 31])
def test_halving_solves_every_secret_of_up_to_31_numbers_in_five_turns(width):
    environment = Guess(max_turns=5, width=width)

    async def all_solved():
        return [(await halve(environment.start(task)))[-1].success for task in every_task(environment)]

    solved = asyncio.run(all_solved())
    assert len(solved) == (LARGEST - width + 1) * width  # each range and each secret in it, once
    assert all(solved)


@pytest.mark.parametrize(("max_turns", "width"), [(5, 40), (3, 20), (1, 9)])
def test_a_wider_range_is_solved_for_the_share_that_the_docstring_promises(max_turns, width):
    environment = Guess(max_turns=max_turns, width=width)

    async def solved_by_range():
        solved = defaultdict(list)
        for task in every_task(environment):
            solved[task.payload["low"]].append((await halve(environment.start(task)))[-1].success)
        return solved

    for outcomes in asyncio.run(solved_by_range()).values():
        # A tree of T questions has 2^T − 1 nodes, one secret each.
        assert (sum(outcomes), len(outcomes)) == (2**max_turns - 1, width)


def test_feedback_says_on_which_side_the_secret_lies():
    environment = Guess(max_turns=9, width=20)
    for task in environment.tasks("train", 10, 0):
        secret = task.payload["secret"]
        for guess in range(secret - 3, secret + 4):
            (step,) = play(environment.start(task), [f"<answer>{guess}</answer>"])
            assert (step.success, step.done, step.reward) == (guess == secret, guess == secret, float(guess == secret))
            expected = [] if guess == secret else ["Too low." if guess < secret else "Too high."]
            assert [message["content"] for message in step.messages] == expected
            assert step.answer == str(guess)


@pytest.mark.parametrize("reply", ["", "fifty", "<answer>50 or 51</answer>", "<answer>50.5</answer>"])
def test_an_unreadable_reply_is_a_format_failure_without_a_hint(reply):
    environment = Guess()
    (task,) = environment.tasks("train", 1, 0)
    (step,) = play(environment.start(task), [reply])
    assert (step.answer, step.success, step.reward, step.done) == (None, False, 0.0, False)
    assert step.messages[0]["content"] == "No answer found. Please reply with <answer>number</answer>."


@pytest.mark.parametrize("max_turns", [1, 3, 5])
def test_an_unsolved_episode_lasts_exactly_max_turns(max_turns):
    environment = Guess(max_turns=max_turns)
    (task,) = environment.tasks("train", 1, 0)
    steps = play(environment.start(task), ["<answer>0</answer>"] * max_turns)
    assert [step.done for step in steps] == [False] * (max_turns - 1) + [True]
    assert steps[-1].messages == ()


def test_the_splits_partition_all_pairs_of_range_and_secret():
    environment = Guess(width=15)
    found = {
        split: {(t.payload["low"], t.payload["high"], t.payload["secret"]) for t in environment.all_tasks(split)}
        for split in ("train", "test")
    }
    pairs = {(low, low + 14, secret) for low in range(1, 100) for secret in range(low, low + 15) if low + 14 <= LARGEST}
    assert found["train"] | found["test"] == pairs
    assert not found["train"] & found["test"]
    share = len(found["test"]) / len(pairs)
    assert abs(share - 0.2) < 4 * (0.2 * 0.8 / len(pairs)) ** 0.5


def test_the_splits_never_share_a_task_across_seeds():
    environment = Guess()
    train = {task.id for seed in range(6) for task in environment.tasks("train", 200, seed)}
    test = {task.id for seed in range(6) for task in environment.tasks("test", 100, seed)}
    assert len(train) > 500
    assert not train & test


def test_tasks_are_distinct_and_the_same_for_the_same_arguments():
    environment = Guess()
    first = environment.tasks("test", 50, 2)
    assert first == environment.tasks("test", 50, 2)
    assert len({task.id for task in first}) == 50
    assert {task.split for task in first} == {"test"}
    assert first != environment.tasks("test", 50, 3)


def test_all_tasks_can_be_asked_for_and_one_more_is_refused():
    environment = Guess(width=3)
    every = environment.all_tasks("test")
    assert {t.id for t in environment.tasks("test", len(every), 0)} == {t.id for t in every}
    with pytest.raises(ConfigError, match=rf"has {len(every)} test tasks; {len(every) + 1} were asked for"):
        environment.tasks("test", len(every) + 1, 0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"max_turns": 0}, "max_turns: got 0"), ({"width": 1}, "width: got 1, expected 2 to 99"), ({"width": 100}, "100")],
)
def test_settings_out_of_range_are_refused_by_name(wrong, message):
    with pytest.raises(ConfigError, match=message):
        Guess(**wrong)


def test_an_unknown_split_is_refused():
    with pytest.raises(ConfigError, match="split: got 'valid', expected train or test"):
        Guess().tasks("valid", 1, 0)
