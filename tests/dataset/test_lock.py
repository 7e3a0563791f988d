import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drift.api import evaluate, read_logs
from drift.dataset.lock import NAME, DirectoryLock
from drift.errors import DatasetError
from drift.manifest import read_manifest

pytestmark = pytest.mark.usefixtures("quick_starts")


@contextmanager
def elsewhere(code: str, *arguments: object) -> Iterator[int]:
    """Another process that runs ``code`` and holds what it holds until the block ends; its id."""
    script = textwrap.dedent(code) + "\nprint('ready', flush=True)\nsys.stdin.read()\n"
    head = "import sys, time, fcntl, os\nfrom pathlib import Path\nfrom drift.dataset.lock import DirectoryLock\n"
    command = [sys.executable, "-c", head + script, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None and other.stdout.readline() == "ready\n"
            yield other.pid
        finally:
            other.communicate()


HOLD = "lock = DirectoryLock(Path(sys.argv[1]))"


def test_the_second_process_is_told_which_the_first_is(tmp_path: Path) -> None:
    with elsewhere(HOLD, tmp_path) as pid, pytest.raises(DatasetError, match=f"is being written by process {pid}\\."):
        DirectoryLock(tmp_path)
    # It ended without letting go, so its id is still there.
    assert (tmp_path / NAME).read_text() == str(pid)
    with DirectoryLock(tmp_path):
        pass
    assert (tmp_path / NAME).read_text() == ""


def test_an_id_that_is_not_yet_written_is_waited_for(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for left in ("", str(gone.pid)):
        (tmp_path / NAME).write_text(left)
        late = """
            file = (Path(sys.argv[1]) / ".lock").open("r+")
            fcntl.flock(file, fcntl.LOCK_EX)
            if not os.fork():
                time.sleep(0.5)
                file.truncate(0)
                file.write(str(os.getppid()))
                file.flush()
                os._exit(0)
        """
        with elsewhere(late, tmp_path) as pid, pytest.raises(DatasetError, match=f"by process {pid}\\."):
            DirectoryLock(tmp_path)


def test_an_import_that_comes_second_leaves_what_the_first_is_writing(tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log.jsonl"
    messages = [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "2"}]
    log.write_text(json.dumps({"messages": messages, "reward": 1}) + "\nno row\n")
    rejected = out / f".rejected.jsonl.{16 * '0'}.tmp"
    with elsewhere(HOLD, out) as pid:
        rejected.write_text("of the first")
        with pytest.raises(DatasetError, match=f"is being written by process {pid}\\."):
            read_logs(log, out=out)
        assert rejected.read_text() == "of the first"
        assert sorted(path.name for path in out.iterdir()) == [NAME, rejected.name]
    read_logs(log, out=out)
    found = read_manifest(out, "trajectories")
    assert found["counts"]["trajectories"] == 1 and found["excluded"] == {"not_json": 1}
    assert len((out / "rejected.jsonl").read_text().splitlines()) == 1 and not rejected.exists()


def test_one_evaluation_at_a_time_in_a_directory(tmp_path: Path) -> None:
    with elsewhere(HOLD, tmp_path) as pid, pytest.raises(DatasetError, match=f"is being written by process {pid}\\."):
        evaluate("guess", {"base": "scripted:a"}, out=tmp_path, tasks=2, samples=0)
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
