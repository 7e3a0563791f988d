"""The same conversations, and the same model, whatever happens beside them: on a real model, with how much is alike.

    python benchmarks/determinism.py MODEL [--stage rollout|train] [--tasks 4] [--samples 2] [--turns 2] [--tokens 8]
        [--steps 4] [--rank 4]

Each line is a run of the command line in a process of its own, compared with the first one: rollouts of ``guess`` by
the hash of the data set and by how many replies are other ones, training by the bytes of the model. ``--rank`` is that
of the LoRA adapter which is trained; 0 trains the whole model. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drift.checksums import sum_of
from drift.dataset.store import read_trajectories, shards
from drift.manifest import read_manifest
from drift.training.checkpoints import last_checkpoint

# Shards are closed at once, so that a run of seconds has something to go on from when it is killed.
START = "from drift.dataset import store; store.FLUSH_SECONDS = 0.0; from drift.cli import entry; entry()"
BUSY = "while True: sum(range(10**6))"


def started(arguments: Sequence[str], threads: int) -> subprocess.Popen[bytes]:
    """A command of drift, with so many threads to compute with."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return subprocess.Popen([sys.executable, "-c", START, *arguments], env=environment, stdout=subprocess.DEVNULL)


def run(arguments: Sequence[str], threads: int = 1, *, kill_when: Callable[[], bool] | None = None) -> None:
    """Run a command to its end; first kill it once, as soon as ``kill_when`` says so."""
    if kill_when is not None:
        with started(arguments, threads) as process:
            while process.poll() is None and not kill_when():
                time.sleep(0.02)
            assert process.poll() is None, "it ended before it could be killed: give it more to do"
            process.send_signal(signal.SIGKILL)
    with started(arguments, threads) as process:
        assert process.wait() == 0, arguments


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes beside, that compute without a pause."""
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def replies(data: Path) -> list[tuple[int, ...]]:
    """The ids of every reply, in order."""
    return [turn.completion.token_ids for each in read_trajectories(data) for turn in each.turns]


def main() -> None:
    """Run everything and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--stage", choices=["rollout", "train"])
    for name, value in (("tasks", 4), ("samples", 2), ("turns", 2), ("tokens", 8), ("steps", 4), ("rank", 4)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="drift-determinism-") as folder:
        place = Path(folder)
        print("| stage | run | same bytes | what differs |\n|---|---|---|---|")
        if args.stage != "train":
            rows += sampling(args, place)
        else:
            run([*sampled(args), "--out", str(place / "1-thread")])
        if args.stage != "rollout":
            rows += training(args, place)
    print(json.dumps(rows))


def tell(row: dict[str, Any]) -> dict[str, Any]:
    """Print a row of the table; returns it."""
    print(f"| {row['stage']} | {row['run']} | {'yes' if row['same'] else 'no'} | {row['differ']} |", flush=True)
    return row


def sampled(args: argparse.Namespace) -> list[str]:
    """The command that samples."""
    command = ["rollout", "guess", "--model", args.model, "--environment.max_turns", str(args.turns)]
    return [*command, "--tasks", str(args.tasks), "--samples", str(args.samples), "--max_new_tokens", str(args.tokens)]


def sampling(args: argparse.Namespace, place: Path) -> Iterator[dict[str, Any]]:
    """Rollouts with what must change no token, and with what might."""
    cases: dict[str, dict[str, Any]] = {
        "1 thread": {},
        "again": {},
        **{f"batches of {size}": {"more": ["--policy.batch_size", str(size)]} for size in (1, 4, 16)},
        **{f"{count} conversations at once": {"more": ["--concurrency", str(count)]} for count in (1, 4, 16)},
        "beside three busy processes": {"load": 3},
        "killed after its first shard, and run again": {"kill": True},
        "2 threads": {"threads": 2},
        "2 threads, batches of 1": {"threads": 2, "more": ["--policy.batch_size", "1"]},
    }
    first: list[tuple[int, ...]] = []
    digest = ""
    for name, case in cases.items():
        out = place / name.replace(" ", "-")
        kill = (lambda out=out: bool(shards(out))) if case.get("kill") else None
        with busy(case.get("load", 0)):
            run([*sampled(args), *case.get("more", ()), "--out", str(out)], case.get("threads", 1), kill_when=kill)
        found, own = replies(out), str(read_manifest(out, "trajectories")["dataset_hash"])
        first, digest = first or found, digest or own
        other = sum(a != b for a, b in zip(first, found, strict=True)) if len(first) == len(found) else "the number"
        differ = "" if own == digest else f"{other} of {len(first)} replies"
        yield tell({"stage": "rollout", "run": name, "same": own == digest, "differ": differ})


def training(args: argparse.Namespace, place: Path) -> Iterator[dict[str, Any]]:
    """Training on those rollouts."""
    data, weights = place / "1-thread", place / "weights"
    run(["weigh", str(data), "--scheme", "sft", "--out", str(weights)])
    command = ["train", str(data), str(weights), "--model", args.model, "--max_steps", str(args.steps)]
    command += ["--batch_size", "4", "--learning_rate", "1e-4", "--save_steps", "1"]
    command += ["--lora.r", str(args.rank)] if args.rank else []
    cases: dict[str, dict[str, Any]] = {
        "1 thread": {},
        "beside three busy processes": {"load": 3},
        "killed after its first checkpoint, and run again": {"kill": True},
        "2 threads": {"threads": 2},
        "2 threads, killed, and run again": {"threads": 2, "kill": True},
    }
    sums: dict[int, str] = {}
    for name, case in cases.items():
        out, threads = place / f"model-{name.replace(' ', '-')}", case.get("threads", 1)
        kill = (lambda out=out: last_checkpoint(out) is not None) if case.get("kill") else None
        with busy(case.get("load", 0)):
            run([*command, "--out", str(out)], threads, kill_when=kill)
        own = sum_of(out / "model.safetensors")
        reference = sums.setdefault(1 if name == "2 threads" else threads, own)
        sums.setdefault(threads, own)
        yield tell(
            {
                "stage": "train",
                "run": name,
                "same": own == reference,
                "differ": "" if own == reference else "the weights",
            }
        )


if __name__ == "__main__":
    main()
