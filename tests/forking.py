"""Python processes that start at once: a server that has imported torch and drift forks, where a new one would import.

A server is one for a whole run of pytest and imports on the first request; see the fixture ``quick_starts``.
``QuickPopen`` is ``subprocess.Popen`` for ``python -m MODULE``, ``python -c SCRIPT`` and ``python FILE``: the process
has its own id, standard streams, directory, variables, search path, session and signals, and ends as Python ends. What
it can't imitate, such as another ``HF_HOME``, is started as ever.
"""

import contextlib
import gc
import importlib
import itertools
import os
import pickle
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Any

FOLDER = "DRIFT_TESTS_FORKS"
ELASTIC = "torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler"
# Read when a library is imported, so that a fork can have no other value than the server.
READ_ON_IMPORT = ("HF_", "TRANSFORMERS_", "OMP_", "MKL_", "CUDA_", "PYTHON")
# What each server imports. Workers of the verifier ``math`` bound their memory, and torch alone takes more.
SERVERS = {
    "torch": """
        accelerate peft torch.profiler transformers.models.qwen2.modeling_qwen2
        transformers.models.qwen2.tokenization_qwen2 transformers.trainer drift
    """,
    "math": "math_verify sympy.parsing.sympy_parser sympy.physics.units drift.verifiers",
}


