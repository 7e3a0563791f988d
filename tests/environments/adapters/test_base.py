"""What needs none of the adapted libraries."""

import asyncio
import sys
import time

import pytest

from drift.environments import make_environment
from drift.environments.adapters.base import ActionEnvironment, ActionEpisode, as_text, clean, part_of
from drift.environments.adapters.openenv import fill
from drift.errors import ConfigError


class Named(ActionEnvironment):
    def name(self):
        return "lake"


@pytest.mark.parametrize(
    ("settings", "reply", "action"),
    [
        ({}, "I go <answer> left </answer>", "left"),
        ({}, "<answer>left</answer> no, <ANSWER>right</ANSWER>", "right"),
        ({}, "left", None),
        ({}, "<answer>  </answer>", None),
        ({}, "<answer>left", "left"),
        ({"action": "text"}, " go left \n", "go left"),
        ({"action": "text"}, " \n", None),
        ({"action": "pattern", "pattern": r"\[(\w+)\]"}, "[left] or [right]", "right"),
        ({"action": "pattern", "pattern": r"(?i)left|right"}, "LEFT", "LEFT"),
        ({"action": "pattern", "pattern": r"move:(.*)"}, "move: a\nb ", "a\nb"),
        ({"action": "pattern", "pattern": r"\[(\w+)\]"}, "left", None),
        ({"action": "pattern", "pattern": r"(left)|right"}, "right", None),
    ],
)
def test_the_action_is_read_where_the_settings_say(settings, reply, action):
    assert Named(**settings).read_action(reply) == action


@pytest.mark.parametrize("reply", ["<answer>" * 2_000_000, "[" * 10_000_000, "\x00\ud800" * 1_000_000])
@pytest.mark.parametrize("settings", [{}, {"action": "pattern", "pattern": r"\[(\w+)\]"}])
def test_megabytes_of_nonsense_are_read_at_once(settings, reply):
    began = time.process_time()
    assert Named(**settings).read_action(reply) is None
    assert time.process_time() - began < 1


def test_the_end_of_a_long_reply_is_read():
    assert Named().read_action("x" * 10_000_000 + "<answer>left</answer>") == "left"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"max_turns": 0}, "max_turns"),
        ({"action": "words"}, "action: got 'words'"),
        ({"action": "pattern"}, "pattern"),
        ({"pattern": "left"}, "pattern"),
        ({"action": "pattern", "pattern": "("}, "is no regular expression"),
        ({"opening": "Hello."}, "opening"),
        ({"feedback": "{reward}"}, "feedback"),
        ({"format_feedback": ""}, "format_feedback"),
        ({"seeds": 0}, "seeds"),
    ],
)
def test_wrong_settings_are_named(settings, named):
    with pytest.raises(ConfigError, match=named.replace("(", r"\(")):
        Named(**settings)


def test_tasks_are_distinct_seeds_that_stay_in_their_split():
    lake = Named(seeds=500)
    train = {task.payload["seed"] for seed in range(20) for task in lake.tasks("train", 50, seed)}
    test = {task.payload["seed"] for seed in range(20) for task in lake.tasks("test", 50, seed)}
    assert not train & test and train | test <= set(range(500))
    # With other draws of more tasks every seed is met: a fifth of them are for testing.
    assert len(test) == pytest.approx(100, abs=35) and len(train) > 300
    one = lake.tasks("test", 5, 7)
    assert one == lake.tasks("test", 5, 7) != lake.tasks("test", 5, 8)
    assert [task.id for task in one] == [f"lake-{task.payload['seed']}" for task in one]


def test_more_tasks_than_there_are_seeds_for_are_refused():
    with pytest.raises(ConfigError, match="tasks among 10 seeds; 11 were asked for"):
        Named(seeds=10).tasks("train", 11, 0)


class Shown(ActionEpisode):
    """Takes the actions ``left`` and ``right``; each shows and gives what the test says."""

    def __init__(self, settings, *results):
        super().__init__(settings)
        self.results = list(results)

    async def reset(self):
        return "{start}"

    def action(self, text):
        return (text, text) if text in ("left", "right") else None

    async def take(self, action):
        return self.results.pop(0)


