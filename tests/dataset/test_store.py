import hashlib
import json
import random
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drift import files
from drift.dataset import store
from drift.dataset.outcomes import read_outcomes
from drift.dataset.schema import SCHEMA, dataset_hash, from_row, to_row
from drift.dataset.store import (
    TrajectoryWriter,
    as_hf_dataset,
    count_trajectories,
    read_tasks,
    read_trajectories,
    shards,
    stream_columns,
    stream_trajectories,
)
from drift.dataset.tally import Tally
from drift.errors import DatasetError, StorageError
from drift.exports.config import ExportConfig
from drift.exports.run import export_dataset
from drift.types import Trajectory
from drift.weights.config import WeightConfig
from drift.weights.stage import weigh_dataset
from drift.weights.table import read_weights

Make = Callable[..., Trajectory]
SPEC = {"trajectories": 6, "policy": "p"}


def write(folder: Path, trajectories: list[Trajectory], shard_size: int = 4, finish: bool = True) -> None:
    with TrajectoryWriter(folder, SPEC, [], shard_size=shard_size) as writer:
        for trajectory in trajectories:
            writer.append(trajectory)
        if finish:
            writer.finish()


@pytest.fixture
def six(make_trajectory: Make) -> list[Trajectory]:
    return [
        make_trajectory(f"t{i // 2}", i % 2, ("1", None, "ä\u202e"), i == 3, error="x" if i == 5 else None)
        for i in range(6)
    ]


def test_what_is_written_is_read_in_task_order_whatever_the_order_of_writing(
    tmp_path: Path, six: list[Trajectory]
) -> None:
    write(tmp_path, six[::-1])
    assert read_trajectories(tmp_path) == six
    for number, path in enumerate(shards(tmp_path)):
        assert path.name == f"{number:06d}-{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}.parquet"
    assert len(shards(tmp_path)) == 2


def test_rows_keep_every_field(six: list[Trajectory]) -> None:
    for trajectory in six:
        assert from_row(to_row(trajectory)) == trajectory


def test_the_hash_sees_content_and_neither_order_nor_logprobs(six: list[Trajectory]) -> None:
    def with_completion(**changes: object) -> list[Trajectory]:
        turn = six[0].turns[0]
        changed = replace(turn, completion=replace(turn.completion, **changes))  # type: ignore[arg-type]
        return [replace(six[0], turns=(changed, *six[0].turns[1:])), *six[1:]]

    reference = dataset_hash(six)
    assert dataset_hash(six[::-1]) == reference
    assert dataset_hash(with_completion(logprobs=(-9.0,) * 18)) == reference
    assert dataset_hash(with_completion(token_ids=(1, 2))) != reference
    assert dataset_hash([*six[:5], replace(six[5], error=None)]) != reference
    assert dataset_hash(six[:5]) != reference


def test_it_loads_as_a_hugging_face_dataset_with_messages(tmp_path: Path, six: list[Trajectory]) -> None:
    write(tmp_path, six)
    dataset = as_hf_dataset(tmp_path)
    assert dataset.num_rows == 6
    by_id = {row["id"]: row["messages"] for row in dataset}
    assert by_id["t1#1"] == list(six[3].messages)
    assert as_hf_dataset(str(tmp_path)).num_rows == 6


def test_every_reader_takes_a_path_as_text_and_says_what_is_wrong_with_it(
    tmp_path: Path, six: list[Trajectory]
) -> None:
    readers: list[Callable[[str], object]] = [
        as_hf_dataset,
        read_trajectories,
        count_trajectories,
        read_tasks,
        lambda folder: list(stream_trajectories(folder)),
        lambda folder: list(stream_columns(folder, ["id"])),
        read_outcomes,
    ]
    write(tmp_path / "data", six)
    write(tmp_path / "empty", [])
    for read in readers:
        read(str(tmp_path / "data"))
        for place, found in (
            ("none", "nothing there"),
            ("data/shards", "a directory without"),
            ("data/tasks.jsonl", "a file"),
        ):
            with pytest.raises(DatasetError, match=f"{place}: {found}.*, expected trajectories written by drift"):
                read(str(tmp_path / place))
    with pytest.raises(DatasetError, match="empty holds no trajectories"):
        as_hf_dataset(tmp_path / "empty")


