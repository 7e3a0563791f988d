"""The verifiers library's own TextArena environment, and tasksets written against its interface."""

import asyncio
import http.server
import json
import os
import random
import threading
from pathlib import Path

import pytest

from drift.dataset.store import read_trajectories
from drift.environments.adapters.verifiers import Verifiers
from drift.environments.conformance import check_environment
from drift.errors import ConfigError, EnvironmentFault
from drift.policies.scripted import ScriptedPolicy

from .playing import gathered, in_turn, rolled_out, told

pytestmark = pytest.mark.adapters

TASKSETS = Path(__file__).with_name("tasksets")
WORDS = [
    "house",
    "river",
    "apple",
    "stone",
    "bread",
    "table",
    "music",
    "garden",
    "silver",
    "window",
    "planet",
    "orange",
    "animal",
    "button",
]
HANGMAN = {"id": "textarena", "arguments": {"game": "Hangman-v0"}, "max_turns": 8, "pool": 60}
LETTERS = ["[e]", "I say [A].", "no letter", "[o]", "[o]", "[R]", "[n]", "[s]"]


@pytest.fixture(autouse=True, scope="module")
def corpus(tmp_path_factory):
    """The games' word list, in NLTK's format, in place of the corpus that they would download; and the tasksets."""
    folder = tmp_path_factory.mktemp("nltk")
    words = folder / "corpora" / "words"
    words.mkdir(parents=True)
    for name in ("en", "en-basic", "README"):
        (words / name).write_text("\n".join(WORDS) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NLTK_DATA", str(folder))
        patch.syspath_prepend(str(TASKSETS))
        yield folder


def said(messages):
    return [message["content"] for message in messages]


def played_directly(seed, replies, limit):
    """What TextArena itself says and gives when it is played without the verifiers library."""
    import textarena

    random.seed(seed)
    game = textarena.make(env_id="Hangman-v0")
    game.reset(num_players=1)
    shown = [str(game.get_observation()[1])]
    for at, reply in enumerate(replies):
        game.step(reply.strip())
        if game.state.done:
            return shown, float((game.state.rewards or {}).get(0, 0.0)), at + 1
        if at + 1 == limit:
            return shown, 0.0, limit
        shown.append(str(game.get_observation()[1]))
    raise AssertionError("the game is not over")


def test_each_word_of_a_game_is_the_one_that_textarena_says():
    environment = Verifiers(**HANGMAN)
    ended = 0
    for task in environment.tasks("train", 12, 0) + environment.tasks("test", 3, 0):
        replies = [*LETTERS[:6], f"[{random.Random(task.id).choice(WORDS)}]", "[z]"]
        opening, steps = asyncio.run(told(environment, task, replies))
        shown, reward, turns = played_directly(task.payload["info"]["seed"], replies, 8)
        assert said(opening)[1] == shown[0] and opening[0]["role"] == "system"
        # The library tells the newest part of what the game shows, which holds the whole game each time.
        for step, whole in zip(steps[:-1], shown[1:], strict=True):
            assert said(step.messages) == [whole.split("[GAME]")[-1].strip()]
        assert [step.reward for step in steps] == [0.0] * (turns - 1) + [reward]
        assert [step.done for step in steps] == [False] * (turns - 1) + [True]
        assert steps[-1].success == (reward == 1)
        assert steps[-1].info["stop_condition"] == ("user_closed" if turns < 8 else "max_turns")
        ended += turns < 8
    assert ended >= 2


class ModelServer(http.server.BaseHTTPRequestHandler):
    """Answers a chat with the reply whose number is that of the assistant's messages so far."""

    replies: tuple[str, ...] = ()

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        at = sum(message["role"] == "assistant" for message in asked["messages"])
        choice = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": type(self).replies[at]},
        }
        body = {"id": "x", "object": "chat.completion", "created": 0, "model": "scripted", "choices": [choice]}
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def model_server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), ModelServer) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()
        thread.join()


async def by_the_library(environment, settings, url, task):
    """The trace of an episode that the library holds itself: its agent, its interception server, a model server."""
    import verifiers.v1 as vf

    (seat,) = environment.loaded().config.agent_harnesses()
    pinned = {"harness": {"id": "loopback"}, "runtime": {"type": "subprocess"}, "max_turns": environment.max_turns}
    taskset = {"id": settings["id"], **settings.get("arguments", {})}
    config = {"taskset": taskset, seat: pinned, "interception": {"type": "server"}}
    played = vf.load_environment(vf.resolve_env_config(config))
    client = vf.EvalClientConfig(base_url=url, api_key_var="NO_KEY_IS_NEEDED")
    row = environment._read()[task.id]
    async with played.serving():
        episode = await played.run_episode(row, vf.ModelContext(model="scripted", client=client))
    assert episode.ok, [episode.errors, *(trace.errors for trace in episode.traces)]
    (trace,) = episode.traces
    return trace


