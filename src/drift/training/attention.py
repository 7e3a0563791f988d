"""Attention over a tree of segments, behind transformers' ``AttentionInterface``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AttentionInterface

NAME = "drift_tree"
# What models hand to every attention function, and what says nothing that the layout does not.
_UNREAD = ("position_ids", "cache_position", "use_cache", "output_attentions")


class Layout:
    """Which segments of a sequence see which, with the masks made for them so far.

    Args:
        lengths: of the segments, in order.
        ancestors: of each segment, the segments before it that it continues, from the first.

    Attributes:
        calls: how often the attention was called with this layout: once per layer in a forward pass.
    """

    def __init__(self, lengths: Sequence[int], ancestors: Sequence[Sequence[int]]) -> None:
        self.lengths = list(lengths)
        self.ancestors = [list(chain) for chain in ancestors]
        self.calls = 0
        self._masks: dict[tuple[Any, ...], torch.Tensor | None] = {}

    def mask(self, segment: int, window: int | None, device: torch.device) -> torch.Tensor | None:
        """``(S, P+S)`` which keys each query of a segment sees; ``None`` where that is plain causal.

        Args:
            segment: which; its S tokens follow the P of its ancestors.
            window: sliding window in tokens, if there is one.
            device: where the mask is needed.
        """
        own = self.lengths[segment]
        above = sum(self.lengths[index] for index in self.ancestors[segment])
        if window is not None and above + own <= window:
            window = None
        if above == 0 and window is None:
            return None
        key = (own, above, window, device)
        if key not in self._masks:
            distance = torch.arange(above, above + own, device=device)[:, None] - torch.arange(
                above + own, device=device
            )
            seen = distance >= 0
            self._masks[key] = seen if window is None else seen & (distance < window)
        return self._masks[key]


def tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    tree: Layout,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Each segment attends to its ancestors and, causally, to itself.

    Args:
        module: the attention layer.
        query: ``(1, H, N, D)``.
        key: ``(1, H_kv, N, D)``.
        value: ``(1, H_kv, N, D)``.
        attention_mask: ``None``: the layout says it all.
        tree: the layout of the N tokens.
        scaling: of the scores; ``None`` is ``D^−½``.
        dropout: of the attention probabilities.
        sliding_window: how many tokens back a token sees, itself included.
        softcap: scores become ``softcap · tanh(score / softcap)``.
        s_aux: ``(H,)`` attention sinks: the score of one more key, without a value, that every token sees.
        is_causal: whether a token sees only what stands before it.
        others: what else the model hands over.

    Returns:
        ``(1, N, H, D)``, and no attention probabilities.

    Raises:
        ValueError: a mask, or an argument that would change the result and is not known here.
    """
    unknown = [name for name, value in others.items() if value is not None and name not in _UNREAD]
    if attention_mask is not None:
        unknown.append("attention_mask")
    if is_causal is False:
        unknown.append("is_causal=False")
    if unknown:
        raise ValueError(f"its attention takes {', '.join(unknown)}, which is not known here")
    tree.calls += 1
    repeats = query.shape[1] // key.shape[1]
    # One split and not N slices: the gradient of a slice is a tensor as long as the whole.
    queries, keys, values = (torch.split(part, tree.lengths, dim=2) for part in (query, key, value))
    outputs = []
    for segment, above in enumerate(tree.ancestors):
        chain = [*above, segment]
        k, v = (torch.cat([part[i] for i in chain], dim=2) if above else part[segment] for part in (keys, values))
        if repeats > 1:
            k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        mask = tree.mask(segment, sliding_window, query.device)
        if softcap is not None or s_aux is not None:
            outputs.append(_from_scores(queries[segment], k, v, mask, scaling, dropout, softcap, s_aux))
            continue
        outputs.append(
            torch.nn.functional.scaled_dot_product_attention(
                queries[segment], k, v, attn_mask=mask, is_causal=mask is None, dropout_p=dropout, scale=scaling
            )
        )
    # In one piece, as transformers' own return it: some models view it in other shapes.
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _from_scores(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention with what torch's own has no argument for: capped scores, and sinks."""
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(scores.dtype).reshape(-1, 1, 1).expand(*scores.shape[:-1], 1)], dim=-1)
    probabilities = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)[..., : key.shape[-2]]
    return torch.nn.functional.dropout(probabilities, p=dropout) @ value


AttentionInterface.register(NAME, tree_attention)