def test_an_unfinished_writer_leaves_whole_shards_and_an_incomplete_manifest(
    tmp_path: Path, six: list[Trajectory]
) -> None:
    with pytest.raises(RuntimeError, match="boom"), TrajectoryWriter(tmp_path, SPEC, [], shard_size=2) as writer:
        for trajectory in six[:3]:
            writer.append(trajectory)
        raise RuntimeError("boom")
    assert read_trajectories(tmp_path, complete_only=False) == six[:3]
    with pytest.raises(DatasetError, match=r"incomplete: 3 of 6 trajectories\. Run the same"):
        read_trajectories(tmp_path)
    (tmp_path / "shards" / f".000002.parquet.{16 * 'f'}.tmp").write_bytes(b"half")
    write(tmp_path, six[3:])
    assert read_trajectories(tmp_path) == six
    assert not list((tmp_path / "shards").glob(".*"))


def test_an_interrupt_at_any_moment_of_writing_neither_loses_nor_doubles_a_conversation(
    tmp_path: Path, six: list[Trajectory]
) -> None:
    def stopped(out: Path, moment: int) -> bool:
        """Interrupt the writing of four conversations before some line of ours; whether there are so many lines."""
        left = moment

        def at_line(frame: FrameType, event: str, _: object) -> Any:
            nonlocal left
            left -= event == "line"
            if left < 0:
                sys.settrace(None)
                raise KeyboardInterrupt
            return at_line

        def at_call(frame: FrameType, event: str, argument: object) -> Any:
            ours = frame.f_code.co_filename in (store.__file__, files.__file__)
            return at_line if ours else None

        with TrajectoryWriter(out, SPEC, []) as writer:
            for trajectory in six[:4]:
                writer.append(trajectory)
            try:
                sys.settrace(at_call)
                writer.flush()
                return False
            except KeyboardInterrupt:
                writer.flush()
                assert writer.count == 4
                return True
            finally:
                sys.settrace(None)
                writer.append(six[4])

    moment = 0
    while stopped(out := tmp_path / str(moment), moment):
        assert sorted(name for part in ids_by_shard(out) for name in part) == sorted(t.id for t in six[:5]), moment
        moment += 1
    assert moment > 20


def ids_by_shard(out: Path) -> list[list[str]]:
    return [pq.read_table(path)["id"].to_pylist() for path in shards(out)]