class QuickPopen(subprocess.Popen[Any]):
    """``subprocess.Popen`` that has the server fork where it can, as does what the process starts itself."""

    _channel: socket.socket | None = None
    passed_on = True

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest):  # type: ignore[no-untyped-def]
        pipes, new_session, process_group = rest[3:9], rest[-2], rest[-1]
        environment = {**(os.environ if env is None else env)}
        line = [os.fspath(args)] if isinstance(args, str | bytes | os.PathLike) else [os.fspath(part) for part in args]
        imitable = not (executable not in (None, line[0]) or preexec_fn or pass_fds or rest[2] or process_group != -1)
        if not imitable or not can_fork(line, environment):
            return super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest)
        # The child's ends of the pipes; where there is none, this process's own stream.
        streams = [own if end == -1 else end for own, end in enumerate((pipes[0], pipes[3], pipes[5]))]
        self._lock = threading.Lock()
        self._channel = socket.socket(socket.AF_UNIX)
        server = "math" if any("drift.verifiers" in part for part in line) else "torch"
        self._channel.connect(os.path.join(os.environ[FOLDER], server))
        socket.send_fds(self._channel, [b"."], streams)
        request = {"line": line[1:], "cwd": os.fspath(cwd or os.getcwd()), "env": environment, "session": new_session}
        request["quick"] = self.passed_on
        self._channel.sendall(pickle.dumps(request))
        self._channel.shutdown(socket.SHUT_WR)
        self._close_pipe_fds(*pipes)
        self.pid = int(self._answer())
        self._child_created = True

    def _answer(self) -> str:
        """The next line of what the server says: the process's id, then its status."""
        said = b""
        while not said.endswith(b"\n"):
            byte = self._channel.recv(1)
            if not byte:
                raise OSError("the fork server of the tests has ended")
            said += byte
        return said.decode()

    def _internal_poll(self, *arguments: Any, **named: Any) -> int | None:
        if self._channel is None:
            return super()._internal_poll(*arguments, **named)
        with self._lock:
            if self.returncode is None and select.select([self._channel], [], [], 0)[0]:
                self._handle_exitstatus(int(self._answer()))
                self._channel.close()
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        if self._channel is None:
            return super()._wait(timeout)
        if self.returncode is None and not select.select([self._channel], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self._internal_poll()


class WorkerPopen(QuickPopen):
    """The same for xdist's workers, whose tests decide themselves how they start processes."""

    passed_on = False


def can_fork(line: list[str], environment: dict[str, str]) -> bool:
    """Whether ``line`` starts this Python on a module, a script or a file, in surroundings like the server's own."""
    rest = line[1 + len(leading_options(line[1:])) :]
    if line[0] != sys.executable or not rest or (rest[0].startswith("-") and rest[0] not in ("-m", "-c")):
        return False
    names = {name for name in {**environment, **os.environ} if name.startswith(READ_ON_IMPORT)} - {"PYTHONPATH"}
    return all(environment.get(name) == os.environ.get(name) for name in names)


def leading_options(line: list[str]) -> list[str]:
    """Those of Python's options before what it runs that a fork can have."""
    return list(itertools.takewhile(lambda part: part in ("-P", "-u"), line))


def starting() -> list[types.ModuleType]:
    """Modules whose ``Popen`` starts processes: the standard one, and the one of torch's launcher."""
    return [subprocess, *([importlib.import_module(ELASTIC)] if "torch" in sys.modules else [])]


def start_servers(folder: Path) -> list[subprocess.Popen[bytes]]:
    """Servers that end with their standard input; where they are is in the environment."""
    os.environ[FOLDER] = str(folder)
    # Threads don't survive a fork: none of OpenMP's and none of jemalloc's.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
    started = []
    for name in SERVERS:
        line = [sys.executable, __file__, name]
        server = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert server.stdout is not None and server.stdout.readline() == b"listening\n"
        started.append(server)
    return started


def serve(name: str) -> dict[str, Any]:
    """Fork for each request; returns only in the processes that were asked for."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.path.join(os.environ[FOLDER], name))
    listener.listen(64)
    print("listening", flush=True)
    # Ctrl-C in a terminal reaches the whole group, and is for pytest.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ready = False
    while listener in select.select([listener, 0], [], [])[0]:
        channel, _ = listener.accept()
        if not ready:
            prepare(name)
            ready = True
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not os.fork():
            listener.detach()
            return attend(channel)
        channel.close()
    sys.exit()


def prepare(name: str) -> None:
    """Import what processes need, and start no thread."""
    gc.disable()
    for module in SERVERS[name].split():
        package = importlib.import_module(module)
        if module == "drift":
            for part in pkgutil.walk_packages(package.__path__, "drift."):
                if part.name == "drift.__main__":
                    continue
                try:
                    importlib.import_module(part.name)
                except ModuleNotFoundError as error:
                    # Of an extra that is not installed here.
                    if (error.name or "drift").startswith("drift"):
                        raise
    tasks = Path("/proc/self/task")
    assert not tasks.is_dir() or len(list(tasks.iterdir())) == 1, "an import has started a thread, which no fork has"
    gc.freeze()
    gc.enable()


def attend(channel: socket.socket) -> dict[str, Any]:
    """Fork once more; the parent tells the id and the status of the child, which gets the request."""
    _, streams, _, _ = socket.recv_fds(channel, 1, 3)
    received = b"".join(iter(lambda: channel.recv(1 << 16), b""))
    child = os.fork()
    if child:
        for stream in streams:
            os.close(stream)
        with contextlib.suppress(OSError):
            channel.sendall(f"{child}\n".encode())
        _, status = os.waitpid(child, 0)
        with contextlib.suppress(OSError):  # whoever asked may be gone
            channel.sendall(f"{status}\n".encode())
        os._exit(0)
    channel.detach()
    for own, stream in enumerate(streams):
        os.dup2(stream, own)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    request: dict[str, Any] = pickle.loads(received)
    return request


def become(request: dict[str, Any]) -> None:
    """Run what ``python LINE`` would run, as the main program."""
    own = {os.path.abspath(part) for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part}
    base = [part for part in sys.path[1:] if part not in own]
    if request["session"]:
        os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Ignored where the tests run under nohup, and so would it be here.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    options = leading_options(request["line"])
    line = request["line"][len(options) :]
    if "-u" in options:
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
    given = [os.path.abspath(part) for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    what, rest = line[0], line[1:]
    first = {"-m": os.getcwd(), "-c": ""}.get(what, os.path.dirname(os.path.abspath(what)))
    sys.path[:] = [*([] if "-P" in options else [first]), *given, *base]
    importlib.invalidate_caches()
    for module in starting() if request["quick"] else ():
        module.Popen = QuickPopen  # type: ignore[attr-defined]
    if what == "-c":
        main = types.ModuleType("__main__")
        sys.modules["__main__"], sys.argv = main, ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    elif what == "-m":
        sys.argv = rest
        sys.modules.pop(rest[0], None)
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = line
        runpy.run_path(what, run_name="__main__")


if __name__ == "__main__":
    become(serve(sys.argv[1]))
