"""How commands end: control sequences stay out of the terminal, no traceback, and an exit code that is true."""

import ast
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import drift
from drift import terminal
from drift.cli import main
from drift.endings import AllSaid, ended, in_words, stage
from drift.errors import ConfigError, Unforeseen
from drift.progress import Progress
from drift.terminal import clean, console, tell
from drift.training.config import TrainingConfig
from drift.verbs import VERBS
from drift.weights.config import WeightConfig

PACKAGE = Path(drift.__file__).parent
# Colour, title of the window, clipboard, cursor, C1, carriage return, bell, direction of text, half a sequence.
HOSTILE = "a\x1b[31mb\x1b]0;owned\x07c\x1b]52;c;cm0=\x1b\\d\x1b[2J\x1b[1;1He\x9b31mf\rg\x07h\u202ei\x08j"
HOSTILE += "\x1bk\x9d0;x\x9cl\x1b["
ROLLOUT = ["rollout", "guess", "--model", "scripted:a|b", "--tasks", "40", "--samples", "2"]
pytestmark = pytest.mark.usefixtures("quick_starts")


def test_text_has_no_control_sequences_and_keeps_everything_else() -> None:
    assert clean(HOSTILE) == "abcdefghijl"
    assert clean("tab\tline\nβ≥ 日本 é \u200b") == "tab\tline\nβ≥ 日本 é \u200b"
    assert clean("\ud800") == "?"
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", clean("".join(map(chr, range(0x300)))))


def test_text_has_nothing_that_is_not_seen() -> None:
    assert clean("adm\xadin\u2028\ufeff\u2060\U000e0041") == "admin" and clean("می\u200cخواهم") == "می\u200cخواهم"


def test_nothing_else_writes_to_the_terminal() -> None:
    for path in {*PACKAGE.rglob("*.py")} - {PACKAGE / "terminal.py"}:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert called not in ("print", "Console", "sys.stdout.write", "sys.stderr.write"), f"{path}:{node.lineno}"


def test_names_and_markup_reach_a_table_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    shown = Table(title=f"[/bold]{HOSTILE}")
    shown.add_column(f"[red]{HOSTILE}")
    shown.add_row("[/x] :smile: [link=http://a]b")
    out = console()
    out.print(shown)
    out.print(f"[/nothing] {HOSTILE}")
    said = capsys.readouterr().out
    assert "\x1b" not in said and "\x07" not in said and "[/x] :smile: [link=http://a]b" in said
    assert "[/nothing] abcdefghijl" in said


def test_errors_of_templates_files_and_models_are_said_without_control_sequences(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (model / "chat_template.jinja").write_text("{{ raise_exception('" + HOSTILE.replace("\\", "") + "') }}")
    with Progress(HOSTILE, 1) as progress:
        progress.say(HOSTILE)
    for arguments in (
        [*ROLLOUT[:2], "--model", str(model), "--out", str(tmp_path / "a")],
        [f"x{HOSTILE}"],
        ["report", f"x{HOSTILE}"],
        ["run", f"x{HOSTILE}.yaml"],
        ["evaluate", "guess", "--models", json.dumps({HOSTILE: "default"})],
    ):
        assert main(arguments) in (1, 2)
    (model / "config.json").write_text(json.dumps({"model_type": HOSTILE}))
    assert main([*ROLLOUT[:2], "--model", str(model), "--out", str(tmp_path / "b")]) == 2
    captured = capsys.readouterr()
    assert "abcdefghijl" in captured.err
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", captured.out + captured.err)


def test_what_nobody_foresaw_is_told_in_words_with_stage_and_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "planted-8c1d77aa0b4e")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "manifest.json").write_text("{}")

    def work() -> int:
        with stage("training", tmp_path / "model"):
            raise KeyError("planted-8c1d77aa0b4e\x1b[31m")

    assert ended(work, "drift run", tmp_path) == 1
    said = capsys.readouterr().err
    path = next(tmp_path.glob("error-*.txt"))
    assert re.fullmatch(
        rf"drift: drift run failed in the stage training in {tmp_path}/model: KeyError: '\*\*\*\S*'\. Kept: "
        rf"{tmp_path}/weights\. Run the same command again: it goes on where it was\. The traceback is in {path}\.\n",
        said,
    )
    assert 'raise KeyError("' in path.read_text() and "planted-8c1d77aa0b4e\x1b" not in path.read_text()
    for error, word in (
        (ModuleNotFoundError("No module named 'x'", name="x"), "It needs the package x"),
        (OSError(28, "No space left on device"), "Free some space"),
        (MemoryError(), "Memory ran out"),
    ):
        assert word in str(in_words(error, "drift train", tmp_path)) and isinstance(in_words(error, "t"), Unforeseen)


