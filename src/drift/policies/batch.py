"""Replies that a model computes side by side, each with its own part of one cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from drift.policies.kept import Layers
from drift.policies.rows import Row

# Columns that a cache grows by, so that few steps copy it.
_ROOM = 64
# Tokens of one forward pass: more are no faster, and take more memory.
_CPU_TOKENS, _DEVICE_TOKENS = 1024, 8192


class _Columns(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values in buffers with room for more columns: a step writes its own and copies none."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the columns of this step after the others, and return all."""
        start, end = self.get_seq_length(), self.get_seq_length() + key_states.shape[2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.allocate(key_states, value_states, end)
        elif end > self.buffers[0].shape[2]:
            held = self.keys, self.values
            self.allocate(key_states, value_states, end)
            for buffer, old in zip(self.buffers, held, strict=True):
                buffer[:, :, :start] = old
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = new
        self.show(end)
        return self.keys, self.values

    def allocate(self, keys: torch.Tensor, values: torch.Tensor, width: int, rows: int | None = None) -> None:
        """Make buffers for at least ``width`` columns of states like these."""
        self.buffers = tuple(
            like.new_empty((rows or like.shape[0], like.shape[-3], width + _ROOM, like.shape[-1]))
            for like in (keys, values)
        )

    def show(self, width: int) -> None:
        """Make the first ``width`` columns those that count."""
        self.keys, self.values = (buffer[:, :, :width] for buffer in self.buffers)


class Batch:
    """Rows that go on together, a token each at a step.

    A row's ids stand in the columns that its row of the mask has; other columns are padding. All end in the same one.

    Args:
        model: a causal LM whose cache has nothing but keys and values, one column for each id.
        pad_id: stands where a row has no id.

    Attributes:
        rows: by their place; ``None`` where one has left.
    """

    def __init__(self, model: Any, pad_id: int) -> None:
        self._model, self._pad_id = model, pad_id
        self.rows: list[Row | None] = []
        self._layers: list[_Columns] = []
        self._mask_BC = torch.zeros((0, 0), dtype=torch.long)
        self._counts: list[int] = []

    @property
    def going(self) -> list[Row]:
        """The rows that have not left."""
        return [row for row in self.rows if row is not None]

    @property
    def width(self) -> int:
        """Columns in use."""
        return self._mask_BC.shape[1]

    @property
    def bytes_of_a_token(self) -> float:
        """Of keys and values, for one row."""
        each = sum(part.numel() * part.element_size() for layer in self._layers for part in (layer.keys, layer.values))
        return each / max(1, len(self.rows) * self.width)

    def take(self, rows: Sequence[tuple[Row, Layers, int]]) -> None:
        """Add rows, each with keys and values of its first ids, and of how many ids to take these.

        They take the places of rows that have left where the columns are enough; else everything is put together anew.
        """
        free = [at for at, row in enumerate(self.rows) if row is None]
        longest = max((count for *_, count in rows), default=0)
        if len(rows) > len(free) or longest > self.width:
            stay = [(row, self.layers_of(at), self._counts[at]) for at, row in enumerate(self.rows) if row is not None]
            rows, free = [*stay, *rows], list(range(len(stay) + len(rows)))
            self._start(rows)
        for at, (row, layers, count) in zip(free, rows, strict=False):
            self.rows[at], self._counts[at] = row, count
            self._mask_BC[at] = 0
            self._mask_BC[at, self.width - count :] = 1
            for layer, known in zip(self._layers, layers if count else [], strict=False):
                for whole, part in zip((layer.keys, layer.values), known, strict=True):
                    whole[at, :, self.width - count :] = part[:, :count]

    def _start(self, rows: Sequence[tuple[Row, Layers, int]]) -> None:
        """Make room for these rows and no others."""
        width = max(count for *_, count in rows)
        self.rows, self._counts = [None] * len(rows), [0] * len(rows)
        self._mask_BC = torch.zeros((len(rows), width), dtype=torch.long, device=self._model.device)
        self._layers = []
        for keys, values in next((layers for _, layers, count in rows if count), []):
            layer = _Columns()
            layer.lazy_initialization(keys, values)
            layer.allocate(keys, values, width, rows=len(rows))
            layer.show(width)
            for whole in (layer.keys, layer.values):
                # Padding is not looked at, but a NaN there would be.
                whole.zero_()
            self._layers.append(layer)

    def compact(self) -> None:
        """Close the gaps that rows left, where they are so many that computing them costs more than to do so."""
        longest = max((self._counts[at] for at, row in enumerate(self.rows) if row is not None), default=0)
        if len(self.going) < 0.75 * len(self.rows) or self.width > 1.25 * longest + _ROOM:
            stay = [(row, self.layers_of(at), self._counts[at]) for at, row in enumerate(self.rows) if row is not None]
            self.rows = []
            if stay:
                self.take(stay)

    def layers_of(self, at: int) -> Layers:
        """Keys and values of a row's ids; where they lie side by side, in place and not a copy."""
        columns = self._mask_BC[at].nonzero().flatten()
        count = len(columns)
        together: Any = columns
        if count and int(columns[-1]) - int(columns[0]) == count - 1:
            together = slice(int(columns[0]), int(columns[-1]) + 1)
        return [(layer.keys[at, :, together], layer.values[at, :, together]) for layer in self._layers]

    def leave(self, row: Row) -> None:
        """Let a row go; its place is free."""
        self.rows[self.rows.index(row)] = None

    def feed(self) -> tuple[list[Row], torch.Tensor]:
        """Compute the ids of each row that are not yet, at least one: the rows, and their ``(B, V)`` logits."""
        places = [at for at, row in enumerate(self.rows) if row is not None]
        new = {at: self._row(at).ids[self._counts[at] :] for at in places}
        count = max(map(len, new.values()))
        ids_BN = torch.full((len(self.rows), count), self._pad_id)
        positions_BN, mask_BN = torch.zeros_like(ids_BN), torch.zeros_like(ids_BN)
        for at, ids in new.items():
            ids_BN[at, count - len(ids) :] = torch.tensor(ids)
            positions_BN[at, count - len(ids) :] = torch.arange(self._counts[at], self._counts[at] + len(ids))
            mask_BN[at, count - len(ids) :] = 1
            self._counts[at] += len(ids)
        device = self._model.device
        ids_BN, positions_BN, mask_BN = ids_BN.to(device), positions_BN.to(device), mask_BN.to(device)
        cache = Cache(layers=self._layers) if self._layers else Cache(layer_class_to_replicate=_Columns)
        most = _CPU_TOKENS if device.type == "cpu" else _DEVICE_TOKENS
        piece = max(1, most // len(self.rows))
        for start in range(0, count, piece):
            part = slice(start, start + piece)
            self._mask_BC = torch.cat([self._mask_BC, mask_BN[:, part]], dim=1)
            logits_BV = self._model(
                input_ids=ids_BN[:, part],
                attention_mask=self._mask_BC,
                position_ids=positions_BN[:, part],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
        self._layers = cache.layers
        return [self._row(at) for at in places], logits_BV if len(places) == len(self.rows) else logits_BV[places]

    def _row(self, at: int) -> Row:
        row = self.rows[at]
        assert row is not None
        return row
