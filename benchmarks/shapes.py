"""Rollouts and models of a given shape, made of random ids: what decides the cost of training, and nothing else."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

from drift.types import Example


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The published run, scaled to two CPU cores.

    Args:
        prompts: how many.
        samples: K.
        prompt_tokens: of each prompt.
        reply_tokens: longest reply.
        feedback_tokens: of what the environment says to a wrong reply.
        turns: T.
        vocabulary: ids.
        solve: chance that a reply is right.
    """

    prompts: int = 1
    samples: int = 16
    prompt_tokens: int = 256
    reply_tokens: int = 128
    feedback_tokens: int = 12
    turns: int = 5
    vocabulary: int = 32_000
    solve: float = 0.3


def make_rows(shape: Shape, *, seed: int = 0, scope: str = "terminal", beta: float = 0.1) -> list[Example]:
    """Training rows of conversations of that shape, weighed as DRIFT does (γ = 0.9, no penalty).

    Reply lengths are log-normal around half the longest, as those of reasoning models are.
    """
    rng = random.Random(seed)

    def some(count: int) -> list[int]:
        return [rng.randrange(3, shape.vocabulary) for _ in range(count)]

    rows = []
    for prompt in range(shape.prompts):
        opening = some(shape.prompt_tokens)
        group = []
        for _ in range(shape.samples):
            ids, sampled, solved = list(opening), [False] * len(opening), False
            for turn in range(1, shape.turns + 1):
                reply = some(
                    min(shape.reply_tokens, max(4, int(rng.lognormvariate(math.log(shape.reply_tokens / 2), 0.6))))
                )
                solved = rng.random() < shape.solve
                if scope == "terminal":
                    sampled = [False] * len(ids)
                ids, sampled = ids + reply, sampled + [True] * len(reply)
                if solved or turn == shape.turns:
                    break
                ids, sampled = ids + some(shape.feedback_tokens), sampled + [False] * shape.feedback_tokens
            group.append((ids, sampled, 0.9 ** (turn - 1) if solved else 0.0))
        scores = [math.exp(value / beta) for *_, value in group]
        for sample, ((ids, sampled, _), score) in enumerate(zip(group, scores, strict=True)):
            weight = score * shape.samples / sum(scores)
            rows.append(
                Example(
                    trajectory_id=f"p{prompt}#{sample}",
                    group_id=f"p{prompt}",
                    token_ids=tuple(ids),
                    sampled=tuple(sampled),
                    weight=tuple(weight * flag for flag in sampled),
                )
            )
    return rows


def make_model(*, vocabulary: int, hidden: int = 256, layers: int = 6, seed: int = 0) -> Any:
    """A stock Qwen2 in float32 with random weights."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=max(4, hidden // 64),
            num_key_value_heads=max(2, hidden // 128),
            max_position_embeddings=8192,
            tie_word_embeddings=False,
        )
    )


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import os
    import platform

    import torch

    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            name = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {"cpu": name, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}
