"""How long ``drift view`` takes on a million conversations: the first page of a fresh server, then filters and sorts.

    python benchmarks/viewer.py [--size 1000000] [--folder FOLDER] [--chromium]

The data set (words drawn at random, some 400 characters a conversation) is made in FOLDER and kept there; weights are
made by ``drift weigh``. The server is a process of its own, asked by a browser's requests, or with ``--chromium`` by
Chromium, until the page is drawn. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent))
import drift
from drift.dataset.schema import SCHEMA
from drift.manifest import write_manifest
from weights import KIND, SAMPLES, SHARD_ROWS, random_columns, shard

WORDS = np.array([f"{a}{b}{c}" for a in "bdfgklmnprst" for b in ("a", "ei", "o", "un") for c in ("l", "ner", "st", "")])
ASKED = {
    "first page": "data=rollouts",
    "success and turns": "data=rollouts&success=yes&turns=2..4",
    "sorted by weight": "data=rollouts&sort=-weight",
    "return and weight, page 200": "data=rollouts&return=0.2..&weight=1..&sort=turns&page=200",
    "task": "data=rollouts&task=task-0000123",
    "a rare text": "data=rollouts&q=zebra+crossing",
    "a common text, sorted": "data=rollouts&q=kunst&sort=-return",
}


def spoken(rng: np.random.Generator, rows: int, first: int) -> pa.Array:
    """Two messages of each conversation; one in 50,000 says "zebra crossing"."""
    drawn = WORDS[rng.integers(0, len(WORDS), (rows, 2, 36))]
    texts = [" ".join(words) for words in drawn.reshape(-1, 36)]
    for at in range(-first % 50_000, rows, 50_000):
        texts[2 * at] += " Zebra Crossing"
    said = pa.StructArray.from_arrays([pa.array(["user", "assistant"] * rows), pa.array(texts)], ["role", "content"])
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * 2)
    return pa.ListArray.from_arrays(offsets, said).cast(SCHEMA.field("messages").type)


def make_run(run: Path, size: int) -> None:
    """Rollouts of ``size`` conversations and their weights."""
    (run / "rollouts" / "shards").mkdir(parents=True)
    rng, groups = np.random.default_rng(0), max(1, size // SAMPLES)
    for number, first in enumerate(range(0, size, SHARD_ROWS)):
        rows = min(SHARD_ROWS, size - first)
        table = shard(random_columns(rows, first, rng), groups)
        table = table.set_column(SCHEMA.names.index("messages"), SCHEMA.field("messages"), spoken(rng, rows, first))
        pq.write_table(table, run / "rollouts" / "shards" / f"{number:06d}.parquet", compression="zstd")
    counts = {"trajectories": size, "stop_turns": size}
    spec: dict[str, Any] = {"environment": {"name": "synthetic", "settings": {}}, "trajectories": size}
    content = {"spec": spec, "complete": True, "counts": counts, "dataset_hash": "synthetic"}
    write_manifest(run / "rollouts", KIND, {**content, "cost": {"seconds": 1.0, "tokens_sampled": None}})
    drift.weigh(run / "rollouts", out=run / "weights")


def timed(address: str, tab: Any = None) -> tuple[float, str]:
    """Seconds until a page is there, drawn where it is asked for by the ``tab`` of a browser, and the page."""
    start = time.perf_counter()
    if tab is None:
        with urllib.request.urlopen(address) as answer:
            page: str = answer.read().decode()
        return time.perf_counter() - start, page
    tab.goto(address)
    # Two frames on, what was laid out has been painted.
    tab.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    taken = time.perf_counter() - start
    return taken, tab.content()


@contextmanager
def browser_tab(wanted: bool) -> Iterator[Any]:
    """A tab of Chromium, or nothing."""
    if not wanted:
        yield None
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 1280, "height": 900})
        browser.close()


def main() -> None:
    """Make the data set unless it is there, serve it, ask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--chromium", action="store_true", help="needs playwright (make test-browser installs it)")
    given = parser.parse_args()
    run = (given.folder or Path(tempfile.mkdtemp(prefix="drift-view-"))) / f"run-{given.size}"
    if not (run / "weights" / "manifest.json").is_file():
        make_run(run, given.size)
    server = subprocess.Popen(
        [sys.executable, "-m", "drift", "view", str(run)], stdout=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        assert server.stdout is not None
        found = re.search(r"http://\S+/", server.stdout.readline())
        assert found, "the server did not say where it is"
        seconds: dict[str, float] = {}
        with browser_tab(given.chromium) as tab:
            for name, query in ASKED.items():
                taken, page = timed(f"{found.group()}list?{query}", tab)
                whole = taken
                while "data-unfinished" in page:
                    more, page = timed(f"{found.group()}list?{query}", tab)
                    whole += more
                count = re.search(r"<b>([\d,]+)</b> of", page)
                seconds[name] = round(taken, 3)
                print(
                    f"{name:32} {taken:6.2f} s; complete after {whole:6.2f} s, {count.group(1) if count else '?'} found"
                )
        status = Path(f"/proc/{server.pid}/status").read_text()
        peak = int(re.search(r"VmHWM:\s+(\d+)", status).group(1)) / 1024  # type: ignore[union-attr]
    finally:
        server.terminate()
    print(f"peak memory of the server: {peak:.0f} MiB")
    print(json.dumps({"size": given.size, "seconds": seconds, "peak_mib": round(peak)}))


if __name__ == "__main__":
    main()
