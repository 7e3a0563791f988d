"""Rows in buckets on disk, beside lists in memory."""

import random
from pathlib import Path

import pyarrow as pa

from drift.exports.buckets import Buckets, bucket_of


def test_buckets_give_back_the_rows_of_a_key_together_and_in_order(tmp_path: Path) -> None:
    schema = pa.schema([("key", pa.string()), ("n", pa.int64())])
    rng = random.Random(0)
    rows = [{"key": f"k{rng.randrange(40)}", "n": n} for n in range(500)]
    with Buckets(tmp_path, schema, "key", 7, rows_per_write=60) as spilled:
        for at in range(0, 500, 13):
            spilled.add(pa.Table.from_pylist(rows[at : at + 13], schema=schema))
        found = [spilled.read(bucket).to_pylist() for bucket in range(7)]
    keys = [row["key"] for row in rows]
    number = dict(zip(keys, bucket_of(pa.chunked_array([keys]), 7), strict=True))
    assert found == [[row for row in rows if number[row["key"]] == bucket] for bucket in range(7)]
    # Literal values: the same on every machine and under every version.
    assert bucket_of(pa.chunked_array([["", "123456789", "a"]]), 2**32).tolist() == [0, 0xCBF43926, 0xE8B7BE43]
    assert list(tmp_path.iterdir()) == []
