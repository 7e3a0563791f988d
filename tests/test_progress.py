"""What is said while something long is done: of its own time alone, and nothing where it was soon done."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

import drift
from drift.dataset.imports.groups import Survey
from drift.dataset.imports.run import Conversion
from drift.progress import watched


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that have passed."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_what_is_soon_done_says_nothing_and_what_is_not_says_how_far_it_is(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(watched(range(30), "read back", 30, unit="rows")) == [*range(30)]
    assert capsys.readouterr().err == ""
    for _ in watched(range(30), "read back", 30, unit="rows"):
        clock[0] += 1.0
    assert capsys.readouterr().err.splitlines() == [
        "read back: 10/30, 1.0 rows/s, 20 s left",
        "read back: 20/30, 1.0 rows/s, 10 s left",
        "read back: 30/30, 1.0 rows/s, 0 s left",
        "read back: 30/30, 1.0 rows/s, 0 s left",
    ]


def test_the_time_left_of_an_import_is_not_that_of_the_comparison_before_it(
    clock: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"id": str(at), "messages": said, "reward": at}) + "\n" for at in range(4)))

    def taking(seconds: float, owner: type, name: str) -> None:
        work = getattr(owner, name)

        def slowly(*given: Any) -> Any:
            clock[0] += seconds
            return work(*given)

        monkeypatch.setattr(owner, name, slowly)

    taking(1000.0, Survey, "add")
    taking(20.0, Conversion, "_convert")
    drift.read_logs(log, out=tmp_path / "out")
    lines = capsys.readouterr().err.splitlines()
    # The first row of four took 20 seconds, and not the 4,020 that had passed.
    assert "import: 1/4, 0.1 rows/s, 60 s left" in lines, lines
