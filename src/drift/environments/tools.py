"""Tool use over several user turns, checked as in MTU-Bench (Wang et al. 2025): no tool is ever run."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from drift.environments.base import SPLITS, describe, split_of
from drift.environments.tool_calls import TurnScore, canonical, canonical_calls, parse_calls, score_dialogue, score_turn
from drift.errors import ConfigError, require
from drift.problems.mtu_bench import HUB, SCENES, RecordedDialogue, ToolCall, load_dialogues
from drift.types import Message, Role, Step, Task

PROMPT = """You help a user, and can call tools. To call one, write
<tool_call>{"name": "the tool", "arguments": {"parameter": "value"}}</tool_call>
with JSON between the tags. {calls} Take the values from the conversation, and invent none. Where no tool is needed, \
or something that is required was not said, answer in words, without a call. Today is Monday, January 4, 2024.

The tools:
{tools}"""
ONE_CALL = "Make one call at most in a reply."
SEVERAL_CALLS = (
    "Where several calls are needed, write them one after another, in the order in which they are to run; a value that "
    'an earlier call returns is written "tool.result_parameter".'
)


@dataclass(frozen=True, kw_only=True)
class Tools:
    """Plays the user turns of a recorded dialogue and compares the assistant's calls with the recorded ones.

    A reply is right if it makes the recorded calls, in order and with the same arguments by value, or none where none
    is recorded. The user then goes on as recorded. After a mistake the assistant hears that it is wrong and tries again
    (``retry``, the DRIFT protocol), or is given the right calls and the user goes on (``gold``: one reply to each user
    turn, as MTU-Bench measures). The dialogue is a success if every user turn was answered rightly, with ``retry`` in
    the end, with ``gold`` at once. What words say is not judged: who only ever answers in words is right wherever
    nothing is to be called.

    Args:
        scenes: which scenes of the benchmark: S-S, S-M, M-S, M-M (single or multiple user turns, and calls), OOD.
        files: local files of the published schema, instead of the hub.
        test_share: share of the dialogues to test on; the benchmark has no training part, so 1 is the benchmark itself.
        max_turns: T, the most replies in an episode; dialogues of more user turns are left out.
        tries: the most replies to one user turn, with ``retry``.
        on_mistake: ``retry`` or ``gold``.
        reward: ``turn``: a right reply is worth its share of the user turns, so that the rewards of an episode sum up
            to the share that was answered rightly; ``dialogue``: 1 for the reply that makes the dialogue a success.
        prompt: what the conversation opens with, ``{tools}`` standing for the tools, ``{calls}`` for how many calls a
            reply may make, which differs between scenes.
        prompt_role: who says the prompt: ``system``, or ``user`` for chat templates without system messages.
        observation_role: who says what a tool returned: ``user``, or ``tool`` for chat templates that know it.
        feedback: what the environment says to a wrong reply, with ``retry``.
        format_feedback: what it says to a reply that can't be read, with ``retry``.
    """

    scenes: tuple[str, ...] = ("M-S", "M-M")
    files: tuple[str, ...] = ()
    test_share: float = 0.2
    max_turns: int = 12
    tries: int = 3
    on_mistake: str = "retry"
    reward: str = "turn"
    prompt: str = PROMPT
    prompt_role: str = "system"
    observation_role: str = "user"
    feedback: str = "Incorrect. Please think again."
    format_feedback: str = (
        'No readable tool call. Write <tool_call>{"name": "…", "arguments": {…}}</tool_call>, or answer in words.'
    )

    def __post_init__(self) -> None:
        where = "environment"
        known = f"some of {', '.join(SCENES)}"
        require(bool(self.scenes) and set(self.scenes) <= set(SCENES), f"{where}.scenes", self.scenes, known)
        require(not isinstance(self.files, str), f"{where}.files", self.files, "a list of files")
        for file in self.files:
            require(Path(file).expanduser().is_file(), f"{where}.files", file, "a file that exists")
        require(0 <= self.test_share <= 1, f"{where}.test_share", self.test_share, "a share from 0 to 1")
        for name in ("max_turns", "tries"):
            require(getattr(self, name) >= 1, f"{where}.{name}", getattr(self, name), "a whole number ≥ 1")
        choices = {
            "on_mistake": ("retry", "gold"),
            "reward": ("turn", "dialogue"),
            "prompt_role": ("system", "user"),
            "observation_role": ("user", "tool"),
        }
        for name, allowed in choices.items():
            require(getattr(self, name) in allowed, f"{where}.{name}", getattr(self, name), " or ".join(allowed))
        require("{tools}" in self.prompt, f"{where}.prompt", self.prompt, "a text that holds {tools}")
        for name in ("feedback", "format_feedback"):
            require(bool(getattr(self, name)), f"{where}.{name}", getattr(self, name), "a text")

    def tasks(self, split: str, count: int, seed: int) -> list[Task]:
        """Distinct dialogues; the split depends on what the user says alone."""
        require(split in SPLITS, "split", split, " or ".join(SPLITS))
        usable = self._usable(split)
        if count > len(usable):
            raise ConfigError(
                f"tools has {len(usable)} {split} dialogues; {count} were asked for. Ask for at most {len(usable)}, or "
                f"change environment.scenes, test_share (now {self.test_share}) or max_turns "
                f"(now {self.max_turns}). Their source: {describe(self.source_counts(split))}."
            )
        drawn = random.Random(f"tools/{split}/{seed}").sample(usable, count)
        return [
            Task(id=each.id, group_id=each.id, split=split, payload={"source": HUB, **asdict(each)}) for each in drawn
        ]

    def source_counts(self, split: str) -> dict[str, int]:
        """How many rows the source has, what became of them, and how many dialogues are left for ``split``."""
        dialogues, counts = _load(self.scenes, self.files)
        longer = sum(len(dialogue.turns) > self.max_turns for dialogue in dialogues)
        return counts | {"longer_than_max_turns": longer, f"usable_{split}": len(self._usable(split))}

    def start(self, task: Task) -> ToolsEpisode:
        """A fresh episode of ``task``."""
        calls = SEVERAL_CALLS if task.payload["several_calls"] else ONE_CALL
        # Replaced and not formatted: the prompt and the tools hold braces of their own.
        prompt = self.prompt.replace("{calls}", calls).replace("{tools}", str(task.payload["tools"]))
        return ToolsEpisode(self, prompt, task.payload["turns"])

    def _usable(self, split: str) -> list[RecordedDialogue]:
        return [
            dialogue
            for dialogue in _load(self.scenes, self.files)[0]
            if len(dialogue.turns) <= self.max_turns
            and split_of("tools", dialogue.words, test_share=self.test_share) == split
        ]


@functools.lru_cache(maxsize=8)
def _load(scenes: tuple[str, ...], files: tuple[str, ...]) -> tuple[list[RecordedDialogue], dict[str, int]]:
    return load_dialogues(scenes, files)


class ToolsEpisode:
    """One dialogue."""

    def __init__(self, settings: Tools, prompt: str, turns: Sequence[Any]) -> None:
        self._settings, self._prompt, self._turns = settings, prompt, turns
        self._replies = 0  # in the episode
        self._tries = 0  # at this user turn
        self._at = 0  # the user turn
        self._solved = 0
        self._first: list[TurnScore] = []  # of the first reply to each user turn

    def opening(self) -> list[Message]:
        """The tools, and the user's first words."""
        user = str(self._turns[0]["user"])
        if self._settings.prompt_role == "user":
            return [{"role": "user", "content": f"{self._prompt}\n\n{user}"}]
        return [{"role": "system", "content": self._prompt}, {"role": "user", "content": user}]

    async def step(self, reply: str) -> Step:
        """Compare the reply's calls with those on record, and go on as recorded, or after a mistake as set."""
        settings, at, count = self._settings, self._at, len(self._turns)
        self._replies += 1
        self._tries += 1
        gold = [ToolCall(name=call["name"], arguments=call["arguments"]) for call in self._turns[at]["calls"]]
        parsed = parse_calls(reply)
        given = None if parsed.calls is None else canonical_calls(parsed.calls)
        score = score_turn(given, canonical_calls(gold))
        info: dict[str, Any] = {"user_turn": at, "try": self._tries, **asdict(score)}
        if self._tries == 1:
            self._first.append(score)
        self._solved += score.right
        goes_on = score.right or settings.on_mistake == "gold"
        if goes_on:
            self._at, self._tries = at + 1, 0
        over = self._at == count
        success = over and self._solved == count
        done = over or self._replies >= settings.max_turns or self._tries >= settings.tries
        if done:
            info["dialogue"] = score_dialogue(self._first, count)
        if parsed.reason:
            info["reason"] = parsed.reason
        said = self._feedback(score, parsed.calls is None, gold) + (self._continuation(at, gold) if goes_on else [])
        return Step(
            messages=() if done else _messages(said),
            reward=score.right / count if settings.reward == "turn" else float(success),
            done=done,
            success=success,
            # With the user turn, for the same call may be right at two of them and is no repeat then.
            answer=None if parsed.calls is None else _answer(at, parsed.calls),
            info=info,
        )

    def _feedback(self, score: TurnScore, unreadable: bool, gold: Sequence[ToolCall]) -> list[tuple[Role, str]]:
        if score.right:
            return []
        said = self._settings.format_feedback if unreadable else self._settings.feedback
        if self._settings.on_mistake == "gold":
            calls = "\n".join(_written(call) for call in gold)
            said = f"Incorrect. The right reply was:\n{calls}" if gold else "Incorrect. No tool was to be called."
        return [("user", said)]

    def _continuation(self, at: int, gold: Sequence[ToolCall]) -> list[tuple[Role, str]]:
        """What the tools returned, what the assistant then said on record, and the user's next words."""
        turn = self._turns[at]
        said: list[tuple[Role, str]] = []
        if gold and self._settings.observation_role == "tool":
            said.append(("tool", turn["observation"] or "accepted"))
        elif gold:
            said.append(("user", f"<tool_response>\n{turn['observation'] or 'accepted'}\n</tool_response>"))
        if gold and turn["said"]:
            said.append(("user", f"(You then said: {turn['said']})"))
        if at + 1 < len(self._turns):
            said.append(("user", str(self._turns[at + 1]["user"])))
        return said


def _messages(said: Sequence[tuple[Role, str]]) -> tuple[Message, ...]:
    """One message for what one role says in a row: many templates want the roles to take turns."""
    messages: list[Message] = []
    for role, text in said:
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += f"\n\n{text}"
        else:
            messages.append({"role": role, "content": text})
    return tuple(messages)


def _written(call: ToolCall) -> str:
    body = json.dumps({"name": call.name, "arguments": dict(call.arguments)}, ensure_ascii=False)
    return f"<tool_call>{body}</tool_call>"


def _answer(at: int, calls: Sequence[ToolCall]) -> str:
    answer = {"user_turn": at, "calls": [[call.name, canonical(call.arguments)] for call in calls]}
    return json.dumps(answer, separators=(",", ":"))
