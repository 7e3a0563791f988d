"""Make the default policy: tokenizer, model and training, from a seed alone."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from drift.types import Message
from tools.default_policy.config import Flaws, PretrainConfig
from tools.default_policy.corpus import KNOWING, conversations

END, PAD = "<|end|>", "<|pad|>"
ROLES = ("system", "user", "assistant", "tool")
CONTROLS = [PAD, END, *(f"<|{role}|>" for role in ROLES)]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def make_tokenizer(seed: int, flaws: Flaws, vocabulary: int) -> Qwen2Tokenizer:
    """Byte-level BPE trained on the corpus, digits and answer tags a token each, with a ChatML template."""
    return tokenizer_of(learn_pieces(seed, flaws, vocabulary))


def learn_pieces(seed: int, flaws: Flaws, vocabulary: int) -> dict[str, Any]:
    """Vocabulary and merges of byte-level BPE on the corpus.

    Text is split as Qwen2's tokenizer does: ``AutoTokenizer`` makes that one for any folder with a Qwen2 model.
    """
    backend = Tokenizer(models.BPE())
    like = Qwen2Tokenizer().backend_tokenizer
    backend.normalizer, backend.pre_tokenizer, backend.decoder = like.normalizer, like.pre_tokenizer, like.decoder
    backend.train_from_iterator(
        (m["content"] for conversation in itertools.islice(conversations(seed, flaws), 2000) for m in conversation),
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=CONTROLS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    learned: dict[str, Any] = json.loads(backend.to_str())["model"]
    return learned


def tokenizer_of(learned: Mapping[str, Any]) -> Qwen2Tokenizer:
    """The tokenizer of what ``learn_pieces`` learned."""
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(pair) for pair in learned["merges"]],
        unk_token=PAD,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=CONTROLS[2:],
        padding_side="left",
    )
    tokenizer.add_tokens(["<answer>", "</answer>"])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


class Encoder:
    """Conversations to ids in the layout of ``CHAT_TEMPLATE``, message by message with each one remembered.

    A hundred times faster than rendering the template for every turn, and gives the same ids (a test compares them).
    """

    def __init__(self, tokenizer: Qwen2Tokenizer) -> None:
        ids = cache(lambda text: tokenizer(text, add_special_tokens=False)["input_ids"])
        self._ids: Callable[[str], list[int]] = ids

    def __call__(self, messages: list[Message]) -> tuple[list[int], list[int]]:
        """Ids of a conversation, and which of them the assistant says (1) or not (0)."""
        ids: list[int] = []
        mask: list[int] = []
        for message in messages:
            body = self._ids(message["content"] + END)
            ids += [*self._ids(f"<|{message['role']}|>"), *body]
            mask += [0] + [int(message["role"] == "assistant")] * len(body)
        return ids, mask


MicroBatch = tuple[torch.Tensor, torch.Tensor]


def micro_batches(rows: list[tuple[list[int], list[int]]], count: int) -> list[MicroBatch]:
    """Split the rows of one step into ``count`` parts of like length, each ``(ids_BT, mask_BT)``.

    All parts of a step make one gradient. Steps of one length each would see nothing but early successes, then
    nothing but long failures, and learn many times slower.
    """
    rows = sorted(rows, key=lambda row: len(row[0]))
    size = -(-len(rows) // count)
    parts = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        width = len(part[-1][0])
        ids_BT = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in part])
        mask_BT = torch.tensor([mask + [0] * (width - len(mask)) for _, mask in part])
        parts.append((ids_BT, mask_BT))
    return parts


def pretrain(config: PretrainConfig, report: Callable[[int, float], None]) -> tuple[Any, Qwen2Tokenizer]:
    """Train the default policy: first what is right, one reply at a time; then the flawed conversations.

    The loss is the negative log-likelihood of all the assistant's tokens of a batch over their number: one global
    count. A mean per conversation would favour short ones, that is early successes (method.md, section 5).

    Args:
        config: size, length and seed.
        report: called with the step and the loss in nats per token.

    Returns:
        The model in float32 on ``config.device``, and its tokenizer.
    """
    torch.manual_seed(config.seed)
    tokenizer = make_tokenizer(config.seed, config.flaws, config.vocabulary)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=-(-len(tokenizer) // 8) * 8,
            hidden_size=config.hidden,
            intermediate_size=config.feed_forward,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            initializer_range=config.hidden**-0.5,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).to(config.device)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=(0.9, 0.98),
    )
    encode = Encoder(tokenizer)
    knowing = map(encode, conversations(config.seed, KNOWING, first_turn_share=1.0))
    flawed = map(encode, conversations(config.seed + 1, config.flaws, first_turn_share=config.first_turn_share))
    model.train()
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _schedule(step / config.steps)
        rows = list(itertools.islice(knowing if step < config.knowing_steps else flawed, config.rows))
        trained = sum(sum(mask) for _, mask in rows)
        total = 0.0
        for ids_BT, mask_BT in micro_batches(rows, 1 if step < config.knowing_steps else 4):
            ids_BT, trained_BT = ids_BT.to(config.device), mask_BT[:, 1:].bool().to(config.device)
            hidden_BTD = model.model(input_ids=ids_BT).last_hidden_state[:, :-1]
            logits_NV = model.lm_head(hidden_BTD[trained_BT]).float()
            loss = cross_entropy(logits_NV, ids_BT[:, 1:][trained_BT], reduction="sum") / trained
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        report(step, total)
    return model.eval(), tokenizer


def _schedule(progress: float) -> float:
    warm_up = 0.02
    if progress < warm_up:
        return progress / warm_up
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up)))
