"""The file of weights: what is written is what is read, by this package or by anything that writes Parquet."""

import hashlib
import math
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift.dataset.imports.files import open_source
from drift.dataset.store import repeated
from drift.errors import DatasetError
from drift.weights import table as tables
from drift.weights.table import SCHEMA, WeightTable, read_file, read_weights, weights_hash, write_table

# What Arrow can hold: no lone surrogates.
strings = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
lists = st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=4)


def columns_of(weights: dict[str, list[float]], rows: int = 7) -> tuple[pa.ChunkedArray, np.ndarray, np.ndarray]:
    """Ids in several chunks, as Parquet reads them; where each list begins; all weights."""
    names = list(weights)
    chunks = [names[at : at + rows] for at in range(0, len(names), rows)]
    start_N = np.cumsum([0, *map(len, weights.values())])
    flat_T = np.array([value for each in weights.values() for value in each], float)
    return pa.chunked_array(chunks, pa.large_string()), start_N, flat_T


def digest(weights: dict[str, list[float]]) -> str:
    """The definition: ids a line each, the number of replies of each, all weights, little-endian."""
    written = "".join(f"{name}\n" for name in weights).encode()
    written += struct.pack(f"<{len(weights)}q", *map(len, weights.values()))
    flat = [value for each in weights.values() for value in each]
    return hashlib.sha256(written + struct.pack(f"<{len(flat)}d", *flat)).hexdigest()


def written(path: Path, weights: dict[str, list[float]]) -> Path:
    ids, start_N, flat_T = columns_of(weights)
    groups = pa.array([f"g{len(name)}" for name in weights], pa.string()).dictionary_encode()
    write_table(path, ids, groups, np.arange(len(weights)) / 2, start_N, flat_T)
    return path


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(strings, lists, max_size=40), st.lists(strings, max_size=10))
def test_looked_up_as_in_a_dict(weights: dict[str, list[float]], others: list[str]) -> None:
    ids, start_N, flat_T = columns_of(weights)
    found = WeightTable(ids, start_N, flat_T)
    assert found == weights and len(found) == len(weights) and list(found) == list(weights)
    for name in [*weights, *others]:
        assert found.get(name) == weights.get(name) and (name in found) == (name in weights)
    with pytest.raises(KeyError):
        found["longer than any"]


def test_ids_whose_keys_meet_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drift.weights.table.hash", len, raising=False)
    weights = {"ab": [1.0], "cd": [], "a": [2.0, 3.0], "ef": [4.0]}
    found = WeightTable(*columns_of(weights))
    assert found == weights and "xy" not in found
    monkeypatch.setattr("drift.dataset.store.hash", len, raising=False)
    assert repeated(lambda: ["ab", "cd", "a", "cd", "xy", "cd"]) == ["cd"]


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(strings, lists, max_size=40))
def test_the_hash_is_of_ids_and_weights_in_their_order(weights: dict[str, list[float]]) -> None:
    assert weights_hash(*columns_of(weights)) == digest(weights) == weights_hash(*columns_of(weights, 3))


@pytest.mark.parametrize(
    "other",
    [
        {"b": [2.0], "a": [1.0]},
        {"a": [2.0], "b": [1.0]},
        {"a": [1.0, 2.0], "b": []},
        {"ab": [1.0], "": [2.0]},
        {"a": [1.0], "b": [np.nextafter(2.0, 3.0)]},
        {"a": [1.0], "b": [2.0], "c": []},
    ],
)
def test_the_hash_tells_order_values_and_which_replies_they_are_of(other: dict[str, list[float]]) -> None:
    assert weights_hash(*columns_of(other)) != weights_hash(*columns_of({"a": [1.0], "b": [2.0]}))


AWKWARD = {
    "é#0": [0.1, -0.0],
    "a\nb": [5e-324],
    "c": [],
    "d": [math.pi, -1e100, 1e-300, 2.0, 3.0],
    "": [1.0],
    "z" * 5000: [0.0] * 40,
}


def test_what_is_written_is_what_is_read_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rows in (2, 131_072):
        monkeypatch.setattr(tables, "ROWS", rows)
        path = written(tmp_path / f"{rows}.parquet", AWKWARD)
        found = read_file(path)
        assert found.ids.to_pylist() == list(AWKWARD)
        assert found.start_N.tolist() == [0, 2, 3, 3, 8, 9, 49]
        assert found.weights_T.tobytes() == np.array([v for each in AWKWARD.values() for v in each], float).tobytes()
        assert found == AWKWARD
        assert pq.ParquetFile(path).metadata.num_row_groups == (3 if rows == 2 else 1)
        rows_read = pq.read_table(path)
        assert rows_read.schema.equals(SCHEMA)
        assert [row["weights"] for row in rows_read.to_pylist()] == list(AWKWARD.values())
        assert rows_read.column("return").to_pylist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
        assert rows_read.column("group_id").to_pylist() == ["g3", "g3", "g1", "g1", "g0", "g5000"]


