"""Questions of a file of one's own: columns by name, splits by the question alone, options, and what is refused."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from drift.environments import make_environment
from drift.environments.conformance import check_environment
from drift.errors import ConfigError

from .playing import play

CAPITALS = [(f"What is the capital of country {n}?", f"Town {n}") for n in range(60)]


def table(path: Path, rows: list[dict[str, Any]]) -> str:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(("write", "name"), [(table, "q.csv"), (table, "q.tsv"), (lines, "q.jsonl")])
def test_a_file_alone_is_an_environment(write: Any, name: str, tmp_path: Path) -> None:
    rows = [{"Frage": question, "Antwort": answer} for question, answer in CAPITALS]
    # Without an answer, and twice.
    rows += [{"Frage": "Why?", "Antwort": ""}, rows[0]]
    settings = {"name": "qa", "file": write(tmp_path / name, rows), "question": "Frage", "answer": "Antwort"}
    environment = make_environment(settings)
    assert [each for each in check_environment(environment, tasks=4) if not each.passed] == []
    train, test = (
        {task.id: task for task in environment.tasks(split, n, 1)} for split, n in (("train", 40), ("test", 5))
    )
    assert not train.keys() & test.keys()
    counts = environment.source_counts("test")
    assert counts["rows"] == 62 and counts["left_out_no_answer"] == 1
    assert counts["problems"] + environment.source_counts("train")["problems"] == 60
    # Which questions are held out does not depend on what else is in the file, or on its order.
    fewer = {**settings, "file": write(tmp_path / f"2{name}", rows[59:9:-1])}
    kept = {task.payload["question"] for task in make_environment(fewer).tasks("test", 5, 1)}
    every = {p.question for p in environment._load("test").problems}
    assert kept <= every
    task = next(iter(test.values()))
    ends = [
        step.success for step in play(environment, task, ["I am not sure.", f"The answer is {task.payload['gold']}."])
    ]
    assert ends == [False, True]


def test_options_may_be_a_list_or_parted_and_the_right_one_its_letter_or_text(tmp_path: Path) -> None:
    rows = [
        {"question": f"Which is {n}?", "options": f"{n - 1}|{n}|{n + 1}", "answer": str(n) if n % 2 else "b"}
        for n in range(10, 40)
    ]
    held = table(tmp_path / "held.csv", rows[20:])
    file = lines(tmp_path / "q.jsonl", [{**row, "options": row["options"].split("|")} for row in rows[:20]])
    environment = make_environment({"name": "qa", "file": file, "test_file": held})
    tasks = [*environment.tasks("train", 20, 0), *environment.tasks("test", 10, 0)]
    assert {task.payload["gold"] for task in tasks} == {"B"} and environment.options(tasks[0]) == 3
    assert [step.success for step in play(environment, tasks[0], ["A", "<answer>B</answer>"])] == [False, True]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"file": "nowhere.csv"}, "environment.file: got 'nowhere.csv', expected a file of questions"),
        ({"question": "query"}, "row 1 of .* there is no column 'query', but question, answer"),
        ({"verifier": "exakt"}, "Did you mean 'exact'"),
        ({"verifier": "judge"}, "expected a verifier that is no model"),
    ],
)
def test_what_can_not_be_asked_is_refused(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    file = table(tmp_path / "q.csv", [{"question": question, "answer": answer} for question, answer in CAPITALS])
    with pytest.raises(ConfigError, match=words):
        make_environment({"name": "qa", "file": file, **settings}).tasks("test", 1, 0)