def test_damage_is_named_with_what_to_do(tmp_path: Path, six: list[Trajectory]) -> None:
    write(tmp_path, six)
    shard = shards(tmp_path)[1]
    whole = shard.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 4
    # A sound file of as many rows, with other content.
    pq.write_table(pq.read_table(shard).take([1, 1]), shard)
    for damaged in (whole[: len(whole) // 2], bytes(flipped), b"", shard.read_bytes()):
        shard.write_bytes(damaged)
        with pytest.raises(DatasetError, match=r"(?s)000001-.*\.parquet can't be read: .*Delete that file"):
            read_trajectories(tmp_path)
        with pytest.raises(DatasetError, match="can't be read: "):
            list(stream_columns(tmp_path, ["id"]))
    shard.unlink()
    with pytest.raises(DatasetError, match="4 trajectories on disk, the manifest says 6"):
        read_trajectories(tmp_path)


def test_shards_of_another_run_under_a_manifest_are_refused_by_every_stage(
    tmp_path: Path, make_trajectory: Make
) -> None:
    data, other = tmp_path / "data", tmp_path / "other"
    for folder, solved in ((data, 0), (other, 1)):
        write(folder, [make_trajectory(f"t{i // 2}", i % 2, ("1",), i % 2 == solved) for i in range(6)])
    weigh_dataset(data, WeightConfig(), tmp_path / "weights")
    manifest = (data / "manifest.json").read_text()
    shutil.rmtree(data / "shards")
    shutil.copytree(other / "shards", data / "shards")
    stages: list[Callable[[], object]] = [
        lambda: weigh_dataset(data, WeightConfig(), tmp_path / "again"),
        lambda: read_weights(tmp_path / "weights", data),
        lambda: export_dataset(data, tmp_path / "rows.jsonl", ExportConfig()),
        lambda: read_trajectories(data),
        lambda: as_hf_dataset(data),
        lambda: write(data, []),
    ]
    for stage in stages:
        with pytest.raises(DatasetError, match=r"in shards/ is not of the data set that its manifest describes"):
            stage()
    assert (data / "manifest.json").read_text() == manifest
    # A manifest of the first version lists no shards: rows of another policy, or another number of them, are seen.
    content = json.loads(manifest)
    del content["shards"], content["tasks_sum"]
    (data / "manifest.json").write_text(json.dumps({**content, "counts": {"trajectories": 7}}))
    with pytest.raises(DatasetError, match="6 trajectories on disk, the manifest says 7"):
        read_trajectories(data)
    spec = {**SPEC, "policy": "q"}
    (data / "manifest.json").write_text(json.dumps({**content, "spec": spec, "complete": False}))
    with pytest.raises(DatasetError, match="has trajectories of the policy p, expected q"):
        TrajectoryWriter(data, spec, [])


def test_a_list_of_tasks_that_was_changed_is_refused(tmp_path: Path, six: list[Trajectory]) -> None:
    write(tmp_path, six)
    (tmp_path / "tasks.jsonl").write_text('{"id": "a", "group_id": "a", "split": "train", "payload": {}}')
    with pytest.raises(DatasetError, match=r"tasks\.jsonl can't be read: its checksum is"):
        read_tasks(tmp_path)


def test_directories_that_are_no_data_set_are_told_apart(tmp_path: Path, six: list[Trajectory]) -> None:
    with pytest.raises(DatasetError, match="nothing there"):
        read_trajectories(tmp_path / "none")
    with pytest.raises(DatasetError, match=r"without manifest\.json"):
        read_trajectories(tmp_path)
    write(tmp_path / "old", six)
    manifest = tmp_path / "old" / "manifest.json"
    content = json.loads(manifest.read_text())
    for change, message in (
        ({"schema_version": 99}, "schema version 99, expected 1"),
        ({"kind": "weights"}, "holds weights, expected trajectories"),
    ):
        manifest.write_text(json.dumps({**content, **change}))
        with pytest.raises(DatasetError, match=message):
            read_trajectories(tmp_path / "old")
    manifest.write_text("{")
    with pytest.raises(DatasetError, match="is damaged"):
        read_trajectories(tmp_path / "old")


def test_an_empty_data_set_is_refused(tmp_path: Path) -> None:
    write(tmp_path, [])
    with pytest.raises(DatasetError, match="holds no trajectories"):
        read_trajectories(tmp_path)


@pytest.mark.usefixtures("quick_starts")
def test_two_processes_do_not_write_one_directory(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from drift.dataset.store import TrajectoryWriter\n"
        "with TrajectoryWriter(Path(sys.argv[1]), {}, []): print('ready', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "ready\n"
        with pytest.raises(DatasetError, match=f"being written by process {other.pid}"):
            TrajectoryWriter(tmp_path, {}, [])
        other.communicate()
    TrajectoryWriter(tmp_path, {}, []).__exit__(None, None, None)


@pytest.mark.usefixtures("quick_starts")
def test_a_full_disk_is_reported_and_loses_nothing_that_was_written(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import random, resource, signal, string, sys
        from pathlib import Path
        from drift.dataset.store import TrajectoryWriter
        from drift.errors import StorageError
        from drift.types import Trajectory

        def one(i, size):
            # Random letters, because a shard is compressed.
            message = {"role": "user", "content": "".join(random.Random(i).choices(string.ascii_letters, k=size))}
            return Trajectory(id=f"t#{i}", task_id="t", group_id="t", sample=i, policy="p", seed=0,
                              messages=(message,), turns=(), stop_reason="context")

        # A file may grow to 20 kB: what a disk with that much room left does to a shard.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            with TrajectoryWriter(Path(sys.argv[1]), {"trajectories": 9}, [], shard_size=1) as writer:
                writer.append(one(0, 100))
                writer.append(one(1, 100))
                writer.append(one(2, 60_000))
        except StorageError as error:
            print(error)
        """
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "can't be written: File too large" in done.stdout and "goes on where it was" in done.stdout
    assert [t.sample for t in read_trajectories(tmp_path, complete_only=False)] == [0, 1]
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_directory_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="can't be written"):
        TrajectoryWriter(tmp_path / "file" / "run", SPEC, [])


def test_shards_are_plain_parquet(tmp_path: Path, six: list[Trajectory]) -> None:
    write(tmp_path, six, shard_size=100)
    table = pq.read_table(shards(tmp_path)[0])
    assert table.column("stop_reason").to_pylist() == [t.stop_reason for t in six]
    assert table.column("turns").to_pylist()[0][0]["token_ids"] == list(six[0].turns[0].completion.token_ids)


def test_turns_that_ask_for_no_answer_are_kept_and_older_shards_read_as_ever(six: list[Trajectory]) -> None:
    turn = six[0].turns[1]
    asking = replace(turn, step=replace(turn.step, graded=False))
    changed = replace(six[0], turns=(six[0].turns[0], asking, six[0].turns[2]))
    assert from_row(to_row(changed)) == changed != six[0]
    assert dataset_hash([changed, *six[1:]]) != dataset_hash(six)
    # A row from before there was such a mark: all its turns are graded, and its hash is what it was.
    old = to_row(six[0])
    for row in old["turns"]:
        del row["graded"]
    assert from_row(old) == six[0]


def test_calls_tools_loss_weights_and_unknown_success_are_kept_and_change_the_hash(six: list[Trajectory]) -> None:
    call = {"type": "function", "id": "c1", "function": {"name": "look", "arguments": {"at": [1, None]}}}
    turn, asked = six[0].turns[0], {"role": "tool", "content": "3", "tool_call_id": "c1", "name": "look"}
    changes: list[Trajectory] = [
        replace(six[0], tools=({"type": "function", "function": {"name": "look"}},)),
        replace(six[0], messages=(*six[0].messages[:1], {"role": "assistant", "content": "", "tool_calls": [call]})),
        replace(six[0], turns=(replace(turn, step=replace(turn.step, messages=(asked,))), *six[0].turns[1:])),
        replace(six[0], turns=(replace(turn, loss_weight=0.5), *six[0].turns[1:])),
        replace(six[0], turns=(replace(turn, step=replace(turn.step, success=None)),)),
    ]
    for changed in changes:
        table = pa.Table.from_pylist([to_row(changed)], schema=SCHEMA)
        assert from_row(table.to_pylist()[0]) == changed
    assert changes[4].success is None and len({dataset_hash([each]) for each in (six[0], *changes)}) == 6


def test_the_hash_of_graded_turns_is_that_of_the_first_version(make_trajectory: Make) -> None:
    import hashlib

    columns = "id task_id group_id sample policy seed messages turns stop_reason error".split()  # noqa: SIM905
    row = {name: value for name, value in to_row(make_trajectory("t", 0, ("1", None))).items() if name in columns}
    for turn in row["turns"]:
        for key in ("logprobs", "info", "graded", "thinking", "loss_weight", "extras"):
            del turn[key]
    line = hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()
    assert dataset_hash([make_trajectory("t", 0, ("1", None))]) == hashlib.sha256(line.encode()).hexdigest()


def test_the_hash_of_a_data_set_is_that_of_its_sorted_digests(make_trajectory: Callable[..., Trajectory]) -> None:
    made = [make_trajectory(f"t{at}", 0, (str(at), None)) for at in range(40)]
    digests = []
    for trajectory in made:
        row = to_row(trajectory)
        left_out = ("logprobs", "info", "graded", "thinking", "loss_weight", "text_only", "tools", "extras")
        turns = [{k: v for k, v in turn.items() if k not in left_out} for turn in row["turns"]]
        kept = {**{k: v for k, v in row.items() if k not in left_out}, "turns": turns}
        digests.append(hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest())
    expected = hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()
    assert dataset_hash(made) == dataset_hash(reversed(made)) == expected
    assert dataset_hash([]) == hashlib.sha256(b"").hexdigest()


def test_tasks_whose_conversations_say_the_same_are_counted_in_any_order(make_trajectory: Make) -> None:
    rng = random.Random(1)
    made = [make_trajectory(f"t{rng.randrange(60)}", at, (rng.choice("ab"),)) for at in range(150)]
    answers: dict[str, list[str | None]] = {}
    for each in made:
        answers.setdefault(each.task_id, []).append(each.turns[0].step.answer)
    several = [set(found) for found in answers.values() if len(found) > 1]
    tally = Tally()
    assert tally.record()["repeated_tasks"] == {"tasks": 0, "all_alike": 0}
    for each in made:
        tally.add(each)
    alike = sum(len(found) == 1 for found in several)
    assert 0 < alike < len(several) < len(answers)
    assert tally.record()["repeated_tasks"] == {"tasks": len(several), "all_alike": alike}
