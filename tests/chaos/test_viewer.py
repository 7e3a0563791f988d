"""The viewer, disturbed while it shows what is being made, and what it shows changed below it."""

import json
import random
import re
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest

from drift.dataset.store import shards

from .harness import (
    BLOWS,
    ROUNDS,
    SEED,
    Child,
    Stage,
    Tally,
    end_as_it_should,
    finish,
    result,
    start,
    stopped_for_a_while,
)
from .test_faults import SIGNALS

pytest.importorskip("uvicorn")
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]
COUNT = 180


def ask(url: str, path: str = "list") -> tuple[int, str]:
    """Status and text of a page; what its server has to say of itself is no answer."""
    try:
        with urlopen(url + path, timeout=60) as answer:
            status, text = answer.status, answer.read().decode()
    except HTTPError as error:
        status, text = error.code, error.read().decode()
    assert status in (200, 404) and "<nav>" in text, (path, status, text)
    return status, text


def all_shown(url: str) -> bool:
    """Whether soon all conversations are shown, and nothing is said to be wrong."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        page = ask(url)[1]
        if f"of {COUNT} conversations" in page and "be read" not in page:
            return True
        time.sleep(0.1)
    return False


def begin(folder: Path) -> tuple[Child, str]:
    """A viewer, and its address."""
    import drift.viewer.server  # noqa: F401

    viewer = start(["view", str(folder)])
    while "Ctrl-C ends it" not in viewer.said:
        assert not viewer.wait(0.05), viewer.said
    return viewer, re.findall(r"http://\S+/", viewer.said)[0]


@contextmanager
def viewing(folder: Path) -> Iterator[str]:
    """The address of a viewer that must end well when it is told to."""
    viewer, url = begin(folder)
    try:
        yield url
    finally:
        viewer.send(signal.SIGINT)
        ended = viewer.wait(60)
    assert ended and viewer.code == 0 and "Traceback" not in viewer.said, (viewer.code, viewer.said)


def begun(stage: Stage, folder: Path) -> Child:
    """Rollouts in ``folder`` that have begun."""
    made = start(stage.at(folder / "rollouts"))
    while not (folder / "rollouts" / "manifest.json").exists():
        assert not made.wait(0.02), made.said
    return made


@pytest.mark.parametrize("kind", [*SIGNALS, "SIGSTOP, then SIGCONT"])
def test_a_viewer_of_rollouts_under_way(stages: dict[str, Stage], place: Path, tally: Tally, kind: str) -> None:
    stage, rng = stages["rollout"], random.Random(f"{SEED}/view/{kind}")
    for turn in range(ROUNDS):
        folder, hits = place / f"view-{kind}-{turn}", 0
        made = begun(stage, folder)
        for _ in range(BLOWS):
            viewer, url = begin(folder)
            address = urlsplit(url)
            # A page is under way when it comes.
            with socket.create_connection((address.hostname, address.port)) as client:
                client.sendall(f"GET {address.path}list HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode())
                time.sleep(rng.uniform(0.0, 0.2))
                hits += stopped_for_a_while(viewer, rng) if kind not in SIGNALS else viewer.send(SIGNALS[kind])
            if kind not in SIGNALS:
                assert ask(url)[0] == 200
                viewer.send(signal.SIGINT)
            assert viewer.wait(60), f"{kind} does not end it: {viewer.said}"
            assert "Traceback" not in viewer.said, viewer.said
            assert viewer.code == (-signal.SIGKILL if kind == "SIGKILL" else 0), (viewer.code, viewer.said)
        assert made.wait(240) and made.code == 0, made.said
        assert result("rollout", folder / "rollouts") == stage.expected
        with viewing(folder) as url:
            assert all_shown(url)
        tally.add("view", kind, hits)


def test_what_is_viewed_is_killed_and_run_again(stages: dict[str, Stage], place: Path, tally: Tally) -> None:
    stage, rng = stages["rollout"], random.Random(f"{SEED}/view/below")
    for turn in range(ROUNDS):
        folder, hits = place / f"view-below-{turn}", 0
        made = begun(stage, folder)
        with viewing(folder) as url:
            for _ in range(BLOWS):
                made.wait(rng.uniform(0.0, stage.seconds / 2))
                hits += made.send(signal.SIGKILL)
                made.wait(60)
                ask(url, ""), ask(url)
                made = start(stage.at(folder / "rollouts"))
            assert made.wait(240) and made.code == 0, made.said
            assert all_shown(url)
        end_as_it_should(stage, folder / "rollouts")
        tally.add("view", "killed below the viewer", hits)


DAMAGES = ["truncated shard", "flipped bit", "missing shard", "manifest of another version", "directory moved away"]


@pytest.mark.parametrize("fault", DAMAGES)
def test_data_are_damaged_below_a_viewer(stages: dict[str, Stage], place: Path, tally: Tally, fault: str) -> None:
    rng = random.Random(f"{SEED}/view/{fault}")
    for turn in range(ROUNDS):
        folder = place / f"view-{fault}-{turn}"
        data, kept = folder / "rollouts", folder / "kept"
        shutil.copytree(place / "whole" / "rollout", data)
        with viewing(folder) as url:
            assert all_shown(url)
            one = re.findall(r'id="row-\d+" href="([^"]+)"', ask(url)[1])[0].replace("&amp;", "&")
            shutil.copytree(data, place / "kept")
            shard = rng.choice(shards(data))
            content = bytearray(shard.read_bytes())
            if fault == "truncated shard":
                shard.write_bytes(content[: rng.randrange(len(content))])
            elif fault == "flipped bit":
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
                shard.write_bytes(content)
            elif fault == "missing shard":
                shard.unlink()
            elif fault == "directory moved away":
                data.rename(place / "away")
            else:
                manifest = json.loads((data / "manifest.json").read_text())
                (data / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 7}))
            # Stages are looked for once a second.
            time.sleep(1.1)
            pages = [ask(url, path)[1] for path in ("", "list", "list?data=rollouts", "report", one)]
            told = ("can't be read", "schema version 7", "expected", "is missing", f"of {COUNT} conversations, page")
            assert any(word in page for word in told[:-1] for page in pages) or told[-1] not in pages[1], pages
            shutil.rmtree(place / "away" if fault == "directory moved away" else data)
            (place / "kept").rename(data)
            assert all_shown(url)
        assert result("rollout", data) == stages["rollout"].expected
        tally.add("view", fault)
        assert not kept.exists()


def test_clients_that_leave_or_send_nonsense(stages: dict[str, Stage], place: Path, tally: Tally) -> None:
    rng = random.Random(f"{SEED}/view/clients")
    folder = place / "view-clients"
    shutil.copytree(place / "whole" / "rollout", folder / "rollouts")
    with viewing(folder) as url:
        address = urlsplit(url)
        head = f"GET {address.path}list HTTP/1.1\r\nHost: {address.netloc}\r\n"
        for _ in range(ROUNDS):
            said = [head.encode(), rng.randbytes(3000), f"{head}X: {'x' * 100_000}\r\n\r\n".encode(), b""]
            for data in (*said, f"{head}\r\n".encode() * 20):
                with socket.create_connection((address.hostname, address.port)) as client, suppress(OSError):
                    client.sendall(data)
            with suppress(OSError):
                opened = [socket.create_connection((address.hostname, address.port)) for _ in range(50)]
            assert all_shown(url)
            for client in opened:
                client.close()
            tally.add("view", "clients leave or send nonsense")


def test_another_data_set_takes_the_place_of_the_one_that_is_viewed(
    stages: dict[str, Stage], place: Path, tally: Tally
) -> None:
    stage, folder = stages["rollout"], place / "view-other"
    shutil.copytree(place / "whole" / "rollout", folder / "rollouts")
    with viewing(folder) as url:
        assert all_shown(url)
        for turn in range(ROUNDS):
            shutil.rmtree(folder / "rollouts")
            finish([*stage.at(folder / "rollouts"), "--seed", str(turn + 2)])
            assert all_shown(url)
            tasks = {line.split('"')[3] for line in (folder / "rollouts" / "tasks.jsonl").read_text().splitlines()}
            ids = re.findall(r'id="row-\d+"[^>]*>([^<]+)<', ask(url)[1])
            assert ids and all(name.rpartition("#")[0] in tasks for name in ids)
            tally.add("view", "another data set in its place")
