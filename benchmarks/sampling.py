"""Conversations of several turns sampled from a real model: drift's own policy beside what else one would use.

    python benchmarks/sampling.py MODEL DATA [--prompts 8] [--samples 8] [--turns 5] [--tokens 48] [--rounds 2]
        [--vllm PYTHON] [--before FOLDER] [--cpu] [--check]

MODEL is a folder or a hub id, DATA a JSONL file of records with ``question``. Each question is asked ``--samples``
times, and after each reply the user asks to try again, until every conversation has ``--turns`` replies.

- **drift**: the ``hf`` policy, all requests of a turn at once.
- **generate**: one static batch of ``transformers.generate`` per turn, sampled, padded on the left.
- **vllm**: with ``--vllm``, a Python that has it: one ``LLM.generate`` per turn, prefixes cached.
- **before**: with ``--before``, the ``src`` folder of another checkout of drift, whose ``hf`` policy does the same.

Every measurement is a process of its own, which loads the model before the clock starts; rounds are interleaved, and
figures are medians of ratios of tokens per second within a round. ``--cpu`` counts processor seconds instead, on a
machine that others use too (with OMP_NUM_THREADS=1, since threads that wait count as well).

``--check`` instead samples the same conversations in batches of 4, 16 and 64, with caches and without, and compares
them id for id. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

AGAIN = "Please check each step of that, and try again."
LATE = 2  # turns at the end that are compared with ``--before`` alone


def conversation(question: str, replies: Sequence[str]) -> list[dict[str, str]]:
    """The messages before the next reply."""
    messages = [{"role": "user", "content": question}]
    for reply in replies:
        messages += [{"role": "assistant", "content": reply}, {"role": "user", "content": AGAIN}]
    return messages


def measured(args: argparse.Namespace, say: Callable[[list[list[int]], int], list[list[int]]]) -> dict[str, Any]:
    """Tokens and seconds of each turn; ``say`` gives the replies' ids to prompts' ids in one turn.

    As everywhere in drift, a prompt goes on from the very ids that were sampled.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    text = tokenizer.apply_chat_template(conversation("Q", ["A"]), tokenize=False, add_generation_prompt=True)
    between = tokenizer(text[text.index("A<|im_end|>") + 1 :], add_special_tokens=False)["input_ids"]
    lines = Path(args.data).read_text().splitlines()[: args.prompts]
    prompts = []
    for line in lines:
        messages = conversation(json.loads(line)["question"], [])
        asked = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompts += [tokenizer(asked, add_special_tokens=False)["input_ids"] for _ in range(args.samples)]
    turns = []
    for turn in range(args.turns):
        clock = time.process_time if args.cpu else time.perf_counter
        start = clock()
        replies = say(prompts, turn)
        turns.append({"seconds": clock() - start, "tokens": sum(map(len, replies))})
        whole = [reply[:-1] if reply[-1] == end else reply for reply in replies]
        prompts = [[*prompt, *reply, *between] for prompt, reply in zip(prompts, whole, strict=True)]
    return {"turns": turns, "ids": prompts}


def with_drift(args: argparse.Namespace) -> dict[str, Any]:
    """The ``hf`` policy of the drift that is imported."""
    from drift.policies.base import Sampling, derive_seed
    from drift.policies.hf import HFPolicy

    policy = HFPolicy(args.model, **({"batch_size": args.batch} if args.batch else {}))
    if args.uncached:
        policy._decoder._keeps = False
    sampling = Sampling(max_new_tokens=args.tokens)

    async def one_turn(prompts: list[list[int]], turn: int) -> list[list[int]]:
        asked = (
            policy.complete(tuple(prompt), sampling=sampling, seed=derive_seed(1, at, turn))
            for at, prompt in enumerate(prompts)
        )
        return [list(reply.token_ids) for reply in await asyncio.gather(*asked)]

    with asyncio.Runner() as runner:
        found = measured(args, lambda prompts, turn: runner.run(one_turn(prompts, turn)))
    return {**found, "decided_again": getattr(policy, "tokens_decided_again", None)}


