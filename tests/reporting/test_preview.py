"""What will be trained, shown before it is: every reply with its weight, and what is left out with why."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import drift
from drift.dataset.store import TrajectoryWriter
from drift.reporting.console import print_preview
from drift.reporting.preview import readable
from drift.types import Trajectory
from drift.weights.table import read_weights

HOSTILE = (
    "</div><script>alert(1)</script>\x1b[31mred\x1b]8;;http://evil.example\x07link\x1b]8;;\x07\u202e\x9b2J{{ 7*7 }}"
)


@pytest.fixture
def run(tmp_path: Path, make_trajectory: Callable[..., Trajectory]) -> tuple[Path, Path]:
    """Ten conversations of two prompts: rewards 0 to 1, one whose environment failed, one with a hostile reply."""
    made = [make_trajectory("ab"[n % 2], n // 2, ("1", "2"), rewards=(0.0, n / 10)) for n in range(9)]
    made.append(make_trajectory("a", 9, ("1",), error="gone"))
    first = made[0].turns[0]
    said = dataclasses.replace(first.completion, text=HOSTILE, thinking="so \x1b[2Jclear")
    messages = tuple(
        {**message, "content": HOSTILE} if at == 1 else message for at, message in enumerate(made[0].messages)
    )
    turns = (dataclasses.replace(first, completion=said), dataclasses.replace(made[0].turns[1], loss_weight=0.0))
    made[0] = dataclasses.replace(made[0], messages=messages, turns=turns)  # type: ignore[arg-type]
    with TrajectoryWriter(tmp_path / "data", {}, [], shard_size=4) as writer:
        for trajectory in made:
            writer.append(trajectory)
        writer.finish()
    drift.weigh(tmp_path / "data", "swift", outcome="reward", steps=[{"skip_small": None}], out=tmp_path / "weights")
    return tmp_path / "data", tmp_path / "weights"


def test_every_reply_is_shown_with_the_weight_that_is_trained(run: tuple[Path, Path]) -> None:
    data, weights = run
    preview = drift.preview(data, weights, rows=20)
    table = read_weights(weights, data)
    by_id = {each.id: each for each in preview.shown}
    assert by_id.keys() == {*table, "a#9"} and preview.largest == max(np.abs(list(table["a#4"])))
    for name, given in table.items():
        assert [said.weight for said in by_id[name].said if said.weight is not None] == list(given)
        assert [said.role for said in by_id[name].said] == ["user", "assistant", "user", "assistant"]
    assert by_id["a#0"].said[3].why == "the log says that it counts for nothing"
    assert by_id["a#9"].why == "it failed (gone)"
    # The reward of one of prompt b's four is the mean of the four.
    left = {"it failed (gone)": 1, "the log says that it counts for nothing": 1, "all of its replies weigh 0": 1}
    assert preview.left_out == left
    heaviest = [max(said.weight or 0 for said in each.said) for each in preview.shown]
    assert heaviest == sorted(heaviest, reverse=True) and min(min(each) for each in table.values()) < 0
    few = drift.preview(data, weights, rows=3, max_length=5)
    assert len(few.shown) == 4 and few.left_out["it is longer than 5 tokens"] == 8


def test_what_was_said_steers_neither_a_terminal_nor_a_page(
    run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preview = drift.preview(*run, rows=20, out=tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert str(preview) == str(tmp_path / "page.html") and "default-src 'none'" in page
    assert not re.findall(r"<(script|iframe|object|link|img)\b", page)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;redlink2J{{ 7*7 }}" in page
    assert "srcdoc" in preview._repr_html_() and "<script" not in preview._repr_html_()
    print_preview(preview)
    printed = capsys.readouterr().out
    assert "<script>alert(1)</script>redlink2J{{ 7*7 }}" in printed and "(thinks) so clear" in printed
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", printed)
    # What is trained is in colour, where there is any.
    with Console(force_terminal=True, color_system="standard", width=200).capture():
        pass
    assert readable("a\x1b[1;31mb\x1b[0m\n\tc\ud800") == "ab\n\tc"


def test_weights_made_by_anything_are_shown_too(run: tuple[Path, Path], tmp_path: Path) -> None:
    import pandas as pd

    rows = {"id": ["a#1", "b#1"], "weights": [[0.0, 2.0], [0.0, 0.0]]}
    pd.DataFrame(rows).to_parquet(tmp_path / "own.parquet")
    preview = drift.preview(run[0], tmp_path / "own.parquet", rows=2)
    assert preview.sentences == () and preview.left_out["all of its replies weigh 0"] == 1
    assert next(said.weight for said in preview.shown[0].said[::-1] if said.role == "assistant") == 2.0
