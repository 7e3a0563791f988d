"""Two real OpenEnv servers: the one that ``openenv init`` makes, and gymnasium's frozen lake behind its app."""

import asyncio
import contextlib
import random
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from drift.dataset.store import read_trajectories
from drift.environments import conformance
from drift.environments.adapters.openenv import OpenEnv
from drift.errors import EnvironmentFault
from drift.policies.scripted import ScriptedPolicy

from .playing import gathered, in_turn, rolled_out, told

pytestmark = pytest.mark.adapters

MOVES = ("left", "down", "right", "up")
ECHOED = [f"<answer>{'x' * length}</answer>" for length in (3, 12, 7)]


@contextlib.contextmanager
def serving(command, folder, log):
    """The address of a server, started by ``command`` with a port, while it runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("wb") as output:
        process = subprocess.Popen([*command, str(port)], cwd=folder, stdout=output, stderr=output)
        try:
            deadline = time.monotonic() + 120
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/schema", timeout=5).close()
                    break
                except OSError:
                    assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    script = Path(__file__).with_name("lake_server.py")
    log = tmp_path_factory.mktemp("lake") / "log"
    with serving([sys.executable, str(script)], script.parent, log) as url:
        yield {"url": url, "environment": "lake", "observation": "board", "sessions": 4, "max_turns": 8}


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("echo")
    openenv = Path(sys.executable).with_name("openenv")
    subprocess.run([str(openenv), "init", "echo_env"], cwd=folder, check=True, capture_output=True, timeout=120)
    command = [sys.executable, "-m", "uvicorn", "server.app:app", "--log-level", "warning", "--port"]
    with serving(command, folder / "echo_env", folder / "log") as url:
        yield {"url": url, "environment": "echo", "observation": "echoed_message", "max_turns": 3}


def said(messages):
    return [message["content"] for message in messages]


def test_each_step_of_a_served_lake_is_the_one_that_gymnasium_gives(lake):
    import gymnasium

    environment, ended = OpenEnv(**lake), 0
    for task in environment.tasks("train", 8, 0):
        rng = random.Random(task.id)
        actions = [rng.randrange(4) for _ in range(8)]
        replies = [f"<answer>{MOVES[at]}</answer>" for at in actions]
        opening, steps = asyncio.run(told(environment, task, replies))

        direct = gymnasium.make("FrozenLake-v1", render_mode="ansi")
        direct.reset(seed=task.payload["seed"])

        def shown(direct=direct):
            return direct.render().replace("\x1b[41m", "[").replace("\x1b[0m", "]")

        assert said(opening) == [shown()]
        for at, step in enumerate(steps):
            _, reward, terminated, truncated, _ = direct.step(actions[at])
            over = terminated or truncated or at == 7
            assert (step.reward, step.done, step.success) == (reward, over, terminated and reward == 1)
            assert (step.answer, said(step.messages)) == (MOVES[actions[at]], [] if over else [shown()])
        assert steps[-1].done
        ended += len(steps) < 8
    assert ended >= 4


def test_a_reply_without_an_action_is_not_sent(lake):
    environment = OpenEnv(**lake)
    task = environment.tasks("train", 1, 0)[0]
    opening, steps = asyncio.run(told(environment, task, ["Hm.", "<answer>away</answer>", "<answer>left</answer>"]))
    assert steps[0].answer is None and said(steps[0].messages) == [environment.format_feedback]
    assert steps[1].answer == "away" and said(steps[1].messages) == ["There is no way away."]
    # The lake was not stepped before: the first move leads from the start.
    assert "[S]" in opening[0]["content"] and steps[2].answer == "left"


def test_the_template_environment_is_played_with_its_own_rewards(echo, tmp_path):
    environment = OpenEnv(**echo)
    manifest = gathered(environment, environment.tasks("train", 3, 0), in_turn(*ECHOED), tmp_path)
    # One session at a time is all that this server gives, and three conversations are open at once.
    assert manifest["counts"] == {"trajectories": 3, "stop_turns": 3}
    for trajectory in read_trajectories(tmp_path):
        assert [turn.step.reward for turn in trajectory.turns] == pytest.approx([0.3, 1.0, 0.7])
        assert [turn.step.answer for turn in trajectory.turns] == ["xxx", "x" * 12, "x" * 7]
        assert [said(turn.step.messages) for turn in trajectory.turns] == [["xxx"], ["x" * 12], []]
        assert not trajectory.success, "it never ends by itself"


def test_a_payload_may_be_spelt_out_and_the_whole_observation_told(echo):
    environment = OpenEnv(**{**echo, "payload": {"message": "({action})"}, "observation": "", "max_turns": 2})
    _, steps = asyncio.run(told(environment, environment.tasks("train", 1, 0)[0], ["<answer>hi</answer>"]))
    assert '"echoed_message": "(hi)"' in steps[0].messages[0]["content"]
    assert '"message_length": 4' in steps[0].messages[0]["content"]


def test_a_server_of_many_sessions_conforms(lake):
    findings = conformance.check_environment(OpenEnv(**lake), tasks=3)
    assert [finding for finding in findings if not finding.passed] == []


def test_a_server_of_one_session_conforms_except_that_two_episodes_can_not_be_open(echo, monkeypatch):
    monkeypatch.setattr(conformance, "SIDE_BY_SIDE_S", 2.0)
    findings = conformance.check_environment(OpenEnv(**echo), tasks=2)
    assert {f.check for f in findings if not f.passed} == {"episodes do not share state"}


def test_more_sessions_than_the_server_allows_are_counted_as_errors(echo, tmp_path):
    environment = OpenEnv(**{**echo, "sessions": 2})
    manifest = gathered(environment, environment.tasks("train", 2, 0), in_turn(*ECHOED), tmp_path)
    assert manifest["counts"] == {"trajectories": 2, "stop_turns": 1, "stop_error": 1}
    assert "CAPACITY_REACHED" in next(t.error for t in read_trajectories(tmp_path) if t.error)


def test_the_same_seed_gives_the_same_data_however_many_sessions_are_open(lake, tmp_path):
    policy = ScriptedPolicy([f"<answer>{move}</answer>" for move in MOVES])
    hashes = set()
    for sessions in (1, 4):
        environment = OpenEnv(**{**lake, "sessions": sessions})
        tasks = environment.tasks("train", 10, 1)
        hashes.add(gathered(environment, tasks, policy, tmp_path / str(sessions), samples=2)["dataset_hash"])
    assert len(hashes) == 1


def test_a_server_that_is_down_is_told(tmp_path):
    environment = OpenEnv(url="http://127.0.0.1:9", environment="lake", deadline_s=2)
    with pytest.raises(EnvironmentFault, match="every conversation failed"):
        gathered(environment, environment.tasks("train", 2, 0), in_turn("x"), tmp_path)
    assert "Is the server up?" in str(read_trajectories(tmp_path)[0].error)


def test_the_shipped_policy_plays_from_the_command_line(lake, tmp_path):
    settings = {**lake, "opening": "{observation}\nWhich way?"}
    first = rolled_out("openenv", settings, tmp_path / "a", "--tasks", "6", "--samples", "2")
    assert first["counts"]["trajectories"] == 12 and "stop_error" not in first["counts"]
    again = rolled_out("openenv", settings, tmp_path / "b", "--tasks", "6", "--samples", "2")
    assert first["dataset_hash"] == again["dataset_hash"]
