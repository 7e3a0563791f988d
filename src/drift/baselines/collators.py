"""Batches for TRL's trainers of the ids that were sampled, with the environment's words out of the loss.

TRL makes ids of messages by rendering and tokenizing them again, and counts all that follows the prompt as the
completion. Both trainers take a collator, and with ``remove_unused_columns=False`` it is given every column of an
export, ``sampled_ids`` among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

Batch = dict[str, torch.Tensor]


class SampledPairs:
    """Collates rows of ``dpo``, ``dpo-final`` and ``dpo-step`` for ``DPOTrainer``: chosen ones first, then rejected.

    ``completion_mask`` is 1 where the policy sampled, and 0 on the prompt, on the environment's words and on padding.

    Args:
        pad_id: what rows are filled up with; any id, since no position that holds it is read or trained.
    """

    def __init__(self, pad_id: int) -> None:
        self._pad_id = pad_id

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """One batch of twice as many rows as pairs."""
        found = [row["sampled_ids"] for row in rows]
        sides = [(ids["prompt"], ids[side], ids[f"{side}_mask"]) for side in ("chosen", "rejected") for ids in found]
        batch = _padded(sides, self._pad_id)
        for name in ("ref_chosen_logps", "ref_rejected_logps"):
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows])
        return batch


class SampledLabels:
    """Collates rows of ``kto`` for ``KTOTrainer``.

    The divergence term of KTO is estimated from prompts with the completion of another row: here that of the row
    before in the same batch, the first row taking the last one's.

    Args:
        pad_id: what rows are filled up with.
    """

    def __init__(self, pad_id: int) -> None:
        self._pad_id = pad_id

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """One batch, and under ``KL_…`` the same with mismatched completions."""
        found = [row["sampled_ids"] for row in rows]
        own = [(ids["prompt"], ids["completion"], ids["completion_mask"]) for ids in found]
        other = [
            (ids["prompt"], before["completion"], before["completion_mask"])
            for ids, before in zip(found, [found[-1], *found[:-1]], strict=True)
        ]
        batch = _padded(own, self._pad_id)
        batch |= {f"KL_{name}": tensor for name, tensor in _padded(other, self._pad_id).items()}
        batch["label"] = torch.tensor([bool(row["label"]) for row in rows])
        for name in ("ref_logps", "ref_KL_logps"):
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows])
        return batch


def _padded(rows: Sequence[tuple[Sequence[int], Sequence[int], Sequence[int]]], pad_id: int) -> Batch:
    """Rows of prompt ids, completion ids and completion mask, filled up on the right."""
    width = max(len(prompt) + len(completion) for prompt, completion, _ in rows)
    ids_BT = torch.full((len(rows), width), pad_id)
    attention_BT = torch.zeros((len(rows), width), dtype=torch.long)
    mask_BT = torch.zeros((len(rows), width), dtype=torch.long)
    for at, (prompt, completion, mask) in enumerate(rows):
        start, end = len(prompt), len(prompt) + len(completion)
        ids_BT[at, :end] = torch.tensor([*prompt, *completion])
        attention_BT[at, :end] = 1
        mask_BT[at, start:end] = torch.tensor(mask)
    return {"input_ids": ids_BT, "attention_mask": attention_BT, "completion_mask": mask_BT}
