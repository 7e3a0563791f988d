"""Every stage disturbed at random moments ends as it would have, or says what is wrong and how to go on.

``DRIFT_CHAOS_ROUNDS`` (default 3) says how often each fault is tried in each stage; ``DRIFT_CHAOS_SEED`` which moments
are drawn. With ``DRIFT_CHAOS_TABLE`` the table of faults by stage is written to that file.
"""

import json
import os
import random
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drift.dataset.store import shards
from drift.errors import DatasetError, StorageError

from .harness import (
    BLOWS,
    ROUNDS,
    SEED,
    Disk,
    Stage,
    Tally,
    clock_set_back,
    end_as_it_should,
    jumping_clock,
    result,
    small_files,
    start,
    stopped_for_a_while,
    without_override,
)

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]
NAMES = ["rollout", "import", "weigh", "train", "evaluate", "export", "report", "compare"]
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT, "SIGHUP": signal.SIGHUP}


@pytest.mark.parametrize("kind", SIGNALS)
@pytest.mark.parametrize("name", NAMES)
def test_signals_at_random_moments(stages: dict[str, Stage], place: Path, tally: Tally, name: str, kind: str) -> None:
    stage, rng = stages[name], random.Random(f"{SEED}/{name}/{kind}")
    for turn in range(ROUNDS):
        out, hits = place / f"{name}-{kind}-{turn}", 0
        for _ in range(BLOWS):
            child = start(stage.at(out))
            child.wait(rng.uniform(0.0, stage.seconds))
            hits += child.send(SIGNALS[kind])
            assert child.wait(60), f"{kind} does not end it: {child.said}"
            assert "Traceback" not in child.said, child.said
            if kind != "SIGKILL" and child.code not in (0, -SIGNALS[kind]):
                assert child.code in (130, 143) or "drift: " in child.said, (child.code, child.said)
        end_as_it_should(stage, out)
        tally.add(name, kind, hits)


@pytest.mark.parametrize("name", NAMES)
def test_a_process_that_is_stopped_goes_on(stages: dict[str, Stage], place: Path, tally: Tally, name: str) -> None:
    stage, rng = stages[name], random.Random(f"{SEED}/{name}/stopped")
    for turn in range(ROUNDS):
        out, hits = place / f"{name}-stopped-{turn}", 0
        child = start(stage.at(out))
        for _ in range(BLOWS):
            child.wait(rng.uniform(0.0, stage.seconds / 2))
            hits += stopped_for_a_while(child, rng)
        assert child.wait(240) and child.code == 0, child.said
        end_as_it_should(stage, out)
        tally.add(name, "SIGSTOP, then SIGCONT", hits)


@pytest.mark.parametrize("name", ["rollout", "import", "evaluate"])
def test_a_lock_that_names_another_process(stages: dict[str, Stage], place: Path, tally: Tally, name: str) -> None:
    for turn in range(ROUNDS):
        out = place / f"{name}-lock-{turn}"
        out.mkdir()
        # Left by a killed process whose id is another's now, or by one of another machine.
        (out / ".lock").write_text(str(os.getpid() if turn % 2 else 2**22 + turn))
        end_as_it_should(stages[name], out)
        tally.add(name, "id of a lock reused")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
@pytest.mark.parametrize("name", ["rollout", "import", "weigh", "train", "evaluate"])
def test_a_directory_of_another_user(stages: dict[str, Stage], place: Path, tally: Tally, name: str) -> None:
    stage, out = stages[name], place / f"{name}-owner"
    out.mkdir()
    os.chown(out, 12345, -1)
    child = start(stage.at(out))
    assert child.wait(240) and child.code == StorageError.exit_code, (child.code, child.said)
    assert "belongs to the user with id 12345" in child.said and "Traceback" not in child.said
    shutil.rmtree(out)
    end_as_it_should(stage, out)
    tally.add(name, "directory of another user")


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk(stages: dict[str, Stage], place: Path, tally: Tally, name: str) -> None:
    stage, rng = stages[name], random.Random(f"{SEED}/{name}/disk")
    for turn in range(ROUNDS):
        out, hits = place / f"{name}-disk-{turn}", 0
        for _ in range(BLOWS):
            child = start(stage.at(out), small_files(int(2 ** rng.uniform(6, 16))))
            assert child.wait(240), child.said
            assert "Traceback" not in child.said, child.said
            if child.code:
                hits += 1
                assert child.code == StorageError.exit_code, (child.code, child.said)
                assert "can't be written" in child.said and "run the same command again" in child.said, child.said
        end_as_it_should(stage, out)
        tally.add(name, "full disk", hits)


