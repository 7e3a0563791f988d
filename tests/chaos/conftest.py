"""The stages, each run once undisturbed, and the tally of faults, shared by all chaos tests."""

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness import Disk, Stage, Tally, finish, result


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="drift-chaos-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def tally() -> Iterator[Tally]:
    tally = Tally()
    yield tally
    table = f"{tally.table()}\n\n{sum(tally.counts.values())} faults.\n"
    print("\n" + table)
    if "DRIFT_CHAOS_TABLE" in os.environ:
        Path(os.environ["DRIFT_CHAOS_TABLE"]).write_text(table)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk that can fail; only root has one, and only where loop devices and ext4 are."""
    made = Disk(tmp_path / "image", tmp_path / "disk")
    made.root.mkdir()
    with made.image.open("wb") as file:
        file.truncate(256 << 20)
    try:
        subprocess.run(["mkfs.ext4", "-q", made.image], check=True)
        made.mount()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be made and mounted here: {error}")
    yield made
    made.unmount()


@pytest.fixture(scope="session")
def stages(place: Path) -> dict[str, Stage]:
    """All stages, each run once undisturbed on the results of the one before."""
    import drift.api
    import drift.comparison.run
    import drift.evaluation.run
    import drift.policies.hf
    import drift.reporting.page
    import drift.training.run  # noqa: F401

    log = place / "log.jsonl"
    lines = []
    for at in range(300):
        messages = [{"role": "user", "content": f"What is {at} + 1?"}, {"role": "assistant", "content": f"{at + 1}"}]
        lines.append(json.dumps({"messages": messages, "reward": at % 3, "group_id": str(at // 3)}))
    log.write_text("\n".join(lines))
    data, weights, model = (str(place / "whole" / name) for name in ("rollout", "weigh", "train"))
    short = ["--max-new-tokens", "16"]
    commands = {
        "rollout": ["rollout", "arithmetic", "--tasks", "30", "--samples", "6", *short],
        "import": ["import", str(log)],
        "weigh": ["weigh", data],
        "train": ["train", data, weights, "--max-steps", "16", "--batch-size", "16", "--save-steps", "3"],
        "evaluate": [
            *("evaluate", "arithmetic", "--models", json.dumps({"base": "default", "tuned": model})),
            *("--tasks", "30", "--samples", "1", *short),
        ],
        "export": ["export", data, "--format", "kto"],
        "report": ["report", str(place / "whole" / "evaluate")],
        "compare": [
            *("compare", "quickstart", "--methods", "sft,rft", "--seeds", "1", "--rollouts.tasks", "8"),
            *("--rollouts.samples", "4", "--max_steps", "4", "--training.batch_size", "8", "--save_steps", "2"),
            *("--evaluation.tasks", "6", "--evaluation.samples", "0", "--sampling.max_new_tokens", "12"),
        ],
    }
    found = {}
    for name, command in commands.items():
        out = place / "whole" / name
        began = time.monotonic()
        finish(Stage(name, command, 0.0, "").at(out))
        found[name] = Stage(name, command, time.monotonic() - began, result(name, out))
    return found
