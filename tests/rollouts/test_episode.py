import asyncio
from typing import Any

import pytest

from drift.dataset.schema import from_row, to_row
from drift.environments.arithmetic import Arithmetic
from drift.environments.guess import Guess
from drift.policies.base import Policy, Sampling, derive_seed
from drift.policies.scripted import ScriptedPolicy
from drift.rollouts.episode import Assignment, episode
from drift.types import Completion, Message, Step, Task, Trajectory

TASK = Task(id="t", group_id="t", split="train", payload={"question": "What is 20 + 3?", "answer": 23})


def hold(policy: Policy, factory: Any = None, task: Task = TASK, tokens: int = 50) -> Trajectory:
    assignment = Assignment(task=task, sample=2, seed=derive_seed(1, task.id, 2))
    return asyncio.run(episode(assignment, factory or Arithmetic(), policy, Sampling(max_new_tokens=tokens)))


def in_turn(*replies: str) -> ScriptedPolicy:
    """Says the replies one after the other, by counting its own earlier ones in the conversation."""
    return ScriptedPolicy(rule=lambda text, seed: replies[text.count("assistant: ") - 1])


def test_the_conversation_stops_on_success_and_is_recorded_word_for_word() -> None:
    found = hold(in_turn("<answer>13</answer>", "dunno", "<answer>23</answer>", "never said"))
    assert list(found.messages) == [
        {"role": "user", "content": "What is 20 + 3?"},
        {"role": "assistant", "content": "<answer>13</answer>"},
        {"role": "user", "content": "Incorrect. Please think again."},
        {"role": "assistant", "content": "dunno"},
        {"role": "user", "content": "No answer found. Please reply with <answer>number</answer>."},
        {"role": "assistant", "content": "<answer>23</answer>"},
    ]
    assert found.stop_reason == "success" and found.success and found.error is None
    assert [turn.step.answer for turn in found.turns] == ["13", None, "23"]
    assert [turn.step.reward for turn in found.turns] == [0.0, 0.0, 1.0]
    assert (found.id, found.task_id, found.group_id, found.sample) == ("t#2", "t", "t", 2)


def test_each_turn_is_prompted_with_what_came_before_it() -> None:
    found = hold(in_turn("<answer>1</answer>", "<answer>2</answer>", "<answer>23</answer>"))
    prompts = [bytes(turn.prompt_ids).decode() for turn in found.turns]
    assert prompts[0] == "user: What is 20 + 3?\nassistant: "
    again = "\nuser: Incorrect. Please think again.\nassistant: "
    assert prompts[1] == prompts[0] + "<answer>1</answer>" + again
    assert prompts[2] == prompts[1] + "<answer>2</answer>" + again


def test_the_conversation_stops_after_max_turns() -> None:
    found = hold(ScriptedPolicy(["<answer>1</answer>"]), Arithmetic(max_turns=3))
    assert len(found.turns) == 3 and found.stop_reason == "turns" and not found.success


def test_no_two_requests_get_one_seed() -> None:
    seeds: list[int] = []

    def rule(text: str, seed: int) -> str:
        seeds.append(seed)
        return "<answer>1</answer>"

    for task in Guess().tasks("train", 20, 0):
        hold(ScriptedPolicy(rule=rule), Guess(), task)
    assert len(seeds) == len(set(seeds)) == 20 * 5


def test_the_context_limit_ends_a_conversation_before_the_prompt_overflows() -> None:
    policy = ScriptedPolicy(["<answer>1</answer>"])
    # The first prompt is 6 + 15 + 1 + 11 = 33 bytes; the second holds the reply and the feedback too.
    policy.context_length = 33 + 50
    found = hold(policy, tokens=50)
    assert found.stop_reason == "context" and len(found.turns) == 1 and not found.success
    policy.context_length = 33 + 49
    assert hold(policy, tokens=50).turns == ()