# --- files made by anything ------------------------------------------------------------------------------------------


def external(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize(
    ("ids", "weights"),
    [
        (pa.array(["b", "a"]), pa.array([[1.0, -0.5], [2.0]])),
        (pa.array(["b", "a"]), pa.array([[1.0, -0.5], [2.0]], pa.list_(pa.float32()))),
        (pa.array(["b", "a"]).dictionary_encode(), pa.array([[1.0, -0.5], [2.0]], pa.large_list(pa.float64()))),
        (pa.array(["b", "a"], pa.large_string()), pa.array([[1.0, -0.5], [2.0]], pa.list_(pa.float16()))),
    ],
    ids=["plain", "short numbers", "encoded", "large"],
)
def test_a_file_made_by_anything_is_read_by_two_columns(tmp_path: Path, ids: pa.Array, weights: pa.Array) -> None:
    path = external(tmp_path / "w.parquet", weights=weights, note=pa.array([3, 4]), id=ids)
    found = read_weights(path, tmp_path / "no data set is looked at")
    assert found == {"b": [1.0, -0.5], "a": [2.0]}
    assert found.hash == digest({"b": [1.0, -0.5], "a": [2.0]})


def test_whole_numbers_and_fixed_lengths_are_weights_too(tmp_path: Path) -> None:
    path = external(tmp_path / "w.parquet", id=["b", "a"], weights=pa.array([[1, -2], [3, 0]], pa.list_(pa.int64(), 2)))
    assert read_file(path) == {"b": [1.0, -2.0], "a": [3.0, 0.0]}
    path = external(
        tmp_path / "none.parquet", id=pa.array([], pa.string()), weights=pa.array([], pa.list_(pa.float64()))
    )
    assert read_file(path) == {} and read_file(path).hash == digest({})


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"id": ["a", None], "weights": [[1.0], [2.0]]}, "1 ids and 0 lists of weights are null"),
        ({"id": ["a", "b"], "weights": [[1.0], None]}, "0 ids and 1 lists of weights are null"),
        (
            {"id": ["a", "b", "c"], "weights": [[1.0], [], [2.0, math.nan]]},
            "1 weights are not finite; a reply of conversation 'c' has nan, expected a number",
        ),
        (
            {"id": ["a", "b", "c"], "weights": [[1.0], [-math.inf, 3.0], [2.0, math.nan]]},
            "2 weights are not finite; a reply of conversation 'b' has -inf, expected a number",
        ),
        ({"id": ["a", "b"], "weights": [[1.0], [2.0, None]]}, "a reply of conversation 'b' has nan, expected a number"),
        ({"id": ["a", "b", "a", "a"], "weights": [[1.0]] * 4}, "1 ids are there twice, such as 'a'. Give each once"),
        ({"id": ["a", "b"]}, "Expected a Parquet file with the columns id (text) and weights (a list of numbers"),
        ({"weights": [[1.0]]}, "Expected a Parquet file with the columns id (text) and weights"),
        ({"id": ["a"], "weight": [1.0]}, "Expected a Parquet file with the columns id (text) and weights"),
        ({"id": ["a"], "weights": [1.0]}, "Expected a Parquet file with the columns id (text) and weights"),
        ({"id": ["a"], "weights": [["much"]]}, "Expected a Parquet file with the columns id (text) and weights"),
        ({"id": [["a"]], "weights": [[1.0]]}, "Expected a Parquet file with the columns id (text) and weights"),
    ],
)
def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path, columns: dict[str, Any], said: str) -> None:
    path = external(tmp_path / "w.parquet", **columns)
    with pytest.raises(DatasetError, match=re.escape(said)) as caught:
        read_file(path)
    assert str(path) in str(caught.value)


def test_what_is_no_parquet_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.parquet").write_bytes(b"nonsense")
    for path in (tmp_path / "w.parquet", tmp_path / "not there"):
        with pytest.raises(DatasetError, match="can't be read"):
            read_file(path)


def test_a_column_whose_name_is_no_text_is_told_of_in_weights_and_in_logs(tmp_path: Path) -> None:
    path = external(tmp_path / "w.parquet", id=["a"], weights=[[1.0]], notes=["b"])
    path.write_bytes(path.read_bytes().replace(b"notes", b"n\xc8tes"))
    with pytest.raises(DatasetError, match="can't be read"):
        read_file(path)
    with pytest.raises(DatasetError, match="can't be read"):
        list(open_source(path))