def with_generate(args: argparse.Namespace) -> dict[str, Any]:
    """One static batch per turn."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])

    @torch.inference_mode()
    def say(prompts: list[list[int]], turn: int) -> list[list[int]]:
        torch.manual_seed(turn)
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        settings = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": args.tokens}
        out = model.generate(input_ids=ids, attention_mask=mask, **settings)[:, width:].tolist()
        cut = [next((at + 1 for at, token in enumerate(row) if token in ends), len(row)) for row in out]
        return [row[:length] for row, length in zip(out, cut, strict=True)]

    return measured(args, say)


def with_vllm(args: argparse.Namespace) -> dict[str, Any]:
    """One call of its own loop per turn."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if args.cpu:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM, SamplingParams

    engine = LLM(
        args.model,
        dtype="float32",
        enable_prefix_caching=True,
        block_size=32,
        generation_config="vllm",
        kv_cache_memory_bytes=4 << 30,
        max_model_len=2048,
    )
    settings = SamplingParams(temperature=1.0, max_tokens=args.tokens, detokenize=False)

    def say(prompts: list[list[int]], turn: int) -> list[list[int]]:
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        return [list(each.outputs[0].token_ids) for each in engine.generate(asked, settings, use_tqdm=False)]

    return measured(args, say)


ENGINES = {"drift": with_drift, "before": with_drift, "generate": with_generate, "vllm": with_vllm}


def in_process(args: argparse.Namespace, engine: str, *more: str) -> dict[str, Any]:
    """What ``engine`` measures, in a process of its own."""
    python = args.vllm if engine == "vllm" else sys.executable
    places = {"PYTHONPATH": args.before} if engine == "before" else {}
    sizes = [f"--{name}={getattr(args, name)}" for name in ("prompts", "samples", "turns", "tokens")]
    more = (*more, *(["--cpu"] if args.cpu else []))
    command = [python, __file__, args.model, args.data, *sizes, "--engine", engine, *more]
    done = subprocess.run(command, env={**os.environ, **places}, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    rates = " ".join(f"{turn['tokens'] / turn['seconds']:.0f}" for turn in found["turns"])
    print(f"{engine} {' '.join(more)}: {rates} tokens/s by turn", flush=True)
    return found


def rate(found: dict[str, Any], first: int = 0) -> float:
    """Tokens per second from turn ``first`` on."""
    turns = found["turns"][first:]
    return sum(turn["tokens"] for turn in turns) / sum(turn["seconds"] for turn in turns)


def check(args: argparse.Namespace) -> int:
    """Whether batches and caches change nothing."""
    wanted = [f"--batch={size}" for size in (64, 16, 4)]
    ways = [(size, *more) for more in ((), ("--uncached",)) for size in wanted]
    found = {" ".join(way): in_process(args, "drift", *way)["ids"] for way in ways}
    first, *others = found.values()
    same = [sum(a == b for a, b in zip(first, other, strict=True)) for other in others]
    print(
        json.dumps({"conversations": len(first), "the_same_as_the_first": dict(zip([*found][1:], same, strict=True))})
    )
    return 0 if all(count == len(first) for count in same) else 1


def compare(args: argparse.Namespace) -> int:
    """Rounds of all engines."""
    peers = ["generate", *(["vllm"] if args.vllm else []), *(["before"] if args.before else [])]
    rounds = [{name: in_process(args, name) for name in ("drift", *peers)} for _ in range(args.rounds)]
    again = sum(each["drift"]["decided_again"] for each in rounds)
    tokens = sum(turn["tokens"] for each in rounds for turn in each["drift"]["turns"])

    def times(peer: str, first: int = 0) -> float:
        return round(statistics.median(rate(each["drift"], first) / rate(each[peer], first) for each in rounds), 2)

    figures: dict[str, Any] = {f"times_{peer}": times(peer) for peer in peers}
    if args.before:
        figures["times_before_late_turns"] = times("before", max(0, args.turns - LATE))
    figures |= {
        f"tokens_per_s_{name}": round(statistics.median(rate(r[name]) for r in rounds), 1) for name in rounds[0]
    }
    figures |= {"redecided_per_token": again / tokens, "conversations": args.prompts * args.samples}
    print(json.dumps(figures))
    return 0


def main() -> int:
    """Measure or check, print, and end with one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("data")
    for name, default in (("prompts", 8), ("samples", 8), ("turns", 5), ("tokens", 48), ("rounds", 2), ("batch", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--vllm", default="", help="a Python that has vLLM")
    parser.add_argument("--before", default="", help="src folder of another checkout")
    parser.add_argument("--cpu", action="store_true", help="count processor seconds")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--uncached", action="store_true")
    parser.add_argument("--engine", choices=ENGINES, help="measure this one alone, in this process")
    args = parser.parse_args()
    if args.engine:
        print(json.dumps(ENGINES[args.engine](args)))
        return 0
    return check(args) if args.check else compare(args)


if __name__ == "__main__":
    raise SystemExit(main())
