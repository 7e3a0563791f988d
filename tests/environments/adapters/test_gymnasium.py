"""Real environments of gymnasium and of gem, the same actions played directly beside them."""

import asyncio
import random
import textwrap

import pytest

from drift.dataset.store import read_trajectories
from drift.environments.adapters.gymnasium import Gymnasium
from drift.environments.conformance import check_environment
from drift.errors import ConfigError, EnvironmentFault
from drift.policies.scripted import ScriptedPolicy

from .playing import gathered, in_turn, rolled_out, told

MOVES = ("left", "down", "right", "up")
LAKE = {"id": "FrozenLake-v1", "observation": "render", "actions": MOVES, "max_turns": 12}
ICY = {**LAKE, "arguments": {"render_mode": "ansi"}}
DRY = {**LAKE, "arguments": {"render_mode": "ansi", "is_slippery": False}}
GEM = {
    "id": "gem:make",
    "arguments": {"env_id": "game:GuessTheNumber-v0-hard"},
    "action": "text",
    "max_turns": 7,
    "threads": 1,
}
OTHERS = [
    {"id": "Blackjack-v1", "actions": ("stick", "hit")},
    {"id": "Taxi-v4", "arguments": {"render_mode": "ansi"}, "observation": "render", "max_turns": 4},
    {"id": "CartPole-v1", "max_turns": 4},
]


def said(messages):
    return [message["content"] for message in messages]


def test_each_step_of_a_slippery_lake_is_the_one_that_gymnasium_gives():
    import gymnasium

    environment = Gymnasium(**ICY)
    ended = 0
    for task in environment.tasks("train", 10, 0) + environment.tasks("test", 10, 0):
        rng = random.Random(task.id)
        actions = [rng.randrange(4) for _ in range(12)]
        words = [rng.choice([MOVES[at], MOVES[at].upper(), str(at)]) for at in actions]
        opening, steps = asyncio.run(told(environment, task, [f"I go <answer>{word}</answer>." for word in words]))

        lake = gymnasium.make("FrozenLake-v1", render_mode="ansi")
        lake.reset(seed=task.payload["seed"])

        def shown(lake=lake):
            return lake.render().replace("\x1b[41m", "[").replace("\x1b[0m", "]")

        assert said(opening) == [shown()]
        for at, step in enumerate(steps):
            _, reward, terminated, truncated, _ = lake.step(actions[at])
            over = terminated or truncated or at == 11
            assert (step.reward, step.done, step.success) == (reward, over, terminated and reward == 1)
            assert step.answer == MOVES[actions[at]]
            assert said(step.messages) == ([] if over else [shown()])
            if over:
                assert step.info == {"observation": shown()}
        assert steps[-1].done
        ended += len(steps) < 12
    assert ended > 10, "most walks at random end in a hole"


def test_a_walk_around_the_holes_is_a_success_and_one_into_a_hole_is_not(tmp_path):
    environment = Gymnasium(**DRY)
    tasks = environment.tasks("train", 3, 0)
    way = [f"<answer>{word}</answer>" for word in ["down", "down", "right", "right", "down", "right"]]
    lost = in_turn("Let me see.", *way[:1], "<answer>jump</answer>", "<answer>4</answer>", *way[1:])
    manifest = gathered(environment, tasks, lost, tmp_path / "found")
    assert manifest["counts"] == {"trajectories": 3, "stop_success": 3}
    for trajectory in read_trajectories(tmp_path / "found"):
        assert [turn.step.reward for turn in trajectory.turns] == [0.0] * 8 + [1.0]
        answers = [None, "down", None, None, "down", "right", "right", "down", "right"]
        assert [turn.step.answer for turn in trajectory.turns] == answers
        unread = [{"role": "user", "content": environment.format_feedback}]
        assert [list(turn.step.messages) == unread for turn in trajectory.turns] == [a is None for a in answers]

    fallen = gathered(environment, tasks, in_turn("<answer>right</answer>", "<answer>down</answer>"), tmp_path / "lost")
    assert fallen["counts"] == {"trajectories": 3, "stop_turns": 3}
    assert {t.turns[-1].step.reward for t in read_trajectories(tmp_path / "lost")} == {0.0}


