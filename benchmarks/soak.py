"""A long run of scripted conversations: whether memory and throughput stay as they were at its start.

    python benchmarks/soak.py [--conversations 1000000] [--picture docs/soak.png]

Collects the conversations (arithmetic, at most two turns, 16 per task), weighs them, evaluates two policies on 25,000
tasks (50,000 conversations) and writes the report page. The last line is JSON with every figure.
"""

from __future__ import annotations

import argparse
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

SAMPLES = 16
SHARD = 2048
ENVIRONMENT = {"name": "arithmetic", "digits": 6, "max_turns": 2}


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
        # Imports are not what is measured.
        drift.rollout(model="scripted:5", tasks=2, samples=2, out=folder / "few")
        found: dict[str, Any] = {"benchmark": "soak", "conversations": arguments.conversations}
        began = time.time()
        data = drift.rollout(
            ENVIRONMENT,
            model="scripted:<answer>5</answer>|no idea",
            tasks=arguments.conversations // SAMPLES,
            samples=SAMPLES,
            out=folder / "rollouts",
        )
        found["rollout_seconds"] = time.time() - began
        # A full shard tells when its conversations were done.
        times_S = np.array([began, *(path.stat().st_mtime for path in shards(data.path)[:-1])])
        started = time.time()
        drift.weigh(data, out=folder / "weights", scheme="sft")
        found["weigh_seconds"] = time.time() - started
        found |= measure_and_report(folder)
        seen = np.array(watch.stop())
    found |= figures(times_S, seen)
    say(found)
    if arguments.picture:
        draw(times_S, seen, arguments.picture)
    print(json.dumps(found))
    return 0


def measure_and_report(folder: Path) -> dict[str, float]:
    """Evaluate two policies on 25,000 tasks and write the page; seconds and bytes."""
    began = time.time()
    evaluated = drift.evaluate(
        ENVIRONMENT,
        {"base": "scripted:<answer>5</answer>", "other": "scripted:<answer>7</answer>|<answer>8</answer>"},
        out=folder / "evaluation",
        tasks=25_000,
        samples=0,
        max_new_tokens=16,
    )
    ended = time.time()
    page = drift.report(evaluated, out=folder / "report.html")
    size = page.path.stat().st_size
    return {"evaluate_seconds": ended - began, "report_seconds": time.time() - ended, "report_bytes": size}


def figures(times_S: Any, seen_W3: Any) -> dict[str, Any]:
    """Throughput of the first and the last tenth of the shards, and memory by tenths of the time until the last one.

    Other work on the machine slows what is done in a second, and not what is done in a CPU second.
    """
    clock_W, size_W, cpu_W = seen_W3.T
    busy_S, tenth = np.interp(times_S, clock_W, cpu_W), max(1, len(times_S) // 10)
    found: dict[str, Any] = {"sampling_seconds": times_S[-1] - times_S[0]}
    for name, at_S in (("second", times_S), ("cpu_second", busy_S)):
        found[f"per_{name}_first_tenth"] = SHARD * tenth / (at_S[tenth] - at_S[0])
        found[f"per_{name}_last_tenth"] = SHARD * tenth / (at_S[-1] - at_S[-tenth - 1])
    during_W = size_W[(clock_W >= times_S[0]) & (clock_W <= times_S[-1])]
    found["mib_by_tenth"] = [float(part.mean()) for part in np.array_split(during_W, 10) if len(part)]
    return {**found, "mib_peak": float(size_W.max())}


def say(found: dict[str, Any]) -> None:
    """The figures in words."""
    took = {name: found[f"{name}_seconds"] for name in ("sampling", "rollout", "weigh", "evaluate", "report")}
    print(f"{found['conversations']:,} conversations: {took['sampling']:.0f} s, {took['rollout']:.0f} s with the hash")
    print(f"weighed in {took['weigh']:.1f} s")
    for name in ("second", "cpu_second"):
        first, last = found[f"per_{name}_first_tenth"], found[f"per_{name}_last_tenth"]
        print(f"per {name.replace('_', ' ')}: {first:.0f} in the first tenth, {last:.0f} in the last")
    print(f"MiB by tenths: {' '.join(f'{size:.0f}' for size in found['mib_by_tenth'])}; peak {found['mib_peak']:.0f}")
    print(f"50,000 conversations evaluated in {took['evaluate']:.0f} s, reported in {took['report']:.1f} s")


def draw(times_S: Any, seen_W3: Any, path: str) -> None:
    """Throughput of the rollouts, a point for each twenty shards, and memory over the whole run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    clock_W, size_W, cpu_W = seen_W3.T
    began, busy_S = times_S[0], np.interp(times_S, clock_W, cpu_W)
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), constrained_layout=True)
    for at_S, label, color in ((times_S, "a second", "0.7"), (busy_S, "a CPU second", "C0")):
        left.plot(times_S[20::20] - began, 20 * SHARD / np.diff(at_S[::20]), label=label, color=color)
    left.set_ylabel("conversations")
    left.legend()
    right.plot(clock_W - began, size_W)
    right.set_ylabel("resident memory, MiB")
    for panel in (left, right):
        panel.set_xlabel("seconds")
        panel.set_ylim(bottom=0)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    raise SystemExit(main())
