"""What drift starts listens to this machine alone, if it listens at all; but for one store of torch's, told below."""

import ast
import ipaddress
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import drift
from drift.api import rollout, weigh

PACKAGE = Path(drift.__file__).parent
SERVING = {"bind", "listen", "start_server", "create_server", "serve_forever", "HTTPServer", "ThreadingHTTPServer"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    weigh(rollout(tasks=6, samples=4, max_new_tokens=8, out=out / "rollouts"), scheme="sft", out=out / "weights")
    return out


def heard(command: list[str], place: Path) -> set[tuple[str, int]]:
    """Addresses at which a command, or what it started, listened while it ran."""
    found: set[tuple[str, int]] = set()
    with subprocess.Popen([sys.executable, "-m", "drift", *command], cwd=place, stderr=subprocess.PIPE) as running:
        try:
            own = psutil.Process(running.pid)
            while running.poll() is None:
                for process in (own, *own.children(recursive=True)):
                    try:
                        connections = process.net_connections("inet")
                    except (psutil.NoSuchProcess, psutil.ZombieProcess):
                        continue
                    found |= {(c.laddr.ip, process.pid) for c in connections if c.status == psutil.CONN_LISTEN}
                time.sleep(0.03)
        except psutil.NoSuchProcess:
            pass
        said = running.stderr.read().decode() if running.stderr else ""
        assert running.wait() == 0, said
    return found


def is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.removeprefix("::ffff:")).is_loopback


def test_no_module_but_the_viewer_opens_a_socket_to_serve() -> None:
    viewer = PACKAGE / "viewer" / "server.py"
    assert 'HOST = "127.0.0.1"' in viewer.read_text() and "bind((HOST, port))" in viewer.read_text()
    for path in PACKAGE.rglob("*.py"):
        if path == viewer:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute | ast.Name):
                name = node.attr if isinstance(node, ast.Attribute) else node.id
                assert name not in SERVING, f"{path}:{node.lineno}"


@pytest.mark.slow
def test_stages_listen_nowhere(data: Path) -> None:
    small = ["--max-new-tokens", "8", "--tasks", "4", "--samples", "1"]
    assert heard(["rollout", "arithmetic", *small, "--out", "again"], data) == set()
    assert heard(["train", "rollouts", "weights", "--max-steps", "2", "--out", "model"], data) == set()


@pytest.mark.slow
def test_ranks_of_one_machine_listen_to_it_alone(data: Path) -> None:
    command = ["train", "rollouts", "weights", "--max-steps", "3", "--num-processes", "2", "--device", "cpu"]
    found = heard([*command, "--out", "ranks"], data)
    # All but torch's store of the rendezvous, in the launcher, which can't be told where to listen.
    elsewhere = {process for address, process in found if not is_loopback(address)}
    assert len({process for _, process in found}) == 3 and len(elsewhere) <= 1, found
