import json
from pathlib import Path
from typing import Any

import pytest

from drift.environments import make_environment
from drift.environments.arithmetic import Arithmetic
from drift.environments.conformance import check_environment
from drift.environments.guess import Guess
from drift.environments.questions import ChoiceQuestions, MathQuestions
from drift.errors import ConfigError

from .playing import play

pytest.importorskip("math_verify")


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.fixture
def math_settings(tmp_path: Path) -> dict[str, str]:
    def rows(numbers: range) -> list[dict[str, Any]]:
        return [
            {"question": f"What is {n} plus {{one}}?", "answer": f"It is {n + 1}.\n#### {n + 1:,}"} for n in numbers
        ]

    # Ten problems are in both files.
    train, test = rows(range(990, 1040)), rows(range(1030, 1060))
    return {"train_file": write(tmp_path / "train.jsonl", train), "test_file": write(tmp_path / "test.jsonl", test)}


@pytest.fixture
def choice_settings(tmp_path: Path) -> dict[str, str]:
    def rows(numbers: range) -> list[dict[str, Any]]:
        return [
            {"question": f"Which is {n}?", "choices": [str(n - 1), str(n), f"{n} apples", "none"], "answer": 1}
            for n in numbers
        ]

    train, test = write(tmp_path / "a.jsonl", rows(range(40))), write(tmp_path / "b.jsonl", rows(range(40, 70)))
    return {"train_file": train, "test_file": test}


def test_both_environments_pass_the_conformance_check(
    math_settings: dict[str, str], choice_settings: dict[str, str]
) -> None:
    for name, settings in (("math", math_settings), ("choice", choice_settings)):
        findings = check_environment(make_environment({"name": name, **settings}), tasks=8)
        assert [f for f in findings if not f.passed] == [], name


@pytest.mark.parametrize(
    ("reply", "success", "answer"),
    [
        ("<answer>1031</answer>", True, "1031"),
        ("so \\boxed{1{,}031}", True, "1031"),
        ("<answer>$1,031.00$</answer>", True, "1031"),
        ("<answer>\\frac{2062}{2}</answer>", True, "1031"),
        ("\\boxed{7} but <answer>1031</answer>", True, "1031"),
        ("<answer>1032</answer>", False, "1032"),
        ("<answer>-1031</answer>", False, "-1031"),
        ("the answer is 1031", True, "1031"),
        ("<think>It is 1031.</think> I don't know.", False, None),
        ("<answer></answer>", False, None),
    ],
)
def test_a_math_reply_is_judged_by_value(
    math_settings: dict[str, str], reply: str, success: bool, answer: str | None
) -> None:
    environment = MathQuestions(**math_settings)
    (task,) = [t for t in environment.tasks("test", 30, 0) if t.payload["gold"] == "1,031"]
    (step,) = play(environment, task, [reply])
    assert (step.success, step.reward, step.answer) == (success, float(success), answer)
    if not success:
        assert step.messages[0]["content"] == (environment.feedback if answer else environment.format_feedback)


def test_a_question_is_asked_as_it_is_with_its_options_by_letter(
    math_settings: dict[str, str], choice_settings: dict[str, str]
) -> None:
    math = MathQuestions(**math_settings, prompt="Q: {question} {question}")
    task = math.tasks("train", 1, 3)[0]
    question = task.payload["question"]
    assert "{one}" in question
    assert math.start(task).opening() == [{"role": "user", "content": f"Q: {question} {question}"}]
    choice = ChoiceQuestions(**choice_settings, prompt="{question}\nAnswer:")
    (task,) = [t for t in choice.tasks("train", 40, 0) if t.payload["question"] == "Which is 7?"]
    expected = "Which is 7?\nA. 6\nB. 7\nC. 7 apples\nD. none\nAnswer:"
    assert choice.start(task).opening()[0]["content"] == expected


@pytest.mark.parametrize(
    ("reply", "success", "answer"),
    [
        ("<answer>B</answer>", True, "B"),
        ("The answer is (b).", True, "B"),
        ("<answer>7</answer>", True, "B"),
        ("B. Because of a reaction", True, "B"),
        ("<answer>A</answer>", False, "A"),
        ("A or B", False, None),
    ],
)
def test_a_choice_is_read_from_tag_or_words(
    choice_settings: dict[str, str], reply: str, success: bool, answer: str | None
) -> None:
    environment = ChoiceQuestions(**choice_settings)
    (task,) = [t for t in environment.tasks("train", 40, 0) if t.payload["question"] == "Which is 7?"]
    (step,) = play(environment, task, [reply])
    assert (step.success, step.answer) == (success, answer)


