import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest

from drift.environments.conformance import check_environment
from drift.environments.tools import Tools
from drift.errors import ConfigError
from drift.policies.base import Sampling
from drift.policies.scripted import ScriptedPolicy
from drift.rollouts.collect import collect
from drift.rollouts.episode import Assignment, episode
from drift.types import Step, Task, Trajectory

from ..problems.mtu_rows import ALARM, CLOCK, HOUSE, WARM, several_calls, single_calls, write
from .playing import play

SET = '<tool_call>{"name": "SetAlarm", "arguments": {"label": "wake  UP", "time": "07:00"}}</tool_call>'
LIST = '<tool_call>{"name": "ListAlarms", "arguments": {}}</tool_call>'
WRONG_TOOL = '<tool_call>{"name": "MakeAlarm", "arguments": {"label": "Wake up", "time": "07:00"}}</tool_call>'
WRONG_ARGUMENT = '<tool_call>{"name": "SetAlarm", "arguments": {"label": "Wake up", "time": "08:00"}}</tool_call>'
HALF = '<tool_call>{"name": "SetAlarm", "argum'
RIGHT = ["Hi! What can I do?", f"Of course. {SET}", LIST, "Good bye."]
FEEDBACK = "Incorrect. Please think again."


@pytest.fixture
def alarm(tmp_path: Path) -> dict[str, Any]:
    """Settings with one test dialogue of four user turns."""
    return {"files": (write(tmp_path / "alarm.jsonl", single_calls("M-S_0")),), "test_share": 1.0}


@pytest.fixture
def many(tmp_path: Path) -> dict[str, Any]:
    """Settings with forty dialogues of two kinds."""
    rows = []
    for i in range(20):
        rows += single_calls(f"M-S_{i}", [(f"Hello, I am user {i}.", *ALARM[0][1:]), *ALARM[1:]])
        rows += several_calls(f"M-M_{i}", [(f"It is cold in room {i}.", *WARM[0][1:]), *WARM[1:]])
    return {"files": (write(tmp_path / "many.jsonl", rows),), "test_share": 0.5}


def only(environment: Tools) -> Task:
    (task,) = environment.tasks("test", 1, 0)
    return task


def contents(step: Step) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in step.messages]


def test_it_passes_the_conformance_check_in_every_mode(many: dict[str, Any]) -> None:
    for more in ({}, {"on_mistake": "gold", "reward": "dialogue", "observation_role": "tool"}, {"prompt_role": "user"}):
        findings = check_environment(Tools(**many, **more), tasks=10)
        assert [f for f in findings if not f.passed] == []
        (told,) = [f.detail for f in findings if f.check.startswith("tasks are distinct")]
        assert "rows=120, dialogues=40" in told


def test_a_dialogue_without_a_mistake_is_played_as_recorded(alarm: dict[str, Any]) -> None:
    environment = Tools(**alarm, prompt="Tools: {tools} {x}")
    task = only(environment)
    assert environment.start(task).opening() == [
        {"role": "system", "content": f"Tools: {CLOCK} {{x}}"},
        {"role": "user", "content": "Hello there."},
    ]
    assert "Make one call at most" in Tools(**alarm).start(task).opening()[0]["content"]
    steps = play(environment, task, RIGHT)
    assert [contents(step) for step in steps] == [
        [("user", "Wake me at seven.")],
        [
            (
                "user",
                "<tool_response>\n{'alarm_id': '3'}\n</tool_response>\n\n"
                "(You then said: Done: seven it is.)\n\nWhich alarms\nare there?",
            )
        ],
        [
            (
                "user",
                "<tool_response>\n{'alarms': ['07:00', '3 pm']}\n</tool_response>\n\n"
                "(You then said: Two: seven, and three.)\n\nThanks, bye.",
            )
        ],
        [],
    ]
    assert [step.reward for step in steps] == [0.25] * 4
    assert [step.done for step in steps] == [step.success for step in steps] == [False, False, False, True]
    assert [step.answer for step in steps] == [
        '{"user_turn":0,"calls":[]}',
        '{"user_turn":1,"calls":[["SetAlarm",{"label":"wake up","time":"07:00"}]]}',
        '{"user_turn":2,"calls":[["ListAlarms",{}]]}',
        '{"user_turn":3,"calls":[]}',
    ]
    assert steps[1].info == {
        "user_turn": 1,
        "try": 1,
        "right": True,
        "tool_selection": True,
        "tool_number": 1.0,
        "tool_order": 1.0,
    }
    whole = {"success": 1.0, "turn_success": 1.0, "soft_turn_success": 1.0, "task_process": 1.0}
    assert steps[3].info["dialogue"] == whole


