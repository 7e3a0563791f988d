"""Rollouts on a real Ray cluster of several nodes on this machine."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from drift.dataset.store import read_trajectories
from drift.manifest import read_manifest

from .machines import Machines, drift, ended, finish, install, kept, listening, wait_for

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    pytest.importorskip("ray")
    install(tmp_path_factory.mktemp("plugin"))
    with Machines() as machines:
        yield machines


@pytest.fixture
def machines(cluster: Machines) -> Iterator[Machines]:
    """The cluster, with nodes of the test's own."""
    yield cluster
    cluster.clear()


def rollout(out: Path, model: str, *more: str) -> list[str]:
    return ["rollout", "guess", "--out", str(out), "--model", model, *more]


def noting(notes: Path) -> list[str]:
    """The option that makes each worker note itself in ``notes``."""
    return ["--policy.notes", str(notes)]


SLOW = ["--tasks", "60", "--samples", "4", "--concurrency", "3"]


@pytest.fixture(scope="module")
def scripted_hash(tmp_path_factory: pytest.TempPathFactory, cluster: Machines) -> str:
    """The dataset hash of the scripted conversations held without Ray."""
    out = tmp_path_factory.mktemp("alone") / "data"
    code, _, err = finish(drift(*rollout(out, "slow:0", *SLOW)))
    assert code == 0, err
    return str(manifest(out)["dataset_hash"])


def manifest(folder: Path) -> dict[str, Any]:
    return read_manifest(folder, "trajectories")


def check_whole(out: Path, trajectories: int, dataset_hash: str) -> None:
    ids = [trajectory.id for trajectory in read_trajectories(out)]
    assert len(ids) == len(set(ids)) == trajectories
    assert manifest(out)["dataset_hash"] == dataset_hash


def test_a_model_on_three_nodes_one_killed_gives_the_data_of_one_process(machines: Machines, tmp_path: Path) -> None:
    size = ["--tasks", "300", "--samples", "4", "--max_new_tokens", "16", "--concurrency", "16"]
    assert finish(drift(*rollout(tmp_path / "alone", "default", *size)))[0] == 0
    for _ in range(3):
        machines.add()
    out, notes = tmp_path / "nodes", tmp_path / "notes"
    notes.mkdir()
    child = drift(*rollout(out, f"noted:{notes}", *size, "--cluster.address", machines.address))
    wait_for(lambda: len(list(notes.iterdir())) == 3, "three workers")
    so_far = wait_for(lambda: kept(out), "the first results")
    wait_for(lambda: kept(out) > so_far + 50, "more results")
    victim = int(next(notes.iterdir()).name)
    machines.kill(machines.node_of(victim))
    wait_for(lambda: ended(victim), "the worker of the killed node ends")
    code, printed, err = finish(child)
    assert code == 0, err
    alone, found = manifest(tmp_path / "alone"), manifest(out)
    check_whole(out, 1200, alone["dataset_hash"])
    assert found["spec"] == alone["spec"]
    assert found["cluster"]["workers"] == 3 and found["cluster"]["lost"] == 1 and found["cluster"]["failed"] == 0
    assert 1 <= found["cluster"]["requeued"] <= 20 and found["cluster"]["duplicates"] == 0
    assert len(printed.splitlines()) == 1 and "is lost; its" in err


def test_a_node_that_joins_is_used_and_one_killed_is_not_missed(
    machines: Machines, tmp_path: Path, scripted_hash: str
) -> None:
    first = machines.add()
    notes = tmp_path / "notes"
    notes.mkdir()
    out = tmp_path / "data"
    child = drift(*rollout(out, "slow:0.15", *SLOW, *noting(notes), "--cluster.address", machines.address))
    wait_for(lambda: kept(out) > 5, "the first results")
    assert len(list(notes.iterdir())) == 1
    machines.add()
    wait_for(lambda: len(list(notes.iterdir())) == 2, "a worker on the new node")
    machines.kill(first)
    code, _, err = finish(child)
    assert code == 0, err
    check_whole(out, 240, scripted_hash)
    assert manifest(out)["cluster"]["workers"] == 2 and manifest(out)["cluster"]["lost"] == 1


def test_a_worker_that_dies_is_replaced_on_its_node(machines: Machines, tmp_path: Path, scripted_hash: str) -> None:
    machines.add(cpus=2)
    out, notes = tmp_path / "data", tmp_path / "notes"
    notes.mkdir()
    address = ["--cluster.address", machines.address, "--cluster.workers", "2"]
    child = drift(*rollout(out, "slow:0.1", *SLOW, *noting(notes), *address))
    wait_for(lambda: kept(out) > 5 and len(list(notes.iterdir())) == 2, "results and two workers")
    psutil.Process(int(next(notes.iterdir()).name)).kill()
    wait_for(lambda: len(list(notes.iterdir())) == 3, "another worker")
    code, _, err = finish(child)
    assert code == 0, err
    check_whole(out, 240, scripted_hash)
    assert manifest(out)["cluster"]["workers"] == 3 and manifest(out)["cluster"]["failed"] == 1


