"""Small dialogues in the schema of MTU-Bench, written for these tests: as many rows as user turns, history as text."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Each scene's tools are written as the benchmark writes them: JSON, or Python literals.
CLOCK = (
    "[{'name': 'SetAlarm', 'description': 'Set an alarm', 'required_parameters': ['time'], "
    "'optional_parameters': {'label': 'none'}, 'result_parameters': ['alarm_id']}, "
    "{'name': 'ListAlarms', 'description': \"The user's alarms\", 'required_parameters': [], "
    "'optional_parameters': {}, 'result_parameters': ['alarms']}]"
)
HOUSE = json.dumps(
    [
        {
            "name": "read_temperature",
            "description": "Temperature of a room.",
            "required_parameters": [{"name": "room", "type": "string", "description": "Which room."}],
            "optional_parameters": [],
            "result_parameters": [{"name": "temperature", "type": "integer", "description": "In degrees."}],
        },
        {
            "name": "set_temperature",
            "description": "Heat a room.",
            "required_parameters": [{"name": "room", "type": "string", "description": "Which room."}],
            "optional_parameters": [{"name": "eco", "type": "boolean", "description": "Slowly."}],
            "result_parameters": [],
        },
    ]
)
SEVERAL = "\n4. Multiple APIs may need to be called to meet the user's needs."
HEAD = "\nPlease reply.\n7. Today is Monday, January 4, 2024.\nThe following is a list of APIs that you can use:"

# What the user says, the answer, what the tool returned, what the assistant then said.
ALARM = [
    ("Hello there.", {"": {}}, "", "Hi, what can I do?"),
    (
        "Wake me at seven.",
        {"SetAlarm": {"time": "07:00", "label": "Wake up"}},
        "{'alarm_id': '3'}",
        "Done: seven it is.",
    ),
    ("Which alarms\nare there?", {"ListAlarms": {}}, "{'alarms': ['07:00', '3 pm']}", "Two: seven, and three."),
    ("Thanks, bye.", {"": {}}, "", ""),
]
WARM = [
    ("It is cold in here.", {}, "", "Which room are you in?"),
    (
        "The Kitchen. Make the attic as warm.",
        {
            "read_temperature": {"room": "kitchen"},
            " set_temperature": {"temperature": "read_temperature.temperature", "room": "attic", "eco": True},
        },
        "",
        "",
    ),
]


def single_calls(name: str, dialogue: Sequence[Any] = ALARM, tools: str = CLOCK) -> list[dict[str, Any]]:
    """Rows as in the scenes M-S and S-S."""
    rows, history = [], ""
    for at, (user, answer, observation, said) in enumerate(dialogue):
        begins = f"\nHistory Dialog: \n{history}" if name.startswith("M") else "\n"
        number = f"_{at}" if name.startswith("M") else ""
        rows.append({"id": f"{name}{number}", "question": f"{HEAD}\n{tools}{begins}User: {user}", "answer": answer})
        called = "".join(f"Action: {tool} \nAction Input: {given}\n" for tool, given in answer.items() if tool)
        result = f"observation: : {observation}" if observation else "observation: "
        history += f"user: {user}\nfunction: \nThought: I see.\n{called}{result}\nassistant: : {said}\n"
    return rows


def several_calls(name: str, dialogue: Sequence[Any] = WARM, tools: str = HOUSE) -> list[dict[str, Any]]:
    """Rows as in the scenes M-M and S-M."""
    rows, history = [], ""
    for at, (user, answer, _, said) in enumerate(dialogue):
        begins = "\nHistory Dialog: \n" if name.startswith("M") else "\n"
        number = f"_{at}" if name.startswith("M") else ""
        rows.append(
            {
                "id": f"{name}{number}",
                "question": f"{SEVERAL}{HEAD}{tools}{begins}{history}User:  {user}",
                "answer": answer,
            }
        )
        history += f"User:  {user} \nAction: {json.dumps(answer)}\nAssistant:  {said}\n\n"
    return rows


def write(path: Path, rows: Sequence[Any]) -> str:
    """One row per line."""
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return str(path)