@pytest.mark.parametrize(
    ("settings", "replies"),
    [
        (HANGMAN, LETTERS),
        ({"id": "sums"}, ["It is <answer>9</answer>."]),
        ({"id": "countdown", "max_turns": 4}, ["5", "4", "3", "2"]),
        ({"id": "countdown", "max_turns": 4}, ["3", "a boom", "3", "2"]),
    ],
    ids=["textarena", "sums", "countdown", "boom"],
)
def test_the_library_itself_holds_and_scores_the_same_conversation(settings, replies, model_server, monkeypatch):
    monkeypatch.setattr(ModelServer, "replies", tuple(replies))
    environment = Verifiers(**settings)
    for task in environment.tasks("train", 4, 0):
        opening, steps = asyncio.run(told(environment, task, replies))
        trace = asyncio.run(by_the_library(environment, settings, model_server, task))
        ours = said(opening)
        for reply, step in zip(replies, steps, strict=False):
            ours += [reply, *said(step.messages)]
        assert [message.content for message in trace.messages] == ours
        assert steps[-1].reward == trace.reward
        assert steps[-1].info["rewards"] == {name: each.value for name, each in trace.rewards.items()}
        assert steps[-1].info["metrics"] == trace.metrics
        assert steps[-1].info["stop_condition"] == trace.stop_condition


def test_who_knows_the_word_wins(tmp_path):
    environment = Verifiers(**HANGMAN)
    tasks = environment.tasks("train", 6, 1)
    secrets = {}
    for task in tasks:
        import textarena

        random.seed(task.payload["info"]["seed"])
        game = textarena.make(env_id="Hangman-v0")
        game.reset(num_players=1)
        secrets[task.id] = game.state.game_state["target_word"]
    for task in tasks:
        _, steps = asyncio.run(told(environment, task, ["[q]", f"It must be [{secrets[task.id]}]!"]))
        assert [(step.reward, step.success, step.done) for step in steps] == [(0.0, False, False), (1.0, True, True)]
        assert steps[-1].info["rewards"] == {"game_reward": 1.0}
        assert steps[0].answer == "[q]"
    everyone = in_turn(*(f"[{word}]" for word in WORDS[:8]))
    manifest = gathered(environment, tasks, everyone, tmp_path)
    known = sum(secrets[task.id] in WORDS[:8] for task in tasks)
    assert manifest["counts"].get("stop_success", 0) == known > 0


def test_one_turn_is_scored_by_the_weighted_rewards():
    environment = Verifiers(id="sums", answer="answer")
    for task in environment.tasks("train", 20, 0):
        right = f"<answer>{task.payload['answer']}</answer>"
        opening, steps = asyncio.run(told(environment, task, [right]))
        assert opening == [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": task.payload["prompt"]},
        ]
        assert len(steps) == 1 and steps[0].done and steps[0].success and steps[0].messages == ()
        assert steps[0].reward == pytest.approx(1 + 0.25 / len(right))
        assert steps[0].info["rewards"] == {"right": 1.0, "short": pytest.approx(0.25 / len(right))}
        assert steps[0].info["metrics"] == {"prompted": 1.0}
        assert steps[0].info["stop_condition"] == "agent_completed"
        assert steps[0].answer == str(task.payload["answer"])
        _, wrong = asyncio.run(told(environment, task, ["No."]))
        assert wrong[0].reward == pytest.approx(0.25 / 3) and not wrong[0].success and wrong[0].answer is None