def test_begun_on_a_cluster_killed_and_ended_in_one_process(
    machines: Machines, tmp_path: Path, scripted_hash: str
) -> None:
    machines.add()
    out = tmp_path / "data"
    child = drift(*rollout(out, "slow:0.05", *SLOW, "--cluster.address", machines.address))
    wait_for(lambda: kept(out) > 20, "some results")
    child.kill()
    child.communicate()
    wait_for(lambda: not machines.workers(), "the workers of a killed driver end")
    assert 20 < kept(out) < 240
    code, _, err = finish(drift(*rollout(out, "slow:0", *SLOW)))
    assert code == 0, err
    check_whole(out, 240, scripted_hash)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_the_user_it_keeps_what_is_finished_and_ends_its_workers(
    number: signal.Signals, machines: Machines, tmp_path: Path, scripted_hash: str
) -> None:
    machines.add()
    out = tmp_path / "data"
    address = ["--cluster.address", machines.address]
    child = drift(*rollout(out, "slow:0.05", *SLOW, *address))
    wait_for(lambda: kept(out) > 20, "some results")
    child.send_signal(number)
    code, _, err = finish(child)
    assert code == 130 and "of 240 conversations are in" in err and "Traceback" not in err
    wait_for(lambda: not machines.workers(), "workers end", 5)
    assert 20 < kept(out) < 240
    code, _, err = finish(drift(*rollout(out, "slow:0", *SLOW, *address)))
    assert code == 0, err
    check_whole(out, 240, scripted_hash)


def test_without_any_node_left_it_says_so_and_goes_on_later(
    machines: Machines, tmp_path: Path, scripted_hash: str
) -> None:
    node = machines.add()
    out = tmp_path / "data"
    address = ["--cluster.address", machines.address]
    child = drift(*rollout(out, "slow:0.05", *SLOW, *address), patience=20)
    wait_for(lambda: kept(out) > 20, "some results")
    machines.kill(node)
    code, _, err = finish(child)
    assert code == 1 and "no worker for 20 seconds: a worker asks for 1 CPUs and 0 GPUs; the cluster has" in err
    assert 20 < kept(out) < 240
    machines.add()
    code, _, err = finish(drift(*rollout(out, "slow:0", *SLOW, *address)))
    assert code == 0, err
    check_whole(out, 240, scripted_hash)


@pytest.mark.parametrize(
    ("model", "nodes", "code", "message"),
    [
        ("broken:made", 2, 2, "no such model. Give another."),
        ("broken:crash", 1, 1, "3 workers in a row failed, the last on"),
        ("broken:asked", 1, 1, "RuntimeError: out of memory"),
        ("uneven:x", 2, 2, "Give every machine the same model files"),
    ],
)
def test_a_policy_that_fails_on_the_workers_is_not_tried_for_ever(
    model: str, nodes: int, code: int, message: str, machines: Machines, tmp_path: Path
) -> None:
    for _ in range(nodes):
        machines.add()
    begun = time.monotonic()
    found, _, err = finish(drift(*rollout(tmp_path / "data", model, *SLOW, "--cluster.address", machines.address)))
    assert found == code and message in err, err
    assert time.monotonic() - begun < 40
    if model in ("broken:made", "broken:crash"):
        assert not (tmp_path / "data").exists()
    wait_for(lambda: not machines.workers(), "workers end", 5)


def test_no_cluster_at_the_address_is_an_error_at_once(tmp_path: Path, cluster: Machines) -> None:
    code, _, err = finish(drift(*rollout(tmp_path, "slow:0", *SLOW, "--cluster.address", "127.0.0.1:1")))
    assert code == 1 and "no Ray cluster can be joined at '127.0.0.1:1'" in err
    assert "Traceback" not in err


def test_an_evaluation_on_a_cluster_measures_the_same(machines: Machines, tmp_path: Path) -> None:
    machines.add(cpus=2)
    command = ["evaluate", "arithmetic", "--models.base", "default", "--tasks", "30", "--samples", "1"]
    command += ["--max_new_tokens", "16"]
    for name, more in {"a": [], "b": ["--cluster.address", machines.address, "--cluster.workers", "2"]}.items():
        code, _, err = finish(drift(*command, "--out", str(tmp_path / name), *more))
        assert code == 0, err
    assert (tmp_path / "a" / "estimates.json").read_text() == (tmp_path / "b" / "estimates.json").read_text()


def test_a_cluster_of_this_machine_alone_listens_on_loopback_and_ends_with_the_run(
    tmp_path: Path, scripted_hash: str
) -> None:
    out = tmp_path / "data"
    settings = ["--cluster.address", "local", "--cluster.workers", "1"]
    before = os.environ.pop("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
    child = drift(*rollout(out, "slow:0.02", *SLOW, *settings))
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = before
    wait_for(lambda: kept(out), "the first results")
    process = psutil.Process(child.pid)
    started = process.children(recursive=True)
    assert {ip.removeprefix("::ffff:") for ip in listening(process)} == {"127.0.0.1"}
    code, printed, err = finish(child)
    assert code == 0 and len(printed.splitlines()) == 1, err
    check_whole(out, 240, scripted_hash)
    _, alive = psutil.wait_procs(started, timeout=10)
    assert len(started) >= 3 and not alive
