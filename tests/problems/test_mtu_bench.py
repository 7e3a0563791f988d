import json
from pathlib import Path
from typing import Any

import pytest

from drift.errors import ConfigError
from drift.problems.mtu_bench import RecordedDialogue, ToolCall, UserTurn, load_dialogues

from .mtu_rows import ALARM, CLOCK, HEAD, HOUSE, WARM, several_calls, single_calls, write

ALARM_TURNS = (
    UserTurn(user="Hello there.", calls=(), said="Hi, what can I do?"),
    UserTurn(
        user="Wake me at seven.",
        calls=(ToolCall(name="SetAlarm", arguments={"time": "07:00", "label": "Wake up"}),),
        observation="{'alarm_id': '3'}",
        said="Done: seven it is.",
    ),
    UserTurn(
        user="Which alarms\nare there?",
        calls=(ToolCall(name="ListAlarms", arguments={}),),
        observation="{'alarms': ['07:00', '3 pm']}",
        said="Two: seven, and three.",
    ),
    UserTurn(user="Thanks, bye.", calls=()),
)
WARM_TURNS = (
    UserTurn(user="It is cold in here.", calls=(), said="Which room are you in?"),
    UserTurn(
        user="The Kitchen. Make the attic as warm.",
        calls=(
            ToolCall(name="read_temperature", arguments={"room": "kitchen"}),
            ToolCall(
                name="set_temperature",
                arguments={"temperature": "read_temperature.temperature", "room": "attic", "eco": True},
            ),
        ),
    ),
)


def test_the_rows_of_a_dialogue_become_one_dialogue_in_any_order(tmp_path: Path) -> None:
    rows = [*single_calls("M-S_7")[::-1], *several_calls("M-M_0"), *single_calls("M-S_8", ALARM[:1])]
    found, counts = load_dialogues(["M-S", "M-M"], [write(tmp_path / "rows.jsonl", rows)])
    assert found == [
        RecordedDialogue(scene="M-S", tools=CLOCK, several_calls=False, turns=ALARM_TURNS),
        RecordedDialogue(scene="M-M", tools=HOUSE, several_calls=True, turns=WARM_TURNS),
        RecordedDialogue(
            scene="M-S", tools=CLOCK, several_calls=False, turns=(UserTurn(user="Hello there.", calls=()),)
        ),
    ]
    assert counts == {"rows": 7, "dialogues": 3}


def test_answers_can_be_json_text(tmp_path: Path) -> None:
    rows = [row | {"answer": json.dumps(row["answer"])} for row in [*single_calls("M-S_7"), *several_calls("M-M_0")]]
    found, _ = load_dialogues(["M-S", "M-M"], [write(tmp_path / "rows.jsonl", rows)])
    assert [dialogue.turns for dialogue in found] == [ALARM_TURNS, WARM_TURNS]


def test_scenes_of_a_single_turn(tmp_path: Path) -> None:
    rows = [*single_calls("S-S_0", ALARM[1:2]), *several_calls("S-M_0", WARM[1:])]
    found, _ = load_dialogues(["S-S", "S-M"], [write(tmp_path / "rows.jsonl", rows)])
    assert [dialogue.turns for dialogue in found] == [
        (UserTurn(user="Wake me at seven.", calls=ALARM_TURNS[1].calls),),
        (WARM_TURNS[1],),
    ]


def test_ids_that_are_used_again_and_arguments_as_text_as_in_the_scene_ood(tmp_path: Path) -> None:
    def row(user: str, answer: dict[str, str]) -> dict[str, Any]:
        return {"id": "OOD_0_0", "question": f'{HEAD}{{"apis": []}}\nUser: {user}', "answer": answer}

    rows = [
        row("One?", {"find": '{"number": 1}'}),
        row("Two?", {"": "{}"}),
        row("one? ", {"find": '{"number": 1}'}),
        row("Three?\nAssistant: Sure, which?", {"find": '{"number": 3}'}),
    ]
    found, counts = load_dialogues(["OOD"], [write(tmp_path / "rows.jsonl", rows)])
    assert [dialogue.turns for dialogue in found] == [
        (UserTurn(user="One?", calls=(ToolCall(name="find", arguments={"number": 1}),)),),
        (UserTurn(user="Two?", calls=()),),
    ]
    assert counts == {"rows": 4, "dialogues": 2, "repeated": 1, "left_out_ends_with_the_assistant": 1}


