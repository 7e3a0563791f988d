"""What the README, the documentation and the notebook show is run, or at least understood by the command line."""

import json
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import drift
from drift import cli
from drift.errors import ConfigError
from drift.keywords import as_declared

ROOT = Path(__file__).parents[1]
HISTORY = ("LOG.md", "results.md")
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
DOCUMENTS = [path for path in DOCUMENTS if path.name not in HISTORY]


def blocks(path: Path) -> list[tuple[str, str]]:
    """Language and text of the fenced blocks of a document."""
    return re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(path: Path) -> list[str]:
    """The ``drift`` commands that a document shows, in blocks and in the text."""
    text = path.read_text(encoding="utf-8")
    shown = []
    for language, block in blocks(path):
        if language in ("", "bash", "sh"):
            lines = re.sub(r"\\\n\s*", " ", block)
            # A quoted setting may go over several lines.
            lines = re.sub(r"'[^']*'", lambda quoted: " ".join(quoted.group().split()), lines)
            shown += [line for line in lines.splitlines() if line.startswith("drift ")]
    outside = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    shown += [
        code for code in re.findall(r"`(drift [^`]+)`", outside) if "…" not in code and not re.search(r"[A-Z]{2}", code)
    ]
    return shown


SHOWN = [(path.relative_to(ROOT).as_posix(), command) for path in DOCUMENTS for command in commands(path)]


def test_documents_show_commands() -> None:
    assert {name for name, _ in SHOWN} >= {"README.md", "docs/guide.md", "docs/rollouts.md"} and len(SHOWN) > 30


@pytest.mark.parametrize(("where", "command"), SHOWN, ids=[f"{where}: {command[:60]}" for where, command in SHOWN])
def test_a_shown_command_is_one_that_there_is(where: str, command: str) -> None:
    verb, *arguments = shlex.split(command, comments=True)[1:]
    if verb.startswith("-") or "--help" in arguments:
        return
    assert verb in cli.VERBS, where
    parser = cli.parser_of(verb, arguments)
    try:
        cli.parse(parser, arguments)
    except ConfigError as error:
        # In the text a command may be shown without what it is about.
        if "are required" not in str(error) and "expected one argument" not in str(error):
            raise
    for word in arguments:
        if word.startswith("--"):
            as_declared(parser, word)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


def shrunk(text: str) -> str:
    """The text with sizes that take seconds."""
    for name, size in (("tasks", "12"), ("samples", "4"), ("max_steps", "2")):
        text = re.sub(rf"\b({name}[= ])\d+", rf"\g<1>{size}", text)
    return text


def test_the_readme_runs_as_it_stands(elsewhere: Path) -> None:
    python = [block for language, block in blocks(ROOT / "README.md") if language == "python"]
    stages, environment = python
    # What evaluate leaves at its defaults is as many tasks as there are.
    exec(
        compile(
            shrunk(stages).replace("max_new_tokens=16, seen", "tasks=6, samples=1, max_new_tokens=16, seen"),
            "README.md",
            "exec",
        ),
        {},
    )
    assert (elsewhere / "run" / "report.html").is_file()
    (elsewhere / "my_env.py").write_text(environment)
    assert cli.main(["check", "my_env:Count"]) == 0
    (elsewhere / "log.jsonl").write_text(
        "".join(
            f'{{"messages": [{{"role": "user", "content": "{n} + 1 = ?"}}, {{"role": "assistant", "content": '
            f'"{n + 1}"}}], "rating": {n % 3}, "prompt_id": "p{n % 4}"}}\n'
            for n in range(24)
        )
    )
    questions = "".join(f"What is {n} + {n}?,{2 * n}\n" for n in range(40))
    (elsewhere / "questions.csv").write_text(f"question,answer\n{questions}")
    for command in commands(ROOT / "README.md"):
        words = shlex.split(shrunk(command))[1:]
        # What is left at its defaults is 16 conversations of every task.
        more = ["--tasks", "4", "--samples", "2", "--max_new_tokens", "8"] if words[0] == "rollout" else []
        if words[0] in ("import", "weigh", "preview", "train", "rollout") and len(words) > 1:
            assert cli.main([*words, *more]) == 0, command


def test_the_guide_runs_stage_by_stage(elsewhere: Path) -> None:
    stages = commands(ROOT / "docs" / "guide.md")[:7]
    assert [shlex.split(command)[1] for command in stages] == [
        "check", "rollout", "weigh", "train", "evaluate", "report", "check",
    ]  # fmt: skip
    for command in stages:
        words = shlex.split(shrunk(command))[1:]
        more = ["--tasks", "6", "--samples", "1"] if words[0] == "evaluate" else []
        assert cli.main([*words, *more]) == 0, command


def test_the_site_has_every_page_and_every_public_name_with_its_arguments() -> None:
    import yaml
    from tools.documentation import python_page

    def pages(part: Any) -> Iterator[str]:
        for each in part if isinstance(part, list) else part.values():
            yield from [each] if isinstance(each, str) else pages(each)

    nav = set(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    made = {"contributing.md", "reference/python.md", "reference/recipe.md", "reference/commands.md"}
    assert nav == written | made
    told = python_page()
    for name in drift.__all__:
        assert re.search(rf"^(?:### drift\.|::: drift\.\S+\.){name}$", told, re.MULTILINE), name
    # Arguments of a settings record are arguments of the call, and none is without a word.
    assert "| `max_new_tokens` |" in told.partition("### drift.rollout")[2].partition("###")[0]
    assert not re.findall(r"^\| `[^|]*\|[^|]*\|\s*\|$", told, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["1-first-minute", "2-own-task", "3-own-logs"])
def test_the_tutorial_runs_word_by_word(name: str, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / "docs" / "tutorial" / f"{name}.md"
    rows = [
        {"messages": [{"role": "user", "content": f"{n} + 1 = ?"}, {"role": "assistant", "content": f"{n + n % 2}"}]}
        | {"rating": 1 + 4 * (n % 2)}
        for n in range(60)
    ]
    (elsewhere / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for language, block in blocks(page):
        if language == "python":
            exec(compile(block, page.name, "exec"), {})
        for line in re.sub(r"\\\n\s*", " ", block).splitlines() if not language else []:
            if line.startswith("cd ") and Path(line[3:]).is_dir():
                monkeypatch.chdir(line[3:])
                (Path.cwd() / "replies.jsonl").write_text('{"reply": "<answer>12</answer>", "answer": "12"}\n')
            # Installing is what the test of `drift new` does, and of the hub there is none.
            elif line.startswith("drift ") and "letter-count" not in line and "Qwen/" not in line:
                assert cli.main(shlex.split(line)[1:]) == 0, line


@pytest.mark.slow
def test_the_notebook_runs(elsewhere: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / "docs" / "notebook.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)
    os.environ.setdefault("JUPYTER_PLATFORM_DIRS", "1")
    done = NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
    told = "".join(str(output) for cell in done.cells for output in cell.get("outputs", []))
    assert "__main__:Double" in told and "__main__:Guesser" in told and "report" in told
