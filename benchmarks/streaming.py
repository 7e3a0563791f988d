"""In how much memory `drift train` trains on data sets of very different size.

    python benchmarks/streaming.py [--sizes 20000 500000] [--folder FOLDER]

Data sets are made in FOLDER (a temporary one unless given) as shards of the store's schema, weighed, and trained on
for a few steps of the default policy in a fresh process, whose peak memory is given. The last line is JSON with every
figure.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from drift.weights.config import WeightConfig
from drift.weights.stage import weigh_dataset
from weights import SAMPLES, TURNS, make_dataset

# Of the prompt and of the reply of each turn.
TOKENS = 32
SETTINGS = {"max_steps": 20, "batch_size": 32, "save_steps": 0}
# In a process of its own: ru_maxrss of this one would say what the making of the data took.
TRAIN = (
    "import json, resource, sys, time; from pathlib import Path\n"
    "from drift.training.run import train_model; from drift.training.config import TrainingConfig\n"
    "idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; start = time.perf_counter()\n"
    "data, weights, out, settings = sys.argv[1:]\n"
    "config = TrainingConfig(**json.loads(settings))\n"
    "train_model(Path(data), Path(weights), config, Path(out), model='default', seed=1, device='cpu',\n"
    "    any_policy=True)\n"
    "seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
    "print(json.dumps({'seconds': seconds, 'peak_mib': peak / 1024, 'imports_mib': idle / 1024}))\n"
)


def trained(folder: Path, count: int) -> dict[str, float]:
    """Seconds and peak memory of training on ``count`` conversations in a fresh process."""
    data, weights, out = (folder / name for name in ("data", "weights", "model"))
    make_dataset(data, count, TOKENS)
    weigh_dataset(data, WeightConfig(), weights)
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, *map(str, (data, weights, out)), json.dumps(SETTINGS)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    for place in (data, weights, out):
        shutil.rmtree(place)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> int:
    """Measure, print, and end with one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[20_000, 500_000])
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    machine = {"cores": len(os.sched_getaffinity(0)), "platform": platform.platform()}
    figures: dict[str, Any] = {"benchmark": "streaming", "machine": machine, "sizes": {}}
    print(f"K = {SAMPLES}, at most {TURNS} turns of {TOKENS} + {TOKENS} tokens, {SETTINGS['max_steps']} steps")
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        for count in given.sizes:
            found = figures["sizes"][count] = trained(Path(name), count)
            print(
                f"  {count:>10,} trajectories: {found['seconds']:7.1f} s, peak {found['peak_mib']:.0f} MiB "
                f"({found['imports_mib']:.0f} of them imports)",
                flush=True,
            )
    small, large = figures["sizes"][min(given.sizes)], figures["sizes"][max(given.sizes)]
    if len(given.sizes) > 1:
        more = max(given.sizes) - min(given.sizes)
        figures["bytes_per_trajectory"] = (large["peak_mib"] - small["peak_mib"]) * 2**20 / more
        print(f"{figures['bytes_per_trajectory']:.0f} bytes for each further trajectory")
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
