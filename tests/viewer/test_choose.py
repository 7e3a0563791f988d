"""Filters and sorts of columns against a loop over whole conversations."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drift.dataset.store import read_trajectories, shards, stream_trajectories
from drift.dataset.tally import failure_kind
from drift.errors import ConfigError
from drift.types import Trajectory
from drift.viewer.choose import Search, read_rows
from drift.viewer.index import Index
from drift.viewer.library import Library
from drift.weights.table import read_weights

Facts = dict[str, Any]
QUERIES: list[tuple[str, Callable[[Facts], bool]]] = [
    ("", lambda f: True),
    ("success=yes", lambda f: f["success"] is True),
    ("success=no", lambda f: f["success"] is False),
    ("stop=turns", lambda f: f["stop"] == "turns"),
    ("error=any", lambda f: f["error"] is not None),
    ("error=none", lambda f: f["error"] is None),
    ("error=gone", lambda f: f["error"] == "gone"),
    ("turns=2..3", lambda f: 2 <= f["turns"] <= 3),
    ("turns=4", lambda f: f["turns"] == 4),
    ("reward=..-0.05", lambda f: f["reward"] <= -0.05),
    ("weight=0..", lambda f: f["weight"] >= 0),
    ("return=0.1..0.4", lambda f: 0.1 <= f["return"] <= 0.4),
    ("task=prompt 1", lambda f: "prompt 1" in f["group"]),
    ("task=é", lambda f: "é" in f["task"]),
    ("q=NO IDEA", lambda f: "no idea" in f["text"].lower()),
    ("q=STRASSE", lambda f: False),
    ("q=straße", lambda f: "straße" in f["text"].lower()),
    ("q=[2J", lambda f: "[2j" in f["text"].lower()),
    ("success=no&turns=2..&q=incorrect", lambda f: not f["success"] and f["turns"] >= 2 and "Incorrect" in f["text"]),
]


def facts_of(each: Trajectory, weights: list[float] | None, value: float) -> Facts:
    return {
        "id": each.id,
        "task": each.task_id,
        "group": each.group_id,
        "success": each.success,
        "stop": each.stop_reason,
        "error": each.error and failure_kind(each.error),
        "turns": len(each.turns),
        "reward": sum(turn.step.reward for turn in each.turns),
        "return": value,
        "weight": max(weights, key=lambda w: (abs(w), w)) if weights else math.nan,
        "text": "\n".join(message["content"] for message in each.messages),
    }


@pytest.fixture
def facts(run: Path) -> list[Facts]:
    import pyarrow.parquet as pq

    table = read_weights(run / "weights", run / "rollouts")
    rows = pq.read_table(run / "weights" / "weights.parquet").to_pylist()
    returns = {row["id"]: row["return"] for row in rows}
    each = stream_trajectories(run / "rollouts")
    return [
        facts_of(one, list(table[one.id]) if one.id in table else None, returns.get(one.id, math.nan)) for one in each
    ]


def test_every_filter_finds_what_a_loop_finds(run: Path, facts: list[Facts]) -> None:
    library = Library(run)
    assert len(shards(run / "rollouts")) > 5 and any(fact["error"] for fact in facts)
    for query, wanted in QUERIES:
        found = library.find(dict(part.split("=") for part in query.split("&") if part), patience=math.inf)
        ids = [found.columns.ids[int(at)].as_py() for at in found.order]
        assert ids == [fact["id"] for fact in facts if wanted(fact)], query
        assert not found.unfinished


def test_sorts_keep_the_order_of_equals_and_put_what_has_no_value_last(run: Path, facts: list[Facts]) -> None:
    library = Library(run)
    for name, sign in itertools.product(("turns", "reward", "return", "weight", "success"), ("", "-")):
        found = library.find({"sort": sign + name}, patience=math.inf)
        ids = [found.columns.ids[int(at)].as_py() for at in found.order]
        factor = -1 if sign else 1
        assert ids == [f["id"] for f in sorted(facts, key=lambda f: (math.isnan(f[name]), factor * f[name]))]


def test_a_value_that_cannot_be_is_named(run: Path) -> None:
    library = Library(run)
    for query in ("success=maybe", "stop=bored", "error=none such", "turns=3..2", "weight=a lot", "sort=hue", "data=x"):
        key, value = query.split("=")
        with pytest.raises(ConfigError, match=value):
            library.find({key: value}, patience=math.inf)


def test_reading_and_searching_go_on_where_they_were(run: Path) -> None:
    index, search = Index(run / "rollouts"), Search("no idea")
    whole = Index(run / "rollouts").read()
    sizes, left = [], []
    while not sizes or index.read(-1).waiting:
        columns = index.read(-1)
        sizes.append(len(columns))
        left.append(search.read(columns, -1)[1])
    assert sizes == sorted(set(sizes)) and whole.ids == index.read().ids and len(whole) > sizes[0] == 8
    said, unread = search.read(whole, math.inf)
    assert unread == 0 and said.tolist() == Search("no idea").read(whole, math.inf)[0].tolist()


def test_rows_are_read_by_their_numbers_from_any_shard(run: Path) -> None:
    columns = Index(run / "rollouts").read()
    by_id = {each.id: each for each in read_trajectories(run / "rollouts")}
    places = [len(columns) - 1, 3, 17, 4]
    rows = read_rows(columns, places, ["id", "messages"])
    assert {at: row["id"] for at, row in rows.items()} == {at: columns.ids[at].as_py() for at in places}
    assert [len(row["messages"]) for row in rows.values()] == [len(by_id[row["id"]].messages) for row in rows.values()]


def test_a_damaged_shard_is_told_and_the_others_are_shown(run: Path) -> None:
    damaged, library = shards(run / "rollouts")[1], Library(run)
    whole = damaged.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 1
    # Also one that changes while it is looked at, until it is whole again.
    for content, count in ((whole, 8), (flipped, 0), (whole, 8), (whole[:300], 0)):
        damaged.write_bytes(content)
        found = library.find({}, patience=math.inf)
        assert found.columns.start_S[2] - found.columns.start_S[1] == count
        assert len(library.find({"q": ""}, patience=math.inf).order) == len(found.columns)
    total = len(read_weights(run / "weights" / "weights.parquet", run).ids)
    assert total - 8 <= len(found.order) and damaged.name in found.columns.problems[0]
    assert found.weighed is not None and found.columns.start_S[2] == found.columns.start_S[1] == 8
    (run / "weights" / "weights.parquet").write_bytes(b"PAR1")
    found = Library(run).find({}, patience=math.inf)
    assert (
        found.weighed is None
        and "Run drift weigh again" in found.problems[1]
        and len(found.order) == len(found.columns)
    )
