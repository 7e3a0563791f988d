"""The weighing stage: what is written is what the links of the chain give one after the other, and nothing else."""

import dataclasses
import itertools
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drift.checksums import sum_of
from drift.dataset import outcomes as reading
from drift.dataset.outcomes import Outcomes, outcomes
from drift.dataset.schema import SCHEMA
from drift.dataset.store import TrajectoryWriter, read_trajectories, shards
from drift.errors import ConfigError, DatasetError
from drift.files import leftovers
from drift.manifest import read_manifest
from drift.registry import data_of
from drift.types import Trajectory
from drift.weights import stage
from drift.weights.auto import temperature_of
from drift.weights.config import WeightConfig
from drift.weights.returns import trajectory_return
from drift.weights.schemes import SCHEMES
from drift.weights.stage import compute_weights, diagnose, weigh_dataset
from drift.weights.steps import bound_negative, drop_unsolved, resample, shrink_unsolved, skip_small
from drift.weights.table import FILE, chain_of, read_file, read_weights
from drift.weights.turns import Conversations

Make = Callable[..., Trajectory]
Made = Callable[..., list[Trajectory]]
# All weights as they come from the scheme, also the smallest.
ALL: dict[str, Any] = {"steps": [{"skip_small": None}]}


def stored(folder: Path, trajectories: list[Trajectory], shard_size: int = 5, **spec: Any) -> Path:
    with TrajectoryWriter(folder, {"trajectories": len(trajectories), **spec}, [], shard_size=shard_size) as writer:
        for trajectory in trajectories:
            writer.append(trajectory)
        writer.finish()
    return folder


def by_id(weights_T: np.ndarray, found: Outcomes) -> dict[str, list[float]]:
    parts = np.split(weights_T, np.cumsum(found.turns_N, dtype=int)[:-1])
    return dict(zip(found.ids, (part.tolist() for part in parts), strict=True))


def test_weights_are_written_beside_the_data_and_read_by_id(tmp_path: Path, data: list[Trajectory]) -> None:
    folder = stored(tmp_path / "data", data)
    config = WeightConfig(turns="all", steps=["drop_unsolved"])
    manifest = weigh_dataset(folder, config, tmp_path / "weights")
    assert manifest["excluded"] == {"failed": 1}
    found = outcomes(data)
    result = compute_weights(found, config)
    assert read_weights(tmp_path / "weights", folder) == by_id(result.weights_T, found)
    assert manifest == read_manifest(tmp_path / "weights", "weights")
    assert manifest["config"] == json.loads(json.dumps(config.to_dict())) and manifest["diagnostics"] == result.report
    assert manifest["chain"] == result.chain == chain_of(tmp_path / "weights")
    assert manifest["dataset_hash"] == read_manifest(folder, "trajectories")["dataset_hash"]
    assert manifest["file_sum"] == sum_of(tmp_path / "weights" / FILE)
    assert manifest["weights_hash"] == read_file(tmp_path / "weights" / FILE).hash
    again = weigh_dataset(folder, config, tmp_path / "again")
    assert again["weights_hash"] == manifest["weights_hash"] and again["file_sum"] == manifest["file_sum"]
    for other in ({"beta": 0.2}, {"turns": "terminal"}, {"steps": []}):
        changed = dataclasses.replace(config, **other)
        assert weigh_dataset(folder, changed, tmp_path / "other")["weights_hash"] != manifest["weights_hash"]


def test_the_chain_that_is_recorded_is_a_configuration_of_the_same_weights(
    tmp_path: Path, random_trajectories: Made
) -> None:
    folder = stored(tmp_path / "data", random_trajectories(1))
    for options in ({}, {"scheme": "swift", "steps": ["resample"]}, {"scheme": "awr", "turns": {"credited": -0.2}}):
        manifest = weigh_dataset(folder, WeightConfig(**options), tmp_path / "w")
        chain = dict(manifest["chain"])
        # What was left to default is there too.
        assert None not in chain.values()
        own = dict(chain.pop("settings"))
        beta = own.pop("beta", None)
        config = WeightConfig(**{**chain, "scheme": {chain["scheme"]: own}}, beta=beta)
        again = weigh_dataset(folder, config, tmp_path / "again")
        assert again["weights_hash"] == manifest["weights_hash"] and again["chain"] == manifest["chain"]
        assert WeightConfig(**manifest["config"]) == WeightConfig(**options)


