"""What a Ray cluster of one worker on this machine costs beside the same conversations held in this process.

    python benchmarks/cluster.py [scripted trajectories, 20000] [trajectories of the default policy, 1200]

Both ways are run in turn, three times each; the last line is JSON with the medians in trajectories per second.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drift.policies.base import Sampling
from drift.rollouts.cluster import sampler
from drift.rollouts.collect import collect
from drift.rollouts.config import ClusterConfig
from drift.rollouts.setup import Setup

REPEATS = 3
REPLIES = "scripted:<answer>40</answer>|<answer>41</answer>|what?|<answer>55</answer>"


class Timed:
    """Passes ``hold`` on and takes its time, so that neither the start of Ray nor the final hash counts."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self.fingerprint, self.text_only = source.fingerprint, source.text_only
        self.record = source.record

    def hold(self, todo: Sequence[Any], deliver: Any, *, sampling: Sampling, concurrency: int) -> None:
        """As the source does."""
        begun = time.perf_counter()
        self._source.hold(todo, deliver, sampling=sampling, concurrency=concurrency)
        self.seconds = time.perf_counter() - begun


def rate(model: str, count: int, cluster: ClusterConfig, out: Path) -> tuple[float, str]:
    """Trajectories per second, and the dataset hash."""
    policy = {"batch_size": 128} if model == "default" else {}
    setup = Setup(environment="guess", model=model, policy=policy)
    factory = setup.make_environment()
    tasks = factory.tasks("train", count // 16, 0)
    plan: dict[str, Any] = {"environment": setup.record, "samples": 16, "seed": 1}
    plan["sampling"] = Sampling(max_new_tokens=32)
    with sampler(cluster, setup) as source:
        if not cluster.address:
            begun = time.perf_counter()
            manifest = collect(tasks, factory, source, out, **plan)
            # The hash at the end is read back from disk on both ways; a second call does that alone.
            whole = time.perf_counter() - begun
            begun = time.perf_counter()
            collect(tasks, factory, source, out, **plan)
            seconds = whole - (time.perf_counter() - begun)
        else:
            timed = Timed(source)
            manifest = collect(tasks, factory, timed, out, **plan)
            seconds = timed.seconds
    return len(tasks) * 16 / seconds, manifest["dataset_hash"]


def main() -> None:
    """Measure and print."""
    counts = [int(value) for value in (sys.argv[1:] + ["20000", "1200"][len(sys.argv) - 1 :])]
    figures: dict[str, float] = {}
    for name, model, count in (("scripted", REPLIES, counts[0]), ("default", "default", counts[1])):
        rates: dict[str, list[float]] = {"alone": [], "cluster": []}
        hashes = set()
        for _ in range(REPEATS):
            for way, cluster in (("alone", ClusterConfig()), ("cluster", ClusterConfig(address="local", workers=1))):
                with tempfile.TemporaryDirectory() as folder:
                    found, digest = rate(model, count, cluster, Path(folder))
                rates[way].append(found)
                hashes.add(digest)
                print(f"{name}, {way}: {found:.1f} trajectories/s", flush=True)
        assert len(hashes) == 1, "the data must not depend on where conversations are held"
        figures |= {f"{name}_{way}": round(statistics.median(values), 1) for way, values in rates.items()}
        figures[f"{name}_ratio"] = round(figures[f"{name}_cluster"] / figures[f"{name}_alone"], 3)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
