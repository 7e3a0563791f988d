"""What ``drift new`` writes passes its own tests as it stands, conforms, and is found by its name."""

import ast
import sys
import tomllib
from pathlib import Path

import pytest

from drift.cli import main
from drift.errors import ConfigError
from drift.scaffold import new


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def install(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ``package`` importable and its entry points known, as an editable install does."""
    about = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    info = package / "src" / f"{about['name'].replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: 1.0\n")
    lines = [
        f"[{group}]\n{name} = {place}\n" for group, of in about["entry-points"].items() for name, place in of.items()
    ]
    (info / "entry_points.txt").write_text("".join(lines))
    monkeypatch.syspath_prepend(package / "src")


def lines_of_code(path: Path) -> int:
    """Lines that are neither empty nor of a docstring."""
    text = path.read_text()
    told: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            told |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len([line for number, line in enumerate(text.splitlines(), 1) if line.strip() and number not in told])


@pytest.mark.parametrize(("kind", "name"), [("environment", "letter-count"), ("weighting", "above-mean")])
def test_a_new_package_passes_its_own_tests_unedited(
    kind: str, name: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new", kind, name]) == 0
    assert f"Next: cd {name} && pip install -e '.[dev]' && make test" in capsys.readouterr().out
    install(here / name, monkeypatch)
    assert not [path for path in here.rglob("*") if path.is_file() and "{{" in path.read_text()]
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    assert pytest.main(["-q", "-p", "no:cacheprovider", "-c", "/dev/null", str(here / name / "tests")]) == 0
    if kind == "environment":
        assert main(["check", name]) == 0
        assert lines_of_code(here / name / "src" / "letter_count" / "__init__.py") <= 25
    for module in ("letter_count", "above_mean", "test_letter_count", "test_above_mean"):
        sys.modules.pop(module, None)


def test_a_new_recipe_can_run_on_its_own_questions(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["new", "recipe", "my-sums"]) == 0
    monkeypatch.chdir(here / "my-sums")
    assert main(["run", "my_sums.yaml", "--out", "run", "--dry_run"]) == 0


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("recipes", "mine", "Did you mean 'recipe'"),
        ("environment", "Letter Count", "expected small letters"),
        ("environment", "guess", "neither drift nor Python has given away"),
        ("weighting", "json", "neither drift nor Python has given away"),
    ],
)
def test_what_can_not_be_named_so_is_refused(kind: str, name: str, words: str, here: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        new(kind, name)  # type: ignore[arg-type]
    (here / "mine").mkdir()
    (here / "mine" / "kept.txt").touch()
    with pytest.raises(ConfigError, match="there already and is not empty"):
        new("recipe", "mine")
    assert [path.name for path in here.rglob("*")] == ["mine", "kept.txt"]
