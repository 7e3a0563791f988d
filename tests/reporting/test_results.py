import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from drift.errors import ConfigError, DatasetError
from drift.reporting.comparison import Found, verdicts
from drift.reporting.comparison_plots import accuracy_against_cost, curves
from drift.reporting.page import write_comparison_page

SCRIPT = Path(__file__).parents[2] / "benchmarks/results.py"
HOSTILE = "</dd><script>alert(1)</script> {{ 7*7 }}"


@pytest.fixture(scope="module")
def results() -> ModuleType:
    spec = importlib.util.spec_from_file_location("results_benchmark", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def comparison(
    shares: dict[str, float], p: dict[str, float], *, best: Any = None, against: str = "sft"
) -> dict[str, Any]:
    """A comparison of two turns with these shares of multi@2; multi@1 is half of it."""
    rows, differences = [], []
    for name, share in shares.items():
        for metric, value in (("multi@1", share / 2), ("multi@2", share), ("corrected@2", share / 4), ("turns", 1.5)):
            span = {"value": value, "low": value - 0.01, "high": value + 0.01, "seeds": 2}
            rows.append({"method": name, "metric": f"greedy/{metric}", **span})
            if name != against and metric == "multi@2":
                change = value - shares[against]
                found = {"value": change, "low": change - 0.02, "high": change + 0.02}
                corrected = None if name == "base" else p[name]
                differences.append({"method": name, "metric": f"greedy/{metric}", **found, "p_holm": corrected})
    cost = {
        "tokens_generated": 1000.0,
        "tokens_trained": 2000.0,
        "steps": 10.0,
        "seconds": 12.3,
        "rollout_seconds": 5.0,
    }
    return {
        "schema_version": 1,
        "kind": "comparison",
        "packages": {"torch": "2"},
        "command": "drift compare mine --seeds 1,2",
        "recipe": {
            "environment": {"name": "guess"},
            "model": "default",
            "rollouts": {"tasks": 4, "samples": 2},
            "evaluation": {"tasks": 8, "samples": 0},
        },
        "methods": {name: {"summary": HOSTILE, "overrides": {}} for name in shares if name != "base"},
        "seeds": [1, 2],
        "against": against,
        "modes": ["greedy"],
        "max_turns": 2,
        "rows": rows,
        "differences": differences,
        "best": {"greedy": best or {"method": "drift", "winner": False, "not_told_apart": ["rft"]}},
        "costs": dict.fromkeys(shares, cost),
        "failed": {"refit": {"1": f"negative | returns\n{HOSTILE}"}},
    }


SHARES = {"base": 0.1, "sft": 0.4, "drift": 0.6, "rft": 0.5, "swift": 0.2}
P = {"drift": 0.01, "rft": 0.2, "swift": 0.03}


def written(folder: Path, **named: dict[str, Any]) -> Path:
    for name, values in named.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    return folder


def test_the_table_has_methods_by_comparisons_and_marks_what_is_sure(results: ModuleType, tmp_path: Path) -> None:
    other = comparison({"base": 0.0, "sft": 0.9, "drift": 0.95}, {"drift": 0.3})
    page = results.page(written(tmp_path, one=comparison(SHARES, P), two=other))
    table = page.partition("## Methods on environments")[2].partition("\n- ")[0].strip().splitlines()[2:]
    assert table == [
        "| method | one | two | mean |",
        "|---|---|---|---|",
        "| drift | 60.0 [59.0, 61.0] ▲ | 95.0 [94.0, 96.0] | 77.5 |",
        "| sft | 40.0 [39.0, 41.0] | 90.0 [89.0, 91.0] | 65.0 |",
        "| rft | 50.0 [49.0, 51.0] | n/a |  |",
        "| swift | 20.0 [19.0, 21.0] ▼ | n/a |  |",
        "| base | 10.0 [9.0, 11.0] | 0.0 [-1.0, 1.0] | 5.0 |",
    ]
    assert "- one: `drift compare mine --seeds 1,2`; differences from sft." in page
    assert "| drift | 1,000 | 2,000 | 10 | 12 |" in page
    assert "failed: refit (seed 1): negative | returns </dd>" in page


def test_the_index_says_which_tables_there_are(results: ModuleType, tmp_path: Path) -> None:
    written(tmp_path, one=comparison(SHARES, P))
    (tmp_path / "index.yaml").write_text(
        "- {title: First, text: Some words., columns: {K = 2: one}, metric: multi@1, rows: [rft, refit]}\n"
    )
    page = results.page(tmp_path)
    table = page.partition("## First")[2].partition("\n- ")[0]
    assert table.strip() == (
        "Some words.\n\nmulti@1, greedy.\n\n| method | K = 2 |\n|---|---|\n| rft | 25.0 [24.0, 26.0] |\n"
        "| refit | failed |\n| base | 5.0 [4.0, 6.0] |"
    )
    (tmp_path / "index.yaml").write_text("- {title: First, columns: {a: onne}}\n")
    with pytest.raises(ConfigError, match="Did you mean 'one'"):
        results.page(tmp_path)
    (tmp_path / "index.yaml").write_text("- {title: First, columns: {a: one}, metrik: x}\n")
    with pytest.raises(ConfigError, match="unknown key 'metrik'"):
        results.page(tmp_path)


@pytest.mark.usefixtures("quick_starts")
def test_twice_the_same_and_what_is_kept_is_enough(results: ModuleType, tmp_path: Path) -> None:
    source = written(tmp_path, source=comparison(SHARES, P)) / "source.json"
    folder = tmp_path / "results"
    results.keep(source, folder / "source.json")
    pages = []
    for number in (1, 2):
        out = tmp_path / f"{number}.md"
        subprocess.run([sys.executable, SCRIPT, "write", "--folder", folder, "--out", out], check=True)
        pages.append(out.read_bytes())
    assert pages[0] == pages[1] and pages[0].decode() == results.page(folder)
    # Kept again from what was kept it is the same, so nothing the page needs was left out.
    results.keep(folder / "source.json", tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (folder / "source.json").read_bytes()
    (tmp_path / "source.json").unlink()
    (tmp_path / "again.json").unlink()
    written(tmp_path, source=comparison(SHARES, P))
    assert results.page(tmp_path).encode() == pages[0]


def test_the_committed_page_is_what_the_kept_comparisons_give(results: ModuleType) -> None:
    page = SCRIPT.parents[1] / "docs/results.md"
    assert page.read_text(encoding="utf-8") == results.page(results.FOLDER)


@pytest.mark.parametrize(
    ("best", "said"),
    [
        (
            {"method": "drift", "winner": False, "not_told_apart": ["rft"]},
            "greedy: no winner. drift has the highest multi@2 (60.0 %) and can't be told apart from rft. "
            "Better than sft: drift. Worse than sft: swift.",
        ),
        (
            {"method": "drift", "winner": True, "not_told_apart": []},
            "greedy: drift wins with multi@2 60.0 %, ahead of every other method. "
            "Better than sft: drift. Worse than sft: swift.",
        ),
    ],
)
def test_a_winner_is_named_only_where_there_is_one(best: dict[str, Any], said: str) -> None:
    assert verdicts(Found(comparison(SHARES, P, best=best))) == [said]


def test_where_nothing_is_sure_that_is_said() -> None:
    found = Found(comparison(SHARES, dict.fromkeys(P, 0.06)))
    assert verdicts(found)[0].endswith("None differs from sft.")


def test_the_page_runs_nothing_and_shows_text_as_text(tmp_path: Path) -> None:
    page = write_comparison_page(written(tmp_path, comparison=comparison(SHARES, P)), tmp_path / "r.html").read_text()
    assert "default-src 'none'" in page and "<script" not in page and "&lt;script&gt;" in page and "{{ 7*7 }}" in page
    assert page.count("<svg") == 2 and "drift compare mine --seeds 1,2" in page
    # Bold where it is sure: drift and swift.
    assert page.count('class="sure"') == 2
    again = write_comparison_page(tmp_path / "comparison.json", tmp_path / "again.html").read_text()
    assert again == page


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": 1, "kind": "weights"}'])
def test_what_is_no_comparison_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text(text)
    with pytest.raises(DatasetError, match="comparison"):
        write_comparison_page(tmp_path, tmp_path / "r.html")


def test_forty_methods_are_drawn_with_a_legend_that_fits(recwarn: pytest.WarningsRecorder) -> None:
    names = [f"token-probability-{number}" for number in range(40)]
    found = Found(comparison(dict.fromkeys(["base", "sft", *names], 0.5), dict.fromkeys(["base", "sft", *names], 1.0)))
    for drawn in (curves(found, "greedy"), accuracy_against_cost(found, "greedy")):
        assert all(f"<!-- {name} -->" in drawn for name in names)
    assert not recwarn.list
