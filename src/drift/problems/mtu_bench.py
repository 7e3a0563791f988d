"""MTU-Bench, wpei/MTU-Bench: recorded dialogues in which an assistant calls tools (Wang et al. 2025, Apache-2.0).

The hub and the authors' repository hold MTU-Eval, one file per scene, one row per user turn: ``id`` is
``<scene>_<dialogue>`` or ``<scene>_<dialogue>_<turn>``, ``question`` holds the tools and the dialogue so far as text,
``answer`` the calls that are right, ``{name: arguments}`` in order, as an object or as JSON text. The training part was
not released.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drift.errors import ConfigError
from drift.problems.base import local_rows

HUB = "wpei/MTU-Bench"
# Single or multiple user turns, single or multiple calls per turn, and tools unlike the others'.
SCENES = ("S-S", "S-M", "M-S", "M-M", "OOD")

_ID = re.compile(r"([A-Z]+(?:-[A-Z])?)_(\d+)(?:_(\d+))?")
_TOOLS = re.compile(r"that you can use:\s*")
_HISTORY = re.compile(r"\n(?:History Dialog:[ \t]*\n)?(?=[Uu]ser:)")
_SEVERAL = "Multiple APIs may need to be called"
_SPEAKER = re.compile(r"^(user|function|action|observation|assistant):[ \t:]*", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """A tool and the arguments it is called with (JSON values)."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class UserTurn:
    """What the user says, and what followed on record.

    Attributes:
        user: the user's words.
        calls: the right calls, in order; none if the right reply calls no tool.
        observation: what the tools returned; empty if nothing was recorded.
        said: what the assistant then said to the user; empty if nothing was recorded.
    """

    user: str
    calls: tuple[ToolCall, ...]
    observation: str = ""
    said: str = ""


