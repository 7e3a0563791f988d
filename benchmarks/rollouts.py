"""What it costs to wait for the slowest: conversations through one vLLM engine, with and without a barrier.

    python benchmarks/rollouts.py [--conversations 2048] [--room 64 256] [--rounds 2] [--sigma 1]

One engine of ``drift``'s own policy ``vllm:default`` holds the same conversations of at most five turns again and
again, with the same seeds, lengths, environment and files written. It has room for ``--room`` replies at once: on two
cores a step with 256 is nearly ten times as dear as one with a single reply, one with 64 three to four times.

- **ours**: ``drift.rollouts.collect`` with as many conversations open as it has by default, twice what the engine has
  room for. Each goes to its next turn as soon as its reply is there; meanwhile another's request takes its place.
- **turn by turn**: batches of ``--room`` conversations; all of a batch finish turn t before any starts t+1, and a batch
  ends before the next begins, as loops do that call ``generate`` on a batch once per turn.
- **turn by turn, all at once**: the same with every conversation in one batch. The engine queues what it has no room
  for, so that a turn's long tail is shared by all; what is left of the barrier's price is its least.
- **single turns**: the prompts that our loop sent, as one pile of unconnected requests straight to the engine, each
  with as many tokens as its reply had, and nothing done with the replies: what the engine gives without any loop.

The shipped policy's own replies are five tokens long. So the length of each is drawn instead, as skewed as those of
reasoning models may be: log-normal (median 16, at most 320 tokens; with a ``--sigma`` of 1 the 99th percentile is ten
times the median, with 1.25 eighteen times), from the request's seed, and the end-of-turn token is ignored until then.
The engine forgets its prefixes before each measurement. Rounds are interleaved and figures are medians of ratios within
a round. The last line is JSON with every figure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from drift.dataset.store import TrajectoryWriter, read_trajectories
from drift.environments import make_environment
from drift.environments.base import EnvironmentFactory
from drift.policies.base import Policy, Sampling, derive_seed
from drift.policies.vllm import VLLMPolicy
from drift.rollouts.collect import collect
from drift.rollouts.episode import Assignment, episode
from drift.types import Completion, Task, Trajectory

MEDIAN_TOKENS, MOST_TOKENS = 16, 320
SAMPLES = 4
SAMPLING = Sampling(max_new_tokens=MOST_TOKENS)


def reply_length(seed: int, sigma: float) -> int:
    """Tokens of the reply to the request with this seed, from a log-normal of this ``sigma``."""
    drawn = MEDIAN_TOKENS * math.exp(random.Random(seed).gauss(0.0, sigma))
    return max(1, min(MOST_TOKENS, round(drawn)))


class DrawnLengths(VLLMPolicy):
    """``vllm`` whose replies are as long as ``reply_length`` says."""

    sigma = 1.0

    def _parameters(self, sampling: Sampling, seed: int) -> Any:
        parameters = super()._parameters(sampling, seed)
        parameters.max_tokens = reply_length(seed, self.sigma)
        parameters.ignore_eos = True
        parameters.stop_token_ids = []
        parameters._all_stop_token_ids = set()
        return parameters

    async def forget(self) -> None:
        """Empty the engine's prefix cache."""
        await self.in_engine(lambda engine: engine.reset_prefix_cache())

    async def pile(self, requests: Sequence[tuple[tuple[int, ...], int]]) -> int:
        """Send every (prompt, seed) at once and wait for all replies; the number of tokens sampled."""
        parameters = [self._parameters(SAMPLING, seed) for _, seed in requests]
        replies = await self.in_engine(
            lambda engine: asyncio.gather(
                *(
                    _only(engine, prompt, given, f"pile-{i}")
                    for i, ((prompt, _), given) in enumerate(zip(requests, parameters, strict=True))
                )
            )
        )
        return sum(replies)


async def _only(engine: Any, prompt: tuple[int, ...], parameters: Any, name: str) -> int:
    from vllm.inputs import tokens_input

    sampled = 0
    async for output in engine.generate(tokens_input(list(prompt)), parameters, name):
        sampled = len(output.outputs[0].token_ids)
    return sampled


