import itertools
import random

import pytest

from drift.environments.arithmetic import Arithmetic
from drift.environments.base import Environment, EnvironmentFactory
from drift.environments.conformance import REPLIES, check_environment
from drift.environments.guess import Guess
from drift.types import Step, Task

MAX_TURNS = "max_turns is at least 1"
TASKS = "tasks are distinct, repeatable and JSON"
SPLITS = "splits share no task"
OPTIONS = "options, where given, are whole numbers"
OPENINGS = "openings are messages, and the last is not the assistant's"
REPEATABLE = "the same replies give the same steps"
SEPARATE = "episodes do not share state"


def reply_check(reply):
    shown = reply if len(reply) < 40 else reply[:37] + "..."
    return f"episodes end within max_turns on {shown!a}"


EPISODES = {reply_check(reply) for reply in REPLIES}


def failed(factory):
    return {finding.check for finding in check_environment(factory, tasks=3) if not finding.passed}


class Toy:
    """A sound environment; each broken one below changes one thing."""

    max_turns = 3

    def tasks(self, split, count, seed):
        return [self.task(split, f"{split}-{seed}-{n}") for n in range(count)]

    def task(self, split, name):
        return Task(id=name, group_id=name, split=split, payload={"n": 1})

    def start(self, task):
        return Episode(self.max_turns)


class Episode:
    def __init__(self, max_turns):
        self.max_turns = max_turns
        self.turn = 0

    def opening(self):
        return [{"role": "user", "content": "Say something."}]

    async def step(self, reply):
        self.turn += 1
        return self.said(reply, done=self.turn >= self.max_turns)

    def said(self, reply, *, done, **changed):
        fields = {
            "messages": () if done else ({"role": "user", "content": "Go on."},),
            "reward": 0.0,
            "done": done,
            "success": False,
            "answer": None,
        }
        return Step(**{**fields, **changed})


def with_episode(episode_class):
    """A factory of such episodes."""
    broken = type("Broken", (Toy,), {"start": lambda self, task: episode_class(self.max_turns)})
    return broken()


def with_step(**changed):
    """A factory whose every step has these fields instead of the sound ones."""

    class Broken(Episode):
        def said(self, reply, *, done, **_):
            return super().said(reply, done=done, **changed)

    return with_episode(Broken)


@pytest.mark.parametrize(
    "factory",
    [Toy(), Arithmetic(), Arithmetic(max_turns=1, digits=4), Guess(), Guess(max_turns=2, width=90)],
    ids=lambda factory: repr(factory)[:40],
)
def test_sound_environments_pass_every_check(factory):
    findings = check_environment(factory, tasks=3)
    assert {finding.check for finding in findings} == EPISODES | {
        MAX_TURNS,
        TASKS,
        SPLITS,
        OPTIONS,
        OPENINGS,
        REPEATABLE,
        SEPARATE,
    }
    assert [finding for finding in findings if not finding.passed] == []
    assert isinstance(factory, EnvironmentFactory)
    assert isinstance(factory.start(factory.tasks("train", 1, 0)[0]), Environment)


def test_no_turns_at_all_is_found():
    class NoTurns(Toy):
        max_turns = 0

    # Without a turn no episode can end within the limit either.
    assert failed(NoTurns()) == {MAX_TURNS, REPEATABLE, SEPARATE, *EPISODES}


class OtherEachTime(Toy):
    calls = itertools.count()

    def tasks(self, split, count, seed):
        return [self.task(split, f"{split}-{next(self.calls)}") for _ in range(count)]


class Duplicates(Toy):
    def tasks(self, split, count, seed):
        return [self.task(split, f"{split}-{seed}") for _ in range(count)]


class TooFew(Toy):
    def tasks(self, split, count, seed):
        return super().tasks(split, count - 1, seed)


class WrongSplit(Toy):
    def task(self, split, name):
        return super().task("train", name)


class NotJson(Toy):
    def task(self, split, name):
        return Task(id=name, group_id=name, split=split, payload={"n": {1, 2}})


@pytest.mark.parametrize(
    "factory",
    [OtherEachTime(), Duplicates(), TooFew(), WrongSplit(), NotJson()],
    ids=lambda factory: type(factory).__name__,
)
def test_tasks_that_break_their_promise_are_found(factory):
    assert failed(factory) == {TASKS}


def test_a_task_in_both_splits_is_found():
    class Shared(Toy):
        def tasks(self, split, count, seed):
            return [self.task(split, f"task-{seed}-{n}") for n in range(count)]

    assert failed(Shared()) == {SPLITS}


def test_a_task_in_both_splits_under_another_seed_is_found():
    class Drawn(Toy):
        def tasks(self, split, count, seed):
            # Splits are disjoint within a seed, and mixed across seeds: the usual mistake.
            order = random.Random(seed).sample(range(2 * count), 2 * count)
            drawn = order[:count] if split == "train" else order[count:]
            return [self.task(split, f"task-{n}") for n in drawn]

    assert failed(Drawn()) == {SPLITS}