def test_a_step_says_what_happened():
    lake = Named(max_turns=3, opening="{observation}!", feedback="{reward} {observation}", success_reward=0.5)
    left = "<answer>left</answer>"

    def steps(*results, replies=(left, left, left)):
        episode = Shown(lake, *results)
        assert asyncio.run(episode.opening()) == [{"role": "user", "content": "{start}!"}]
        return [asyncio.run(episode.step(reply)) for reply in replies]

    going, won = steps(("{reward}!", 0.25, False), ("out", 0.5, True), replies=(left, left))
    # An observation is no template.
    assert going.messages == ({"role": "user", "content": "0.25 {reward}!"},)
    assert (going.reward, going.done, going.success, going.answer) == (0.25, False, False, "left")
    assert won.messages == () and won.done and won.success and won.info == {"observation": "out"}
    assert not steps(("out", 0.4, True), replies=(left,))[0].success
    late = steps(("in", 0, False), ("in", 0, False), ("in", 0.9, False))[-1]
    assert late.done and not late.success, "the turns ran out before the environment ended"
    unread, unknown, last = steps(replies=("left", "<answer>up</answer>", ""))
    for step in (unread, unknown):
        assert step.answer is None and step.reward == 0 and "No action found" in step.messages[0]["content"]
    assert last.done and last.messages == ()
    with pytest.raises(ValueError, match="reward nan"):
        steps(("in", float("nan"), False))


def test_observations_become_text():
    import numpy

    assert as_text("S\x1b[41mF\x1b[0mH\x1b[1mx") == "S[F]Hx"
    assert as_text("\x1b[43m\x1b[35mR\x1b[0m\x1b[0m") == "[R]"
    assert as_text((14, 10, 0)) == "[14, 10, 0]"
    assert as_text({"at": numpy.array([1, 2]), "left": numpy.float64(0.5), "who": "é"}) == (
        '{"at": [1, 2], "left": 0.5, "who": "é"}'
    )
    assert as_text("") == "(nothing)"
    assert clean("a\ud800b") == "a?b"


def test_a_part_of_an_observation_is_picked():
    seen = {"messages": [{"content": "one"}, {"content": "two"}]}
    assert part_of(seen, "messages.-1.content") == "two"
    for path in ("messages.2.content", "messages.x", "message", "messages.0.content.x"):
        with pytest.raises(ValueError, match=f"no '{path}'"):
            part_of(seen, path)


def test_an_openenv_action_is_filled_in():
    assert fill({"tool": "say", "arguments": {"text": "{action}!"}}, "{action}") == {
        "tool": "say",
        "arguments": {"text": "{action}!"},
    }
    assert fill({"column": "{number}", "keep": 3, "all": ["{action}"]}, "1,000") == {
        "column": 1000,
        "keep": 3,
        "all": ["1,000"],
    }
    with pytest.raises(ValueError, match="'left' is no whole number"):
        fill({"column": "{number}"}, "left")


MADE = {
    "gymnasium": ("gymnasium", {"id": "FrozenLake-v1"}),
    "openenv": ("openenv", {"url": "http://127.0.0.1:8000", "environment": "echo"}),
    "verifiers": ("verifiers.v1", {"id": "textarena"}),
}


@pytest.mark.parametrize("name", MADE)
def test_a_missing_library_is_named_with_its_extra(name, monkeypatch):
    module, settings = MADE[name]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"pip install 'drift-rl\[{name}\]'"):
        make_environment({"name": name, **settings})


@pytest.mark.parametrize(
    ("name", "settings", "named"),
    [
        ("gymnasium", {"id": "no_such_package:Env"}, "can't be imported: No module named 'no_such_package'"),
        ("gymnasium", {"id": "json:nothing"}, "unknown environment.id 'nothing' in module 'json'"),
        ("gymnasium", {"id": "json:loads", "threads": 0}, "threads"),
        ("gymnasium", {"id": "json:loads", "actions": ["up", "UP"]}, "actions"),
        ("gymnasium", {"id": "json:loads", "arguments": {"size": {1}}}, "is not JSON"),
        ("openenv", {"url": "127.0.0.1:8000", "environment": "echo"}, "url"),
        ("openenv", {"url": "http://me:secret@localhost", "environment": "echo"}, "url"),
        ("openenv", {"url": "http://localhost", "environment": ""}, "environment"),
        ("openenv", {"url": "http://localhost", "environment": "echo", "payload": {"text": "x"}}, "payload"),
        ("openenv", {"url": "http://localhost", "environment": "echo", "sessions": 0}, "sessions"),
        ("openenv", {"url": "http://localhost", "environment": "echo", "deadline_s": 0}, "deadline_s"),
        ("verifiers", {"id": "textarena", "answer": "boxed"}, "answer"),
        ("verifiers", {"id": "textarena", "pool": 0}, "pool"),
        ("verifiers", {"id": "textarena", "environment": {"taskset": {}}}, "environment"),
    ],
)
def test_wrong_settings_of_an_adapter_are_named(name, settings, named):
    with pytest.raises(ConfigError, match=named):
        make_environment({"name": name, **settings})