NONSENSE: dict[str, tuple[dict[str, Any], str]] = {
    "silent": ({"messages": ()}, "no messages although the episode is not done"),
    "text": ({"messages": "No."}, "messages of the type str, expected a list"),
    "bare": ({"messages": ("No.",)}, "message 0: 'No.', expected an object of role and content"),
    "more": ({"messages": ({"role": "user", "content": "", "x": 1},)}, "message 0: "),
    "role": ({"messages": ({"role": "boss", "content": "No."},)}, "message 0: the role 'boss', expected one of"),
    "number": ({"messages": ({"role": "user", "content": 5},)}, "message 0: text of the type int, expected a string"),
    "half": (
        {"messages": ({"role": "user", "content": "a\ud800"},)},
        "message 0: half of a UTF-16 pair at char",
    ),
    "nan": ({"reward": float("nan")}, "the reward nan, expected a finite number"),
    "reward": ({"reward": "much"}, "the reward 'much', expected a finite number"),
    "answer": ({"answer": 5}, "answer: text of the type int"),
    "info": ({"info": {"at": object()}}, "info that is no JSON"),
    "infinite": ({"info": {"at": float("inf")}}, "info that is no JSON"),
}


class Faulty:
    """An environment that fails in one chosen place."""

    max_turns = 3

    def __init__(self, place: str) -> None:
        self.place = place

    def start(self, task: Task) -> "Faulty":
        if self.place == "start":
            raise OSError("no such file")
        return self

    def opening(self) -> list[Message]:
        if self.place == "opening":
            raise KeyError("question")
        return [{"role": "user", "content": "Hi"}]

    async def step(self, reply: str) -> Any:
        if self.place == "step":
            raise ZeroDivisionError("division by zero")
        if self.place == "type":
            return {"reward": 1}
        told = {"messages": ({"role": "user", "content": "No."},), "reward": 0.0, "answer": None, "info": {}}
        return Step(done=False, success=False, **{**told, **NONSENSE.get(self.place, ({}, ""))[0]})


def test_a_failing_environment_is_recorded_with_what_it_raised() -> None:
    expected = {
        "start": "environment.start raised OSError: no such file",
        "opening": "environment.opening raised KeyError: 'question'",
        "step": "environment.step raised ZeroDivisionError: division by zero",
        "type": "environment.step returned dict, expected drift.types.Step",
    }
    for place, message in expected.items():
        found = hold(ScriptedPolicy(["x"]), Faulty(place))
        assert (found.stop_reason, found.error) == ("error", message)
        assert not found.success and found.turns == ()


@pytest.mark.parametrize("place", NONSENSE)
def test_nonsense_from_an_environment_is_recorded_and_never_stored_as_a_turn(place: str) -> None:
    found = hold(ScriptedPolicy(["x"]), Faulty(place))
    assert found.stop_reason == "error" and found.turns == ()
    assert found.error is not None and found.error.startswith(f"environment.step returned {NONSENSE[place][1]}")
    assert from_row(to_row(found)) == found


class Endless(Faulty):
    """Goes on whatever was said, or pays more than any float."""

    max_turns = 3

    async def step(self, reply: str) -> Any:
        if self.place == "huge":
            return Step(messages=(), reward=10**400, done=True, success=True, answer=None)
        if self.place == "speechless":
            raise Speechless
        return Step(messages=({"role": "user", "content": "On."},), reward=0.0, done=False, success=False, answer=None)


class Speechless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def test_an_environment_that_does_not_end_is_ended() -> None:
    found = hold(ScriptedPolicy(["x"]), Endless("never"))
    assert found.error == "environment.step is not done after its max_turns, 3" and len(found.turns) == 3
    assert from_row(to_row(found)) == found
    assert str(hold(ScriptedPolicy(["x"]), Endless("huge")).error).startswith(
        "environment.step returned the reward 1000"
    )
    assert hold(ScriptedPolicy(["x"]), Endless("speechless")).error == "environment.step raised Speechless"