def test_what_a_tool_returned_can_have_a_role_of_its_own(alarm: dict[str, Any]) -> None:
    environment = Tools(**alarm, observation_role="tool", prompt_role="user", prompt="{tools}")
    task = only(environment)
    assert environment.start(task).opening() == [{"role": "user", "content": f"{CLOCK}\n\nHello there."}]
    assert contents(play(environment, task, RIGHT)[1]) == [
        ("tool", "{'alarm_id': '3'}"),
        ("user", "(You then said: Done: seven it is.)\n\nWhich alarms\nare there?"),
    ]


def test_several_calls_are_right_in_their_order_and_by_value(tmp_path: Path) -> None:
    file = write(tmp_path / "warm.jsonl", several_calls("M-M_0"))
    environment = Tools(files=(file,), test_share=1.0, tries=5)
    task = only(environment)
    opening = environment.start(task).opening()[0]["content"]
    assert HOUSE in opening and "Where several calls are needed" in opening and "{calls}" not in opening
    read = '<tool_call>{"name": "read_temperature", "arguments": {"room": "Kitchen"}}</tool_call>'
    heat = (
        '<tool_call>{"arguments": {"eco": "true", "room": "attic", "temperature": "read_temperature.temperature"}, '
        '"name": "set_temperature"}</tool_call>'
    )
    steps = play(environment, task, ["Where?", read, heat + read, f"{read} and then {heat}"])
    assert [step.info["right"] for step in steps] == [True, False, False, True]
    assert [step.info["tool_number"] for step in steps] == [1, 0.5, 1, 1]
    assert [step.info["tool_order"] for step in steps] == pytest.approx([1, 0.5, math.cos(math.pi / 4) / 2, 1])
    assert [step.info["try"] for step in steps] == [1, 1, 2, 3]
    assert steps[-1].success
    # By the first reply to each user turn, as the benchmark measures, the dialogue is half right.
    half = {"success": 0.0, "turn_success": 0.5, "soft_turn_success": 0.5, "task_process": 0.5}
    assert steps[-1].info["dialogue"] == half


@pytest.mark.parametrize(
    ("mistake", "reason", "answer"),
    [
        (WRONG_TOOL, None, '{"user_turn":1,"calls":[["MakeAlarm",{"label":"wake up","time":"07:00"}]]}'),
        (WRONG_ARGUMENT, None, '{"user_turn":1,"calls":[["SetAlarm",{"label":"wake up","time":"08:00"}]]}'),
        ("I have set it.", None, '{"user_turn":1,"calls":[]}'),
        (SET + LIST, None, None),
        (HALF, "tags", None),
        (f"{HALF}</tool_call>", "not_json", None),
        ("", "empty", None),
        ("<tool_call>__import__('os').system('true')</tool_call>", "not_json", None),
        ("<tool_call>" + "{" * 1_000_000 + "</tool_call>", "too_long", None),
    ],
)
def test_after_a_mistake_the_assistant_tries_again(
    alarm: dict[str, Any], mistake: str, reason: str | None, answer: str | None
) -> None:
    environment = Tools(**alarm)
    steps = play(environment, only(environment), [RIGHT[0], mistake, *RIGHT[1:]])
    assert len(steps) == 5 and steps[-1].success
    assert steps[1].info.get("reason") == reason
    assert steps[1].reward == 0 and not steps[1].done
    said = FEEDBACK if reason is None else environment.format_feedback
    assert contents(steps[1]) == [("user", said)]
    assert (steps[1].answer is None) == (reason is not None)
    if answer is not None:
        assert steps[1].answer == answer
    assert sum(step.reward for step in steps) == 1
    dialogue = steps[-1].info["dialogue"]
    assert (dialogue["turn_success"], dialogue["task_process"]) == (0.75, 0.25)
    assert dialogue["soft_turn_success"] == pytest.approx((1 + 0 + (1 - math.exp(-1)) + (1 - math.exp(-2))) / 4)


def test_tries_and_turns_run_out(alarm: dict[str, Any]) -> None:
    environment = Tools(**alarm, tries=2)
    steps = play(environment, only(environment), [LIST] * 9)
    assert [step.done for step in steps] == [False, True] and not steps[-1].success
    assert steps[-1].messages == () and steps[-1].info["dialogue"]["task_process"] == 0
    environment = Tools(**alarm, max_turns=4)
    steps = play(environment, only(environment), [RIGHT[0], LIST, RIGHT[1], RIGHT[2], RIGHT[3]])
    assert len(steps) == 4 and steps[-1].done and not steps[-1].success
    assert sum(step.reward for step in steps) == 0.75
    with pytest.raises(ConfigError, match=r"tools has 0 test dialogues; 1 were asked .*longer_than_max_turns=1"):
        only(Tools(**alarm, max_turns=3))


