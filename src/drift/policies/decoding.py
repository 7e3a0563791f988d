"""Replies sampled side by side, each joining as soon as there is room, and going on from the cache of its conversation.

What a prompt has in common with a conversation before, or with other prompts that wait, is computed once. None of this
changes a token (see ``pick``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from drift.errors import PolicyError
from drift.policies.base import Sampling
from drift.policies.batch import Batch
from drift.policies.generated import generate
from drift.policies.kept import Kept, KeptCaches, first_block_after, memory_to_use
from drift.policies.rows import Row, RowPicker

# The most rows of a step, where memory has room for them: on a CPU more are hardly faster.
_CPU_ROWS, _DEVICE_ROWS = 128, 256
# A row that waits joins at the latest after so many steps.
_PATIENCE = 8


class Stopped(Exception):
    """Whoever wanted the replies wants them no more."""


class Decoder:
    """Samples the replies that are asked of a model.

    Args:
        model: a causal LM.
        picker: picks its tokens.
        pad_id: an id that stands where there is none.
        most_rows: of a step; 0 is as many as are of use and fit in memory.
        source: how messages name the model.
    """

    def __init__(self, model: Any, picker: RowPicker, pad_id: int, most_rows: int, source: str) -> None:
        self._model, self._picker, self._pad_id, self._source = model, picker, pad_id, source
        self._most_rows = most_rows or (_CPU_ROWS if model.device.type == "cpu" else _DEVICE_ROWS)
        self._kept = KeptCaches()
        self._keeps: bool | None = None
        self._token_bytes = 0.0
        self._weights: Any = None
        self.forget()

    def forget(self, *, kept: bool = True) -> None:
        """Let the rows under way go, and all that is kept."""
        self._open: list[Row] = []
        self._waiting: list[Row] = []
        self._batch = Batch(self._model, self._pad_id)
        if kept:
            self._kept.clear()

    def serve(self, arrived: Callable[[], list[Row]], done: Callable[[Row], None]) -> None:
        """Bring every row that arrives to its end.

        Args:
            arrived: gives the rows that were not given before.
            done: called with each at its end, but for those whose reply nobody waits for any more.

        Raises:
            PolicyError: a model that computes no distribution, or whose one row has no room in memory.
        """
        self.forget(kept=False)
        self._notice_new_weights()
        steps = 0
        while True:
            new = arrived()
            self._open += new
            self._waiting = [row for row in (*self._waiting, *new) if row.wanted]
            try:
                if not self._can_keep():
                    if not self._waiting:
                        return
                    finished = self._generated()
                else:
                    ready = self._ready(steps)
                    finished, steps = (self._join(), 0) if ready else ([], steps + bool(self._waiting))
                    if not self._batch.going and not finished:
                        return
                    finished += self._step()
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
                self._halve(error)
                continue
            for row in finished:
                done(row)
            self._open = [row for row in self._open if row.wanted and not row.finish]

    def _ready(self, steps: int) -> bool:
        """Whether rows should join now: a few at a time, since one alone takes nearly as long as several."""
        going = len(self._batch.going)
        room = min(len(self._waiting), self._rows_that_fit() - going)
        return room > 0 and (room >= going / 8 or steps >= _PATIENCE)

    def _step(self) -> list[Row]:
        """One token for every row of the batch; those that are over."""
        if not self._batch.going:
            return []
        for row in self._batch.going:
            if not row.wanted:
                self._batch.leave(row)
        self._batch.compact()
        if not self._batch.going:
            return []
        rows, logits_BV = self._batch.feed()
        self._picker.advance(rows, logits_BV)
        finished = [row for row in rows if row.finish]
        self._end(self._batch, finished)
        return finished

    def _end(self, batch: Batch, finished: Sequence[Row]) -> None:
        """Let rows leave, and keep their caches for what is said next."""
        for row in finished:
            layers = [(keys.clone(), values.clone()) for keys, values in batch.layers_of(batch.rows.index(row))]
            self._kept.put(Kept(row.ids[:-1], layers, shared=False))
            batch.leave(row)

    def _join(self) -> list[Row]:
        """Compute prompts of rows that wait, as far as there is room, and one token of each; those that are over."""
        finished: list[Row] = []
        while chosen := self._choose():
            for group in _alike(chosen):
                joined = Batch(self._model, self._pad_id)
                joined.take([(row, kept.layers if kept else [], count) for row, kept, count, _ in group])
                rows, logits_BV = joined.feed()
                for at, (row, kept, count, shared) in enumerate(group):
                    if shared:
                        layers = [(keys.clone(), values.clone()) for keys, values in joined.layers_of(at)]
                        self._kept.put(Kept(row.ids, layers, shared=True))
                    if kept is not None and not kept.shared and count == len(kept.ids):
                        # A longer one follows.
                        self._kept.drop(kept)
                self._picker.advance(rows, logits_BV)
                over = [row for row in rows if row.finish]
                self._end(joined, over)
                finished += over
                self._merge(joined)
        return finished

    def _merge(self, joined: Batch) -> None:
        if self._batch.going:
            rows = [(row, joined.layers_of(at), len(row.ids) - 1) for at, row in enumerate(joined.rows) if row]
            self._batch.take(rows)
        else:
            self._batch = joined

    def _choose(self) -> list[tuple[Row, Kept | None, int, bool]]:
        """Rows that join now, what is kept of each, of how many ids, and whether others wait for what it has more.

        Those of which most is kept come first, conversations under way before new ones. Of several that begin alike
        and have nothing kept of that, one joins, and the others when it is kept.
        """
        room = self._rows_that_fit() - len(self._batch.going)
        known = [(row, *self._kept.longest(row.ids, row.keys)) for row in self._waiting] if room > 0 else []
        known.sort(key=lambda each: -each[2])
        leaders: dict[int, int] = {}
        chosen: list[tuple[Row, Kept | None, int, bool]] = []
        for row, kept, count in known[:room]:
            new = row.keys[first_block_after(count) :]
            if new and new[0] in leaders and self._kept.budget:
                leader = leaders[new[0]]
                chosen[leader] = (*chosen[leader][:3], True)
                continue
            leaders |= dict.fromkeys(new, len(chosen))
            chosen.append((row, kept, count, False))
            if kept is not None:
                self._kept.use(kept)
        taken = {id(row) for row, *_ in chosen}
        self._waiting = [row for row in self._waiting if id(row) not in taken]
        return chosen

    def _rows_that_fit(self) -> int:
        """Rows that a step may have: half of the memory for caches is for them, half for what is kept."""
        rows = [*self._batch.going, *self._waiting]
        longest = max((len(row.prompt_ids) + row.sampling.max_new_tokens for row in rows), default=1)
        return max(1, min(self._most_rows, int(self._kept.budget / max(1.0, self._token_bytes * longest))))

    def _generated(self) -> list[Row]:
        """As many rows as fit, the nearest in length to the one that waited longest."""
        length = len(self._waiting[0].ids)
        batch = sorted(self._waiting, key=lambda row: abs(len(row.ids) - length))[: self._most_rows]
        generate(self._model, self._picker, batch, self._pad_id)
        self._waiting = [row for row in self._waiting if not row.finish]
        return batch

    def _halve(self, error: Exception) -> None:
        """After memory ran out: start every reply again, half as many at once, with half as much kept."""
        again, going = [row for row in self._open if row.wanted], len(self._batch.going)
        rows = min(self._most_rows, max(going, 1) if self._keeps else len(again))
        if rows == 1:
            raise PolicyError(
                f"there is no memory for one reply of the model {self._source!r}: {str(error).splitlines()[0]}. "
                "Lower sampling.max_new_tokens, or use a smaller model or a machine with more memory."
            ) from error
        self._most_rows, self._kept.budget = rows // 2, self._kept.budget // 2
        self.forget()
        for row in again:
            row.restart()
        self._open, self._waiting = [*again], again

    def _notice_new_weights(self) -> None:
        """A model that was trained since has nothing kept that is of use."""
        weights = [(each.data_ptr(), 0 if each.is_inference() else each._version) for each in self._model.parameters()]
        if weights != self._weights:
            self._weights = weights
            self._kept.clear()

    def _can_keep(self) -> bool:
        """Whether a conversation can go on from what is kept; found once, with the first prompt."""
        if self._keeps is None and self._waiting:
            self._keeps = _only_columns(self._model) and self._goes_on(self._waiting[0].ids)
            self._kept.budget = memory_to_use(self._model.device) // 2
        return bool(self._keeps)

    def _goes_on(self, ids: Sequence[int]) -> bool:
        """Whether two rows that are computed in parts and put together anew have the logits of each alone."""
        whole = (list(ids) * 48)[:48]
        rows = [_trial(whole), _trial(whole[5:])]
        try:
            batch = Batch(self._model, self._pad_id)
            for row, count in zip(rows, (30, 20), strict=True):
                row.ids = row.ids[:count]
            batch.take([(row, [], 0) for row in rows])
            batch.feed()
            again = Batch(self._model, self._pad_id)
            again.take([(rows[1], batch.layers_of(1), 20), (rows[0], batch.layers_of(0), 30)])
            for row in rows:
                row.restart()
            _, logits_BV = again.feed()
            self._token_bytes = again.bytes_of_a_token
        except (TypeError, ValueError, AttributeError, IndexError, NotImplementedError, RuntimeError) as error:
            if _out_of_memory(error):
                raise
            return False
        alone_BV = torch.stack([self._picker.logits_alone(row.ids) for row in reversed(rows)])
        alone_BV, logits_BV = alone_BV.float(), logits_BV.float()
        coarse = max(1e-4, 16 * torch.finfo(next(self._model.parameters()).dtype).eps)
        # Where there is no distribution, that is for the first pick to say.
        return not bool(((alone_BV - logits_BV).abs().amax() > coarse * alone_BV.abs().amax().clamp(min=1.0)).item())


def _trial(ids: Sequence[int]) -> Row:
    return Row(tuple(ids), Sampling(), 0)


def _only_columns(model: Any) -> bool:
    """Whether a model's cache is of keys and values alone, whose meaning no later id changes."""
    config = model.config.get_text_config(decoder=True)
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [each.get("rope_type") for each in (rope, *rope.values()) if isinstance(each, dict)]
    try:
        layers = DynamicCache(config=model.config).layers
    except (KeyError, ValueError, AttributeError, TypeError):
        return False
    plain = all(type(layer) is DynamicLayer for layer in layers)
    return plain and not {"dynamic", "longrope"} & set(kinds)


def _alike(chosen: Sequence[tuple[Row, Kept | None, int, bool]]) -> list[list[tuple[Row, Kept | None, int, bool]]]:
    """Rows in groups that have about as many ids to be computed, so that few of them wait for others."""
    groups: list[list[tuple[Row, Kept | None, int, bool]]] = []
    for each in sorted(chosen, key=lambda each: len(each[0].ids) - each[2]):
        new = len(each[0].ids) - each[2]
        if groups and new <= 1.5 * (len(groups[-1][0][0].ids) - groups[-1][0][2]) + 8:
            groups[-1].append(each)
        else:
            groups.append([each])
    return groups


def _out_of_memory(error: Exception) -> bool:
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or "can't allocate memory" in str(error) or "out of memory" in str(error)
