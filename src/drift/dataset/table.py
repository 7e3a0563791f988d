"""Weights as they were written: Arrow columns of one row for each trajectory, looked up without an object for each."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


class ById(Mapping[str, float]):
    """Numbers by string, as a mapping that takes the bytes of its strings and 8 more for each.

    Args:
        ids: N distinct Arrow strings.
        values_N: ``(N,)`` the number of each.
    """

    def __init__(self, ids: pa.ChunkedArray, values_N: NDArray[np.float64]) -> None:
        order = pc.sort_indices(ids)
        # Offsets of 64 bits: ids of very many trajectories are longer together than 32 reach.
        self._ids = pa.concat_arrays(
            ids.cast(pa.large_string()).take(order).chunks or [pa.array([], pa.large_string())]
        )
        self._values_N = values_N[order.to_numpy()]

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[str]:
        return (each.as_py() for each in self._ids)

    def __getitem__(self, name: str) -> float:
        # Arrow sorts by UTF-8 bytes, which is Python's order of strings too.
        at = bisect_left(range(len(self._ids)), name, key=lambda place: self._ids[place].as_py())
        if at == len(self._ids) or self._ids[at].as_py() != name:
            raise KeyError(name)
        return float(self._values_N[at])


@dataclass(frozen=True, kw_only=True)
class WeightTable:
    """Weights as they were written: id, group and weight of each trajectory that did not fail.

    Attributes:
        ids, groups: Arrow strings, one for each of N trajectories.
        weights_N: ``(N,)``.
    """

    ids: pa.ChunkedArray
    groups: pa.ChunkedArray
    weights_N: NDArray[np.float64]

    def by_id(self) -> Mapping[str, float]:
        """Weight by trajectory id."""
        return ById(self.ids, self.weights_N)

    def group_index(self) -> NDArray[np.intp]:
        """``(N,)`` groups as numbers 0…G−1, in the order of their ids."""
        codes: Any = self.groups.dictionary_encode().combine_chunks()
        rank = np.empty(len(codes.dictionary), np.intp)
        rank[pc.array_sort_indices(codes.dictionary).to_numpy()] = np.arange(len(rank))
        index_N: NDArray[np.intp] = rank[codes.indices.to_numpy()]
        return index_N
