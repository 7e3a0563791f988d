"""How conversations went, read off the columns of shards, beside every conversation as an object."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drift.dataset import outcomes as reading
from drift.dataset.outcomes import Outcomes, is_rejected, outcomes, read_outcomes
from drift.dataset.schema import SCHEMA
from drift.dataset.store import TrajectoryWriter, read_trajectories, shards
from drift.errors import DatasetError
from drift.types import Message, Step, Trajectory

Make = Callable[..., Trajectory]
Made = Callable[..., list[Trajectory]]
OPEN: tuple[Message, ...] = (
    {"role": "user", "content": "Guess my number."},
    {"role": "assistant", "content": "<answer>4</answer>"},
)


def stored(folder: Path, trajectories: list[Trajectory], shard_size: int = 5) -> Path:
    """The data set on disk, a shard without rows among its shards."""
    with TrajectoryWriter(folder, {"trajectories": len(trajectories)}, [], shard_size=shard_size) as writer:
        for at, trajectory in enumerate(trajectories):
            if at == len(trajectories) // 2:
                writer.flush()
                pq.write_table(SCHEMA.empty_table(), folder / "shards" / f"{len(shards(folder)):06d}.parquet")
            writer.append(trajectory)
        writer.finish()
    return folder


def without_graded(path: Path) -> None:
    """A shard as it was written before there was the column ``graded``, or a checksum in its name."""
    rows, kind = pq.read_table(path).to_pylist(), SCHEMA.field("turns").type.value_type
    old = pa.list_(pa.struct([field for field in kind if field.name != "graded"]))
    path.unlink()
    older = path.with_name(f"{path.stem.partition('-')[0]}.parquet")
    at = SCHEMA.get_field_index("turns")
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA.set(at, pa.field("turns", old))), older)


def plain(found: Outcomes) -> dict[str, object]:
    """Everything in outcomes as Python values; arrays with their type."""
    values: dict[str, object] = {}
    for field in dataclasses.fields(found):
        value = getattr(found, field.name)
        if isinstance(value, np.ndarray):
            values[field.name] = (value.dtype, value.tolist())
        else:
            values[field.name] = value if value is None or isinstance(value, list | dict) else value.to_pylist()
    return values


def by_objects(trajectories: list[Trajectory], *, spoken: bool = False) -> dict[str, object]:
    """What ``plain`` gives, a conversation at a time."""
    kept = [t for t in trajectories if t.error is None and t.turns]
    steps = [[turn.step for turn in t.turns] for t in kept]
    graded = [[step.answer for step in each if step.graded] for each in steps]

    def key(value: object, digits: int = 16) -> str:
        return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:digits]

    def number(value: object) -> int:
        return int.from_bytes(bytes.fromhex(key(value)), "big", signed=True)

    turns = [turn for t in kept for turn in t.turns]
    replies = [number([turn.step.answer] if turn.step.graded else turn.completion.text) for turn in turns]
    words = [number([[m["role"], m["content"]] for m in turn.step.messages]) for turn in turns]
    mistakes = [turn is not t.turns[-1] and is_rejected(turn.step) for t in kept for turn in t.turns]
    return {
        "ids": [t.id for t in kept],
        "groups": [t.group_id for t in kept],
        "sample_N": (np.int32, [t.sample for t in kept]),
        "success_N": (np.bool_, [t.success for t in kept]),
        "known_N": (np.bool_, [t.success is not None for t in kept]),
        "reward_N": (np.float64, [reduce(add, (step.reward for step in each), 0.0) for each in steps]),
        "turns_N": (np.int16, [len(each) for each in steps]),
        "graded_N": (np.int16, [len(each) for each in graded]),
        "distinct_N": (np.int16, [len({*answers} - {None}) for answers in graded]),
        "failures_N": (np.int16, [answers.count(None) for answers in graded]),
        "first_success_N": (np.bool_, [each[0].success for each in steps]),
        "first_known_N": (np.bool_, [each[0].success is not None for each in steps]),
        "first_reward_N": (np.float64, [each[0].reward for each in steps]),
        "first_graded_N": (np.bool_, [each[0].graded for each in steps]),
        "first_read_N": (np.bool_, [each[0].answer is not None for each in steps]),
        "rejected_T": (np.bool_, mistakes),
        "reply_T": (np.int64, replies) if spoken else None,
        "feedback_T": (np.int64, words) if spoken else None,
        "loss_weight_T": None,
        "reply_reward_T": None,
        "notes": {},
        "words": None,
        "openings": None,
    }


@pytest.fixture(params=[3, 65_536], ids=["a few rows at once", "all rows at once"])
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "ROWS_AT_ONCE", request.param)
    monkeypatch.setattr(reading, "SPOKEN_AT_ONCE", request.param)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("seed", range(4))
def test_columns_give_the_outcomes_that_objects_do(tmp_path: Path, random_trajectories: Made, seed: int) -> None:
    folder = stored(tmp_path / "data", random_trajectories(seed))
    trajectories = read_trajectories(folder)
    found, expected = read_outcomes(folder, first=True), outcomes(trajectories)
    assert read_outcomes(folder).first_reward_N is None
    assert plain(found) == plain(expected) == by_objects(trajectories)
    assert found.reply_T is None and found.feedback_T is None
    assert len(found.rejected_T) == found.turns_N.sum() > len(found.ids) > 40
    assert found.group_index().tolist() == expected.group_index().tolist()


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("spoken", [False, True])
def test_columns_give_what_was_said_as_objects_do(tmp_path: Path, random_trajectories: Made, spoken: bool) -> None:
    folder = stored(tmp_path / "data", random_trajectories(0))
    trajectories = read_trajectories(folder)
    expected, found = outcomes(trajectories, spoken=spoken), read_outcomes(folder, spoken=spoken, first=True)
    assert plain(found) == plain(expected) == by_objects(trajectories, spoken=spoken)
    assert (found.reply_T is None) != spoken and (found.feedback_T is None) != spoken


def test_outcomes_are_counted_off_the_conversations(make_trajectory: Make) -> None:
    conversations = [
        make_trajectory("a", 0, ("5",), True),
        make_trajectory("a", 1, ("1", "1", "5"), True),
        make_trajectory("a", 2, ("1", "2", "3"), rewards=(0.25, -0.5, 1.0)),
        make_trajectory("a", 3, ("1", "1", None)),
        make_trajectory("c", 2, (), error="environment.start raised OSError: gone"),
        make_trajectory("b", 7, ("1", "2")),
    ]
    found = outcomes(conversations)
    assert found.ids == ["a#0", "a#1", "a#2", "a#3", "b#7"] and found.groups == ["a", "a", "a", "a", "b"]
    assert found.sample_N.tolist() == [0, 1, 2, 3, 7]
    assert found.success_N.tolist() == [True, True, False, False, False]
    assert found.turns_N.tolist() == found.graded_N.tolist() == [1, 3, 3, 3, 2]
    assert found.distinct_N.tolist() == [1, 2, 3, 1, 2]
    assert found.failures_N.tolist() == [0, 0, 0, 1, 0]
    assert found.reward_N.tolist() == [1.0, 1.0, 0.75, 0.0, 0.0]
    assert found.first_success_N.tolist() == [True, False, False, False, False]
    assert found.first_reward_N.tolist() == [1.0, 0.0, 0.25, 0.0, 0.0]
    # Mistakes that another reply followed; what earned something was none, and the last reply is followed by nothing.
    expected = [[False], [True, True, False], [False, True, False], [True, True, False], [True, False]]
    assert found.rejected_T.tolist() == [each for turns in expected for each in turns]


def test_a_reply_is_rejected_where_an_answer_was_asked_for_and_it_earned_nothing() -> None:
    for graded in (False, True):
        for success in (False, True):
            for reward in (-1.0, 0.0, 0.1):
                step = Step(messages=(), reward=reward, done=False, success=success, graded=graded, answer="1")
                assert is_rejected(step) == (graded and not success and reward <= 0)


def test_first_turns_are_as_if_each_conversation_had_ended_there(random_trajectories: Made) -> None:
    found = outcomes([t for t in random_trajectories(5) if t.error is None])
    cut = [
        dataclasses.replace(t, turns=(dataclasses.replace(t.turns[0], step=dataclasses.replace(t.turns[0].step)),))
        for t in random_trajectories(5)
        if t.error is None
    ]
    expected, first = plain(outcomes(cut)), plain(found.first_turn())
    # Whether a conversation succeeded is told by its last reply: here the first.
    for name in ("success_N", "reward_N", "turns_N", "graded_N", "distinct_N", "failures_N", "first_read_N"):
        assert first[name] == expected[name], name
    assert first["rejected_T"] == plain(found)["rejected_T"]


def test_the_same_was_said_where_answers_are_the_same_or_words_where_none_was_asked_for(make_trajectory: Make) -> None:
    def said(text: str, answer: str | None, graded: bool, feedback: str) -> Trajectory:
        one = make_trajectory("a", 0, ("4",))
        words: tuple[Message, ...] = ({"role": "user", "content": feedback},) if feedback else ()
        step = dataclasses.replace(one.turns[0].step, answer=answer, graded=graded, messages=words)
        completion = dataclasses.replace(one.turns[0].completion, text=text)
        return dataclasses.replace(one, turns=(dataclasses.replace(one.turns[0], completion=completion, step=step),))

    found = outcomes(
        [
            said("4", "4", True, ""),
            said("It is 4!", "4", True, "no"),
            said("4", "5", True, "no"),
            said("4", None, True, "yes"),
            said("What?", None, True, ""),
            said("4", None, False, ""),
            said("4", "4", False, ""),
            said("4 ", None, False, ""),
        ],
        spoken=True,
    )
    assert found.reply_T is not None and found.feedback_T is not None
    assert [found.reply_T.tolist().index(key) for key in found.reply_T.tolist()] == [0, 0, 2, 3, 3, 5, 5, 7]
    assert [found.feedback_T.tolist().index(key) for key in found.feedback_T.tolist()] == [0, 1, 1, 3, 0, 0, 0, 0]


def test_prompts_are_numbered_as_they_first_appear(make_trajectory: Make) -> None:
    found = outcomes([make_trajectory(task, k) for k, task in enumerate("cabcaz")])
    assert found.group_index().tolist() == [0, 1, 2, 0, 1, 3]
    # Whatever numbers they have in the file.
    for names in (["c", "a", "b", "z"], ["y", "z", "b", "a", "c"]):
        groups = pa.DictionaryArray.from_arrays([names.index(group) for group in "cabcaz"], names)
        assert dataclasses.replace(found, groups=groups).group_index().tolist() == [0, 1, 2, 0, 1, 3]


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("which", [slice(None), slice(1, None, 2)], ids=["all", "some"])
def test_shards_without_the_column_graded_hold_graded_turns(
    tmp_path: Path, make_trajectory: Make, which: slice
) -> None:
    conversations = [make_trajectory("a", k, ("1", None, "1", "2")[: k % 4 + 1], k == 3) for k in range(12)]
    folder = stored(tmp_path / "data", conversations, 2)
    for path in shards(folder)[which]:
        without_graded(path)
    # Data of then had no list of their shards.
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["shards"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert plain(read_outcomes(folder, first=True)) == plain(outcomes(conversations))


def test_data_in_which_everything_failed_have_no_outcomes(tmp_path: Path, make_trajectory: Make) -> None:
    folder = stored(tmp_path / "data", [make_trajectory("a", k, (), error="gone") for k in range(2)])
    with pytest.raises(DatasetError, match="all 2 trajectories failed"):
        read_outcomes(folder)


def test_lost_and_damaged_shards_are_told(tmp_path: Path, random_trajectories: Made) -> None:
    folder = stored(tmp_path / "data", random_trajectories(4))
    lost = shards(folder)[1]
    kept = lost.read_bytes()
    lost.unlink()
    with pytest.raises(DatasetError, match="a shard is missing"):
        read_outcomes(folder)
    lost.write_bytes(kept[: len(kept) // 2])
    with pytest.raises(DatasetError, match=f"shard {lost} can't be read"):
        read_outcomes(folder)
