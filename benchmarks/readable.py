"""How many first replies of a model have an answer that can be read, under several wordings of the opening.

    python benchmarks/readable.py MODEL GSM8K_TEST [--questions 100] [--wordings default,words] [--unread]

MODEL is a Hugging Face folder or name, GSM8K_TEST the file gsm8k_test.jsonl. Replies are greedy. Prints, for each
wording, the share of replies with an answer by the place it was read from, the share that is right, and with --unread
the end of each reply from which nothing was read. The last line is JSON with every figure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from drift.environments.questions import MathQuestions, check_answer
from drift.types import Message
from drift.verifiers import make_verifier
from drift.verifiers.reading import read

EXAMPLE = (
    "A pen costs 3 dollars and a pad 2 dollars. What do 4 pens and a pad cost?",
    "4 pens cost 4 * 3 = 12 dollars. With the pad that is 12 + 2 = 14 dollars.\n<answer>14</answer>",
)
WORDINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "tag": {"prompt": "{question}\n\nThink step by step and end with <answer>your answer</answer>."},
    "number": {"prompt": "{question}\n\nThink step by step. Give the final number in a tag: <answer>number</answer>"},
    "words": {"prompt": '{question}\n\nThink step by step. Your last line must be "The answer is" and the number.'},
    "box": {"prompt": "{question}\n\nThink step by step, and put your final answer within \\boxed{}."},
    "example": {"example": EXAMPLE},
    "system": {
        "system": "You solve problems step by step. The last line of each reply is: <answer>the answer</answer>",
        "prompt": "{question}",
    },
}


def replies(model: Any, tokenizer: Any, openings: list[list[Message]], tokens: int, batch: int) -> list[str]:
    """The greedy reply to each opening."""
    found = []
    for at in range(0, len(openings), batch):
        texts = [
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            for messages in openings[at : at + batch]
        ]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
        with torch.inference_mode():
            ids = model.generate(**inputs, do_sample=False, max_new_tokens=tokens, pad_token_id=tokenizer.pad_token_id)
        found += tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return found


async def judged(texts: list[str], golds: list[str]) -> list[bool]:
    """Whether each reply is right."""
    verifier = make_verifier("numeric")
    return [(await check_answer(verifier, text, gold, ())).right for text, gold in zip(texts, golds, strict=True)]


def main() -> int:
    """Measure, print, and end with one line of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--wordings", default=",".join(WORDINGS))
    parser.add_argument("--max_new_tokens", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=25)
    parser.add_argument("--unread", action="store_true")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model, padding_side="left")
    tokenizer.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype).to(device).eval()
    rows = [json.loads(line) for line in options.data.read_text(encoding="utf-8").splitlines()[: options.questions]]
    golds = [row["answer"].rsplit("####", 1)[1].strip() for row in rows]
    figures: dict[str, Any] = {"model": options.model, "questions": len(rows)}
    for name in options.wordings.split(","):
        settings = dict(WORDINGS[name])
        # As policy.system puts it.
        before: list[Message] = [{"role": "system", "content": settings.pop("system")}] if "system" in settings else []
        environment = MathQuestions(**settings)
        asked = [environment.prompt.replace("{question}", row["question"]) for row in rows]
        openings = [[*before, *environment.opening_of(each)] for each in asked]
        texts = replies(model, tokenizer, openings, options.max_new_tokens, options.batch_size)
        places = Counter(found.where if (found := read(text)) else "unread" for text in texts)
        right = asyncio.run(judged(texts, golds))
        readable = 1 - places["unread"] / len(texts)
        figures[name] = {"readable": readable, "right": sum(right) / len(right), "places": dict(places)}
        print(f"{name:12} readable {readable:7.1%}  right {figures[name]['right']:6.1%}  {dict(places)}", flush=True)
        if options.unread:
            for text in texts:
                if read(text) is None:
                    print("   ", repr(text[-160:]))
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
