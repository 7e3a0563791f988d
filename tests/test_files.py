"""What lies in a received directory, or is told in its files, leads to nothing of anybody else's."""

import json
import os
from pathlib import Path

import pytest
from tests.test_audit import RECIPE

from drift.api import rollout
from drift.cli import main
from drift.errors import ConfigError, DatasetError, StorageError
from drift.files import append_json, check_folder_name, inside, leftovers, replacing, write_atomic
from drift.pipeline import run_recipe

# Files and folders that a run of every stage writes, and writes beside.
NAMES = (
    *("recipe.yaml", ".recipe.yaml.tmp", "report.html", ".report.html.tmp", "rollouts/.lock", "rollouts/tasks.jsonl"),
    *("rollouts/.manifest.json.tmp", "rollouts/.tasks.jsonl.tmp", "weights/.weights.parquet.tmp"),
    *("weights/.manifest.json.tmp", "weights/weights.parquet", "model/metrics.jsonl", "model/rows.arrow"),
    *("model/config.json", "model/model.safetensors", "model/tokenizer.json", "model/.training.json.tmp"),
    *("model/sums.json", "evaluation/.lock", "evaluation/.estimates.json.tmp", "evaluation/estimates.json"),
    *("evaluation/greedy/base/.lock", "model/generation_config.json", "model/chat_template.jinja"),
)


def test_links_in_a_received_directory_destroy_nothing(tmp_path: Path) -> None:
    run, mine = tmp_path / "run", tmp_path / "mine"
    mine.mkdir()
    for at, name in enumerate(NAMES):
        (mine / str(at)).write_text(f"mine {at}")
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).symlink_to(mine / str(at))
    refused = []
    # What can't be replaced is refused by name, and taken away by its owner.
    for _ in range(len(NAMES)):
        try:
            run_recipe(RECIPE, run)
            break
        except (StorageError, DatasetError, ConfigError) as error:
            found = [name for name in NAMES if str(run / name) in str(error)]
            assert len(found) == 1, error
            refused += found
            (run / found[0]).unlink()
            if found == ["rollouts/tasks.jsonl"]:
                raise
    assert sorted(refused) == ["evaluation/.lock", "evaluation/greedy/base/.lock", "recipe.yaml", "rollouts/.lock"]
    assert [path.read_text() for path in sorted(mine.iterdir(), key=lambda p: int(p.name))] == [
        f"mine {at}" for at in range(len(NAMES))
    ]


@pytest.mark.parametrize("folder", ["rollouts", "rollouts/shards", "model/checkpoints", "model", "weights"])
def test_a_linked_folder_that_is_not_drifts_is_not_written_into(tmp_path: Path, folder: str) -> None:
    run, mine = tmp_path / "run", tmp_path / "mine"
    (mine / "unfinished").mkdir(parents=True)
    (mine / "manifest.json").write_text('{"name": "my site"}')
    (run / folder).parent.mkdir(parents=True)
    (run / folder).symlink_to(mine)
    with pytest.raises(StorageError, match=r"is a link|is not drift's"):
        run_recipe(RECIPE, run)
    assert sorted(path.name for path in mine.iterdir()) == ["manifest.json", "unfinished"]


def test_a_stage_may_lie_elsewhere_by_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "disk")
    for _ in range(2):
        found = rollout("guess", model="scripted:a", tasks=2, samples=1, max_new_tokens=4, out=tmp_path / "data")
    assert found.manifest["complete"] and (tmp_path / "disk" / "manifest.json").is_file()


def test_a_manifest_of_something_else_stays(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "my site"}')
    with pytest.raises(StorageError, match=r"manifest\.json is not drift's"):
        rollout("guess", model="scripted:a", tasks=2, samples=1, out=tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "manifest.json"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 12345, -1)
    with pytest.raises(StorageError, match=r"belongs to the user with id 12345, .* chown 0"):
        rollout("guess", model="scripted:a", tasks=2, samples=1, out=tmp_path / "theirs")
    assert not list((tmp_path / "theirs").iterdir())