def test_a_failing_policy_stops_the_run() -> None:
    class Broken(ScriptedPolicy):
        async def complete(self, prompt_ids: tuple[int, ...], *, sampling: Sampling, seed: int) -> Completion:
            raise MemoryError("out of memory")

    try:
        hold(Broken(["x"]))
    except MemoryError as error:
        assert str(error) == "out of memory"
    else:
        raise AssertionError("a policy's failure is not an environment's")


class Waiting:
    """An environment that has to wait before it can speak, and holds something open."""

    max_turns = 1

    def __init__(self, fails: str = "") -> None:
        self.fails, self.closed = fails, 0

    def start(self, task: Task) -> "Waiting":
        return self

    async def opening(self) -> list[Message]:
        await asyncio.sleep(0)
        if self.fails == "opening":
            raise ConnectionError("refused")
        return [{"role": "user", "content": "Hi"}]

    async def step(self, reply: str) -> Step:
        if self.fails == "step":
            raise ConnectionError("reset")
        return Step(messages=(), reward=1.0, done=True, success=True, answer=reply)

    async def aclose(self) -> None:
        self.closed += 1
        if self.fails == "aclose":
            raise ConnectionError("gone")


def test_an_opening_may_be_awaited_and_the_environment_is_closed_once_however_it_ends() -> None:
    fine, refused, reset = Waiting(), Waiting("opening"), Waiting("step")
    assert hold(ScriptedPolicy(["x"]), fine).messages[0] == {"role": "user", "content": "Hi"}
    assert hold(ScriptedPolicy(["x"]), refused).error == "environment.opening raised ConnectionError: refused"
    assert hold(ScriptedPolicy(["x"]), reset).error == "environment.step raised ConnectionError: reset"
    broken = Waiting()
    with pytest.raises(ZeroDivisionError):
        hold(ScriptedPolicy(rule=lambda text, seed: str(1 // 0)), broken)
    assert [each.closed for each in (fine, refused, reset, broken)] == [1, 1, 1, 1]


def test_what_was_said_stays_valid_when_the_environment_can_not_be_closed() -> None:
    with pytest.warns(UserWarning, match=r"t#2: environment.aclose raised ConnectionError: gone"):
        found = hold(ScriptedPolicy(["x"]), Waiting("aclose"))
    assert found.success and found.error is None


def test_an_environment_is_closed_though_its_conversation_is_cancelled_while_it_closes() -> None:
    class Slow(Waiting):
        async def aclose(self) -> None:
            await asyncio.sleep(0.05)
            self.closed += 1

    async def cancelled() -> int:
        environment = Slow()
        assignment = Assignment(task=TASK, sample=0, seed=1)
        held = asyncio.create_task(episode(assignment, environment, ScriptedPolicy(["x"]), Sampling()))
        await asyncio.sleep(0.02)
        held.cancel()
        with pytest.raises(asyncio.CancelledError):
            await held
        return environment.closed

    assert asyncio.run(cancelled()) == 1


def test_an_environment_that_asks_for_chance_gets_the_same_for_the_same_conversation() -> None:
    told: list[int] = []

    class Dice(Arithmetic):
        def start(self, task: Task, *, seed: int = 0) -> Any:
            told.append(seed)
            return super().start(task, seed=seed)

    policy = ScriptedPolicy(["<answer>1</answer>"])
    for sample in (0, 1, 0):
        assignment = Assignment(task=TASK, sample=sample, seed=derive_seed(1, TASK.id, sample))
        asyncio.run(episode(assignment, Dice(), policy, Sampling(max_new_tokens=50)))
    assert told[0] == told[2] != told[1]
    # Chance of the environment is not that of the policy.
    assert told[0] not in {derive_seed(derive_seed(1, TASK.id, 0), turn) for turn in range(5)}
