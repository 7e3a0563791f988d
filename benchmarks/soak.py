"""A long run of scripted conversations: whether memory and throughput stay as they were at its start.

    python benchmarks/soak.py [--conversations 1000000] [--picture docs/soak.png]

Collects the conversations (arithmetic, at most two turns, 16 per task), weighs them, evaluates two policies on 25,000
tasks (50,000 conversations) and writes the report page. The last line is JSON with every figure.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import drift
from drift.dataset.store import shards
from drift.policies.base import Sampling
from drift.recipe import EvaluationSettings, RolloutSettings

SAMPLES = 16
SHARD = 2048
SETTINGS = {"digits": 6, "max_turns": 2}


class Watch(threading.Thread):
    """Notes the resident size and the CPU seconds of this process twice a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: list[tuple[float, float, float]] = []
        self._going = True

    def run(self) -> None:
        """Note until stopped."""
        own = psutil.Process()
        while self._going:
            self.seen.append((time.time(), own.memory_info().rss / 2**20, time.process_time()))
            time.sleep(0.5)

    def stop(self) -> list[tuple[float, float, float]]:
        """What was seen: clock, MiB and CPU seconds."""
        self._going = False
        self.join()
        return self.seen


def main() -> int:
    """Run it, print, draw."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--conversations", type=int, default=1_000_000)
    parser.add_argument("--picture", type=str, default="")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        watch = Watch()
        watch.start()
        few = RolloutSettings(tasks=2, samples=2)
        drift.weigh(
            drift.rollout(policy="scripted:5", settings=few, out=folder / "few"), scheme="sft", out=folder / "w"
        )
        found: dict[str, Any] = {"benchmark": "soak", "conversations": arguments.conversations}
        began = time.time()
        data = drift.rollout(
            "arithmetic",
            policy="scripted:<answer>5</answer>|no idea",
            settings=RolloutSettings(tasks=arguments.conversations // SAMPLES, samples=SAMPLES),
            environment_settings=SETTINGS,
            out=folder / "rollouts",
        )
        ended = time.time()
        # A full shard tells when its conversations were done.
        times = [began, *(path.stat().st_mtime for path in shards(data)[:-1])]
        rates = [(at, SHARD / (at - before)) for before, at in itertools.pairwise(times)]
        tenth = max(1, len(rates) // 10)
        first, last = (SHARD * tenth / (ends[-1] - ends[0]) for ends in (times[: tenth + 1], times[-tenth - 1 :]))
        found |= {"rollout_seconds": ended - began, "per_second_first_tenth": first, "per_second_last_tenth": last}
        drift.weigh(data, out=folder / "weights", scheme="sft")
        found["weigh_seconds"] = time.time() - ended
        started = time.time()
        evaluated = drift.evaluate(
            "arithmetic",
            policies={"base": "scripted:<answer>5</answer>", "other": "scripted:<answer>7</answer>|<answer>8</answer>"},
            out=folder / "evaluation",
            settings=EvaluationSettings(tasks=25_000, samples=0),
            sampling=Sampling(max_new_tokens=16),
            environment_settings=SETTINGS,
        )
        found["evaluate_seconds"] = time.time() - started
        started = time.time()
        page = drift.report(evaluated, out=folder / "report.html")
        found |= {"report_seconds": time.time() - started, "report_bytes": page.stat().st_size}
        seen = watch.stop()
    clock, cpu = [at for at, _, _ in seen], [seconds for _, _, seconds in seen]
    busy = [np.interp((ends[0], ends[-1]), clock, cpu) for ends in (times[: tenth + 1], times[-tenth - 1 :])]
    # Other work on the machine slows the clock's rates, not these.
    found["per_cpu_second_first_and_last_tenth"] = [SHARD * tenth / (end - start) for start, end in busy]
    during = [size for at, size, _ in seen if began <= at <= ended]
    part = max(1, len(during) // 10)
    tenths = [sum(during[at : at + part]) / len(during[at : at + part]) for at in range(0, part * 10, part)]
    found |= {"mib_by_tenth": tenths, "mib_at_the_end": during[-1], "mib_peak": max(size for _, size, _ in seen)}
    took = {name: found[f"{name}_seconds"] for name in ("rollout", "weigh", "report")}
    print(f"{arguments.conversations:,} conversations in {took['rollout']:.0f} s, weighed in {took['weigh']:.1f} s")
    print(f"a second: {first:.0f} in the first tenth, {last:.0f} in the last")
    print(
        "a CPU second: {:.0f} in the first tenth, {:.0f} in the last".format(
            *found["per_cpu_second_first_and_last_tenth"]
        )
    )
    print(f"MiB by tenths: {' '.join(f'{size:.0f}' for size in tenths)}; peak of everything {found['mib_peak']:.0f}")
    print(f"50,000 conversations evaluated in {found['evaluate_seconds']:.0f} s, reported in {took['report']:.1f} s")
    if arguments.picture:
        draw(
            [(at - began, rate) for at, rate in rates], [(at - began, size) for at, size, _ in seen], arguments.picture
        )
    print(json.dumps(found))
    return 0


def draw(rates: list[tuple[float, float]], sizes: list[tuple[float, float]], path: str) -> None:
    """Throughput of the rollouts, a point for each twenty shards, and memory over the whole run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), constrained_layout=True)
    groups = [rates[at : at + 20] for at in range(0, len(rates), 20)]
    left.plot([group[-1][0] for group in groups], [len(group) / sum(1 / rate for _, rate in group) for group in groups])
    left.set_ylabel("conversations a second")
    right.plot(*zip(*sizes, strict=True))
    right.set_ylabel("resident memory, MiB")
    for panel in (left, right):
        panel.set_xlabel("seconds")
        panel.set_ylim(bottom=0)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    raise SystemExit(main())
