import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift.dataset.table import ById, WeightTable

# What Arrow can hold: no lone surrogates.
strings = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)


@given(st.dictionaries(strings, st.floats(allow_nan=False), max_size=40), st.lists(strings, max_size=10))
def test_looked_up_as_in_a_dict(wanted: dict[str, float], others: list[str]) -> None:
    names = list(wanted)
    # In several chunks, as Parquet reads them.
    chunks = [names[at : at + 7] for at in range(0, len(names), 7)]
    found = ById(pa.chunked_array(chunks, pa.string()), np.array(list(wanted.values()), float))
    assert found == wanted and len(found) == len(wanted) and list(found) == sorted(wanted)
    for name in [*names, *others]:
        assert found.get(name) == wanted.get(name) and (name in found) == (name in wanted)
    with pytest.raises(KeyError):
        found["longer than any"]


@given(st.lists(strings, min_size=1, max_size=40))
def test_groups_are_numbered_in_the_order_of_their_ids(groups: list[str]) -> None:
    chunks = [groups[at : at + 7] for at in range(0, len(groups), 7)]
    column = pa.chunked_array(chunks, pa.string())
    table = WeightTable(ids=column, groups=column, weights_N=np.zeros(len(groups)))
    ordered = sorted(set(groups))
    assert table.group_index().tolist() == [ordered.index(group) for group in groups]