def run(arguments: list[str], **more: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "drift", *arguments], stderr=subprocess.PIPE, **more)


def test_a_reader_that_leaves_ends_no_work(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with run([*ROLLOUT, "--out", str(tmp_path / "data")], stdout=writing) as process:
        os.close(writing)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0 and b"Traceback" not in said and b"Exception" not in said
    assert json.loads((tmp_path / "data" / "manifest.json").read_text())["complete"]


def test_output_that_can_not_be_written_is_no_success(tmp_path: Path) -> None:
    for arguments in ([*ROLLOUT, "--out", str(tmp_path / "data")], ["--help"]):
        with open("/dev/full", "w") as full, run(arguments, stdout=full) as process:
            _, said = process.communicate(timeout=60)
        assert process.returncode == 1 and b"standard output could not be written: No space left" in said, said
        assert b"Traceback" not in said and b"Exception ignored" not in said
    assert json.loads((tmp_path / "data" / "manifest.json").read_text())["complete"]


@pytest.mark.parametrize("verb", VERBS)
def test_help_that_can_not_be_written_is_no_success(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(terminal, "_lost", {})
        monkeypatch.setattr(sys, "stdout", full)
        assert main([verb, "--help"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "standard output could not be written: No space left" in said


def test_a_stream_that_is_closed_takes_nothing_and_no_file_gets_its_number(tmp_path: Path) -> None:
    out = tmp_path / "data"
    line = [sys.executable, "-m", "drift", *ROLLOUT, "--out", str(out)]
    for closed in (">&-", "<&- >&- 2>&-"):
        done = subprocess.run(["sh", "-c", f'"$@" {closed}', "sh", *line], capture_output=True, timeout=60)
        assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
        assert json.loads((out / "manifest.json").read_text())["complete"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_end_is_told_and_the_same_command_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    command = ["rollout", "arithmetic", *ROLLOUT[2:4], "--tasks", "9000", "--samples", "9"]
    command += ["--out", str(tmp_path / "data")]
    with run(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not (tmp_path / "data" / "manifest.json").exists():
            time.sleep(0.02)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and b"Traceback" not in said, said
    assert b"drift: stopped" in said or b"Run the same command again" in said


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["--arguments", '{"lr_scheduler_type": "cosine_with_min_lr"}'], "min_lr"),
        (["--arguments", '{"lr_scheduler_type": "nope"}'], "unknown learning-rate schedule"),
        (["--arguments", '{"report_to": "tensorboard"}'], "tensorboard"),
        (["--device", "cuda:7"], "expected auto, cpu or a device that torch finds here"),
        (["--device", "nonsense"], "expected auto, cpu or a device that torch finds here"),
    ],
)
def test_settings_that_can_not_be_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], word: str
) -> None:
    assert main(["train", str(tmp_path), str(tmp_path), "--max_steps", "2", "--out", str(tmp_path / "m"), *more]) == 2
    said = capsys.readouterr().err
    assert word in said and said.count("\n") == 1 and not (tmp_path / "m").exists()


def test_python_without_docstrings_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from drift.policies.stored import loading

    class Flags:
        optimize = 2

    monkeypatch.setattr(sys, "flags", Flags)
    with pytest.raises(ConfigError, match="PYTHONOPTIMIZE"), loading("default"):
        pass


def test_what_is_told_where_nobody_reads_is_lost_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    tell("one\x1b[2J", error=True)
    tell("two", end="")
    assert capfd.readouterr() == ("two", "one\n")


@pytest.mark.parametrize("raised", ["SystemExit(0)", "GeneratorExit()", "BaseException('no')", "CancelledError()"])
def test_an_end_that_an_environment_asks_for_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], raised: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    name = f"ending_{raised[:4].lower()}"
    (tmp_path / f"{name}.py").write_text(
        "from asyncio import CancelledError\nfrom drift.environments.guess import Guess\n"
        f"class Own(Guess):\n    def tasks(self, split, count, seed):\n        raise {raised}\n"
    )
    assert main(["rollout", f"{name}:Own", "--model", "scripted:7", "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert f"drift rollout failed: {raised.partition('(')[0]}" in said and "Traceback" not in said


def test_a_rank_that_ends_after_another_has_said_why_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        raise AllSaid(2)

    assert ended(work, "drift train") == 2
    assert capsys.readouterr() == ("", "")


def test_a_check_tells_what_is_wrong_whatever_rank_a_job_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts" / "manifest.json").write_text("{")
    monkeypatch.setenv("RANK", "1")
    assert main(["check", str(tmp_path)]) == 1


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -float("inf")])
def test_a_setting_that_is_no_finite_number_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match="expected a number > 0"):
        WeightConfig(beta=value)
    with pytest.raises(ConfigError, match="expected a number > 0"):
        TrainingConfig(learning_rate=value)