@pytest.mark.adapters
def test_a_text_game_is_played_with_whole_replies():
    import gem

    environment = Gymnasium(**GEM)
    won = 0
    for task in environment.tasks("train", 12, 3):
        game = gem.make("game:GuessTheNumber-v0-hard")
        first, _ = game.reset(seed=task.payload["seed"])
        low, high, replies, expected = 1, 50, [], []
        for _ in range(7):
            middle = (low + high) // 2
            replies.append(f"I guess \\boxed{{{middle}}}")
            observation, reward, terminated, truncated, _ = game.step(replies[-1])
            expected.append((observation, reward, terminated or truncated))
            if terminated or truncated:
                break
            low, high = (low, middle - 1) if "lower" in observation else (middle + 1, high)
        opening, steps = asyncio.run(told(environment, task, replies))
        assert said(opening) == [first]
        assert [(step.reward, step.done) for step in steps] == [(reward, over) for _, reward, over in expected]
        assert [said(step.messages) for step in steps[:-1]] == [[text] for text, _, _ in expected[:-1]]
        assert steps[-1].info == {"observation": expected[-1][0]}
        assert steps[-1].success == (expected[-1][1] == 1)
        won += steps[-1].success
    assert won >= 10, "halving finds a number of fifty in six guesses"


@pytest.mark.parametrize(
    "settings",
    [ICY, DRY, pytest.param(GEM, marks=pytest.mark.adapters), *OTHERS],
    ids=lambda settings: settings["id"],
)
def test_real_environments_conform(settings):
    findings = check_environment(Gymnasium(**settings), tasks=3)
    assert [finding for finding in findings if not finding.passed] == []


def test_the_same_seed_gives_the_same_data_however_many_conversations_are_open(tmp_path):
    environment = Gymnasium(**ICY)
    replies = [f"<answer>{move}</answer>" for move in MOVES]
    hashes = {
        gathered(
            environment, environment.tasks("train", 20, 1), ScriptedPolicy(replies), tmp_path / str(at), samples=3,
            concurrency=at,
        )["dataset_hash"]
        for at in (1, 7, 60)
    }  # fmt: skip
    assert len(hashes) == 1
    other = environment.tasks("train", 20, 2)
    assert (
        gathered(environment, other, ScriptedPolicy(replies), tmp_path / "x", samples=3)["dataset_hash"] not in hashes
    )


def test_a_run_that_was_broken_off_ends_with_the_data_it_would_have_had(tmp_path):
    environment = Gymnasium(**ICY)
    tasks, replies = environment.tasks("train", 20, 1), [f"<answer>{move}</answer>" for move in MOVES]
    whole = gathered(environment, tasks, ScriptedPolicy(replies), tmp_path / "whole", samples=2)

    class Broken(ScriptedPolicy):
        asked = 0

        async def complete(self, *arguments, **named):
            self.asked += 1
            if self.asked == 90:
                raise ConnectionError("no server")
            return await super().complete(*arguments, **named)

    with pytest.raises(ConnectionError):
        gathered(environment, tasks, Broken(replies), tmp_path / "broken", samples=2, concurrency=4)
    kept = len(read_trajectories(tmp_path / "broken", complete_only=False))
    assert 0 < kept < 40
    again = gathered(environment, tasks, ScriptedPolicy(replies), tmp_path / "broken", samples=2)
    assert again["dataset_hash"] == whole["dataset_hash"]