def test_weights_of_other_data_and_files_that_were_changed_are_refused(tmp_path: Path, data: list[Trajectory]) -> None:
    first, other = stored(tmp_path / "first", data), stored(tmp_path / "other", data[:6])
    weigh_dataset(first, WeightConfig(), tmp_path / "weights")
    with pytest.raises(DatasetError, match="weighs other data"):
        read_weights(tmp_path / "weights", other)
    # Weights that can be read, and are not those that the manifest is of.
    weigh_dataset(first, WeightConfig(beta=0.3), tmp_path / "changed")
    (tmp_path / "weights" / FILE).write_bytes((tmp_path / "changed" / FILE).read_bytes())
    with pytest.raises(DatasetError, match="can't be read: its checksum is"):
        read_weights(tmp_path / "weights", first)
    (tmp_path / "weights" / FILE).write_bytes(b"nonsense")
    with pytest.raises(DatasetError, match="can't be read"):
        read_weights(tmp_path / "weights", first)
    (tmp_path / "weights" / FILE).unlink()
    with pytest.raises(DatasetError, match="can't be read"):
        read_weights(tmp_path / "weights", first)


def test_data_in_which_everything_failed_is_refused(tmp_path: Path, make_trajectory: Make) -> None:
    folder = stored(tmp_path / "data", [make_trajectory("a", k, (), error="gone") for k in range(2)])
    with pytest.raises(DatasetError, match="all 2 trajectories failed"):
        weigh_dataset(folder, WeightConfig(), tmp_path / "weights")


def success_share(returns_N: np.ndarray, index_N: np.ndarray, success_N: np.ndarray) -> float:
    """The mean share of successes over prompts whose returns differ, a prompt at a time."""
    shares = []
    for prompt in sorted(set(index_N.tolist())):
        if len(set(returns_N[index_N == prompt].tolist())) > 1:
            shares.append(sum(success_N[index_N == prompt].tolist()) / sum(index_N == prompt))
    return math.fsum(shares) / len(shares)


def seen_of(found: Outcomes, returns_N: Any, first: bool) -> Conversations:
    """What a chain looks at, of the first replies or of all."""
    return Conversations(
        group_N=found.group_index(),
        returns_N=returns_N,
        success_N=found.first_success_N if first else found.success_N,
        turns_N=found.turns_N,
        first_wrong_N=found.first_graded_N & ~found.first_success_N,
        stopped_N=found.success_N,
        rejected_T=found.rejected_T,
    )