@pytest.mark.parametrize(
    "opening",
    [
        [],
        [{"role": "user", "content": ""}],
        [{"role": "user"}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi."}],
    ],
    ids=["none", "empty", "no content", "not text", "assistant last"],
)
def test_openings_that_no_policy_can_answer_are_found(opening):
    class Broken(Episode):
        def opening(self):
            return opening

    assert failed(with_episode(Broken)) == {OPENINGS}


def test_an_episode_that_outlasts_max_turns_is_found():
    class Endless(Episode):
        async def step(self, reply):
            return self.said(reply, done=False)

    found = failed(with_episode(Endless))
    assert found >= EPISODES
    assert found.isdisjoint({MAX_TURNS, TASKS, SPLITS, OPENINGS})


@pytest.mark.parametrize("reply", REPLIES, ids=lambda reply: ascii(reply)[:30])
def test_an_environment_that_crashes_on_one_reply_is_found_under_that_reply(reply):
    class Crashes(Episode):
        async def step(self, said):
            if said == reply:
                raise RuntimeError("no parse")
            return await super().step(said)

    findings = {f.check: f for f in check_environment(with_episode(Crashes), tasks=3) if not f.passed}
    assert set(findings) == {reply_check(reply)}
    assert findings[reply_check(reply)].detail == "RuntimeError: no parse"


def test_reading_five_thousand_digits_with_int_is_found():
    class Naive(Episode):
        async def step(self, reply):
            digits = reply.removeprefix("<answer>").removesuffix("</answer>")
            if digits.isdecimal():
                int(digits)
            return await super().step(reply)

    assert failed(with_episode(Naive)) == {reply_check("<answer>" + "9" * 5000 + "</answer>")}


@pytest.mark.parametrize(
    ("changed", "detail"),
    [
        ({"reward": float("nan")}, "reward nan"),
        ({"reward": float("-inf")}, "reward -inf"),
        ({"answer": 7}, "answer: text of the type int"),
        ({"answer": "7", "graded": False}, "answer '7' although none was asked for"),
        ({"messages": ({"role": "user", "content": ""},)}, "a message with no text"),
        ({"messages": ()}, "no messages although the episode is not done"),
        ({"info": {"seen": {1, 2}}}, "not JSON serializable"),
    ],
    ids=["nan", "infinite", "answer not text", "answer not asked for", "empty message", "no message", "info not JSON"],
)
def test_steps_that_can_not_be_used_are_found(changed, detail):
    findings = [f for f in check_environment(with_step(**changed), tasks=3) if not f.passed]
    assert {f.check for f in findings} >= EPISODES
    assert {f.check for f in findings}.isdisjoint({MAX_TURNS, TASKS, SPLITS, OPENINGS})
    assert all(detail in f.detail for f in findings if f.check in EPISODES)


def test_a_step_that_is_not_a_step_is_found():
    class ReturnsText(Episode):
        async def step(self, reply):
            return "Incorrect."

    assert failed(with_episode(ReturnsText)) >= EPISODES


def test_chance_that_no_seed_decides_is_found():
    rewards = itertools.count()

    class Chancy(Episode):
        def said(self, reply, *, done, **_):
            return super().said(reply, done=done, reward=float(next(rewards)))

    found = failed(with_episode(Chancy))
    assert REPEATABLE in found
    assert found <= {REPEATABLE, SEPARATE}


class OneForAll(Toy):
    """Hands out one and the same episode, which resets itself in ``opening``: fine alone, wrong side by side."""

    def __init__(self, episode):
        self.episode, self.max_turns = episode, episode.max_turns

    def start(self, task):
        return self.episode


def test_episodes_that_share_a_visible_turn_counter_are_found():
    class Counting(Episode):
        def opening(self):
            self.turn = 0
            return super().opening()

        def said(self, reply, *, done, **_):
            return super().said(reply, done=done, info={"turn": self.turn})

    assert failed(OneForAll(Counting(3))) == {SEPARATE}


@pytest.mark.parametrize("max_turns", [2, 3, 5])
def test_episodes_that_share_a_turn_counter_are_found_though_the_feedback_is_always_the_same(max_turns):
    # DRIFT's own feedback is unary: the counter shows only in when the episode ends.
    class Unary(Episode):
        def opening(self):
            self.turn = 0
            return super().opening()

    assert failed(OneForAll(Unary(max_turns))) == {SEPARATE}


def test_an_environment_may_prepare_itself_in_its_opening():
    # The rollout loop always asks for the opening first, so the check must too.
    class Prepared(Episode):
        def opening(self):
            self.question = "Say something."
            return [{"role": "user", "content": self.question}]

        async def step(self, reply):
            assert self.question
            return await super().step(reply)

    assert failed(with_episode(Prepared)) == set()


def test_a_factory_that_crashes_gives_findings_and_no_crash():
    class Crashes(Toy):
        def tasks(self, split, count, seed):
            raise FileNotFoundError("problems.jsonl")

    findings = check_environment(Crashes(), tasks=3)
    assert {f.check for f in findings if f.passed} == {MAX_TURNS}
    assert all("FileNotFoundError: problems.jsonl" in f.detail for f in findings if not f.passed)