def test_an_environment_may_speak_first_judge_the_whole_and_stop():
    environment = Verifiers(id="countdown", max_turns=50)
    task = next(task for task in environment.tasks("train", 15, 0) if task.payload["start"] > 3)
    start = task.payload["start"]
    count = [str(at) for at in range(start - 1, -1, -1)]
    opening, steps = asyncio.run(told(environment, task, count))
    assert opening == [{"role": "user", "content": f"Count down from {start}."}]
    assert [said(step.messages) for step in steps] == [[f"I heard {at}."] for at in count[:-1]] + [[]]
    assert [step.reward for step in steps] == [0.0] * (start - 1) + [2.0]
    assert steps[-1].info["rewards"] == {"share": 1.0, "bonus": 1.0}

    _, stopped = asyncio.run(told(environment, task, [count[0], "boom", *count[2:]]))
    assert len(stopped) == 2 and stopped[-1].info["stop_condition"] == "boom"
    assert stopped[-1].reward == pytest.approx(1 / start)

    _, cut = asyncio.run(told(Verifiers(id="countdown", max_turns=2), task, count))
    assert len(cut) == 2 and cut[-1].info["stop_condition"] == "max_turns"
    assert cut[-1].reward == pytest.approx(2 / start) and not cut[-1].success


@pytest.mark.parametrize("settings", [HANGMAN, {"id": "sums"}, {"id": "countdown"}], ids=lambda each: each["id"])
def test_environments_of_the_library_conform(settings):
    tasks = 3 if settings["id"] != "countdown" else 1
    findings = check_environment(Verifiers(**settings), tasks=tasks)
    assert [finding for finding in findings if not finding.passed] == []


def test_a_task_is_known_by_its_content_and_not_by_its_place():
    small, large = Verifiers(id="sums"), Verifiers(id="sums", arguments={"largest": 12})
    ids = {}
    for name, environment, train, test in (("small", small, 50, 8), ("large", large, 100, 15)):
        ids[name] = {
            task.payload["prompt"]: (task.id, split)
            for split, count in (("train", train), ("test", test))
            for seed in range(20)
            for task in environment.tasks(split, count, seed)
        }
    shared = set(ids["small"]) & set(ids["large"])
    assert len(shared) > 70 and all(ids["small"][prompt] == ids["large"][prompt] for prompt in shared)
    with pytest.raises(ConfigError, match=r"sums has \d+ test tasks; 82 were asked for"):
        small.tasks("test", 82, 0)


def test_the_same_seed_gives_the_same_data_however_many_conversations_are_open(tmp_path):
    environment = Verifiers(**HANGMAN)
    hashes = {
        gathered(
            environment, environment.tasks("train", 10, 1), ScriptedPolicy(LETTERS), tmp_path / str(at), samples=3,
            concurrency=at,
        )["dataset_hash"]
        for at in (1, 5, 30)
    }  # fmt: skip
    assert len(hashes) == 1


def test_what_an_environment_raises_is_recorded(tmp_path):
    environment = Verifiers(id="countdown", environment={"conversations": 2}, max_turns=3)
    with pytest.raises(EnvironmentFault, match="every conversation failed"):
        gathered(environment, environment.tasks("train", 5, 0), in_turn("a", "b", "c"), tmp_path)
    errors = {t.error for t in read_trajectories(tmp_path)}
    assert errors == {
        "environment.step raised ValueError: the agent 'counter' is asked for a second conversation; "
        "an episode here is one"
    }


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"id": "no_such_taskset"}, "can't load 'no_such_taskset'"),
        ({"id": "sums", "arguments": {"smallest": 1}}, "smallest"),
        ({"id": "sums", "environment": {"id": "user-sim"}}, "agents assistant, user, and a policy can only be one"),
    ],
)
def test_what_can_not_be_played_is_refused_with_the_reason(settings, named):
    with pytest.raises(ConfigError, match=named):
        Verifiers(**settings)


def test_the_shipped_policy_plays_from_the_command_line(tmp_path, corpus):
    here = {"PYTHONPATH": os.pathsep.join([str(TASKSETS), os.environ.get("PYTHONPATH", "")]), "NLTK_DATA": str(corpus)}
    first = rolled_out("verifiers", {"id": "sums"}, tmp_path / "a", "--tasks", "8", "--samples", "2", **here)
    assert first["counts"]["trajectories"] == 16 and "stop_error" not in first["counts"]
    again = rolled_out("verifiers", {"id": "sums"}, tmp_path / "b", "--tasks", "8", "--samples", "2", **here)
    assert first["dataset_hash"] == again["dataset_hash"]
    # Every reply was scored, if only for its length.
    assert all(t.turns[-1].step.reward > 0 for t in read_trajectories(tmp_path / "a"))
    long = rolled_out("verifiers", HANGMAN, tmp_path / "c", "--tasks", "4", "--samples", "1", **here)
    assert long["counts"]["trajectories"] == 4 and "stop_error" not in long["counts"]
    assert any(t.turns for t in read_trajectories(tmp_path / "c"))
