"""What a user tells the import of a log's columns, and how outcomes in them are read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

from drift.dataset.imports.base import OF_ITS_ROW, BadRow, Fields, is_empty, name_of, on_last, show, unfolded
from drift.errors import require

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
_TRUTHS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
# Names of numbers that are worth naming as a reward, and of those that never are one.
_REWARD = re.compile("reward|score|rating|feedback|grade|stars|thumb|vote|correct|helpful|quality|success")
_NO_REWARD = re.compile(
    r"(\A|[_.])(id|index|epoch|turns?|steps?|seed|time|timestamp|created|temperature|top_[kp]|\w*tokens|latency|rank|num_\w+)\Z"
)
_RANK = re.compile(r"(\A|[_.])rank\Z")
_GROUPS = ("group_id", "prompt_id", "example_id")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Where a log has what, in names or paths: ``feedback.score`` is the score in feedback, ``scores.kind`` may be the
    entry named kind of a list. What is not told is looked for under its usual names.

    Attributes:
        reward: a number, a truth value, a list with one for each reply, or words or ranks with ``values``.
        success: whether the task was solved.
        id: the conversation's own name.
        group: the prompt that it shares with others; ``opening`` goes by what opens it alone, ``none`` puts each in a
            group of its own.
        messages: the list of messages.
        system: a system prompt beside them.
        tools: the list of tools beside them.
        role: of a message, who speaks.
        content: of a message, what is said.
        roles: who the log's speakers are, as {agent: assistant, customer: user}.
        values: what words or ranks of the reward are worth, as {thumbs_up: 1, thumbs_down: 0}.
        notes: what else is to be kept of each conversation, for ``weights.outcome`` and ``weights.baseline`` to name.
        prefixes: ``fold`` takes a conversation that begins another for a part of that one, ``keep`` keeps both.
    """

    reward: str = ""
    success: str = ""
    id: str = ""
    group: str = ""
    messages: str = ""
    system: str = ""
    tools: str = ""
    role: str = ""
    content: str = ""
    roles: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()
    prefixes: Literal["fold", "keep"] = "fold"

    def __post_init__(self) -> None:
        require(self.prefixes in ("fold", "keep"), "columns.prefixes", self.prefixes, "fold or keep")

    def find(self, row: Fields, told: str, *usual: str) -> Any:
        """What is where the user says, or else under the first usual name that holds something."""
        return row.path(told) if told else row.take(*usual)

    def rewards_of(self, row: Fields, replies: int, said: Sequence[Any]) -> tuple[float, ...]:
        """``(T,)`` the reward of each reply.

        Args:
            row: with a reward of the conversation, which is its last reply's, or a list with one for each.
            replies: how many there are.
            said: the rewards that stand in the replies themselves, ``None`` where none does.
        """
        if _RANK.search(self.reward.lower()) and not self.values:
            raise BadRow(
                "reward_not_a_number",
                f"{self.reward}: a rank is lower where a reply is better. Say what each is worth: "
                f"--columns.values '{{1: 1, 2: 0.5}}'",
            )
        value = unfolded(self.find(row, self.reward, "reward", "rewards"))
        where = self.reward or row.there("reward", "rewards") or "reward"
        if is_empty(value):
            if any(reward is not None for reward in said):
                return tuple(
                    0.0 if reward is None else self.number(reward, f"reward of reply {at + 1}")
                    for at, reward in enumerate(said)
                )
            for name in ("label", "kto_tag"):
                if not self.reward and isinstance(row.values_by_name.get(name), bool):
                    value, where = row[name], name
        if isinstance(value, list | tuple) and len(value) > 1:
            if len(value) != replies:
                raise BadRow("turn_mismatch", f"{where}: {len(value)}, expected one for each of {replies} replies")
            return tuple(self.number(reward, f"{where}[{at}]") for at, reward in enumerate(value))
        if isinstance(value, list | tuple) and value:
            value = value[0]
        if isinstance(row.values_by_name.get(where), float):
            # NaN, which JSON has not, is no lack of a number.
            value = row.values_by_name[where]
        elif is_empty(value):
            raise BadRow("reward_missing", f"{where}: nothing there, expected a number{self._candidates(row)}")
        return on_last(self.number(value, where), replies)

    def _candidates(self, row: Fields) -> str:
        """Names of fields that hold a number, as advice."""
        names = [name for name, value in row.values_by_name.items() if _is_number(value)]
        names += [
            f"{name}.{key}"
            for name, value in row.values_by_name.items()
            if isinstance(value, Mapping)
            for key, inner in value.items()
            if _is_number(inner)
        ]
        names = sorted(
            (name for name in names if not _NO_REWARD.search(name.lower())),
            key=lambda name: not _REWARD.search(name.lower()),
        )
        if not names:
            return f". The row has {row.names() or 'nothing'}: say which with --columns.reward NAME"
        return f". Numbers are in {', '.join(names[:8])}: say which with --columns.reward {names[0]}"

    def number(self, value: Any, where: str) -> float:
        """``value`` as a finite number: a number, a truth value, a number as text, or a word of ``values``."""
        word = value.strip() if isinstance(value, str) else (name_of(value, where) or "") if self.values else ""
        if word in self.values:
            return float(self.values[word])
        if value is None:
            raise BadRow("reward_missing", f"{where}: nothing there, expected a number")
        if isinstance(value, str):
            plain = value.strip().lower()
            value = float(plain) if _NUMBER.fullmatch(plain) else _TRUTHS.get(plain, value)
        if isinstance(value, Mapping):
            inner = next((f"{where}.{key}" for key, each in value.items() if _is_number(each)), None)
            raise BadRow(
                "reward_not_a_number",
                f"{where}: got {show(value)}, expected a number"
                + (f". {inner} holds one: --columns.reward {inner}" if inner else ""),
            )
        if not isinstance(value, int | float | Decimal):
            raise BadRow(
                "reward_not_a_number",
                f"{where}: got {show(value)}, expected a number. Say what words are worth: "
                "--columns.values '{WORD: 1, OTHER: 0}'",
            )
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise BadRow("reward_not_a_number", f"{where}: got {show(value)}, expected a finite number")
        return number

    def success_of(self, row: Fields) -> bool | None:
        """Whether the row says that the task was solved; ``None`` where it does not say."""
        value = self.find(row, self.success, "success")
        if is_empty(value):
            return None
        truth = _TRUTHS.get(value.strip().lower()) if isinstance(value, str) else value
        if truth not in (0, 1):
            raise BadRow(
                "bad_field", f"{self.success or 'success'}: got {show(value)}, expected true or false, or 1 or 0"
            )
        return bool(truth)

    def id_of(self, row: Fields) -> str | None:
        """The row's own name."""
        return name_of(self.find(row, self.id, "id"), self.id or "id")

    def group_of(self, row: Fields) -> str | None:
        """The group that the row names; ``None`` where its opening decides."""
        if self.group in ("opening", "none"):
            return OF_ITS_ROW if self.group == "none" else None
        return name_of(self.find(row, self.group, *_GROUPS), self.group or "group_id")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool) and not is_empty(value)