def link_by_link(found: Outcomes, options: dict[str, Any]) -> tuple[list[float], list[list[float]]]:
    """Returns, and the weights of each conversation's replies, one link after the other without the stage."""
    given = options.get("scheme", "drift")
    ((name, settings),) = given.items() if isinstance(given, dict) else [(given, {})]
    scheme, settings, labels = SCHEMES[name], dict(settings), list(dict.fromkeys(found.groups))
    index_N = np.array([labels.index(group) for group in found.groups])
    seen = found.first_turn() if scheme.name == "bolt" else found
    published = {"drift": (0.9, 0.5), "drift_averaged": (0.9, 0.5)}.get(scheme.name, (1.0, 0.0))
    returns_N = trajectory_return(
        seen,
        outcome=options.get("outcome", "success"),
        gamma=options.get("gamma", published[0]),
        repetition=options.get("repetition", published[1]),
        format_failure=options.get("format_failure", 0.0),
    )
    if scheme.name in ("drift", "drift_averaged", "bolt", "rwr", "awr"):
        settings["beta"] = options.get("beta", 0.1)
    if options.get("beta") == "auto":
        beta, share = temperature_of(returns_N, index_N, seen.success_N)
        assert share == pytest.approx(success_share(returns_N, index_N, seen.success_N), rel=1e-12)
        settings["beta"] = beta
    wrong_N = [graded and not ok for graded, ok in zip(found.first_graded_N, found.first_success_N, strict=True)]
    named = {"success_N": seen.success_N, "turns_N": found.turns_N, "first_wrong_N": wrong_N}
    named |= {"reply_T": found.reply_T, "feedback_T": found.feedback_T}
    weights = scheme.function(
        returns_N, index_N, **{name: named[name] for name in data_of(scheme.function)}, **settings
    ).tolist()
    turns = options.get("turns", {"bolt": "first", "star_gate": "all", "refit": "all", "swift": "all"}.get(scheme.name))
    turns = turns or ("all" if scheme.name == "group_relative" else "terminal")
    pushed = turns["credited"] if isinstance(turns, dict) else 0.0
    lists, at = [], 0
    for weight, length in zip(weights, found.turns_N.tolist(), strict=True):
        for turn in range(length):
            kept = {"terminal": turn == length - 1, "first": turn == 0}.get(str(turns), True)
            if found.rejected_T[at + turn] and (turns == "credited" or isinstance(turns, dict)):
                lists.append(pushed * abs(weight))
            else:
                lists.append(weight if kept else 0.0)
        at += length
    data = dataclasses.replace(
        seen_of(found, returns_N, scheme.name == "bolt"),
        beta=settings.get("beta"),
        partitioned=scheme.name in ("drift", "bolt"),
    )
    weights_T = np.array(lists)
    steps = list(options.get("steps", []))
    signed = scheme.name in ("swift", "group_relative") or pushed < 0
    for name, wanted in (("bound_negative", signed), ("skip_small", True)):
        if wanted and not any(name in (step, *step) for step in steps):
            steps.append(name)
    known = (bound_negative, drop_unsolved, resample, shrink_unsolved, skip_small)
    for step in steps:
        name, value = (step, ()) if isinstance(step, str) else next(iter(step.items()))
        function = {each.__name__: each for each in known}[name]
        first_setting = {"shrink_unsolved": "prior"}.get(name, "share")
        if value is not None:
            weights_T = function(weights_T, data, **({} if value == () else {first_setting: value}))
    parts = np.split(weights_T, np.cumsum(found.turns_N, dtype=int)[:-1])
    return returns_N.tolist(), [part.tolist() for part in parts]


SHAPES: list[dict[str, Any]] = [
    {},
    {"outcome": "reward", "gamma": 0.7, "repetition": 0.3, "format_failure": 0.1},
]
SPREADS: list[dict[str, Any]] = [
    {},
    {"turns": "credited", "steps": ["drop_unsolved"]},
    {"turns": {"credited": -0.3}, "steps": ["drop_unsolved", "bound_negative", {"resample": 0.4}, {"skip_small": 0.2}]},
    {"turns": "all", "steps": [{"skip_small": None}]},
]
OPTIONS: list[dict[str, Any]] = [
    {"scheme": scheme, **SHAPES[shape], **SPREADS[spread]}
    for scheme, (shape, spread) in itertools.product(SCHEMES, [(0, 0), (0, 1), (0, 2), (0, 3), (1, 2)])
    if not ((scheme == "bolt" and spread) or (scheme == "refit" and shape))
]
OPTIONS += [
    {"scheme": scheme, "beta": "auto", "steps": steps}
    for scheme, steps in itertools.product(["drift", "bolt"], [[], ["shrink_unsolved"]])
]
OPTIONS += [{"steps": [{"shrink_unsolved": prior}, {"skip_small": None}]} for prior in (0.0, 3.0)]
OPTIONS += [{"scheme": {"refit": {"shift": True}}, "repetition": 0.5}]
OPTIONS += [{"scheme": {"awr": {"w_max": 2.0}}, "beta": 0.3}]
OPTIONS += [{"scheme": "drift_averaged", "steps": ["drop_unsolved"], "beta": 0.4}]


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_what_is_written_is_bit_for_bit_what_the_links_give_one_after_the_other(
    tmp_path: Path, random_trajectories: Made, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "ROWS_AT_ONCE", 12)
    folder = stored(tmp_path / "data", random_trajectories(seed))
    trajectories = read_trajectories(folder)
    for number, options in enumerate(OPTIONS[seed::2]):
        config = WeightConfig(**options)
        found = outcomes(trajectories, **{**config.asked(), "spoken": True})
        returns, lists = link_by_link(found, options)
        manifest = weigh_dataset(folder, config, tmp_path / str(number))
        rows = pq.read_table(tmp_path / str(number) / FILE).to_pylist()
        # In the order of tasks and samples, as they are read.
        assert [row["id"] for row in rows] == found.ids and [row["group_id"] for row in rows] == found.groups
        for row, value, weights in zip(rows, returns, lists, strict=True):
            assert row["return"].hex() == value.hex(), options
            assert [each.hex() for each in row["weights"]] == [each.hex() for each in weights], (options, row["id"])
        report = manifest["diagnostics"]
        assert ("beta" in report) == (options.get("beta") == "auto")
        flat_T = np.array([weight for each in lists for weight in each])
        for name, value in diagnose(flat_T, seen_of(found, np.array(returns), config.scheme == "bolt")).items():
            assert report[name] == (value if "histogram" in name else pytest.approx(value, rel=1e-12)), name
        # In memory the same.
        assert compute_weights(found, config).weights_T.tobytes() == flat_T.tobytes()


