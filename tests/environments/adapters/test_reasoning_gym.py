"""Problems of reasoning-gym, scored beside its own way of doing it."""

import asyncio

import pytest

from drift.environments.adapters import reasoning_gym_worker
from drift.environments.adapters.reasoning_gym import ReasoningGym
from drift.environments.conformance import check_environment
from drift.errors import ConfigError

from .playing import told

pytestmark = pytest.mark.adapters


def generators():
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError:
        return []
    # A mix of others, whose names it has to be given.
    return sorted(set(DATASETS) - {"composite"})


@pytest.mark.parametrize("generator", generators())
def test_every_generator_conforms(generator):
    environment = ReasoningGym(generator=generator, deadline_s=60.0, max_turns=2)
    findings = check_environment(environment, tasks=1)
    assert all(finding.passed for finding in findings), [finding for finding in findings if not finding.passed]


def test_the_rewards_of_tries_sum_to_the_best_score():
    import reasoning_gym

    environment = ReasoningGym(generator="spell_backward", arguments={"min_word_len": 5}, max_turns=5)
    (task,) = environment.tasks("train", 1, 3)
    problems = reasoning_gym.create_dataset("spell_backward", size=environment.seeds, seed=0, min_word_len=5)
    entry = problems[task.payload["index"]]
    assert entry["question"] == task.payload["question"]
    right = entry["answer"]
    tries = [right[:3], right[:2], right[:-1], None, right, "never said"]
    opening, steps = asyncio.run(
        told(environment, task, ["Hm." if each is None else f"<answer>{each}</answer>" for each in tries])
    )
    assert opening[0]["content"] == f"{entry['question']}\n\nReply with <answer>your answer</answer>."
    scores = [0.0 if each is None else problems.score_answer(each, entry=entry) for each in tries[:5]]
    assert 0 < scores[1] < scores[0] < scores[2] < scores[4] == 1
    best = [max(scores[: at + 1]) for at in range(5)]
    assert [step.reward for step in steps] == pytest.approx([b - a for a, b in zip([0, *best], best, strict=False)])
    assert [step.success for step in steps] == [False] * 4 + [True] == [step.done for step in steps]
    assert f"partly right: {scores[0]:.2f} of 1" in steps[0].messages[0]["content"]
    assert steps[3].answer is None and steps[3].messages[0]["content"] == environment.format_feedback


# Each would write the file if it were run.
HOSTILE = [
    "__import__('pathlib').Path('{}').touch()",
    "[__import__('pathlib').Path('{}').touch()]",
    "open('{}', 'w')",
    "exec(chr(111)+chr(112)+\"en('{}','w')\")",
]


@pytest.mark.parametrize(
    "generator", ["n_queens", "spiral_matrix", "binary_matrix", "string_insertion", "countdown", "puzzle24",
                  "polynomial_multiplication", "simple_integration", "intermediate_integration"]
)  # fmt: skip
def test_nothing_that_an_answer_says_is_run(generator, tmp_path):
    environment = ReasoningGym(generator=generator, action="text", max_turns=len(HOSTILE) + 2, deadline_s=3.0)
    (task,) = environment.tasks("train", 1, 0)
    target = tmp_path / "written"
    replies = [text.format(target) for text in HOSTILE]
    _, steps = asyncio.run(told(environment, task, [*replies, "9**9**9**9", "(" * 5000]))
    assert [step.success for step in steps] == [False] * len(steps) and len(steps) == len(HOSTILE) + 2
    assert not target.exists()


def test_formulas_are_still_read():
    environment = ReasoningGym(generator="countdown", action="text", max_turns=1)
    for task in environment.tasks("test", 3, 0):
        answer = reasoning_gym_worker._dataset("countdown", "{}", environment.seeds)[task.payload["index"]]["answer"]
        _, (step,) = asyncio.run(told(environment, task, [answer]))
        assert step.success and step.reward == 1


def test_what_is_wrong_is_said_before_any_conversation():
    with pytest.raises(ConfigError, match=r"unknown generator 'countdwn' in reasoning-gym\. Did you mean 'countdown'"):
        ReasoningGym(generator="countdwn")
    with pytest.raises(ConfigError, match=r"environment\.arguments of the generator countdown: .*min_numbers"):
        ReasoningGym(generator="countdown", arguments={"min_numbers": -4})
    with pytest.raises(ConfigError, match=r"environment\.arguments\.seed"):
        ReasoningGym(generator="countdown", arguments={"seed": 4})