@pytest.mark.parametrize("name", ["../esc", "/abs", "a/../../b", "", ".", "a//b", "a\0b"])
def test_names_that_files_tell_stay_below_their_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match="expected the name of a file in that folder"):
        inside(tmp_path, name)
    with pytest.raises(ConfigError, match="a name of letters"):
        check_folder_name(name, "models")
    (tmp_path / "sums.json").write_text(json.dumps({name: "0" * 16}))
    (tmp_path / "config.json").write_text("{}")
    assert main(["rollout", "guess", "--model", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    if "\0" not in name:
        models = json.dumps({name: "default"})
        assert main(["evaluate", "guess", "--models", models, "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists() and not (tmp_path.parent / "esc").exists()


def test_a_file_is_there_whole_or_not_at_all_and_only_its_own_leftovers_go(tmp_path: Path) -> None:
    mine = [tmp_path / name for name in (".a.tmp", ".a.json.tmp", ".b.0123456789abcdef.tmp", ".a.0123.tmp", "x.tmp")]
    for path in (*mine, tmp_path / ".a.0123456789abcdef.tmp"):
        path.write_text("mine")
    write_atomic(tmp_path / "a", b"1")
    assert [path.read_text() for path in mine] == ["mine"] * len(mine)
    assert not (tmp_path / ".a.0123456789abcdef.tmp").exists() and (tmp_path / "a").read_bytes() == b"1"
    with pytest.raises(RuntimeError), replacing(tmp_path / "a") as temporary:
        temporary.write_text("2")
        # What is being written is no leftover.
        assert leftovers(tmp_path, "a") == [] and len(list(tmp_path.glob(".a.????????????????.tmp"))) == 1
        raise RuntimeError
    assert (tmp_path / "a").read_bytes() == b"1" and not leftovers(tmp_path, "a")
    assert leftovers(tmp_path) == [mine[2]]
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["manifest.json", "run.json", "recipe.yaml", "shards/000000-0123456789abcdef.parquet"])
@pytest.mark.parametrize("out", [False, True])
def test_a_pipe_in_place_of_a_file_ends_no_command_in_waiting(tmp_path: Path, name: str, out: bool) -> None:
    data = rollout("guess", tasks=1, samples=1, max_new_tokens=2, model="scripted:7", out=tmp_path / "data").path
    place = tmp_path / "weights" / name if out else data / name
    place.parent.mkdir(parents=True, exist_ok=True)
    for path in [place] if name != "shards/000000-0123456789abcdef.parquet" else (data / "shards").iterdir():
        path.unlink(missing_ok=True)
        os.mkfifo(path)
    assert main(["check", str(data)]) in (0, 1)
    assert main(["weigh", str(data), "--scheme", "sft", "--out", str(tmp_path / "weights")]) in (0, 1)


def test_a_lock_that_is_another_name_of_somebodys_file_keeps_it(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine")
    (tmp_path / "data").mkdir()
    os.link(mine, tmp_path / "data" / ".lock")
    with pytest.raises(DatasetError, match=r"\.lock is not drift's"):
        rollout("guess", tasks=1, samples=1, max_new_tokens=2, model="scripted:7", out=tmp_path / "data")
    assert mine.read_text() == "mine"


def test_what_is_added_to_a_copy_made_of_hard_links_is_not_added_to_the_original(tmp_path: Path) -> None:
    (tmp_path / "a").write_text('{"step": 1}\n')
    os.link(tmp_path / "a", tmp_path / "b")
    append_json(tmp_path / "b", {"step": 2})
    assert (tmp_path / "a").read_text() == '{"step": 1}\n'
    assert (tmp_path / "b").read_text() == '{"step": 1}\n{"step": 2}\n'


def test_without_a_working_directory_a_command_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["rollout", "guess", "--out", "x"]) == 2
    assert "is gone" in capsys.readouterr().err