def test_the_file_of_weights_is_the_same_however_rows_lie_in_shards(tmp_path: Path, random_trajectories: Made) -> None:
    conversations = random_trajectories(2)
    folders = [
        stored(tmp_path / "first", conversations, 5),
        stored(tmp_path / "second", conversations[::-1], 11),
        stored(tmp_path / "third", sorted(conversations, key=lambda each: each.id), 1000),
    ]
    config = WeightConfig(turns={"credited": -0.3}, steps=[{"resample": 0.6}])
    sums = {weigh_dataset(folder, config, folder / "w")["file_sum"] for folder in folders}
    assert len(sums) == 1
    assert len({(folder / "w" / FILE).read_bytes() for folder in folders}) == 1
    assert sorted(path.name for path in (folders[0] / "w").iterdir()) == [".lock", "manifest.json", "weights.parquet"]


def test_what_concerns_all_prompts_is_counted_over_all_of_them(tmp_path: Path, make_trajectory: Make) -> None:
    alone = [make_trajectory(f"t{n}", 0, ("1", "1"), n == 0) for n in range(60)]
    folder = stored(tmp_path / "alone", alone)
    with pytest.raises(ConfigError, match="no prompt has more than one"):
        weigh_dataset(folder, WeightConfig(baseline="task"), tmp_path / "w")
    with pytest.raises(ConfigError, match=r"refit needs returns ≥ 0: 59 of 60 are negative, the smallest -0\.25"):
        weigh_dataset(folder, WeightConfig(scheme="refit", repetition=0.5), tmp_path / "w")
    with pytest.raises(ConfigError, match="leaves every weight 0: 60 of 60 prompts have no success, 60 have equal"):
        failed = stored(tmp_path / "failed", [dataclasses.replace(t, turns=t.turns[:1]) for t in alone])
        weigh_dataset(failed, WeightConfig(scheme="sft", steps=["drop_unsolved"]), tmp_path / "w")
    assert not (tmp_path / "w").exists() or list((tmp_path / "w").iterdir()) == []
    # One prompt of two is enough for a scheme that compares; one success is enough for one that takes successes.
    paired = stored(tmp_path / "paired", [*alone, make_trajectory("t0", 1, ("1",))])
    assert weigh_dataset(paired, WeightConfig(baseline="task"), tmp_path / "w")["diagnostics"]["groups_of_one"] == 59
    assert weigh_dataset(folder, WeightConfig(scheme="rft"), tmp_path / "w")["diagnostics"]["zero_weights"] == 59


