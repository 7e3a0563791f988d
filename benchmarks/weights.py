"""How fast and in how much memory data sets of a hundred thousand to ten million conversations are weighed.

    python benchmarks/weights.py [--sizes 100000 1000000 10000000] [--folder FOLDER] [--scheme drift]

Data sets are made in FOLDER (a temporary one unless given) as shards of the store's schema and removed afterwards.
Each is weighed in a fresh process, whose peak memory is given, and for each conversation what of it is beyond the peak
of weighing 65,536 there before (imports, readers, the buffers of a part). Processor seconds tell more than seconds
where others use the machine. Memory is read as Linux tells it.
Then the stage is compared with an object for each conversation and a loop. The last line is JSON with every figure.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from drift.dataset.outcomes import Outcomes, outcomes, read_outcomes
from drift.dataset.schema import SCHEMA
from drift.dataset.store import KIND, read_trajectories
from drift.manifest import write_manifest
from drift.weights.config import WeightConfig
from drift.weights.returns import trajectory_return
from drift.weights.schemes import drift_weights
from drift.weights.stage import weigh_dataset
from drift.weights.table import read_weights

SAMPLES, TURNS, SHARD_ROWS, TOKENS = 16, 5, 2048, 8
OBJECTS, LOOPED, WARM_UP = 32_768, 524_288, 65_536
GAMMA, LAMBDA, BETA = 0.9, 0.5, 0.1
# DRIFT as published: a loop leaves no conversation out for being of little weight.
EXACT = WeightConfig(gamma=GAMMA, repetition=LAMBDA, beta=BETA, steps=[{"skip_small": None}])
MESSAGES = [{"role": "user", "content": "What is 17 + 25?"}, {"role": "assistant", "content": "42"}]
# In a process of its own, and not by ru_maxrss, which a process takes over from the one that started it.
WEIGH = (
    "import json, sys, time; from pathlib import Path\n"
    "from drift.weights.stage import weigh_dataset; from drift.weights.config import WeightConfig\n"
    "def peak(): return int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) / 1024\n"
    "data, out, few = map(Path, sys.argv[1:4]); config = WeightConfig(scheme=sys.argv[4])\n"
    "weigh_dataset(few, config, out); idle, start, busy = peak(), time.perf_counter(), time.process_time()\n"
    "weigh_dataset(data, config, out)\n"
    "seconds, busy = time.perf_counter() - start, time.process_time() - busy\n"
    "print(json.dumps({'seconds': seconds, 'cpu_s': busy, 'peak_mib': peak(), 'idle_mib': idle}))\n"
)


def random_columns(count: int, first: int, rng: np.random.Generator) -> dict[str, Any]:
    """Ids, lengths, answers and successes of ``count`` conversations: 1 to ``TURNS`` turns, K = ``SAMPLES``."""
    row_N = np.arange(first, first + count)
    solved_N = rng.random(count) < 0.5
    length_N = np.where(solved_N, rng.integers(1, TURNS + 1, count), TURNS)
    last_T = np.zeros(int(length_N.sum()), bool)
    last_T[np.cumsum(length_N) - 1] = solved_N
    answers = rng.integers(0, 6, len(last_T))
    return {"row": row_N, "length": length_N, "success": last_T, "answer": np.where(last_T, 9, answers)}


def shard(columns: dict[str, Any], groups: int, tokens: int = TOKENS) -> pa.Table:
    """Those conversations as rows of the store's schema, with a few token ids a turn."""
    row_N, length_N, success_T = columns["row"], columns["length"], columns["success"]
    count, turns = len(row_N), len(success_T)
    # Samples of one prompt are a stride apart, as when samples are drawn in rounds: a group lies in many shards.
    tasks = [f"task-{n:07d}" for n in (row_N % groups).tolist()]
    sample_N = row_N // groups
    per_turn = pa.array(np.arange(turns + 1, dtype=np.int32) * tokens)
    drawn = np.random.default_rng(int(row_N[0])).integers(0, 100, turns * tokens, np.int32)
    ids = pa.ListArray.from_arrays(per_turn, pa.array(drawn))
    logprobs = pa.ListArray.from_arrays(per_turn, pa.array(np.full(turns * tokens, -0.5, np.float32)))
    spoken = pa.array([MESSAGES], SCHEMA.field("messages").type)
    made = {
        "prompt_ids": ids,
        "token_ids": ids,
        "logprobs": logprobs,
        "text": pa.array(["42"] * turns),
        "finish_reason": pa.array(["stop"] * turns),
        "reward": pa.array(success_T.astype(float)),
        "done": pa.array(success_T),
        "success": pa.array(success_T),
        "answer": pa.array(columns["answer"]).cast(pa.string()),
        "messages": spoken.take(pa.array(np.zeros(turns, np.int64))),
        "info": pa.array(["{}"] * turns),
        "graded": pa.array(np.ones(turns, bool)),
        "thinking": pa.array([""] * turns),
        "extras": pa.nulls(turns, pa.string()),
        "loss_weight": pa.array(np.ones(turns)),
    }
    kind = SCHEMA.field("turns").type
    struct = pa.StructArray.from_arrays([made[field.name] for field in kind.value_type], fields=list(kind.value_type))
    offsets = np.concatenate([[0], np.cumsum(length_N)]).astype(np.int32)
    arrays = {
        "id": pa.array([f"{task}#{k}" for task, k in zip(tasks, sample_N.tolist(), strict=True)]),
        "task_id": pa.array(tasks),
        "group_id": pa.array(tasks),
        "sample": pa.array(sample_N.astype(np.int32)),
        "policy": pa.array(["p"] * count),
        "seed": pa.array(row_N),
        "messages": spoken.take(pa.array(np.zeros(count, np.int64))),
        "turns": pa.ListArray.from_arrays(pa.array(offsets), struct).cast(kind),
        "stop_reason": pa.array(["turns"] * count),
        "error": pa.nulls(count, pa.string()),
        "text_only": pa.array(np.zeros(count, bool)),
        "tools": pa.nulls(count, pa.string()),
        "extras": pa.nulls(count, pa.string()),
    }
    return pa.table([arrays[name] for name in SCHEMA.names], schema=SCHEMA)


