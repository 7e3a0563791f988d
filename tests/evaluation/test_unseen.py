from pathlib import Path

import pytest

from drift.dataset.store import TrajectoryWriter
from drift.environments.arithmetic import Arithmetic
from drift.environments.base import content_hash
from drift.environments.guess import Guess
from drift.errors import ConfigError
from drift.evaluation.run import check_unseen
from drift.types import Task


def rolled_out(folder: Path, tasks: list[Task]) -> Path:
    with TrajectoryWriter(folder, {"trajectories": 0, "policy": "p"}, tasks):
        pass
    return folder


def named(name: str, payload: dict, group: str = "") -> Task:
    return Task(id=name, group_id=group or name, split="test", payload=payload)


def test_a_renamed_task_is_found_by_its_content(tmp_path: Path) -> None:
    trained = Arithmetic().tasks("train", 5, 1)
    seen = rolled_out(tmp_path, trained)
    held_out = Arithmetic().tasks("test", 5, 1)
    assert check_unseen(held_out, seen) == {"tasks": 5, "by_content": 5}
    # The same keys in another order, as another package may write them.
    payload = dict(reversed(trained[2].payload.items()))
    renamed = named("new/7", payload)
    with pytest.raises(ConfigError, match=rf"1 of 6 .*'new/7', there called '{trained[2].id}'"):
        check_unseen([*held_out, renamed], seen)


def test_a_task_is_found_by_its_id_and_by_its_prompt(tmp_path: Path) -> None:
    seen = rolled_out(tmp_path, [named("a#1", {"q": 1}, group="a")])
    with pytest.raises(ConfigError, match=r"1 of 1 .*'a#1'"):
        check_unseen([named("a#1", {"q": 2})], seen)
    with pytest.raises(ConfigError, match="1 of 1"):
        check_unseen([named("b", {"q": 2}, group="a")], seen)
    assert check_unseen([named("b", {"q": 2})], seen) == {"tasks": 1, "by_content": 1}


def test_contents_that_tell_nothing_are_no_evidence(tmp_path: Path) -> None:
    seen = rolled_out(tmp_path, [named("a", {}), named("b", {"level": 1}), named("c", {"level": 1})])
    assert check_unseen([named("d", {}), named("e", {"level": 1})], seen) == {"tasks": 2, "by_content": 0}
    other = rolled_out(tmp_path / "other", [named("b", {"level": 1})])
    assert check_unseen([named("e", {"level": 1}), named("f", {"level": 1})], other)["by_content"] == 0
    with pytest.raises(ConfigError, match="there called 'b'"):
        check_unseen([named("e", {"level": 1})], other)


def test_every_task_of_the_built_in_environments_has_a_content_of_its_own() -> None:
    for factory in (Arithmetic(), Guess()):
        tasks = [task for split in ("train", "test") for task in factory.tasks(split, 200, 3)]
        assert len({content_hash(task) for task in tasks}) == len(tasks)
    assert content_hash(named("a", {"q": "é"})) == content_hash(named("b", {"q": "é"}))
    assert content_hash(named("a", {"q": 1})) != content_hash(named("a", {"q": "1"}))
