import asyncio
import hashlib
import operator
import os
import random
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift.environments.arithmetic import KINDS, Arithmetic, problem
from drift.environments.base import stable_unit, task_hash
from drift.errors import ConfigError

from .playing import play

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def worked_out(question):
    """The answer by reading the question as a person would, without the task's payload."""
    a, sign, b = re.fullmatch(r"What is (\d+) ([-+*]) (\d+)\?", question).groups()
    return OPERATORS[sign](int(a), int(b))


@pytest.mark.parametrize("digits", [1, 2, 3, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_problems_are_what_they_say_and_their_answer_is_right(kind, digits):
    sign = {"add": "+", "sub": "-", "mul": "*"}[kind]
    rng = random.Random(1)
    for task in (problem(kind, digits, rng) for _ in range(200)):
        a, b, question = task.payload["a"], task.payload["b"], task.payload["question"]
        assert question == f"What is {a} {sign} {b}?"
        assert task.payload["answer"] == worked_out(question)
        assert task.payload["answer"] >= 0
        assert len(str(a)) == digits
        assert 2 <= b <= 9 if kind == "mul" else len(str(b)) == digits
        assert (task.id, task.group_id) == (f"{kind}-{a}-{b}", f"{kind}-{a}-{b}")


def test_the_verifier_agrees_with_a_naive_computation_on_right_and_near_answers():
    environment = Arithmetic(max_turns=1)
    for task in environment.tasks("train", 60, 3):
        answer = worked_out(environment.start(task).opening()[0]["content"])
        for guess in (answer - 10, answer - 1, answer, answer + 1, -answer, answer * 10):
            (step,) = play(environment, task, [f"so <answer>{guess}</answer>"])
            assert step.success == (guess == answer)
            assert step.reward == (1.0 if guess == answer else 0.0)
            assert step.answer == str(guess)


def test_answers_written_differently_are_the_same_answer():
    environment = Arithmetic(digits=4, kinds=("add",))
    (task,) = environment.tasks("train", 1, 0)
    right = task.payload["answer"]
    for text in (f"{right}", f"{right:,}", f"{right}.0", f" +{right} ", f"0{right}"):
        (step,) = play(environment, task, [f"<answer>{text}</answer>"])
        assert (step.success, step.answer) == (True, str(right))


@pytest.mark.parametrize("reply", ["", "I don't know.", "12", "<answer>twelve</answer>", "<answer></answer>"])
def test_an_unreadable_reply_is_a_format_failure_and_not_a_wrong_answer(reply):
    environment = Arithmetic(feedback="wrong", format_feedback="unreadable")
    (task,) = environment.tasks("train", 1, 0)
    (step, after) = play(environment, task, [reply, "<answer>-1</answer>"])[:2]
    assert step.answer is None
    assert (step.success, step.reward, step.done) == (False, 0.0, False)
    assert step.messages == ({"role": "user", "content": "unreadable"},)
    # No difference here is negative, so −1 is a wrong answer.
    assert (after.answer, after.messages) == ("-1", ({"role": "user", "content": "wrong"},))


@pytest.mark.parametrize("max_turns", [1, 2, 5])
def test_an_unsolved_episode_lasts_exactly_max_turns(max_turns):
    environment = Arithmetic(max_turns=max_turns)
    (task,) = environment.tasks("train", 1, 0)
    steps = play(environment, task, [f"<answer>{-n}</answer>" for n in range(1, 20)])
    assert [step.done for step in steps] == [False] * (max_turns - 1) + [True]
    assert [step.answer for step in steps] == [str(-n) for n in range(1, max_turns + 1)]
    assert not any(step.success for step in steps)
    assert [bool(step.messages) for step in steps] == [True] * (max_turns - 1) + [False]


@pytest.mark.parametrize("right_at", [1, 2, 5])
def test_an_episode_stops_on_success(right_at):
    environment = Arithmetic(max_turns=5)
    (task,) = environment.tasks("test", 1, 0)
    replies = ["<answer>-1</answer>"] * (right_at - 1) + [f"<answer>{task.payload['answer']}</answer>"] * 3
    steps = play(environment, task, replies)
    assert [step.success for step in steps] == [False] * (right_at - 1) + [True]
    assert (steps[-1].done, steps[-1].messages, steps[-1].reward) == (True, (), 1.0)


def test_feedback_to_a_wrong_answer_is_unary_as_in_the_paper():
    environment = Arithmetic()
    (task,) = environment.tasks("train", 1, 0)
    steps = play(environment, task, ["<answer>-1</answer>", "<answer>-2</answer>"])
    assert {m["content"] for step in steps for m in step.messages} == {"Incorrect. Please think again."}


def test_the_splits_never_share_a_problem_across_seeds():
    environment = Arithmetic()
    train = {task.id for seed in range(8) for task in environment.tasks("train", 200, seed)}
    test = {task.id for seed in range(8) for task in environment.tasks("test", 100, seed)}
    assert len(train) > 800  # seeds do draw different problems
    assert not train & test


def test_commuted_operands_share_a_split():
    rng = random.Random(0)
    split_of = {}
    for _ in range(6000):
        task = problem(rng.choice(["add", "mul"]), 1, rng)
        split_of[task.payload["kind"], task.payload["a"], task.payload["b"]] = task.split
    pairs = [(key, (key[0], key[2], key[1])) for key in split_of if key[1] < key[2]]
    both = [(one, other) for one, other in pairs if other in split_of]
    # Sums of 1…9 have 36 pairs of unequal operands. Products have 28: a second factor is never 1.
    assert len(both) == 36 + 28
    assert {split_of[one] for one, _ in both} == {"train", "test"}
    for one, other in both:
        assert split_of[one] == split_of[other]


def test_about_a_fifth_of_the_problems_is_held_out():
    rng = random.Random(0)
    drawn = {task.id: task.split for task in (problem("add", 6, rng) for _ in range(4000))}
    share = sum(split == "test" for split in drawn.values()) / len(drawn)
    assert abs(share - 0.2) < 4 * (0.2 * 0.8 / len(drawn)) ** 0.5


def test_tasks_are_distinct_and_the_same_for_the_same_arguments():
    environment = Arithmetic()
    first = environment.tasks("train", 150, 4)
    assert first == environment.tasks("train", 150, 4)
    assert len({task.id for task in first}) == 150
    assert {task.split for task in first} == {"train"}
    assert [task.id for task in first] != [task.id for task in environment.tasks("train", 150, 5)]


def test_asking_for_fewer_tasks_gives_a_prefix_of_more():
    environment = Arithmetic()
    assert environment.tasks("test", 20, 1) == environment.tasks("test", 60, 1)[:20]


def test_tasks_do_not_depend_on_the_process_or_its_hash_seed():
    script = (
        "from drift.environments.arithmetic import Arithmetic\n"
        "print(','.join(t.id for t in Arithmetic().tasks('train', 20, 7)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONHASHSEED": "123"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == ",".join(task.id for task in Arithmetic().tasks("train", 20, 7))


def test_kinds_restrict_the_problems_drawn():
    assert {task.payload["kind"] for task in Arithmetic(kinds=("mul", "sub")).tasks("train", 40, 0)} == {"mul", "sub"}


def test_more_tasks_than_there_are_is_refused_with_what_to_do():
    # Of digits 1…9 there are 45 differences that are not negative.
    with pytest.raises(ConfigError, match=r"1 digits and kinds sub; 60 were asked for\. Ask for fewer tasks"):
        Arithmetic(digits=1, kinds=("sub",)).tasks("train", 60, 0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_turns": 0}, r"max_turns: got 0, expected a whole number ≥ 1"),
        ({"digits": 0}, r"digits: got 0, expected a whole number from 1 to 8"),
        ({"digits": 9}, r"digits: got 9"),
        ({"kinds": ()}, r"kinds: got \(\), expected some of add, sub, mul"),
        ({"kinds": ("add", "div")}, r"kinds: got 'div', expected one of add, sub, mul"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(wrong, message):
    with pytest.raises(ConfigError, match=rf"environment\.{message}"):
        Arithmetic(**wrong)


def test_an_unknown_split_is_refused():
    with pytest.raises(ConfigError, match="split: got 'dev', expected train or test"):
        Arithmetic().tasks("dev", 1, 0)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(st.lists(st.one_of(st.integers(), st.text("ab-é \x1f", max_size=5)), max_size=4))
def test_stable_unit_is_the_leading_64_bits_of_sha256(parts):
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).hexdigest()
    assert stable_unit(*parts) == int(digest[:16], 16) / 2**64
    assert 0 <= stable_unit(*parts) < 1


def test_task_hash_ignores_order_and_notices_a_missing_task():
    tasks = Arithmetic().tasks("train", 30, 0)
    assert task_hash(tasks) == task_hash(tasks[::-1])
    assert task_hash(tasks) != task_hash(tasks[1:])
    assert task_hash(tasks) != task_hash([*tasks[1:], *Arithmetic().tasks("test", 1, 0)])


def test_verdicts_on_training_problems_are_wrong_as_often_as_told_and_the_same_for_a_seed():
    environment = Arithmetic(max_turns=1, false_positive=0.1, false_negative=0.3)
    (task,) = environment.tasks("train", 1, 0)
    right = task.payload["answer"]

    def share_accepted(answer, chosen=task):
        return sum(verdicts(chosen, answer, 2000)) / 2000

    def verdicts(chosen, answer, count):
        async def held():
            episodes = [environment.start(chosen, seed=seed) for seed in range(count)]
            return [(await episode.step(f"<answer>{answer}</answer>")).success for episode in episodes]

        return asyncio.run(held())

    assert share_accepted(right) == pytest.approx(0.7, abs=0.04)
    assert share_accepted(right + 1) == pytest.approx(0.1, abs=0.03)
    assert verdicts(task, right, 50) == verdicts(task, right, 50)
    assert not asyncio.run(environment.start(task, seed=3).step("no idea")).success
    (held_out,) = environment.tasks("test", 1, 0)
    answer = held_out.payload["answer"]
    assert (share_accepted(answer, held_out), share_accepted(answer + 1, held_out)) == (1, 0)


@pytest.mark.parametrize("rate", [{"false_positive": 1.0}, {"false_negative": -0.1}])
def test_rates_that_are_no_chances_are_refused(rate):
    with pytest.raises(ConfigError, match=r"environment\.false_\w+: got .+, expected a chance"):
        Arithmetic(**rate)