def test_shards_without_the_column_graded_hold_graded_turns(tmp_path: Path, make_trajectory: Make) -> None:
    conversations = [make_trajectory("a", k, ("1", None, "1", "2")[: k + 1], k == 3) for k in range(4)]
    folder, config = stored(tmp_path / "data", conversations), WeightConfig(format_failure=0.1, **ALL)
    found = outcomes(conversations)
    for path in shards(folder):
        rows = pq.read_table(path).to_pylist()
        kind = SCHEMA.field("turns").type.value_type
        old = pa.list_(pa.struct([field for field in kind if field.name != "graded"]))
        path.unlink()
        # Such shards had no checksum in their names either.
        older = path.with_name(f"{path.stem.partition('-')[0]}.parquet")
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA.set(7, pa.field("turns", old))), older)
    # Nor did their manifests list them.
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["shards"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    weigh_dataset(folder, config, tmp_path / "w")
    assert read_weights(tmp_path / "w", folder) == by_id(compute_weights(found, config).weights_T, found)


def test_lost_and_damaged_shards_are_told(tmp_path: Path, random_trajectories: Made) -> None:
    folder = stored(tmp_path / "data", random_trajectories(4))
    lost = shards(folder)[1]
    kept = lost.read_bytes()
    lost.unlink()
    with pytest.raises(DatasetError, match="a shard is missing"):
        weigh_dataset(folder, WeightConfig(), tmp_path / "w")
    lost.write_bytes(kept[: len(kept) // 2])
    with pytest.raises(DatasetError, match=f"shard {lost} can't be read"):
        weigh_dataset(folder, WeightConfig(), tmp_path / "w")
    assert not (tmp_path / "w").exists() or list((tmp_path / "w").iterdir()) == []


@pytest.mark.usefixtures("quick_starts")
@pytest.mark.skipif(sys.platform == "win32", reason="files can't be removed there while they are open")
def test_killed_in_the_middle_it_leaves_nothing_that_a_later_run_minds(
    tmp_path: Path, random_trajectories: Made
) -> None:
    folder = stored(tmp_path / "data", random_trajectories(5))
    out = tmp_path / "w"
    before = weigh_dataset(folder, WeightConfig(), out)
    # The new file is written, and its sum is about to be taken.
    script = (
        "import sys, time; from pathlib import Path; from drift.weights import stage\n"
        "from drift.weights.config import WeightConfig\n"
        "def stop(*_): print('there', flush=True); time.sleep(600)\n"
        "stage.sum_of = stop\n"
        "stage.weigh_dataset(Path(sys.argv[1]), WeightConfig(beta=0.3), Path(sys.argv[2]))\n"
    )
    running = subprocess.Popen([sys.executable, "-c", script, str(folder), str(out)], stdout=subprocess.PIPE, text=True)
    try:
        assert running.stdout is not None and running.stdout.readline() == "there\n"
        os.kill(running.pid, signal.SIGKILL)
    finally:
        running.wait(30)
    # What was written before is whole, and all that is left is the begun file.
    begun = leftovers(out)
    assert {path.name for path in out.iterdir()} == {".lock", "manifest.json", "weights.parquet", begun[0].name}
    found = outcomes(read_trajectories(folder))
    assert read_weights(out, folder) == by_id(compute_weights(found, WeightConfig()).weights_T, found)
    again = weigh_dataset(folder, WeightConfig(), out)
    assert again["weights_hash"] == before["weights_hash"]
    assert sorted(path.name for path in out.iterdir()) == [".lock", "manifest.json", "weights.parquet"]


def test_a_crash_before_the_manifest_leaves_none_and_no_weights_under_the_old_one(
    tmp_path: Path, random_trajectories: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stored(tmp_path / "data", random_trajectories(6))
    weigh_dataset(folder, WeightConfig(), tmp_path / "w")
    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(stage, "write_manifest", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        weigh_dataset(folder, WeightConfig(beta=0.3), tmp_path / "w")
    with pytest.raises(DatasetError, match=r"without manifest\.json"):
        read_weights(tmp_path / "w", folder)