def make_dataset(folder: Path, count: int, tokens: int = TOKENS) -> None:
    """Write ``count`` conversations as the store does, but for the hash, which weighing does not read rows for."""
    (folder / "shards").mkdir(parents=True)
    rng, groups = np.random.default_rng(0), max(1, count // SAMPLES)
    for number, first in enumerate(range(0, count, SHARD_ROWS)):
        table = shard(random_columns(min(SHARD_ROWS, count - first), first, rng), groups, tokens)
        pq.write_table(table, folder / "shards" / f"{number:06d}.parquet", compression="zstd")
    content = {"spec": {}, "complete": True, "counts": {"trajectories": count}, "dataset_hash": f"synthetic-{count}"}
    write_manifest(folder, KIND, content)


def naive_weights(found: Outcomes, groups: list[str]) -> list[float]:
    """DRIFT's weights of the same outcomes as they would be written without arrays."""
    returns, sums, sizes = [], defaultdict(float), defaultdict(int)
    best: dict[str, float] = {}
    columns = (found.success_N, found.turns_N, found.distinct_N, found.graded_N)
    for group, success, turns, distinct, graded in zip(groups, *(c.tolist() for c in columns), strict=True):
        share = distinct / graded if graded else 1.0
        value = success * GAMMA ** (turns - 1) - LAMBDA * (1 - share)
        returns.append(value)
        best[group] = max(best.get(group, value), value)
    tilted = []
    for group, value in zip(groups, returns, strict=True):
        tilted.append(math.exp((value - best[group]) / BETA))
        sums[group] += tilted[-1]
        sizes[group] += 1
    return [value / (sums[group] / sizes[group]) for group, value in zip(groups, tilted, strict=True)]


def array_weights(found: Outcomes) -> Any:
    """What ``naive_weights`` computes, by the library's functions; the groups come as strings to both."""
    returns_N = trajectory_return(found, outcome="success", gamma=GAMMA, repetition=LAMBDA, format_failure=0.0)
    return drift_weights(returns_N, found.group_index(), beta=BETA)


def weighed(data: Path, out: Path, scheme: str, count: int) -> dict[str, float]:
    """Seconds and peak memory of weighing the ``count`` conversations in ``data`` in a fresh process."""
    few = data.with_name("warm-up")
    make_dataset(few, WARM_UP)
    command = [sys.executable, "-c", WEIGH, *map(str, (data, out, few)), scheme]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    shutil.rmtree(out)
    shutil.rmtree(few)
    return {**figures, "bytes_each": (figures["peak_mib"] - figures["idle_mib"]) * 2**20 / count}


def against_objects(folder: Path, repeats: int = 3) -> dict[str, float]:
    """The stage beside one Python object for each conversation and a loop over them, interleaved, medians."""
    make_dataset(folder / "few", OBJECTS)
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):
        start = time.perf_counter()
        found = outcomes(read_trajectories(folder / "few"))
        naive = naive_weights(found, found.groups)
        seconds["objects"].append(time.perf_counter() - start)
        start = time.perf_counter()
        weigh_dataset(folder / "few", EXACT, folder / "few-weights")
        seconds["stage"].append(time.perf_counter() - start)
        by_id = read_weights(folder / "few-weights", folder / "few")
        last = [by_id[name][-1] for name in found.ids]
        assert np.allclose(naive, last, rtol=1e-12, atol=0), "objects and stage disagree"
    objects, stage = (statistics.median(seconds[name]) for name in ("objects", "stage"))
    return {"trajectories": OBJECTS, "objects_s": objects, "stage_s": stage, "ratio": objects / stage}