WATCHED = """
import threading, time
import gymnasium

made, calls, closed, inside, most = [], [], [], set(), [0]

class Watched(gymnasium.Wrapper):
    def __init__(self, environment):
        super().__init__(environment)
        made.append(self)

    def _seen(self, what):
        calls.append((id(self), threading.get_ident(), what))

    def reset(self, **options):
        self._seen("reset")
        time.sleep(0.1)
        return super().reset(**options)

    def step(self, action):
        self._seen("step")
        inside.add(id(self))
        most[0] = max(most[0], len(inside))
        time.sleep(0.2)
        inside.discard(id(self))
        if action == 3:
            raise RuntimeError("no way up")
        return super().step(action)

    def close(self):
        self._seen("close")
        closed.append(self)
        super().close()

def make(**arguments):
    return Watched(gymnasium.make("FrozenLake-v1", **arguments))
"""


@pytest.fixture
def watched(tmp_path, monkeypatch):
    import importlib

    name = f"watched_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(WATCHED))
    monkeypatch.syspath_prepend(str(tmp_path))
    return importlib.import_module(name)


def test_conversations_do_not_wait_for_one_another_and_each_stays_in_its_thread(watched, tmp_path):
    environment = Gymnasium(id=f"{watched.__name__}:make", max_turns=3)
    tasks = environment.tasks("train", 8, 0)
    manifest = gathered(environment, tasks, ScriptedPolicy(["<answer>0</answer>"]), tmp_path / "out")
    assert manifest["counts"]["trajectories"] == 8
    assert watched.most[0] >= 4, "steps of 0.2 s, eight threads"
    threads = {at: {thread for one, thread, _ in watched.calls if one == at} for at, _, _ in watched.calls}
    assert len(threads) == 8 and all(len(of_one) == 1 for of_one in threads.values())
    assert len(set.union(*threads.values())) == 8


def test_an_environment_is_closed_whatever_happens(watched, tmp_path):
    environment = Gymnasium(id=f"{watched.__name__}:make", max_turns=2)
    tasks = environment.tasks("train", 2, 0)
    with pytest.raises(EnvironmentFault, match="every conversation failed"):
        gathered(environment, tasks, in_turn("<answer>0</answer>", "<answer>3</answer>"), tmp_path / "out")
    failed = read_trajectories(tmp_path / "out")
    assert {t.error for t in failed} == {"environment.step raised RuntimeError: no way up"}
    assert [len(t.turns) for t in failed] == [1, 1]
    assert sorted(map(id, watched.closed)) == sorted(map(id, watched.made)) and len(watched.made) == 2

    class Broken(ScriptedPolicy):
        async def complete(self, *arguments, **named):
            raise ConnectionError("no server")

    with pytest.raises(ConnectionError):
        gathered(environment, tasks, Broken(["x"]), tmp_path / "other")
    # One conversation was given up while its environment was being made, or before.
    assert sorted(map(id, watched.closed)) == sorted(map(id, watched.made)) and len(watched.made) >= 3


def test_an_unknown_id_is_refused():
    with pytest.raises(ConfigError, match="FrozenLak"):
        Gymnasium(id="FrozenLak-v1")


def test_an_action_space_that_no_reply_fits_is_told():
    environment = Gymnasium(id="Pendulum-v1")
    task = environment.tasks("train", 1, 0)[0]
    with pytest.raises(ConfigError, match=r"action space Box.*Wrap the environment"):
        asyncio.run(told(environment, task, ["<answer>1</answer>"]))


@pytest.mark.slow
def test_the_shipped_policy_plays_from_the_command_line(tmp_path):
    settings = {**DRY, "opening": "{observation}\nWhich way?"}
    first = rolled_out("gymnasium", settings, tmp_path / "a", "--tasks", "6", "--samples", "2")
    assert first["counts"]["trajectories"] == 12 and "stop_error" not in first["counts"]
    again = rolled_out("gymnasium", settings, tmp_path / "b", "--tasks", "6", "--samples", "2")
    assert first["dataset_hash"] == again["dataset_hash"]
    assert all(t.turns for t in read_trajectories(tmp_path / "a"))