@pytest.mark.parametrize("name", NAMES)
def test_a_disk_that_can_only_be_read_from_some_moment_on(
    stages: dict[str, Stage], disk: Disk, tally: Tally, name: str
) -> None:
    stage, rng = stages[name], random.Random(f"{SEED}/{name}/remount")
    for turn in range(ROUNDS):
        out, hits = disk.root / f"{name}-{turn}", 0
        for _ in range(BLOWS):
            child = start(stage.at(out))
            child.wait(rng.uniform(0.0, stage.seconds))
            disk.fail()
            assert child.wait(240), child.said
            assert "Traceback" not in child.said, child.said
            if child.code:
                hits += 1
                assert child.code == StorageError.exit_code, (child.code, child.said)
                # What was not on the disk yet is lost with an error of its own; ext4 also says that it is full.
                why = "Read-only file system|Input/output error|No space left on device"
                assert re.search(f"can't be written: ({why})", child.said), child.said
                assert "run the same command again" in child.said, child.said
            disk.unmount()
            disk.mount()
        end_as_it_should(stage, out)
        tally.add(name, "disk becomes read-only", hits)


@pytest.mark.parametrize("name", NAMES)
def test_a_read_only_directory(stages: dict[str, Stage], place: Path, tally: Tally, name: str) -> None:
    stage, out = stages[name], place / f"{name}-readonly"
    out.mkdir()
    out.chmod(0o555)
    child = start(stage.at(out), without_override)
    assert child.wait(240) and child.code == StorageError.exit_code, (child.code, child.said)
    assert "can't be written" in child.said and "ermission denied" in child.said and "Traceback" not in child.said
    # Training takes an empty directory away again when it can't begin.
    out.mkdir(exist_ok=True)
    out.chmod(0o755)
    end_as_it_should(stage, out)
    tally.add(name, "read-only directory")


@pytest.mark.parametrize(("fault", "clock"), [("clock jumps", jumping_clock), ("clock set back", clock_set_back)])
@pytest.mark.parametrize("name", NAMES)
def test_a_clock_that_is_wrong(
    stages: dict[str, Stage], place: Path, tally: Tally, name: str, fault: str, clock: Callable[[int], Any]
) -> None:
    stage = stages[name]
    for turn in range(min(2, ROUNDS)):
        out = place / f"{name}-{fault}-{turn}"
        child = start(stage.at(out), clock(turn))
        assert child.wait(240) and child.code == 0, child.said
        assert result(name, out) == stage.expected
        tally.add(name, fault)


@pytest.mark.parametrize("name", ["rollout", "import", "train", "evaluate"])
def test_two_processes_on_one_directory(stages: dict[str, Stage], place: Path, tally: Tally, name: str) -> None:
    stage, rng = stages[name], random.Random(f"{SEED}/{name}/two")
    for turn in range(ROUNDS):
        out = place / f"{name}-two-{turn}"
        first = start(stage.at(out))
        first.wait(rng.uniform(0.0, stage.seconds / 2))
        second = start(stage.at(out))
        assert first.wait(240) and second.wait(240)
        for child, other in ((first, second), (second, first)):
            if child.code:
                assert child.code == DatasetError.exit_code and str(other.pid) in child.said, (child.code, child.said)
        assert 0 in (first.code, second.code)
        end_as_it_should(stage, out)
        tally.add(name, "two processes")


@pytest.mark.parametrize("fault", ["truncated shard", "flipped bit", "missing shard", "manifest of another version"])
@pytest.mark.parametrize("name", ["rollout", "import"])
def test_damaged_data(stages: dict[str, Stage], place: Path, tally: Tally, name: str, fault: str) -> None:
    stage, rng = stages[name], random.Random(f"{SEED}/{name}/{fault}")
    for turn in range(ROUNDS):
        out = place / f"{name}-damage-{turn}"
        shutil.copytree(place / "whole" / name, out)
        shard = rng.choice(shards(out))
        kept = (out / "manifest.json").read_bytes()
        data = bytearray(shard.read_bytes())
        if fault == "truncated shard":
            shard.write_bytes(data[: rng.randrange(len(data))])
        elif fault == "flipped bit":
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            shard.write_bytes(data)
        elif fault == "missing shard":
            shard.unlink()
        else:
            (out / "manifest.json").write_text(json.dumps({**json.loads(kept), "schema_version": 7}))
        # Nobody goes on from it in silence, and what to do is told.
        for command in (["weigh", str(out), "--out", str(place / "never")], ["check", str(out)]):
            child = start(command)
            assert child.wait(60) and child.code, child.said
            assert "Traceback" not in child.said and str(out) in child.said, child.said
        assert not (place / "never" / "manifest.json").exists()
        if fault == "manifest of another version":
            (out / "manifest.json").write_bytes(kept)
        else:
            shard.unlink(missing_ok=True)
        end_as_it_should(stage, out)
        tally.add(name, fault)