def against_loop(folder: Path, count: int, repeats: int = 5) -> dict[str, float]:
    """Weights of outcomes in memory beside a loop over the same numbers, interleaved, medians."""
    make_dataset(folder / "many", count)
    found = read_outcomes(folder / "many")
    groups = found.groups.to_pylist()
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):
        start = time.perf_counter()
        naive = naive_weights(found, groups)
        seconds["loop"].append(time.perf_counter() - start)
        start = time.perf_counter()
        arrays = array_weights(found)
        seconds["arrays"].append(time.perf_counter() - start)
        assert np.allclose(naive, arrays, rtol=1e-12, atol=0), "they disagree"
    loop, quick = (statistics.median(seconds[name]) for name in ("loop", "arrays"))
    return {"trajectories": count, "loop_s": loop, "arrays_s": quick, "ratio": loop / quick}


def main() -> int:
    """Measure, print, and end with one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--scheme", default="drift")
    given = parser.parse_args()
    figures: dict[str, Any] = {
        "machine": {"cores": len(os.sched_getaffinity(0)), "platform": platform.platform(), "arrow": pa.__version__},
        "scheme": given.scheme,
        "samples": SAMPLES,
        "turns": TURNS,
        "sizes": {},
    }
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        print(f"{figures['machine']['cores']} cores, K = {SAMPLES}, at most {TURNS} turns, scheme {given.scheme}")
        for count in given.sizes:
            start = time.perf_counter()
            make_dataset(folder / "data", count)
            made = time.perf_counter() - start
            found = figures["sizes"][count] = weighed(folder / "data", folder / "weights", given.scheme, count)
            shutil.rmtree(folder / "data")
            print(
                f"  {count:>10,} trajectories: {found['seconds']:7.2f} s, {count / found['seconds']:>9,.0f}/s, peak "
                f"{found['peak_mib']:.0f} MiB ({found['idle_mib']:.0f} of them before; {found['bytes_each']:.0f} "
                f"bytes for each), {found['cpu_s']:.2f} s of processor time; made in {made:.0f} s",
                flush=True,
            )
        objects = figures["against_objects"] = against_objects(folder)
        loop = figures["against_loop"] = against_loop(folder, min(LOOPED, max(given.sizes)))
    print("medians, interleaved (wanted: 20 times):")
    print(
        f"  the whole stage, {objects['trajectories']:,} trajectories: {objects['stage_s']:.2f} s; with an object for "
        f"each and a loop {objects['objects_s']:.2f} s: {objects['ratio']:.1f} times"
    )
    print(
        f"  weights of {loop['trajectories']:,} outcomes in memory: {loop['arrays_s']:.4f} s; "
        f"by a loop {loop['loop_s']:.3f} s: {loop['ratio']:.1f} times"
    )
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