class Barrier:
    """A policy that keeps all requests until every open conversation has sent one, and all replies until the last."""

    def __init__(self, policy: Policy, open_: int) -> None:
        self._policy, self._open = policy, open_
        self.fingerprint, self.chat, self.context_length = policy.fingerprint, policy.chat, policy.context_length
        self._waiting: list[tuple[tuple[int, ...], int, asyncio.Future[Completion]]] = []
        self._turn: asyncio.Task[None] | None = None

    async def complete(self, prompt_ids: tuple[int, ...], *, sampling: Sampling, seed: int) -> Completion:
        """One reply, once all have theirs."""
        reply: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._waiting.append((prompt_ids, seed, reply))
        self._check(sampling)
        return await reply

    def ended(self) -> None:
        """One conversation less to wait for."""
        self._open -= 1
        self._check(SAMPLING)

    def _check(self, sampling: Sampling) -> None:
        if self._waiting and len(self._waiting) == self._open:
            batch, self._waiting = self._waiting, []
            self._turn = asyncio.get_running_loop().create_task(self._run(batch, sampling))

    async def _run(self, batch: list[tuple[tuple[int, ...], int, asyncio.Future[Completion]]], how: Sampling) -> None:
        found = await asyncio.gather(*(self._policy.complete(ids, sampling=how, seed=seed) for ids, seed, _ in batch))
        for (_, _, reply), completion in zip(batch, found, strict=True):
            reply.set_result(completion)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What every measurement shares."""

    policy: DrawnLengths
    factory: EnvironmentFactory
    tasks: list[Task]
    seed: int
    room: int


def ours(setting: Setting, out: Path) -> None:
    """All conversations through drift's own collection."""
    collect(
        setting.tasks,
        setting.factory,
        setting.policy,
        out,
        environment={"name": "arithmetic"},
        samples=SAMPLES,
        seed=setting.seed,
        sampling=SAMPLING,
        label="ours",
    )


def turn_by_turn(setting: Setting, out: Path, batch: int) -> None:
    """The same conversations with a barrier after each turn, ``batch`` at a time, into the same kind of files."""
    todo = [
        Assignment(task=task, sample=sample, seed=derive_seed(setting.seed, task.id, sample))
        for task in setting.tasks
        for sample in range(SAMPLES)
    ]

    async def hold(writer: TrajectoryWriter) -> None:
        for start in range(0, len(todo), batch):
            together = todo[start : start + batch]
            barrier = Barrier(setting.policy, len(together))

            async def one(assignment: Assignment, barrier: Barrier = barrier) -> None:
                writer.append(await episode(assignment, setting.factory, barrier, SAMPLING))
                barrier.ended()

            await asyncio.gather(*map(one, together))

    with TrajectoryWriter(out, {"policy": setting.policy.fingerprint}, setting.tasks) as writer:
        asyncio.run(hold(writer))
        writer.finish()


def single_turns(setting: Setting, trajectories: list[Trajectory]) -> int:
    """The prompts of ``trajectories`` as unconnected requests, all first turns before all second ones."""
    requests = [
        (turn, trajectory.turns[turn].prompt_ids, derive_seed(trajectory.seed, turn))
        for trajectory in trajectories
        for turn in range(len(trajectory.turns))
    ]
    requests.sort(key=lambda request: request[0])
    return asyncio.run(setting.policy.pile([(prompt, seed) for _, prompt, seed in requests]))


def timed(setting: Setting, run: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Seconds on the clock and of all processors that ``run`` takes with an empty prefix cache, and what it returns."""
    asyncio.run(setting.policy.forget())
    start, used = time.perf_counter(), processor_seconds()
    found = run()
    return {"seconds": time.perf_counter() - start, "cpu_seconds": processor_seconds() - used}, found


def processor_seconds() -> float:
    """Used so far by this process and the engine's."""
    own = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in (own, *own.children(recursive=True)))


def facts(trajectories: list[Trajectory], spent: dict[str, float]) -> dict[str, Any]:
    """Counts and rates of one measurement."""
    tokens = sum(t.tokens_sampled for t in trajectories)
    seconds = spent["seconds"]
    return {
        **spent,
        "trajectories": len(trajectories),
        "turns": sum(len(t.turns) for t in trajectories),
        "tokens": tokens,
        "trajectories_per_s": len(trajectories) / seconds,
        "tokens_per_s": tokens / seconds,
    }