def test_dialogues_that_are_not_whole_are_left_out_and_counted(tmp_path: Path) -> None:
    gap = single_calls("M-S_1")
    del gap[1]
    # As published: the turn was taken out, the later rows were numbered anew and kept their histories.
    renumbered = [row | {"id": f"M-S_2_{at}"} for at, row in enumerate([*single_calls("M-S_2")[:1], *gap[1:]])]
    other_tools = single_calls("M-S_3", ALARM[:2])
    other_tools[1]["question"] = other_tools[1]["question"].replace("SetAlarm", "MakeAlarm")
    silent = several_calls("M-M_4", [("", {}, "", "")])
    rows = [*gap, *renumbered, *other_tools, *silent, *single_calls("S-S_9", ALARM[:1]), *several_calls("M-M_5")]
    found, counts = load_dialogues(["M-S", "M-M"], [write(tmp_path / "rows.jsonl", rows)])
    assert [dialogue.turns for dialogue in found] == [WARM_TURNS]
    assert counts == {
        "rows": 12,
        "dialogues": 1,
        "left_out_a_turn_is_empty": 1,
        "left_out_a_turn_is_missing": 2,
        "left_out_other_scene": 1,
        "left_out_tools_differ": 1,
    }


def test_an_id_depends_on_what_the_user_says_and_the_tools() -> None:
    dialogue = RecordedDialogue(scene="M-S", tools=CLOCK, several_calls=False, turns=ALARM_TURNS)
    louder = tuple(UserTurn(user=f" {turn.user.upper()}", calls=()) for turn in ALARM_TURNS)
    assert dialogue.id == RecordedDialogue(scene="OOD", tools=CLOCK, several_calls=False, turns=louder).id
    assert dialogue.id != RecordedDialogue(scene="M-S", tools=HOUSE, several_calls=False, turns=ALARM_TURNS).id
    assert dialogue.id != RecordedDialogue(scene="M-S", tools=CLOCK, several_calls=False, turns=ALARM_TURNS[:3]).id


GOOD = {"id": "S-S_0", "question": f"{HEAD}[]\nUser: Hi.", "answer": {"": {}}}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (GOOD | {"id": "one"}, r"ValueError: id 'one', expected <scene>_<dialogue>"),
        (GOOD | {"id": 1}, "TypeError"),
        (GOOD | {"question": "User: Hi."}, "no list of tools"),
        (GOOD | {"question": f"{HEAD}[]"}, "no user: after"),
        (GOOD | {"answer": [1]}, "AttributeError"),
        (GOOD | {"answer": {"a": [1]}}, "arguments of 'a' are list, expected an object"),
        (GOOD | {"answer": {"a": "{"}}, "JSONDecodeError"),
        ({"id": "S-S_0"}, "KeyError: 'question'"),
        (["no", "object"], "TypeError"),
    ],
)
def test_rows_that_are_not_of_the_schema_are_refused_by_number(tmp_path: Path, row: Any, message: str) -> None:
    file = write(tmp_path / "rows.jsonl", [GOOD, row])
    with pytest.raises(
        ConfigError, match=rf"row 2 of .*rows.jsonl is not of the schema of wpei/MTU-Bench: .*{message}"
    ):
        load_dialogues(["S-S"], [file])


def test_where_there_is_nothing_to_read_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "rows.jsonl", [GOOD])
    with pytest.raises(ConfigError, match="no dialogue of the scenes M-M"):
        load_dialogues(["M-M"], [file])
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match=r"wpei/MTU-Bench can't be read from the hub: .*environment.files"):
        load_dialogues(["M-M"])