def test_an_episode_stops_on_success_and_after_its_turns(choice_settings: dict[str, str]) -> None:
    environment = ChoiceQuestions(**choice_settings, max_turns=3)
    task = environment.tasks("test", 1, 0)[0]
    steps = play(environment, task, ["A", "<answer>C</answer>", "hm", "B"])
    assert [(s.done, s.success, s.answer) for s in steps] == [
        (False, False, "A"),
        (False, False, "C"),
        (True, False, None),
    ]
    assert [s.done for s in play(environment, task, ["A", "B"])] == [False, True]


def test_a_problem_of_both_sets_is_only_tested_on(math_settings: dict[str, str]) -> None:
    environment = MathQuestions(**math_settings)
    train, test = environment.tasks("train", 40, 0), environment.tasks("test", 30, 0)
    assert not {t.id for t in train} & {t.id for t in test}
    with pytest.raises(ConfigError, match=r"gsm8k has 40 train problems that can be used; 41 were asked for"):
        environment.tasks("train", 41, 0)


def test_theoremqa_uses_the_verifier_of_each_answer(tmp_path: Path) -> None:
    rows = [
        {"Question": "half?", "Answer": 0.5, "Answer_type": "float", "Picture": None},
        {"Question": "prime?", "Answer": True, "Answer_type": "bool", "Picture": None},
        {"Question": "which?", "Answer": "(b)", "Answer_type": "option", "Picture": None},
        {"Question": "pair?", "Answer": [1, 2], "Answer_type": "list of integer", "Picture": None},
    ]
    environment = MathQuestions(test="theoremqa", test_file=write(tmp_path / "t.json", rows))
    right = {"half?": "1/2", "prime?": "true", "which?": "B", "pair?": "[1, 2]"}
    wrong = {"half?": "1/3", "prime?": "false", "which?": "C", "pair?": "[2, 1]"}
    for task in environment.tasks("test", 4, 0):
        question = task.payload["question"]
        for answers, success in ((right, True), (wrong, False)):
            (step,) = play(environment, task, [f"<answer>{answers[question]}</answer>"])
            assert step.success == success, question


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_turns": 0}, r"max_turns: got 0"),
        ({"prompt": "no place"}, r"prompt: got 'no place', expected a text that holds \{question\}"),
        ({"feedback": ""}, r"feedback: got ''"),
        ({"train": "gsm"}, r"unknown problem set 'gsm'.*Did you mean 'gsm8k'\?"),
        ({"test_file": "nowhere.jsonl"}, r"test_file: no file 'nowhere.jsonl'"),
        ({"verifier_settings": {"deadlin": 1}}, r"Did you mean 'deadline'\?"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_read(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MathQuestions(**settings)


def test_a_gold_that_cannot_be_read_is_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{"question": "one?", "answer": "#### 12"}, {"question": "two?", "answer": "#### see the figure over there"}]
    environment = MathQuestions(
        train_file=write(tmp_path / "t.jsonl", rows), test_file=write(tmp_path / "u.jsonl", rows)
    )
    assert environment.source_counts("test") == {"rows": 2, "problems": 1, "left_out_unreadable_gold": 1}


def test_strict_reads_no_words(math_settings: dict[str, str]) -> None:
    environment = MathQuestions(**math_settings, strict=True)
    task = environment.tasks("test", 1, 0)[0]
    steps = play(environment, task, [f"The answer is {task.payload['gold']}.", f"\\boxed{{{task.payload['gold']}}}"])
    assert [step.success for step in steps] == [False, True]


def test_an_opening_may_have_an_example_and_arithmetic_and_guess_another_wording():
    settings: dict[str, Any] = {"example": ("2 + 2?", "<answer>4</answer>"), "prompt": "{question} In tags."}
    said = [
        (message["role"], message["content"]) for message in MathQuestions(**settings).opening_of("1 + 1? In tags.")
    ]
    assert said == [
        ("user", "2 + 2? In tags."),
        ("assistant", "<answer>4</answer>"),
        ("user", "1 + 1? In tags."),
    ]
    with pytest.raises(ConfigError, match="example: got"):
        MathQuestions(example=("2 + 2?",))
    for environment in (Arithmetic(prompt="{question} In a tag."), Guess(prompt="From {low} to {high}. In a tag.")):
        (task,) = environment.tasks("train", 1, 1)
        (message,) = environment.start(task).opening()
        assert message["content"].endswith("In a tag.") and "{" not in message["content"]
        with pytest.raises(ConfigError, match="prompt: got 'Hello'"):
            type(environment)(prompt="Hello")
