"""One training step on a real model, beside one written by hand with transformers alone.

    python benchmarks/real_step.py MODEL_DIR

Takes a few logged conversations through ``read_logs``, ``weigh`` and one step of ``train`` with plain gradient
descent, of a rate so high that weights change by the gradient and hardly by rounding. By hand: the chat template's
own text of each conversation, tokenized as one, the tokens of each reply found by where its text stands, and the
sum of their weighted losses by PyTorch. Prints both losses, and how far apart the gradients are as a share of their
norm; exits with 1 where the losses are further apart than 1e-5. Rounding in float32 alone makes 3e-5 of this
gradient. The template must write a conversation as the start of the same one gone on, as ChatML does. Two minutes
of one core for 135 million weights.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import drift
from drift.dataset.store import stream_trajectories

LIMIT, RATE = 1e-5, 1024.0
BRIEF = {"role": "system", "content": "You mend clocks. Be brief."}
LATE = {"role": "user", "content": "My clock runs late.\nWhat do I do?"}


def said(*texts: str) -> list[dict[str, str]]:
    """Replies and questions in turn."""
    return [{"role": ("assistant", "user")[at % 2], "content": text} for at, text in enumerate(texts)]


LOG = [
    {"messages": [BRIEF, LATE, *said("Shorten the pendulum.", "Too short now.", "Then turn it back – half a turn.")]},
    {
        "messages": [
            BRIEF,
            LATE,
            *said("Shorten the pendulum.", "By how much?", "A tenth of a millimetre:\n\n1. stop\n2. turn"),
        ]
    },
    {"messages": [BRIEF, LATE, *said("Buy a new one.")]},
    {"messages": [{"role": "user", "content": "Wie spät ist es? 时间"}, *said("Ich weiß es nicht. 😀", "ok", "Gern.")]},
]
REWARDS = (1.0, 0.25, -0.5, 0.5)


def through_drift(folder: str, place: Path) -> tuple[float, dict[str, torch.Tensor], list[list[float]]]:
    """Loss of the step, the weights after it, and what each reply counted, by conversation."""
    rows = [{**row, "reward": reward} for row, reward in zip(LOG, REWARDS, strict=True)]
    (place / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = drift.read_logs(place / "log.jsonl", model=folder, out=place / "logged")
    weights = drift.weigh(data, "rwr", beta=1.0, turns="all", outcome="reward", steps=[], out=place / "weights")
    plain = {"optim": "sgd", "weight_decay": 0.0, "max_grad_norm": 0.0, "logging_steps": 1}
    settings: dict[str, Any] = {
        "max_steps": 1,
        "batch_size": len(LOG),
        "plan": "uniform",
        "warmup": 0.0,
        "save_steps": 0,
    }
    model = drift.train(
        data, weights, model=folder, out=place / "model", learning_rate=RATE, arguments=plain, device="cpu", **settings
    )
    first = json.loads((place / "model" / "metrics.jsonl").read_text().splitlines()[0])
    frame = weights.to_pandas()
    places = {each.id: each.turns[-1].step.info["line"] - 1 for each in stream_trajectories(data)}
    counted = [
        [float(value) for value in frame.set_index("id").weights[name]] for name in sorted(places, key=places.get)
    ]
    return first["loss"], load_file(Path(model) / "model.safetensors"), counted


def by_hand(folder: str, weights: list[list[float]]) -> tuple[float, Any]:
    """The same loss, and the model with its gradient."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    total = 0.0
    for row, counts in zip(LOG, weights, strict=True):
        messages = row["messages"]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, return_tensors="pt")
        ids, spans = encoded["input_ids"], encoded["offset_mapping"][0].tolist()
        weight_T = torch.zeros(ids.shape[1])
        replies = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
        for at, count in zip(replies, counts, strict=True):
            begin = len(tokenizer.apply_chat_template(messages[:at], tokenize=False, add_generation_prompt=True))
            end = text.index(tokenizer.eos_token, begin) + len(tokenizer.eos_token)
            weight_T[[place for place, (first, last) in enumerate(spans) if begin <= first and last <= end]] = count
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        loss = (losses * weight_T[1:]).sum() / len(LOG)
        loss.backward()
        total += loss.item()
    return total, model


def main() -> int:
    """Run both, print, and tell whether they agree."""
    folder = sys.argv[1]
    with tempfile.TemporaryDirectory() as place:
        ours, after, weights = through_drift(folder, Path(place))
    theirs, model = by_hand(folder, weights)
    difference = norm = 0.0
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            moved = (parameter.detach() - after[name].float()) / RATE
            difference += float((moved - parameter.grad).double().norm() ** 2)
            norm += float(parameter.grad.double().norm() ** 2)
    loss, gradient = abs(ours - theirs) / abs(theirs), (difference / norm) ** 0.5
    print(f"loss {ours:.8g}, by hand {theirs:.8g}: off by {loss:.1e}; gradient off by {gradient:.1e} of its norm")
    return int(loss > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
