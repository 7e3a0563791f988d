import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from drift.dataset.outcomes import outcomes
from drift.dataset.store import read_trajectories
from drift.environments import make_environment
from drift.environments.clarify import Clarify
from drift.environments.conformance import check_environment
from drift.environments.fixed_length import FixedLengthConversation, Reasoning
from drift.environments.users import ASK_ABOUT_ONE, DECLINED, ChoiceUser, rule_user
from drift.errors import ConfigError, DatasetError, EnvironmentFault, PolicyError
from drift.manifest import read_manifest
from drift.policies.base import Sampling
from drift.policies.scripted import ScriptedPolicy
from drift.rollouts.collect import collect
from drift.types import Completion, Task
from drift.verifiers.judge import CRITERIA
from drift.weights.config import WeightConfig
from drift.weights.stage import compute_weights

from .playing import play

METALS = ["iron", "helium", "granite", "oak"]
REPLIES = ["Is it option A?", "Could it be helium?", "<answer>A</answer>", "<answer>B</answer>", "Tell me!", "B or C?"]
SCORES = "scripted:<score>7</score>|<score>3</score>|<score>none</score>"
JUDGE = {"policy": SCORES, "sampling": {"temperature": 1.0}}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Forty and twenty questions in the schema of ARC; the right option is each of the four in turn."""

    def write(name: str, numbers: range) -> str:
        rows = [
            {
                "question": f"Which one is number {n}?",
                "choices": {"text": METALS, "label": list("ABCD")},
                "answerKey": "ABCD"[n % 4],
            }
            for n in numbers
        ]
        path = tmp_path / name
        path.write_text("\n".join(map(json.dumps, rows)))
        return str(path)

    return {"train_file": write("train.jsonl", range(40)), "test_file": write("test.jsonl", range(40, 60))}


@pytest.fixture
def open_files(tmp_path: Path) -> dict[str, str]:
    """Questions whose answer is a number, in the schema of GSM8K."""
    pytest.importorskip("math_verify")

    def write(name: str, numbers: range) -> str:
        rows = [{"question": f"What is {n} + 1?", "answer": f"Add.\n#### {n + 1}"} for n in numbers]
        path = tmp_path / name
        path.write_text("\n".join(map(json.dumps, rows)))
        return str(path)

    return {
        "train": "gsm8k",
        "test": "gsm8k",
        "train_file": write("open-train.jsonl", range(100, 130)),
        "test_file": write("open-test.jsonl", range(130, 160)),
    }


def task_with(environment: FixedLengthConversation, gold: str) -> Task:
    return next(task for task in environment.tasks("train", 30, 0) if task.payload["gold"] == gold)


def plan(environment: str = "clarify", samples: int = 2) -> dict[str, Any]:
    return {
        "environment": {"name": environment},
        "samples": samples,
        "seed": 1,
        "sampling": Sampling(max_new_tokens=64),
    }


@pytest.mark.parametrize("name", ["clarify", "reasoning"])
@pytest.mark.parametrize("judge", [{}, {"policy": "scripted:<score>4</score>"}], ids=["verifier", "judge"])
def test_both_pass_the_conformance_check(files: dict, open_files: dict, name: str, judge: dict) -> None:
    for source in (files, open_files):
        findings = check_environment(make_environment({"name": name, **source, "judge": judge}), tasks=3)
        assert [f for f in findings if not f.passed] == [], name


def test_a_clarifying_conversation_word_for_word(files: dict) -> None:
    environment = Clarify(**files, prompt="{question} Ask.", final="Answer now.", max_turns=4)
    task = task_with(environment, "C")
    user = rule_user(task.id, "C", METALS, 1)
    assert isinstance(user, ChoiceUser)
    (decoy,) = user.candidates - {2}
    out = min(set(range(4)) - user.candidates)
    episode = environment.start(task)
    number = task.payload["question"]
    listed = "\n".join(f"{letter}. {text}" for letter, text in zip("ABCD", METALS, strict=True))
    assert episode.opening() == [{"role": "user", "content": f"{number}\n{listed} Ask."}]
    replies = [f"Is it {METALS[out]}?", f"What of {'ABCD'[decoy]}?", "So is it C?", "<answer>granite</answer>"]
    steps = play(environment, task, replies)
    said = [step.messages[0]["content"] for step in steps[:-1]]
    assert said == [f"Option {'ABCD'[out]} can be ruled out.", DECLINED, f"{DECLINED}\n\nAnswer now."]
    assert [(s.graded, s.answer, s.reward, s.done, s.success) for s in steps] == [
        (False, None, 0.0, False, False),
        (False, None, 0.0, False, False),
        (False, None, 0.0, False, False),
        (True, "C", 1.0, True, True),
    ]


def test_a_lesson_word_for_word(files: dict) -> None:
    environment = make_environment({"name": "reasoning", **files, "followups": ["Why?", "Sure?"], "final": "Now?"})
    assert environment.max_turns == 4
    task = task_with(environment, "B")
    steps = play(environment, task, ["<answer>B</answer>", "Because.", "Hm.", "<answer>D</answer>"])
    assert [[m["content"] for m in s.messages] for s in steps] == [["Why?"], ["Sure?"], ["Now?"], []]
    assert [s.graded for s in steps] == [False, False, False, True]
    assert steps[0].info == {"answer": "B", "right": True}
    assert (steps[-1].answer, steps[-1].reward, steps[-1].success) == ("D", 0.0, False)
    short = Reasoning(**files, followups=())
    assert short.max_turns == 2
    assert [s.messages[0]["content"] for s in play(short, task, ["x", "B"])[:-1]] == [short.final]


def test_an_open_question_is_answered_about_and_checked_by_value(open_files: dict) -> None:
    environment = Clarify(**open_files)
    task = task_with(environment, "111")
    steps = play(environment, task, ["Is it greater than 5?", "Is it 111?", r"\boxed{111.0}"])
    assert steps[0].messages[0]["content"] == "Yes."
    assert "111" not in steps[1].messages[0]["content"] and steps[-1].success


def test_the_judge_gives_the_reward_and_the_verifier_success(files: dict) -> None:
    reply = "".join(f"<{name}>{n}</{name}>" for n, name in enumerate(CRITERIA)) + "<score>8</score>"
    environment = Reasoning(**files, judge={"policy": f"scripted:{reply}"})
    task = task_with(environment, "B")
    for answer, success in (("B", True), ("C", False)):
        last = play(environment, task, ["B", "so", f"<answer>{answer}</answer>"])[-1]
        assert (last.reward, last.success, last.answer) == (0.8, success, answer)
        assert last.info == {"score": 8.0, "scores": {name: float(n) for n, name in enumerate(CRITERIA)}}
    assert environment.counts == {"judge_calls": 2}


def test_the_judge_sees_the_whole_conversation_and_the_right_answer(files: dict) -> None:
    environment = Reasoning(**files, judge={"policy": "scripted:x"})
    seen = []
    assert environment._judge is not None
    environment._judge._model._policy = ScriptedPolicy(
        rule=lambda asked, seed: seen.append(asked) or "<score>1</score>"
    )
    play(environment, task_with(environment, "D"), ["first", "second", "third"])
    (asked,) = seen
    order = ["D. oak", "Which one is number", "first", environment.followups[0], "second", environment.final, "third"]
    positions = [asked.index(text) for text in order]
    assert positions == sorted(positions)


def test_what_a_judge_can_not_score_has_an_error_and_no_reward_and_is_counted(files: dict, tmp_path: Path) -> None:
    environment = Reasoning(**files, judge={**JUDGE, "rubric": "Right?", "retries": 1})
    tasks = environment.tasks("train", 30, 0)
    manifest = collect(tasks, environment, ScriptedPolicy(REPLIES), tmp_path / "data", **plan("reasoning", 4))
    found = read_trajectories(tmp_path / "data")
    failed = [t for t in found if t.error is not None]
    counts = manifest["environment_counts"]
    assert 0 < len(failed) < 60
    assert len(failed) == counts["judge_unscored"] == manifest["counts"]["stop_error"]
    assert all("the judge gave no score (not_a_number)" in str(t.error) and len(t.turns) == 2 for t in failed)
    assert counts["judge_calls"] == 120 + counts["judge_retries"]
    assert counts["judge_not_a_number"] == counts["judge_retries"] + counts["judge_unscored"]
    scored = outcomes(found)
    assert len(scored.ids) == 120 - len(failed) and set(scored.reward_N.tolist()) == {0.3, 0.7}
    assert manifest["spec"]["environment_policies"] == environment.fingerprints


def test_a_judge_that_never_scores_fails_the_run_with_its_counts_on_disk(files: dict, tmp_path: Path) -> None:
    environment = Clarify(**files, judge={"policy": "scripted:fine", "retries": 0})
    with pytest.raises(EnvironmentFault, match="every conversation failed"):
        collect(environment.tasks("train", 5, 0), environment, ScriptedPolicy(REPLIES), tmp_path, **plan())
    counts = read_manifest(tmp_path, "trajectories")["environment_counts"]
    assert counts == {"judge_calls": 10, "judge_no_score": 10, "judge_unscored": 10}


def test_counts_are_of_one_collection_and_the_judge_can_be_used_again(files: dict, tmp_path: Path) -> None:
    environment = Clarify(**files, judge={"policy": "scripted:<score>5</score>"})
    tasks = environment.tasks("test", 10, 0)
    for name in ("a", "b"):
        manifest = collect(tasks, environment, ScriptedPolicy(REPLIES), tmp_path / name, **plan())
        assert manifest["environment_counts"] == {"judge_calls": 20, **no_criteria(20)}


def no_criteria(count: int) -> dict[str, int]:
    return {f"judge_no_{name}": count for name in CRITERIA}


def test_questions_are_neither_repeated_answers_nor_format_failures(files: dict, tmp_path: Path) -> None:
    environment = Clarify(**files)
    collect(environment.tasks("train", 30, 0), environment, ScriptedPolicy(REPLIES), tmp_path, **plan(samples=4))
    found = read_trajectories(tmp_path)
    made = outcomes(found)
    assert set(made.turns_N.tolist()) == {3} and set(made.graded_N.tolist()) == {1}
    returns_N = compute_weights(made, WeightConfig(repetition=0.5, format_failure=0.1, gamma=0.9)).returns_N
    for value, trajectory in zip(returns_N, found, strict=True):
        last = trajectory.turns[-1].step
        # 0.9² for success; an unreadable final answer is one format failure and no answer at all.
        expected = 0.81 * last.success - (0.6 if last.answer is None else 0.0)
        assert value == pytest.approx(expected, abs=1e-12)


def test_a_model_as_user_speaks_unless_it_gives_the_answer_away(files: dict) -> None:
    words = {"Hint 1?": "It melts.", "Hint 2?": "I think of C.", "Hint 3?": " ", "Is it granite?": "Yes!"}
    environment = Clarify(**files, user="scripted:unused", max_turns=5)
    seen: list[str] = []

    def rule(asked: str, seed: int) -> str:
        seen.append(asked)
        return next(said for question, said in reversed(words.items()) if question in asked)

    assert environment._user is not None
    environment._user._policy = ScriptedPolicy(rule=rule)
    steps = play(environment, task_with(environment, "C"), [*words, "C"])
    said = [step.messages[0]["content"] for step in steps[:-1]]
    assert said == ["It melts.", ASK_ABOUT_ONE, ASK_ABOUT_ONE, f"{DECLINED}\n\n{environment.final}"]
    assert [step.info for step in steps[:-1]] == [{"user": who} for who in ("model", "rule", "rule", "rule")]
    assert environment.counts == {"user_calls": 3, "user_leak": 1, "user_empty": 1, "user_touched": 1}
    assert len(seen) == 3 and all("C. granite" in asked for asked in seen)
    assert all(later.count("=== assistant") == turn for turn, later in enumerate(seen, 1))


def test_a_model_as_user_that_says_everything_never_gets_through(files: dict, tmp_path: Path) -> None:
    blabber = "|".join(
        f"{start}{what}"
        for start in ("It is ", "Not A, not B; ")
        for what in ("A", "(b).", "C", "oak", "Granite", "IRON")
    )
    environment = Clarify(**files, user=f"scripted:{blabber}", user_sampling={"temperature": 1.0}, max_turns=4)
    manifest = collect(environment.tasks("train", 40, 0), environment, ScriptedPolicy(["Hm?"]), tmp_path, **plan())
    golds = {task.id: task.payload["gold"] for task in environment.tasks("train", 40, 0)}
    passed = 0
    for trajectory in read_trajectories(tmp_path):
        gold = golds[trajectory.task_id]
        spoken = " ".join(turn.step.messages[0]["content"].casefold() for turn in trajectory.turns[:-1])
        named = {letter for letter, text in zip("ABCD", METALS, strict=True) if text in spoken}
        named |= {letter.upper() for letter in "abcd" if re.search(rf"(?:is|not) \(?{letter}\b", spoken)}
        assert gold not in named and len(named) < 3
        passed += any(turn.step.info.get("user") == "model" for turn in trajectory.turns)
    counts = manifest["environment_counts"]
    assert passed > 10 and counts["user_leak"] > 10 and counts["user_calls"] == 240


def test_another_judge_is_another_data_set(files: dict, tmp_path: Path) -> None:
    def held_by(scores: str) -> Any:
        environment = Clarify(**files, judge={"policy": scores})
        return collect(environment.tasks("train", 5, 0), environment, ScriptedPolicy(REPLIES), tmp_path, **plan())

    held_by("scripted:<score>5</score>")
    with pytest.raises(DatasetError, match="environment_policies"):
        held_by("scripted:<score>6</score>")


def test_a_judge_that_is_gone_stops_the_run_and_spoils_no_conversation(files: dict, tmp_path: Path) -> None:
    class Gone(ScriptedPolicy):
        async def complete(self, prompt_ids: Any, *, sampling: Any, seed: int) -> Completion:
            raise PolicyError("the server is gone")

    environment = Clarify(**files, judge={"policy": "scripted:<score>5</score>"})
    assert environment._judge is not None
    gone = Gone(["<score>5</score>"])
    tasks = environment.tasks("train", 5, 0)
    environment._judge._model._policy = gone
    with pytest.raises(PolicyError, match="the server is gone"):
        collect(tasks, environment, ScriptedPolicy(REPLIES), tmp_path, **plan())
    assert read_trajectories(tmp_path, complete_only=False) == []
    environment._judge._model._policy = ScriptedPolicy(["<score>5</score>"])
    assert collect(tasks, environment, ScriptedPolicy(REPLIES), tmp_path, **plan())["counts"]["trajectories"] == 10


def test_a_model_is_closed_with_the_collection(files: dict, tmp_path: Path) -> None:
    closed = []

    class Closing(ScriptedPolicy):
        async def aclose(self) -> None:
            closed.append(asyncio.get_running_loop())

    environment = Clarify(**files, user="scripted:x", judge={"policy": "scripted:x"})
    assert environment._judge is not None and environment._user is not None
    environment._judge._model._policy = Closing(["<score>5</score>"])
    environment._user._policy = Closing(["Think of its colour."])
    tasks = environment.tasks("train", 5, 0)
    collect(tasks, environment, ScriptedPolicy(["What can you say?"]), tmp_path, **plan())
    assert len(closed) == 2 and environment._user._thread is None and environment._judge._model._thread is None


@pytest.mark.usefixtures("quick_starts")
@pytest.mark.slow
def test_killed_and_started_again_it_ends_with_the_same_data(files: dict, tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import asyncio, json, sys
        from pathlib import Path
        from drift.dataset import store
        from drift.environments.clarify import Clarify
        from drift.policies.base import Sampling
        from drift.policies.scripted import ScriptedPolicy
        from drift.rollouts.collect import collect

        class Slow(ScriptedPolicy):
            async def complete(self, *args, **kwargs):
                await asyncio.sleep(0.002)
                return await super().complete(*args, **kwargs)

        store.FLUSH_SECONDS = 0.02
        factory = Clarify(**json.loads(sys.argv[2]))
        plan = dict(environment={"name": "clarify"}, samples=8, seed=3, sampling=Sampling(), concurrency=4)
        print("ready", flush=True)
        policy = Slow(json.loads(sys.argv[3]))
        print(collect(factory.tasks("train", 40, 0), factory, policy, Path(sys.argv[1]), **plan)["dataset_hash"])
        """
    )
    user = {"user": "scripted:It shines.|Think of C.|It is heavy.", "user_sampling": {"temperature": 1.0}}
    settings = json.dumps({**files, **user, "judge": {**JUDGE, "rubric": "Right?"}})

    def start(folder: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", script, str(tmp_path / folder), settings, json.dumps(REPLIES)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        return child

    unbroken = start("unbroken").communicate()[0].strip()
    shards = tmp_path / "killed" / "shards"
    for fewest in (1, 4):
        child = start("killed")
        while len(list(shards.glob("*.parquet"))) < fewest:
            time.sleep(0.003)
        os.kill(child.pid, signal.SIGKILL)
        child.communicate()
    assert 0 < len(read_trajectories(tmp_path / "killed", complete_only=False)) < 320
    assert start("killed").communicate()[0].strip() == unbroken
    assert len(unbroken) == 64


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("clarify", {"max_turns": 1}, r"max_turns: got 1"),
        ("clarify", {"decoys": 0}, r"decoys: got 0"),
        ("clarify", {"user": ""}, r"environment.user: got ''"),
        ("clarify", {"user": "opnai:x"}, r"unknown policy 'opnai'"),
        ("clarify", {"user_sampling": {"stops": "x"}}, r"unknown setting 'stops'.*Did you mean 'stop'\?"),
        ("clarify", {"prompt": "no place"}, r"prompt: got 'no place'"),
        ("clarify", {"final": ""}, r"final: got ''"),
        ("clarify", {"feedback": "Incorrect."}, r"unknown setting 'feedback'"),
        ("reasoning", {"followups": [""]}, r"followups: got \('',\)"),
        ("reasoning", {"judge": {"polcy": "default"}}, r"Did you mean 'policy'\?"),
        ("reasoning", {"train": "arcs"}, r"unknown problem set 'arcs'"),
        ("reasoning", {"test_file": "nowhere.jsonl"}, r"test_file: no file"),
    ],
)
def test_bad_settings_are_refused(name: str, settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_environment({"name": name, **settings})


def test_settings_that_the_verifier_refuses_are_found_before_the_first_conversation(files: dict) -> None:
    environment = Reasoning(**files, verifier_settings={"deadlin": 1})
    with pytest.raises(ConfigError, match=r"unknown setting 'deadlin'"):
        environment.tasks("train", 2, 0)


@pytest.mark.slow
def test_ten_megabytes_of_anything_are_dealt_with_in_time(files: dict) -> None:
    judge = {"policy": "scripted:<score>5</score>"}
    environment = Clarify(**files, user="scripted:It is heavy.", judge=judge)
    task = task_with(environment, "C")
    start = time.process_time()
    for text in ("A? " * 3_000_000, "<answer>" * 1_200_000, "\u0301" * 5_000_000, "\x00\ud800" * 2_000_000):
        steps = play(environment, task, [text] * 3)
        assert len(steps) == 3 and steps[-1].reward == 0.5
    assert time.process_time() - start < 30