@dataclass(frozen=True, kw_only=True)
class RecordedDialogue:
    """One recorded dialogue.

    Attributes:
        scene: one of ``SCENES``.
        tools: the description of the tools, as published: JSON, or Python literals, as text.
        several_calls: one reply may need several calls, and the instructions of the benchmark say so.
        turns: the user's turns.
    """

    scene: str
    tools: str
    several_calls: bool
    turns: tuple[UserTurn, ...]

    @property
    def words(self) -> str:
        """What the user says, in one form whatever the spacing and case."""
        return " ".join("\x1f".join(turn.user for turn in self.turns).casefold().split())

    @property
    def id(self) -> str:
        """Depends on the tools and the user's words alone."""
        text = f"{self.tools}\x1f{self.words}"
        return "mtu-" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One row: the tools, the exchanges so far (user, observation, said), and the right calls of the last one."""

    tools: str
    several_calls: bool
    exchanges: tuple[tuple[str, str, str], ...]
    calls: tuple[ToolCall, ...]


def load_dialogues(scenes: Sequence[str], files: Sequence[str] = ()) -> tuple[list[RecordedDialogue], dict[str, int]]:
    """The distinct dialogues of some scenes, and what became of the rows.

    Args:
        scenes: which, of ``SCENES``.
        files: local JSON Lines or JSON files of the published schema; empty reads from the hub.

    Returns:
        The dialogues in the order of their source, and counts: ``rows``, ``dialogues``, ``repeated``, and
        ``left_out_<reason>``, of rows for ``other_scene`` and else of dialogues.

    Raises:
        ConfigError: a file can't be read, the hub can't be reached, or a row is not of the schema.
    """
    paths = [Path(file).expanduser() for file in files] or [_from_hub(scene) for scene in scenes]
    counts: Counter[str] = Counter()
    found: dict[str, RecordedDialogue] = {}
    for path in paths:
        for scene, rows in _grouped(path, scenes, counts):
            dialogue = _dialogue(scene, rows)
            if isinstance(dialogue, str):
                counts[f"left_out_{dialogue}"] += 1
            else:
                counts["repeated"] += dialogue.id in found
                found.setdefault(dialogue.id, dialogue)
    if not found:
        raise ConfigError(
            f"{', '.join(map(str, paths))}: no dialogue of the scenes {', '.join(scenes)}. "
            "Name other files, or other environment.scenes."
        )
    kept = {"rows": counts.pop("rows"), "dialogues": len(found)}
    return list(found.values()), kept | dict(sorted((+counts).items()))


def _grouped(path: Path, scenes: Sequence[str], counts: Counter[str]) -> Iterable[tuple[str, dict[int, _Row]]]:
    """The rows of one file by dialogue. Some ids are used for several dialogues: a turn seen twice begins another."""
    groups: dict[tuple[str, str], list[dict[int, _Row]]] = {}
    for number, row in enumerate(local_rows(path), start=1):
        counts["rows"] += 1
        try:
            named = _ID.fullmatch(row["id"])
            if named is None:
                raise ValueError(f"id {row['id']!r}, expected <scene>_<dialogue> or <scene>_<dialogue>_<turn>")
            scene, name, turn = named.groups()
            if scene not in scenes:
                counts["left_out_other_scene"] += 1
                continue
            read = _row(row)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"row {number} of {path} is not of the schema of {HUB}: {type(error).__name__}: {error}. "
                "Fix or remove the row."
            ) from error
        at = int(turn or 0)
        same_name = groups.setdefault((scene, name), [])
        free = next((group for group in same_name if at not in group), None)
        if free is None:
            same_name.append({at: read})
        else:
            free[at] = read
    return [(scene, group) for (scene, _), same_name in groups.items() for group in same_name]


def _row(row: Mapping[str, Any]) -> _Row:
    text = row["question"]
    listed = _TOOLS.search(text)
    if listed is None:
        raise ValueError("question has no list of tools after 'that you can use:'")
    begins = _HISTORY.search(text, listed.end())
    if begins is None:
        raise ValueError("question has no user: after the list of tools")
    answer = json.loads(row["answer"]) if isinstance(row["answer"], str) else row["answer"]
    calls = []
    for name, arguments in answer.items():
        given = json.loads(arguments) if isinstance(arguments, str) else arguments
        if not isinstance(given, dict):
            raise TypeError(f"arguments of {name!r} are {type(given).__name__}, expected an object")
        # An empty name is how the single-call scenes write that nothing is to be called.
        if name.strip():
            calls.append(ToolCall(name=name.strip(), arguments=given))
    return _Row(
        tools=text[listed.end() : begins.start()].strip(),
        several_calls=_SEVERAL in text[: listed.start()],
        exchanges=tuple(_exchanges(text[begins.end() :])),
        calls=tuple(calls),
    )


def _exchanges(history: str) -> Iterable[tuple[str, str, str]]:
    """(user, observation, said) of each exchange; what the assistant thought and called is not kept."""
    marks = list(_SPEAKER.finditer(history))
    found: list[dict[str, str]] = []
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        speaker = mark[1].lower()
        text = history[mark.end() : following.start() if following else len(history)].strip()
        if speaker == "user":
            found.append({"user": text})
        elif found and text:
            found[-1][speaker] = text
    return [(said.get("user", ""), said.get("observation", ""), said.get("assistant", "")) for said in found]


def _dialogue(scene: str, rows: Mapping[int, _Row]) -> RecordedDialogue | str:
    """A dialogue of its rows, or why there is none. A turn's words are those of its own row, because some were edited
    there after the history of the later rows was made.
    """
    # Some turns were taken out and the later ones numbered anew, but their histories still hold them.
    if sorted(rows) != list(range(len(rows))) or any(len(row.exchanges) != at + 1 for at, row in rows.items()):
        return "a_turn_is_missing"
    if any(not row.exchanges[at][0] for at, row in rows.items()):
        return "a_turn_is_empty"
    if any(row.exchanges[at][2] for at, row in rows.items()):
        return "ends_with_the_assistant"
    if len({(row.tools, row.several_calls) for row in rows.values()}) > 1:
        return "tools_differ"
    turns = []
    for at in range(len(rows)):
        user, calls = rows[at].exchanges[at][0], rows[at].calls
        _, observation, said = rows[at + 1].exchanges[at] if at + 1 in rows else ("", "", "")
        turns.append(UserTurn(user=user, calls=calls, observation=observation if calls else "", said=said))
    first = rows[0]
    return RecordedDialogue(scene=scene, tools=first.tools, several_calls=first.several_calls, turns=tuple(turns))


def _from_hub(scene: str) -> Path:
    # Not through the datasets package: it makes one table of all rows, where an answer has every tool of every row.
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(HUB, f"{scene}_eval.jsonl", repo_type="dataset"))
    except Exception as error:  # its errors are of half a dozen families, those of the HTTP client among them
        raise ConfigError(
            f"{HUB} can't be read from the hub: {type(error).__name__}: {str(error).rstrip('.')}. "
            "Check the connection, or give local files as environment.files."
        ) from error
