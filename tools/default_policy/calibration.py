"""How near the default policy comes to the distribution it was trained on, by exact probabilities, without sampling."""

from __future__ import annotations

import random
from typing import Any

import torch

from drift.environments.arithmetic import Arithmetic
from drift.types import Message
from tools.default_policy.config import Flaws
from tools.default_policy.corpus import label
from tools.default_policy.pretrain import Encoder


def reply_probability(model: Any, encode: Encoder, conversations: list[list[Message]]) -> list[float]:
    """Probability that ``model`` says each conversation's last message, given what precedes it."""
    rows = [encode(messages)[0] for messages in conversations]
    starts = [len(encode(messages[:-1])[0]) + 1 for messages in conversations]
    width = max(map(len, rows))
    ids_BT = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=model.device)
    with torch.inference_mode():
        logprobs_BTV = torch.log_softmax(model(input_ids=ids_BT).logits[:, :-1].float(), dim=-1)
    nll_BT = logprobs_BTV.gather(-1, ids_BT[:, 1:, None]).squeeze(-1)
    return [float(nll_BT[row, start - 1 : len(rows[row]) - 1].sum().exp()) for row, start in enumerate(starts)]


def calibrate(model: Any, encode: Encoder, flaws: Flaws, *, count: int = 300, seed: int = 0) -> dict[str, float]:
    """Chances of the right answer, of the commonest slip and of insisting on it, by kind of held-out problem.

    Returns:
        ``right/<kind>``, ``slip/…`` and ``insist/…``: means over problems; compare with ``Flaws``.
    """
    slip = max(flaws.slips, key=lambda key: flaws.slips[key])
    found: dict[str, list[float]] = {}
    rng = random.Random(seed)
    tasks = Arithmetic().tasks("test", count, rng.randrange(2**31))
    for task in tasks:
        truth = int(task.payload["answer"])
        asked: Message = {"role": "user", "content": str(task.payload["question"])}
        right: Message = {"role": "assistant", "content": f"<answer>{truth}</answer>"}
        wrong: Message = {"role": "assistant", "content": f"<answer>{truth + slip}</answer>"}
        told: Message = {"role": "user", "content": str(Arithmetic().feedback)}
        chances = reply_probability(model, encode, [[asked, right], [asked, wrong], [asked, wrong, told, wrong]])
        for name, chance in zip(("right", "slip", "insist"), chances, strict=True):
            found.setdefault(f"{name}/{label(task)}", []).append(chance)
    return {key: sum(values) / len(values) for key, values in sorted(found.items())}
