"""Replies by transformers' own ``generate``: one batch that starts and ends together and keeps nothing.

For models whose cache can't be kept (see ``decoding``), such as those with sliding windows or recurrent layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, StoppingCriteria

from drift.policies.rows import Row, RowPicker


def generate(model: Any, picker: RowPicker, rows: Sequence[Row], pad_id: int) -> None:
    """Bring every row to its end.

    Args:
        model: a causal LM.
        picker: picks its tokens.
        rows: as many as fit in memory.
        pad_id: stands on the left of shorter rows.
    """
    width = max(len(row.ids) for row in rows)
    ids_BT = torch.full((len(rows), width), pad_id)
    mask_BT = torch.zeros((len(rows), width), dtype=torch.long)
    for at, row in enumerate(rows):
        ids_BT[at, width - len(row.ids) :] = torch.tensor(row.ids)
        mask_BT[at, width - len(row.ids) :] = 1
    model.generate(
        input_ids=ids_BT.to(model.device),
        attention_mask=mask_BT.to(model.device),
        max_new_tokens=max(row.sampling.max_new_tokens for row in rows),
        do_sample=False,
        logits_processor=[_Picked(rows, picker, pad_id)],
        stopping_criteria=[_Ended(rows)],
    )


class _Picked(LogitsProcessor):  # type: ignore[misc]
    """Makes ``generate(do_sample=False)`` take the token that is picked for each row."""

    def __init__(self, rows: Sequence[Row], picker: RowPicker, pad_id: int) -> None:
        self._rows, self._picker, self._pad_id = rows, picker, pad_id

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        going = [at for at, row in enumerate(self._rows) if not row.finish]
        self._picker.advance([self._rows[at] for at in going], scores[going])
        token_B1 = torch.full((len(scores), 1), self._pad_id, device=scores.device)
        for at in going:
            token_B1[at] = self._rows[at].ids[-1]
        return torch.full_like(scores, -torch.inf).scatter(-1, token_B1, 0.0)


class _Ended(StoppingCriteria):  # type: ignore[misc]
    """Which rows are over."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.tensor([bool(row.finish) for row in self._rows], device=input_ids.device)
