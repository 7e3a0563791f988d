import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drift.errors import ConfigError
from drift.problems import PROBLEM_SETS, Problem, get_problem_set, load_problems
from drift.problems.base import lettered

# One row in the schema of each set on the hub, and what must come of it.
ROWS: dict[str, tuple[dict[str, Any], Problem | None]] = {
    "gsm8k": (
        {"question": "Ann has 2 bags of 1,000 beads. How many?", "answer": "2*1000=<<2*1000=2000>>2000.\n#### 2,000"},
        Problem(question="Ann has 2 bags of 1,000 beads. How many?", gold="2,000"),
    ),
    "math500": (
        {
            "problem": "What is half of $\\pi$?",
            "solution": "It is $\\boxed{\\frac{\\pi}{2}}$.",
            "answer": "\\frac{\\pi}{2}",
            "subject": "Algebra",
            "level": 1,
            "unique_id": "test/algebra/1.json",
        },
        Problem(question="What is half of $\\pi$?", gold="\\frac{\\pi}{2}"),
    ),
    "metamath": (
        {
            "type": "MATH_Rephrased",
            "query": "Find x if x + 1 = 3.",
            "original_question": "Solve x + 1 = 3.",
            "response": "The answer is: not yet. Subtract 1.\n#### 2\nThe answer is: 2",
        },
        Problem(question="Find x if x + 1 = 3.", gold="2"),
    ),
    "theoremqa": (
        {"Question": "Is 7 prime?", "Answer": True, "Answer_type": "bool", "Picture": None},
        Problem(question="Is 7 prime?", gold="True", verifier="exact"),
    ),
    "mmlu": (
        {
            "question": "Which is a gas?",
            "subject": "chemistry",
            "choices": ["iron", "neon", "salt", "wax"],
            "answer": 1,
        },
        Problem(question="Which is a gas?", gold="B", options=("iron", "neon", "salt", "wax")),
    ),
    "arc": (
        {
            "id": "X_1",
            "question": "Which is a planet?",
            "choices": {"text": ["Mars", "Sun", "Moon"], "label": ["1", "2", "3"]},
            "answerKey": "1",
        },
        Problem(question="Which is a planet?", gold="A", options=("Mars", "Sun", "Moon")),
    ),
    "openbookqa": (
        {
            "id": "7-1",
            "question_stem": "Ice is",
            "choices": {"text": ["hot", "cold", "loud", "sweet"], "label": ["A", "B", "C", "D"]},
            "answerKey": "B",
        },
        Problem(question="Ice is", gold="B", options=("hot", "cold", "loud", "sweet")),
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_the_hubs_schema_becomes_a_problem(name: str) -> None:
    row, expected = ROWS[name]
    assert get_problem_set(name).read(row) == expected


@pytest.mark.parametrize(
    ("name", "row"),
    [
        (
            "sciq",
            {
                "question": "What do plants breathe in?",
                "correct_answer": "carbon dioxide",
                "distractor1": "iron",
                "distractor2": "helium",
                "distractor3": "sand",
                "support": "",
            },
        ),
        (
            "gpqa",
            {
                "Question": "What do plants breathe in?",
                "Correct Answer": "carbon dioxide\n",
                "Incorrect Answer 1": "iron",
                "Incorrect Answer 2": "helium",
                "Incorrect Answer 3": "sand",
            },
        ),
    ],
)
def test_sets_that_list_the_right_option_first_are_shuffled_by_content(name: str, row: dict[str, str]) -> None:
    read = get_problem_set(name).read
    found = read(row)
    assert found is not None and found == read(dict(row))
    assert sorted(found.options) == ["carbon dioxide", "helium", "iron", "sand"]
    assert found.options["ABCD".index(found.gold)] == "carbon dioxide"


def test_the_shuffle_puts_the_right_option_everywhere() -> None:
    golds = [lettered([f"right {i}", "a", "b", "c"], 0, shuffle=True)[1] for i in range(400)]
    for letter in "ABCD":
        # 100 expected; four standard deviations of a binomial.
        assert abs(golds.count(letter) - 100) < 4 * (400 * 0.25 * 0.75) ** 0.5


@pytest.mark.parametrize(
    ("kind", "answer", "gold", "verifier"),
    [
        ("integer", 11760, "11760", "numeric"),
        ("float", 1.5, "1.5", "numeric"),
        ("list of integer", [1, 2], "[1, 2]", "numeric"),
        ("option", "(b)", "B", "choice"),
    ],
)
def test_theoremqa_answers_get_the_verifier_of_their_type(kind: str, answer: Any, gold: str, verifier: str) -> None:
    row = {"Question": "?", "Answer": answer, "Answer_type": kind, "Picture": None}
    found = get_problem_set("theoremqa").read(row)
    assert found == Problem(question="?", gold=gold, verifier=verifier)


def test_rows_that_are_not_for_us_are_left_out() -> None:
    assert get_problem_set("metamath").read({"type": "GSM_SV", "query": "q", "response": "The answer is: 1"}) is None
    picture = {"Question": "?", "Answer": 1, "Answer_type": "integer", "Picture": b"png"}
    assert get_problem_set("theoremqa").read(picture) is None


def test_the_same_question_is_the_same_problem_whatever_set_it_is_in() -> None:
    one, other = Problem(question="What is  1 + 1?", gold="2"), Problem(question="what is 1 + 1?", gold="2.0")
    assert one.id == other.id
    swapped = Problem(question="?", gold="A", options=("x", "y")), Problem(question="?", gold="B", options=("y", "x"))
    assert swapped[0].id == swapped[1].id != Problem(question="?", gold="A", options=("x", "z")).id


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_local_files_of_any_kind_give_the_same_problems(tmp_path: Path, kind: str) -> None:
    rows = [{"question": f"What is {i}?", "answer": f"#### {i}"} for i in (1, 2, 3, 2)]
    file = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        file.write_text(json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows)) + "\n\n")
    found = load_problems(get_problem_set("gsm8k"), "test", str(file))
    assert [(p.question, p.gold) for p in found] == [(f"What is {i}?", str(i)) for i in (1, 2, 3)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"question": "?", "answer": "#### 1"}\n{"question": "?"}', r"row 2 of .* KeyError: 'answer'"),
        ('{"question": "?", "answer": "none"}', r"row 1 .* no #### in the answer"),
        ("{", "can't be read"),
        ("", "holds no problem"),
        ("[1]", "row 1 .* TypeError"),
    ],
)
def test_files_that_are_not_of_the_schema_are_refused_by_row(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_problems(get_problem_set("gsm8k"), "train", str(file))


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"MATH-500 has no train split, only test"):
        load_problems(get_problem_set("math500"), "train")
    with pytest.raises(ConfigError, match=r"Did you mean 'gsm8k'\?"):
        get_problem_set("gsm8")
    with pytest.raises(ConfigError, match=r"openai/gsm8k can't be read from the hub: .*gsm8k.*test_file"):
        load_problems(get_problem_set("gsm8k"), "test")


@pytest.mark.parametrize("name", PROBLEM_SETS.names())
def test_every_set_says_where_it_lies(name: str) -> None:
    found = get_problem_set(name)
    assert found.hub.count("/") == 1 and found.splits and set(found.splits) <= {"train", "test"}
