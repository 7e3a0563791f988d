import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drift.environments import make_environment
from drift.environments.arithmetic import Arithmetic
from drift.errors import ConfigError
from drift.problems import PROBLEM_SETS, LeftOut, Problem, get_problem_set, load_split
from drift.problems.base import multiple_choice

# One row in the schema of each set on the hub, and what must come of it.
ROWS: dict[str, tuple[dict[str, Any], Problem]] = {
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
    "math": (
        {
            "problem": "What is half of $\\pi$? ",
            "level": "Level 1",
            "type": "Algebra",
            "solution": "Not $\\boxed{\\pi}$ but half: $\\boxed{\\frac{\\pi}{2}}$.",
        },
        Problem(question="What is half of $\\pi$?", gold="\\frac{\\pi}{2}"),
    ),
    "mathdial": (
        {
            "qid": 5000012,
            "scenario": 1,
            "question": "Ann has 2 bags of 1,000 beads. How many?",
            "ground_truth": "She has 2*1000=2000 beads.\n 2000",
            "student_incorrect_solution": "1000 + 2 = 1002 \n 1002",
            "student_profile": "Mia is in 7th grade.",
            "teacher_described_confusion": "adds",
            "self-correctness": "Yes",
            "self-typical-confusion": 4.0,
            "self-typical-interactions": 4.0,
            "conversation": "Teacher: (probing)Why plus?|EOM|Student: Oh, 2000.",
        },
        Problem(question="Ann has 2 bags of 1,000 beads. How many?", gold="2000"),
    ),
    "mmlu_redux": (
        {
            "question": "Which is a gas?",
            "choices": ["iron", "neon", "salt", "wax"],
            "answer": 0,
            "error_type": "wrong_groundtruth",
            "source": "https://example.org/quiz",
            "correct_answer": "1",
            "potential_reason": "",
        },
        Problem(question="Which is a gas?", gold="B", options=("iron", "neon", "salt", "wax")),
    ),
    "mmlu_pro": (
        {
            "question_id": 70,
            "question": "Which is a gas?",
            "options": ["iron", "salt", "wax", "gold", "ice", "sand", "milk", "tin", "clay", "neon"],
            "answer": "J",
            "answer_index": 9,
            "cot_content": "",
            "category": "chemistry",
            "src": "ori_mmlu-chemistry",
        },
        Problem(
            question="Which is a gas?",
            gold="J",
            options=("iron", "salt", "wax", "gold", "ice", "sand", "milk", "tin", "clay", "neon"),
        ),
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
    golds = [multiple_choice("?", [f"right {i}", "a", "b", "c"], 0, shuffle=True).gold for i in range(400)]
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


def test_rows_that_are_not_for_us_are_left_out_for_a_reason() -> None:
    row = {"type": "GSM_SV", "query": "q", "response": "The answer is: 1"}
    assert get_problem_set("metamath").read(row) == LeftOut(reason="other_type")
    picture = {"Question": "?", "Answer": 1, "Answer_type": "integer", "Picture": b"png"}
    assert get_problem_set("theoremqa").read(picture) == LeftOut(reason="picture")


@pytest.mark.parametrize(
    ("solution", "gold"),
    [
        ("so $\\boxed 2$.", "2"),
        ("so $x = \\boxed 9$", "9"),
        ("so $\\fbox{4}$", "4"),
        ("so $\\boxed{\\text{(A)}}$ or $\\boxed{\\{1,2\\}}$", "\\{1,2\\}"),
        ("so it is 4.", None),
        ("so $\\boxed{}$", None),
    ],
)
def test_the_answers_of_math_are_the_last_box(solution: str, gold: str | None) -> None:
    row = {"problem": "?", "level": "Level 5", "type": "Algebra", "solution": solution}
    expected = LeftOut(reason="no_boxed_answer") if gold is None else Problem(question="?", gold=gold)
    assert get_problem_set("math").read(row) == expected


@pytest.mark.parametrize(
    ("choices", "error", "correct", "gold"),
    [
        (["w", "x", "y", "z"], "ok", None, "A"),
        (["w", "x", "y", "z"], "ok", "3", "A"),
        (["w", "x", "y", "z"], "wrong_groundtruth", "C", "C"),
        (["w", "x", "y", "z"], "wrong_groundtruth", " d ", "D"),
        (["w", "x", "y", "z"], "Wrong Groundtruth ", "3", "D"),
        (["iron", "neon", "salt", "wax"], "wrong_groundtruth", "Neon", "B"),
        # An index, but also the text of another option.
        (["1", "2", "3", "4"], "wrong_groundtruth", "2", None),
        (["4", "5", "6", "7"], "wrong_groundtruth", "6", "C"),
        (["w", "x", "y", "z"], "wrong_groundtruth", "A", None),  # the label that is said to be wrong
        (["w", "x", "y", "z"], "wrong_groundtruth", "E", None),
        (["w", "x", "y", "z"], "wrong_groundtruth", "1 or 2", None),
        (["w", "x", "y", "z"], "wrong_groundtruth", None, None),
    ],
)
def test_mmlu_redux_takes_the_corrected_label(
    choices: list[str], error: str, correct: str | None, gold: str | None
) -> None:
    row = {"question": "?", "choices": choices, "answer": 0, "error_type": error, "correct_answer": correct}
    found = get_problem_set("mmlu_redux").read(row)
    if gold is None:
        assert found == LeftOut(reason="wrong_groundtruth_not_corrected")
    else:
        assert found == Problem(question="?", gold=gold, options=tuple(choices))


@pytest.mark.parametrize(
    "error",
    ["bad_question_clarity", "bad_options_clarity", "no_correct_answer", "multiple_correct_answers", "expert"],
)
def test_mmlu_redux_leaves_out_what_has_no_one_answer(error: str) -> None:
    row = {"question": "?", "choices": ["w", "x"], "answer": 0, "error_type": error, "correct_answer": "1"}
    assert get_problem_set("mmlu_redux").read(row) == LeftOut(reason=error)
    with pytest.raises(ValueError, match="error_type 'odd', expected ok"):
        get_problem_set("mmlu_redux").read(row | {"error_type": "odd"})


def test_labels_that_contradict_themselves_are_not_of_the_schema() -> None:
    row = {"question": "?", "options": ["w", "x"], "answer": "A", "answer_index": 1}
    with pytest.raises(ValueError, match="answer 'A', but answer_index 1 is B"):
        get_problem_set("mmlu_pro").read(row)
    with pytest.raises(ValueError, match="ends with 'I give up', expected a number"):
        get_problem_set("mathdial").read({"question": "?", "ground_truth": "2\nI give up"})


def test_every_row_is_counted(tmp_path: Path) -> None:
    row = {"choices": ["w", "x", "y", "z"], "answer": 0, "correct_answer": None}
    kinds = ["ok", "expert", "ok", "no_correct_answer", "expert", "ok", "wrong_groundtruth"]
    rows = [row | {"question": f"q{i}", "error_type": kind} for i, kind in enumerate(kinds)]
    rows.append(rows[0])
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    found = load_split(get_problem_set("mmlu_redux"), "test", str(file))
    assert [problem.question for problem in found.problems] == ["q0", "q2", "q5"]
    assert found.counts == {
        "rows": 8,
        "problems": 3,
        "repeated": 1,
        "left_out_expert": 2,
        "left_out_no_correct_answer": 1,
        "left_out_wrong_groundtruth_not_corrected": 1,
    }
    assert found.counts["rows"] == sum(count for key, count in found.counts.items() if key != "rows")


def test_several_configurations_are_read_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(hub: str, config: str | None, *, split: str) -> list[dict[str, str]]:
        asked.append((hub, config, split))
        return [{"problem": f"{config} of {split}?", "solution": f"\\boxed{{{len(asked)}}}"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = load_split(get_problem_set("math"), "train").problems
    subjects = [
        "algebra",
        "counting_and_probability",
        "geometry",
        "intermediate_algebra",
        "number_theory",
        "prealgebra",
        "precalculus",
    ]
    assert asked == [("EleutherAI/hendrycks_math", subject, "train") for subject in subjects]
    assert [(p.question, p.gold) for p in found] == [(f"{s} of train?", str(i + 1)) for i, s in enumerate(subjects)]


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
    found = load_split(get_problem_set("gsm8k"), "test", str(file)).problems
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
        load_split(get_problem_set("gsm8k"), "train", str(file))


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"MATH-500 has no train split, only test"):
        load_split(get_problem_set("math500"), "train")
    with pytest.raises(ConfigError, match=r"Did you mean 'gsm8k'\?"):
        get_problem_set("gsm8")
    with pytest.raises(ConfigError, match=r"openai/gsm8k can't be read from the hub: .*gsm8k.*test_file"):
        load_split(get_problem_set("gsm8k"), "test")


# A table is the user's own file.
@pytest.mark.parametrize("name", sorted({*PROBLEM_SETS.names()} - {"table"}))
def test_every_set_says_where_it_lies(name: str) -> None:
    found = get_problem_set(name)
    assert (
        (found.hub.count("/") == 1) != (found.make_rows is not None)
        and found.splits
        and set(found.splits) <= {"train", "test"}
    )


def test_the_computed_set_has_every_sum_and_difference_once_and_splits_them_as_the_environment_does() -> None:
    found = {split: load_split(get_problem_set("arithmetic"), split).problems for split in ("train", "test")}
    for problem in itertools.chain(*found.values()):
        a, sign, b = problem.question.removeprefix("What is ").removesuffix("?").split()
        assert int(problem.gold) == (int(a) + int(b) if sign == "+" else int(a) - int(b)) >= 0
    # 90 numbers of two digits: 90² sums, and 90 · 91 / 2 differences that aren't negative.
    train, test = ({problem.question for problem in found[split]} for split in ("train", "test"))
    assert not train & test and len(train) + len(test) == 8100 + 4095 == sum(map(len, found.values()))
    for split, questions in (("train", train), ("test", test)):
        assert {task.payload["question"] for task in Arithmetic().tasks(split, 300, 5)} <= questions


def test_a_conversation_about_a_computed_problem_is_judged() -> None:
    settings = {"train": "arithmetic", "test": "arithmetic", "prompt": "{question}"}
    factory = make_environment({"name": "reasoning", **settings})
    (task,) = factory.tasks("test", 1, 3)
    for reply, right in ((f"<answer>{task.payload['gold']}</answer>", True), ("<answer>-1</answer>", False)):
        episode = factory.start(task)
        assert episode.opening() == [{"role": "user", "content": task.payload["question"]}]
        steps = [asyncio.run(episode.step(text)) for text in ("<answer>0</answer>", "well", reply)]
        assert [step.done for step in steps] == [False, False, True]
        assert (steps[2].success, steps[2].reward) == (right, float(right))