def test_the_dialogue_can_go_on_with_the_right_calls_as_the_benchmark_does(alarm: dict[str, Any]) -> None:
    environment = Tools(**alarm, on_mistake="gold")
    steps = play(environment, only(environment), [LIST, HALF, LIST, "Bye."])
    assert contents(steps[0]) == [("user", "Incorrect. No tool was to be called.\n\nWake me at seven.")]
    gold = '<tool_call>{"name": "SetAlarm", "arguments": {"time": "07:00", "label": "Wake up"}}</tool_call>'
    assert contents(steps[1])[0][1].startswith(
        f"Incorrect. The right reply was:\n{gold}\n\n<tool_response>\n{{'alarm_id': '3'}}\n</tool_response>\n\n"
    )
    assert [step.reward for step in steps] == [0, 0, 0.25, 0.25]
    assert steps[-1].done and not steps[-1].success
    assert steps[-1].info["dialogue"]["turn_success"] == 0.5
    steps = play(environment, only(environment), RIGHT)
    assert steps[-1].success and len(steps) == 4


def test_a_reward_for_the_whole_dialogue_alone(alarm: dict[str, Any]) -> None:
    environment = Tools(**alarm, reward="dialogue")
    assert [step.reward for step in play(environment, only(environment), RIGHT)] == [0, 0, 0, 1]


def test_splits_depend_on_what_the_user_says_alone(many: dict[str, Any], tmp_path: Path) -> None:
    environment = Tools(**many)
    train, test = ({task.id for task in environment.tasks(split, 10, 1)} for split in ("train", "test"))
    assert not train & test
    rows = [json.loads(line) for line in Path(many["files"][0]).read_text().splitlines()]
    for row in rows:
        row["answer"] = {}
        row["id"] = row["id"].replace("M-M", "OOD")
    other = Tools(**{**many, "files": (write(tmp_path / "b.jsonl", rows[::-1]),), "scenes": ("M-S", "OOD")})
    for split in ("train", "test"):
        count = environment.source_counts(split)[f"usable_{split}"]
        assert {task.id for task in environment.tasks(split, count, 1)} == {t.id for t in other.tasks(split, count, 2)}
    assert sum(environment.source_counts(split)[f"usable_{split}"] for split in ("train", "test")) == 40


def hold(environment: Tools, policy: ScriptedPolicy) -> Trajectory:
    assignment = Assignment(task=only(environment), sample=0, seed=1)
    return asyncio.run(episode(assignment, environment, policy, Sampling(max_new_tokens=2_000_000)))


def says_what_fits(conversation: str, seed: int) -> str:
    """The right reply to what the user said last."""
    last = max(range(4), key=lambda at: conversation.rfind(ALARM[at][0]))
    return RIGHT[last]


def test_policies_play_whole_conversations(alarm: dict[str, Any]) -> None:
    environment = Tools(**alarm)
    right = hold(environment, ScriptedPolicy(rule=says_what_fits))
    assert (right.stop_reason, right.success, len(right.turns), right.error) == ("success", True, 4, None)
    roles = [message["role"] for message in right.messages]
    assert roles == ["system", *["user", "assistant"] * 4]
    hostile = "<tool_call>" + '{"name": {' * 100_000
    for reply, solved_turns in ((WRONG_TOOL, 0), (WRONG_ARGUMENT, 0), (HALF, 0), (hostile, 0), ("In words.", 1)):
        wrong = hold(environment, ScriptedPolicy([reply]))
        assert (wrong.stop_reason, wrong.error) == ("turns", None)
        assert len(wrong.turns) == solved_turns + 3
        assert wrong.turns[-1].step.info["dialogue"]["task_process"] == solved_turns / 4


def test_collected_trajectories_tell_where_their_tasks_come_from(many: dict[str, Any], tmp_path: Path) -> None:
    environment = Tools(**many)
    tasks = environment.tasks("train", 5, 0)
    collection = {"environment": {"name": "tools"}, "samples": 2, "seed": 3, "sampling": Sampling(max_new_tokens=500)}
    replies = [SET, LIST, "In words.", HALF]
    manifest = collect(tasks, environment, ScriptedPolicy(replies), tmp_path / "out", **collection)
    assert manifest["counts"]["trajectories"] == 10
    assert manifest["source"] == environment.source_counts("train")
    assert manifest["source"]["rows"] == 120 and manifest["source"]["dialogues"] == 40


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scenes": ("M-X",)}, r"scenes: got \('M-X',\), expected some of S-S, S-M"),
        ({"scenes": ()}, "scenes"),
        ({"files": "a.jsonl"}, "files: got 'a.jsonl', expected a list of files"),
        ({"files": ("/nowhere/a.jsonl",)}, "expected a file that exists"),
        ({"test_share": 1.5}, "test_share"),
        ({"max_turns": 0}, "max_turns"),
        ({"tries": 0}, "tries"),
        ({"on_mistake": "stop"}, "on_mistake: got 'stop', expected retry or gold"),
        ({"reward": "calls"}, "reward"),
        ({"prompt_role": "tool"}, "prompt_role"),
        ({"observation_role": "assistant"}, "observation_role: got 'assistant', expected user or tool"),
        ({"prompt": "no place for them"}, r"prompt: .*holds \{tools\}"),
        ({"feedback": ""}, "feedback"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Tools(**settings)