def one_round(setting: Setting, folder: Path, conversations: int) -> dict[str, dict[str, Any]]:
    """Every measurement once."""
    found: dict[str, dict[str, Any]] = {}
    loops: dict[str, Callable[[Path], None]] = {
        "ours": lambda out: ours(setting, out),
        "turn_by_turn": lambda out: turn_by_turn(setting, out, setting.room),
        "turn_by_turn_all": lambda out: turn_by_turn(setting, out, conversations),
    }
    for name, loop in loops.items():
        spent, _ = timed(setting, lambda loop=loop, name=name: loop(folder / name))
        held = read_trajectories(folder / name)
        found[name] = facts(held, spent)
        if name == "ours":
            spent, tokens = timed(setting, lambda held=held: single_turns(setting, held))
            found["single_turns"] = {**spent, "tokens": tokens, "tokens_per_s": tokens / spent["seconds"]}
            assert tokens == found["ours"]["tokens"], (tokens, found["ours"]["tokens"])
    return found


def spread(trajectories: list[Trajectory]) -> dict[str, float]:
    """How long replies were, in tokens."""
    lengths = sorted(len(turn.completion.token_ids) for t in trajectories for turn in t.turns)
    at = lambda share: lengths[min(len(lengths) - 1, int(share * len(lengths)))]  # noqa: E731
    return {
        "mean": statistics.fmean(lengths),
        "p10": at(0.1),
        "median": at(0.5),
        "p90": at(0.9),
        "p99": at(0.99),
        "max": lengths[-1],
    }


def measure(setting: Setting, folder: Path, conversations: int, rounds: int) -> dict[str, Any]:
    """All rounds at the policy's sigma: replies' lengths, ratios, and every figure."""
    found = []
    for index in range(rounds):
        found.append(one_round(setting, folder / str(index), conversations))
        print(
            f"round {index + 1}: "
            + ", ".join(f"{k} {v['seconds']:.1f} s ({v['cpu_seconds']:.0f} cpu)" for k, v in found[-1].items())
        )
    lengths = spread(read_trajectories(folder / "0" / "ours"))
    ratios = {
        name: statistics.median(each["ours"][rate] / each[peer][rate] for each in found)
        for name, peer, rate in (
            ("trajectories_per_s_over_turn_by_turn", "turn_by_turn", "trajectories_per_s"),
            ("trajectories_per_s_over_turn_by_turn_all_at_once", "turn_by_turn_all", "trajectories_per_s"),
            ("tokens_per_s_over_single_turns", "single_turns", "tokens_per_s"),
        )
    }
    middle = {name: statistics.median(r[name]["tokens_per_s"] for r in found) for name in found[0]}
    print("reply tokens: " + ", ".join(f"{name} {value:.0f}" for name, value in lengths.items()))
    print("tokens/s, medians: " + ", ".join(f"{name} {value:.0f}" for name, value in middle.items()))
    first, second, third = ratios.values()
    print(f"trajectories/s, ours / turn by turn in batches of {setting.room}: {first:.2f} (wanted >= 1.5)")
    print(f"trajectories/s, ours / turn by turn, all at once: {second:.2f}")
    print(f"tokens/s, ours / single turns: {third:.2f} (wanted >= 0.85)")
    return {"reply_tokens": lengths, "ratios": ratios, "rounds": found}


def with_room(room: int, conversations: int, sigmas: Sequence[float], rounds: int) -> dict[str, Any]:
    """One engine with room for ``room`` replies: the measurements of each sigma."""
    policy = DrawnLengths("default", max_num_seqs=room)
    factory = make_environment({"name": "arithmetic", "max_turns": 5})
    tasks = factory.tasks("train", conversations // SAMPLES, 1)
    setting = Setting(policy=policy, factory=factory, tasks=tasks, seed=1, room=room)
    print(f"{conversations} conversations, room for {room} at once, {len(os.sched_getaffinity(0))} cores")
    figures = {}
    with policy.keep_running(), tempfile.TemporaryDirectory() as folder:
        # Kernels are compiled and buffers grown in the first second or two of work; nobody is timed on them.
        warm = Setting(policy=policy, factory=factory, tasks=tasks[: room // SAMPLES], seed=0, room=room)
        ours(warm, Path(folder) / "warm")
        for sigma in sigmas:
            policy.sigma = sigma
            print(f"sigma {sigma:g}")
            figures[f"{sigma:g}"] = measure(setting, Path(folder) / f"{sigma:g}", conversations, rounds)
    return figures


def main() -> int:
    """Measure, print, and end with one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--conversations", type=int, default=2048)
    parser.add_argument("--room", type=int, nargs="+", default=[64, 256], help="replies the engine samples at once")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--sigma", type=float, nargs="+", default=[1.0], help="spreads of the logarithm of lengths")
    args = parser.parse_args()
    figures = {room: with_room(room, args.conversations, args.sigma, args.rounds) for room in args.room}
    print(json.dumps({"conversations": args.conversations, "room": figures}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
