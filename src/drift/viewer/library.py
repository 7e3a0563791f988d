"""What was read of a directory, kept so that the next page is there at once; it grows as the directory does."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift.dataset.store import KIND as TRAJECTORIES
from drift.errors import DatasetError, DriftError, require
from drift.viewer.choose import KEYS, Search, choose
from drift.viewer.index import Columns, Index, Weighed, weigh_index
from drift.viewer.stages import Stage, data_stages, find_stages, require_stages, stage_named, weights_of

# Seconds that a page waits for what is not read yet; it then shows what is there, and goes on.
PATIENCE = 0.2
# Orders, and searches, of the last addresses.
KEPT = 8


@dataclass(frozen=True, kw_only=True)
class Found:
    """Conversations of a data set, as an address asks for them.

    Attributes:
        data: the data set.
        columns: of all of its conversations.
        weights: the weights that are shown, of those there are.
        weighed: what they say; ``None`` without them, or until they are read.
        order: the numbers of those asked for, in their order.
        unfinished: what is still being read, in words; empty if nothing.
        problems: what can't be read, and why.
    """

    data: Stage
    columns: Columns
    weights: Stage | None
    weighed: Weighed | None
    order: NDArray[np.int64]
    unfinished: tuple[str, ...]
    problems: tuple[str, ...]


class Library:
    """A directory as it is looked at.

    Args:
        root: the directory of a run, or of one stage.

    Raises:
        DatasetError: there is nothing in it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._stages, self._looked = require_stages(root), time.monotonic()
        self._lock, self._pool = threading.Lock(), ThreadPoolExecutor(1)
        self._indices: dict[Path, Index] = {}
        self._weighed: dict[Hashable, Future[Weighed]] = {}
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()

    def stages(self) -> list[Stage]:
        """What is there now, but for the last second."""
        if time.monotonic() - self._looked > 1:
            self._stages, self._looked = find_stages(self.root), time.monotonic()
        return self._stages

    def read_ahead(self) -> None:
        """Read the columns of every data set, the largest last, and the weights made of them."""
        for stage in sorted(
            data_stages(self.stages()), key=lambda each: each.manifest["counts"].get("trajectories", 0)
        ):
            with suppress(DriftError):
                self.find({"data": stage.name}, patience=float("inf"))

    def find(self, query: Mapping[str, str], *, patience: float = PATIENCE) -> Found:
        """The conversations that ``query`` asks for, waiting ``patience`` seconds for each thing that must be read.

        Args:
            query: ``data``, the name of a data set (the first unless given); ``weights``, of weights made of it; and
                what ``choose`` takes.
            patience: seconds.

        Raises:
            ConfigError: a name or a value that can't be.
        """
        stages = self.stages()
        known = data_stages(stages)
        require(bool(known), "data", query.get("data", ""), "a directory that holds conversations; there is none here")
        data = stage_named(stages, query["data"], TRAJECTORIES) if query.get("data") else known[0]
        columns = self._index(data).read(patience)
        unfinished = [f"{columns.waiting:,} of {len(columns.paths) + columns.waiting:,} shards are still to be read"]
        unfinished = unfinished if columns.waiting else []
        choices = weights_of(data, stages)
        weights = next((each for each in choices if each.name == query.get("weights")), choices[0] if choices else None)
        weighed, problems = None, list(columns.problems)
        if weights and not columns.waiting:
            try:
                weighed = self._weigh(columns, weights, patience)
                unfinished += [] if weighed else ["weights are being read"]
            except DatasetError as error:
                problems.append(str(error))
        elif weights:
            unfinished.append("weights come after them")
        said_N = None
        if query.get("q"):
            search = self._remember(("search", columns.reading, query["q"]), lambda: Search(query["q"]))
            said_N, left = search.read(columns, patience)
            unfinished += [f"{left:,} shards are still to be searched"] if left else []
        key = (
            columns.reading,
            len(columns),
            weights and weights.manifest["weights_hash"],
            weighed is None,
            *(query.get(k, "") for k in KEYS),
        )
        if unfinished:
            order = choose(columns, weighed, query, said_N)
        else:
            order = self._remember(("order", *key), lambda: choose(columns, weighed, query, said_N))
        return Found(
            data=data,
            columns=columns,
            weights=weights,
            weighed=weighed,
            order=order,
            unfinished=tuple(unfinished),
            problems=tuple(problems),
        )

    def _index(self, data: Stage) -> Index:
        with self._lock:
            return self._indices.setdefault(data.path, Index(data.path))

    def _weigh(self, columns: Columns, weights: Stage, patience: float) -> Weighed | None:
        key = (weights.path, weights.manifest["weights_hash"], columns.reading, len(columns))
        with self._lock:
            if key not in self._weighed:
                self._weighed[key] = self._pool.submit(weigh_index, columns, weights)
        try:
            return self._weighed[key].result(None if patience == float("inf") else patience)
        except NotYet:
            return None

    def _remember(self, key: Hashable, make: Callable[[], Any]) -> Any:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = make()
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return made
