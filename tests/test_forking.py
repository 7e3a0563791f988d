"""A fork of the tests' server is what a new Python process is; the real one is the oracle."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .forking import FOLDER, QuickPopen, can_fork

pytestmark = pytest.mark.skipif(FOLDER not in os.environ, reason="no forks where coverage is measured")

FACTS = """
import json, os, signal, sys, threading
handlers = [signal.getsignal(getattr(signal, name)) for name in ("SIGINT", "SIGTERM", "SIGCHLD", "SIGPIPE")]
print(json.dumps([
    __name__, sys.argv, sys.path[0], [part for part in sys.path if "given" in part], dict(os.environ), os.getcwd(),
    list(map(str, handlers)), sorted(os.listdir("/proc/self/fd"))[:3], os.getsid(0) == os.getpid(),
    threading.active_count(), sys.stdin.read(), sys.stdout.write_through,
]))
print("also this", file=sys.stderr)
sys.exit(7)
"""


def both(line: list[str], **options: object) -> list[tuple[int, str, str]]:
    """Exit code and outputs of a new process and of a fork."""
    found = []
    for start in (subprocess.Popen, QuickPopen):
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        with start(line, text=True, **pipes, **options) as child:
            out, err = child.communicate("what is said", timeout=120)
        assert isinstance(getattr(child, "_channel", None), type(None)) == (start is subprocess.Popen)
        found.append((child.returncode, out, err))
    return found


@pytest.mark.parametrize(
    ("how", "session"),
    [
        (["-c", FACTS, "a", "--b"], False),
        (["-m", "facts", "a"], True),
        (["-u", "facts.py", "a"], False),
        (["-P", "-c", FACTS], True),
    ],
    ids=["script", "module", "file", "safe path"],
)
def test_a_fork_is_told_what_a_new_process_is_told(tmp_path: Path, how: list[str], session: bool) -> None:
    (tmp_path / "facts.py").write_text(FACTS)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'given'}:{os.environ.get('PYTHONPATH', '')}", "OWN": "1"}
    del environment["HOME"]
    new, fork = both([sys.executable, *how], cwd=tmp_path, env=environment, start_new_session=session)
    assert fork == new and new[0] == 7 and '"what is said"' in new[1]


def test_a_fork_of_the_command_ends_as_a_new_one_does() -> None:
    for arguments in (["--version"], ["rolout"], ["weigh", "nowhere", "--out", "x"]):
        new, fork = both([sys.executable, "-m", "drift", *arguments])
        assert fork == new


def test_an_error_and_what_runs_at_the_end_are_those_of_python() -> None:
    script = (
        "import atexit, threading\natexit.register(print, 'last')\nthreading.Timer(0.1, print, ['thread']).start()\n"
    )
    new, fork = both([sys.executable, "-c", script + "1 / 0"])
    assert fork[:2] == new[:2] == (1, "thread\nlast\n")
    assert fork[2].splitlines()[-1] == new[2].splitlines()[-1] == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals_end_it_as_they_end_a_new_process(number: signal.Signals) -> None:
    script = "import time\ntry:\n    print('ready', flush=True)\n    time.sleep(60)\nexcept KeyboardInterrupt:\n"
    script += "    print('stopped', flush=True)\n    raise"
    found = []
    for start in (subprocess.Popen, QuickPopen):
        line = [sys.executable, "-c", script]
        with start(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
            assert child.stdout is not None and child.stdout.readline() == "ready\n" and child.poll() is None
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(0.05)
            child.send_signal(number)
            found.append((child.wait(60), child.stdout.read()))
        assert not Path(f"/proc/{child.pid}").exists()
    assert found[0] == found[1] == (-number, "stopped\n" if number == signal.SIGINT else "")


def test_what_a_fork_can_not_be_is_started_as_ever() -> None:
    here = dict(os.environ)
    assert can_fork([sys.executable, "-m", "drift"], here)
    assert not can_fork([sys.executable, "-m", "drift"], {**here, "HF_HOME": "elsewhere"})
    assert not can_fork([sys.executable, "-I", "-c", ""], here)
    assert not can_fork(["/bin/true", "-c", ""], here)
