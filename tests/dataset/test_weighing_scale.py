"""Weighing off columns, a bucket at a time, beside every trajectory as an object and all at once."""

import dataclasses
import itertools
import math
import os
import random
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

from drift.dataset import buckets, weighing
from drift.dataset.buckets import Buckets, bucket_of
from drift.dataset.outcomes import COLUMNS, PATH_COLUMNS, Outcomes, outcome_rows, sorted_outcomes
from drift.dataset.schema import SCHEMA
from drift.dataset.store import TrajectoryWriter, read_trajectories, shards, stream_columns
from drift.dataset.weighing import compute_weights, outcomes, read_weights, weigh_dataset, weights_hash
from drift.errors import ConfigError, DatasetError
from drift.types import Trajectory
from drift.weights import schemes
from drift.weights.config import WeightConfig
from drift.weights.diagnostics import diagnose
from drift.weights.exponential import shrunken_weights
from drift.weights.returns import trajectory_return
from drift.weights.schemes import SCHEMES, SchemeInfo, apply_scheme
from drift.weights.temperature import SharedTemperature, Target, group_temperatures

Make = Callable[..., Trajectory]


def random_trajectories(make: Make, seed: int, prompts: int = 23) -> list[Trajectory]:
    """Prompts of 1 to 6 conversations over one or two tasks; failures, unread answers, turns without a question."""
    rng = random.Random(seed)
    made = []
    for prompt in range(prompts):
        for sample in range(rng.randint(1, 6)):
            answers = tuple(rng.choice([None, "", "1", "2", "é 3"]) for _ in range(rng.randint(0, 5)))
            failed = "gone" if not answers or rng.random() < 0.1 else None
            rewards = tuple(rng.uniform(0, 0.3) for _ in answers)
            task = f"{'é' if prompt % 3 else 'z'}{prompt}{rng.choice('ab')}"
            one = make(task, sample, answers, rng.random() < 0.5, rewards=rewards, error=failed)
            turns = [dataclasses.replace(t, step=dataclasses.replace(t.step, graded=True)) for t in one.turns]
            if turns and rng.random() < 0.3:
                turns[0] = dataclasses.replace(
                    turns[0], step=dataclasses.replace(turns[0].step, graded=False, answer=None)
                )
            made.append(dataclasses.replace(one, group_id=f"prompt {prompt}", turns=tuple(turns)))
    rng.shuffle(made)
    return made


def stored(folder: Path, trajectories: list[Trajectory], shard_size: int = 5) -> Path:
    """The data set on disk, a shard without rows among its shards."""
    with TrajectoryWriter(folder, {"trajectories": len(trajectories)}, [], shard_size=shard_size) as writer:
        for at, trajectory in enumerate(trajectories):
            if at == len(trajectories) // 2:
                writer.flush()
                pq.write_table(SCHEMA.empty_table(), folder / "shards" / f"{len(shards(folder)):06d}.parquet")
            writer.append(trajectory)
        writer.finish()
    return folder


def success_share(returns_N, index_N, success_N) -> float:
    """The mean share of successes over prompts whose returns differ, a prompt at a time."""
    shares = []
    for prompt in sorted(set(index_N.tolist())):
        if len(set(returns_N[index_N == prompt].tolist())) > 1:
            shares.append(sum(success_N[index_N == prompt].tolist()) / sum(index_N == prompt))
    return math.fsum(shares) / len(shares)


def whole_at_once(found: Outcomes, config: WeightConfig) -> tuple[list[float], list[float], set[str]]:
    """Returns, weights and dropped prompts with all trajectories in one array and groups from sorted labels."""
    index_N = np.unique(np.array(found.groups), return_inverse=True)[1]
    if config.scheme == "bolt":
        found = found.first_turn()
    repetition = SCHEMES[config.scheme].repetition if config.repetition is None else config.repetition
    returns_N = trajectory_return(
        found.success_N if config.base == "success" else found.reward_N,
        found.turns_N,
        found.distinct_N,
        found.failures_N,
        gamma=config.gamma,
        repetition=repetition,
        format_failure=config.format_failure,
        graded_N=found.graded_N,
    )
    if config.scheme == "rwr":
        tilted_N = np.exp((returns_N - returns_N.max()) / config.beta)
        weights_N = tilted_N / (math.fsum(tilted_N) / len(tilted_N))
    else:
        beta: object = config.beta
        if config.beta == "auto" and config.beta_per == "group":
            beta = group_temperatures(returns_N, index_N, config.target).beta_G[index_N]
        elif config.beta == "auto":
            shared = SharedTemperature(
                config.target or Target.of_ess(success_share(returns_N, index_N, found.success_N))
            )
            shared.add(returns_N, index_N)
            beta = np.full(len(returns_N), shared.find()[0])
        wrong_N = [
            graded and not right for graded, right in zip(found.first_graded_N, found.first_success_N, strict=True)
        ]
        named = {"success_N": found.success_N, "turns_N": found.turns_N, "first_wrong_N": wrong_N}
        named |= {"beta": beta, "w_max": config.w_max, "refit_shift": config.refit_shift}
        weights_N = apply_scheme(config.scheme, returns_N, index_N, named)
        if config.no_success == "shrink":
            shrunken_N = shrunken_weights(returns_N, index_N, beta=beta, prior=config.shrink_prior)
            solved = {group for group, right in zip(found.groups, found.success_N, strict=True) if right}
            weights_N = np.where([group in solved for group in found.groups], weights_N, shrunken_N)
    dropped = set()
    for group in set(found.groups):
        of_group = [i for i, label in enumerate(found.groups) if label == group]
        unsolved, equal = not any(found.success_N[of_group]), len({*returns_N[of_group].tolist()}) == 1
        if (config.no_success == "drop" and unsolved) or (config.equal_returns == "drop" and equal):
            dropped.add(group)
    weights = [0.0 if g in dropped else w for g, w in zip(found.groups, weights_N.tolist(), strict=True)]
    return returns_N.tolist(), weights, dropped


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dozen rows to a bucket, a few to a write."""
    monkeypatch.setattr(weighing, "BUCKET_ROWS", 12)
    monkeypatch.setattr(buckets, "ROWS_PER_WRITE", 9)


@pytest.mark.parametrize("seed", range(8))
def test_columns_give_the_outcomes_that_objects_do(tmp_path: Path, make_trajectory: Make, seed: int) -> None:
    folder = stored(tmp_path / "data", random_trajectories(make_trajectory, seed))
    expected = outcomes(read_trajectories(folder))
    rows = pa.concat_tables(outcome_rows(batch) for batch in stream_columns(folder, COLUMNS, rows=3))
    found = sorted_outcomes(rows)
    assert found.ids.to_pylist() == expected.ids and found.groups.to_pylist() == expected.groups
    names = [field.name for field in dataclasses.fields(expected)][2:-1]
    assert len(names) == 11 and found.paths is None
    for name in names:
        assert getattr(found, name).tolist() == getattr(expected, name).tolist(), name
        assert getattr(found, name).dtype == getattr(expected, name).dtype, name


def test_columns_give_the_openings_and_paths_that_objects_do(tmp_path: Path, make_trajectory: Make) -> None:
    folder = stored(tmp_path / "data", random_trajectories(make_trajectory, 0))
    expected = outcomes(read_trajectories(folder), group_by="opening", paths=True)
    rows = [
        outcome_rows(batch, group_by="opening", paths=True)
        for batch in stream_columns(folder, [*COLUMNS, *PATH_COLUMNS], rows=3)
    ]
    found = sorted_outcomes(pa.concat_tables(rows))
    assert found.ids.to_pylist() == expected.ids and found.groups.to_pylist() == expected.groups
    assert found.paths is not None and expected.paths is not None
    for name in ("reply_T", "words_T", "turns_N"):
        assert getattr(found.paths, name).tolist() == getattr(expected.paths, name).tolist(), name
    assert found.paths.turns_N.sum() == len(found.paths.reply_T) > len(found.ids)


OPTIONS = [
    {"scheme": scheme, "base": base, "gamma": gamma}
    | ({} if scheme == "refit" else {"repetition": repetition, "format_failure": failure})
    | {"no_success": no_success, "equal_returns": equal}
    for scheme, (base, gamma, repetition, failure), (no_success, equal) in itertools.product(
        SCHEMES,
        [("success", 0.9, None, 0.0), ("reward", 0.7, 0.3, 0.1)],
        [("keep", "keep"), ("drop", "keep"), ("keep", "drop"), ("drop", "drop")],
    )
]
OPTIONS += [
    {"scheme": scheme, "beta": "auto", "beta_per": per, "ess_target": 0.6, "kl_target": kl, "no_success": no_success}
    for scheme, (per, no_success), kl in itertools.product(
        ["drift", "bolt"], [("group", "keep"), ("dataset", "keep"), ("dataset", "shrink")], [None, 0.3]
    )
]
OPTIONS += [{"scheme": scheme, "beta": "auto"} for scheme in ("drift", "bolt")]
OPTIONS += [{"no_success": "shrink", "shrink_prior": prior} for prior in (0.0, 3.0)]
OPTIONS += [{"scheme": "refit", "repetition": 0.5, "refit_shift": True}]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("seed", [0, 1])
def test_weights_are_bit_for_bit_those_of_all_trajectories_at_once(
    tmp_path: Path, make_trajectory: Make, seed: int
) -> None:
    folder = stored(tmp_path / "data", random_trajectories(make_trajectory, seed))
    found = outcomes(read_trajectories(folder))
    assert len(found.ids) > 4 * weighing.BUCKET_ROWS
    for number, options in enumerate(OPTIONS):
        config = WeightConfig(**options)
        returns, weights, dropped = whole_at_once(found, config)
        manifest = weigh_dataset(folder, config, tmp_path / str(number))
        table = pq.read_table(tmp_path / str(number) / weighing.FILE).to_pylist()
        assert {row["id"]: (row["group_id"], row["return"].hex(), row["weight"].hex()) for row in table} == {
            i: (g, r.hex(), w.hex()) for i, g, r, w in zip(found.ids, found.groups, returns, weights, strict=True)
        }, options
        assert len(table) == len(found.ids)
        success_N = found.first_success_N if config.scheme == "bolt" else found.success_N
        report, expected = manifest["diagnostics"], diagnose(weights, returns, found.groups, success_N)
        assert report.pop("dropped_groups") == len(dropped)
        assert ("beta" in report) == (options.get("beta") == "auto")
        for name in ("histogram", "return_histogram"):
            assert report.pop(name) == expected.pop(name)
        for name, value in expected.items():
            assert report[name] == pytest.approx(value, rel=1e-12), name
        assert manifest["weights_hash"] == weights_hash(found.ids, np.array(weights))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "options",
    [
        {"luck": "average"},
        {"luck": "average", "group_by": "opening", "no_success": "drop", "beta": 0.4},
        {"luck": "average", "scheme": "bolt", "group_by": "opening"},
        {"group_by": "opening", "scheme": "swift"},
        *({"false_positive": 0.1, "false_negative": 0.2, "scheme": scheme} for scheme in SCHEMES),
        {"false_negative": 0.3, "beta": 0.5, "repetition": 0.2, "group_by": "opening"},
    ],
)
def test_weights_under_chance_are_those_of_all_trajectories_at_once(
    tmp_path: Path, make_trajectory: Make, options: dict[str, Any]
) -> None:
    made = random_trajectories(make_trajectory, 4)
    if "false_positive" in options:
        # A conversation ends with its first success: no penalty makes a return negative, which refit would refuse.
        made = [t for t in made if t.error is None]
    folder = stored(tmp_path / "data", made)
    config = WeightConfig(**options)
    found = outcomes(read_trajectories(folder), group_by=config.group_by, paths=config.luck == "average")
    _, weights_N, report = compute_weights(found, config)
    manifest = weigh_dataset(folder, config, tmp_path / "w")
    if config.scheme == "rwr":
        assert read_weights(tmp_path / "w", folder).by_id() == pytest.approx(
            dict(zip(found.ids, weights_N.tolist(), strict=True)), rel=1e-12
        )
    else:
        assert read_weights(tmp_path / "w", folder).by_id() == dict(zip(found.ids, weights_N.tolist(), strict=True))
    assert manifest["diagnostics"].get("averaged_trajectories") == report.get("averaged_trajectories")
    assert ("averaged_trajectories" in report) == (config.luck == "average")


@pytest.mark.usefixtures("small")
def test_the_file_of_weights_is_the_same_however_rows_lie_in_shards(tmp_path: Path, make_trajectory: Make) -> None:
    made = random_trajectories(make_trajectory, 2)
    first = stored(tmp_path / "first", made, 5)
    second = stored(tmp_path / "second", made[::-1], 11)
    for data, out in ((first, "a"), (second, "b")):
        weigh_dataset(data, WeightConfig(), tmp_path / out)
    assert (tmp_path / "a" / weighing.FILE).read_bytes() == (tmp_path / "b" / weighing.FILE).read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["manifest.json", "weights.parquet"]


@pytest.mark.usefixtures("small")
def test_what_concerns_all_prompts_is_counted_over_all_buckets(tmp_path: Path, make_trajectory: Make) -> None:
    alone = [make_trajectory(f"t{n}", 0, ("1", "1"), n == 0) for n in range(60)]
    folder = stored(tmp_path / "alone", alone)
    with pytest.raises(ConfigError, match="no prompt has more than one"):
        weigh_dataset(folder, WeightConfig(), tmp_path / "w")
    with pytest.raises(ConfigError, match=r"refit needs returns ≥ 0: 59 of 60 are negative, the smallest -0\.25"):
        weigh_dataset(folder, WeightConfig(scheme="refit", repetition=0.5), tmp_path / "w")
    with pytest.raises(ConfigError, match="leaves every weight 0: 59 of 60 prompts have no success, 60 have equal"):
        weigh_dataset(folder, WeightConfig(scheme="sft", equal_returns="drop"), tmp_path / "w")
    assert list((tmp_path / "w").iterdir()) == []
    # One prompt of two is enough for a scheme that compares; one success is enough for one that takes successes.
    paired = stored(tmp_path / "paired", [*alone, make_trajectory("t0", 1, ("1",))])
    assert weigh_dataset(paired, WeightConfig(), tmp_path / "w")["diagnostics"]["groups_of_one"] == 59
    assert weigh_dataset(folder, WeightConfig(scheme="rft"), tmp_path / "w")["diagnostics"]["zero_weights"] == 59


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("local", [False, True])
def test_a_scheme_of_another_package_sees_all_prompts_unless_it_says_that_it_is_local(
    tmp_path: Path, make_trajectory: Make, monkeypatch: pytest.MonkeyPatch, local: bool
) -> None:
    seen = []

    def ranks(returns_N: np.ndarray, group_N: np.ndarray, *, success_N: np.ndarray) -> np.ndarray:
        seen.append(len(returns_N))
        return np.unique(returns_N, return_inverse=True)[1] + len(np.unique(group_N)) + 0.5 * success_N

    monkeypatch.setitem(schemes.SCHEMES, "ranks", SchemeInfo(function=ranks, grouped=False, repetition=0, local=local))
    folder = stored(tmp_path / "data", random_trajectories(make_trajectory, 3))
    found = outcomes(read_trajectories(folder))
    expected = whole_at_once(found, WeightConfig(scheme="ranks"))[1]
    seen.clear()
    weigh_dataset(folder, WeightConfig(scheme="ranks"), tmp_path / "w")
    assert sum(seen) == len(found.ids) and (len(seen) > 4) == local
    by_id = read_weights(tmp_path / "w", folder).by_id()
    assert (by_id == dict(zip(found.ids, expected, strict=True))) != local


def test_rwr_of_many_small_terms_is_that_of_exact_sums() -> None:
    rng = np.random.default_rng(0)
    returns_N = rng.normal(size=5000)
    weights_N = schemes.rwr_weights(returns_N, np.arange(5000), beta=0.05)
    assert math.fsum(weights_N) / 5000 == pytest.approx(1, rel=1e-15)
    parts = np.split(rng.permutation(returns_N), [7, 7, 900])
    assert schemes.survey_rwr(lambda: parts, beta=0.05) == schemes.survey_rwr(lambda: [returns_N], beta=0.05)


def test_shards_without_the_column_graded_hold_graded_turns(tmp_path: Path, make_trajectory: Make) -> None:
    made = [make_trajectory("a", k, ("1", None, "1", "2")[: k + 1], k == 3) for k in range(4)]
    folder = stored(tmp_path / "data", made)
    expected = compute_weights(outcomes(made), WeightConfig(format_failure=0.1))[1]
    for path in shards(folder):
        rows = pq.read_table(path).to_pylist()
        kind = SCHEMA.field("turns").type.value_type
        old = pa.list_(pa.struct([field for field in kind if field.name != "graded"]))
        path.unlink()
        # Such shards had no checksum in their names either.
        older = path.with_name(f"{path.stem.partition('-')[0]}.parquet")
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA.set(7, pa.field("turns", old))), older)
    weigh_dataset(folder, WeightConfig(format_failure=0.1), tmp_path / "w")
    assert read_weights(tmp_path / "w", folder).by_id() == dict(zip([t.id for t in made], expected, strict=True))


def test_lost_and_damaged_shards_are_told(tmp_path: Path, make_trajectory: Make) -> None:
    folder = stored(tmp_path / "data", random_trajectories(make_trajectory, 4))
    lost = shards(folder)[1]
    kept = lost.read_bytes()
    lost.unlink()
    with pytest.raises(DatasetError, match="a shard is missing"):
        weigh_dataset(folder, WeightConfig(), tmp_path / "w")
    lost.write_bytes(kept[: len(kept) // 2])
    with pytest.raises(DatasetError, match=f"shard {lost} can't be read"):
        weigh_dataset(folder, WeightConfig(), tmp_path / "w")
    assert list((tmp_path / "w").iterdir()) == []


def test_buckets_give_back_the_rows_of_a_key_together_and_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "ROWS_PER_WRITE", 60)
    schema = pa.schema([("key", pa.string()), ("n", pa.int64())])
    rng = random.Random(0)
    rows = [{"key": f"k{rng.randrange(40)}", "n": n} for n in range(500)]
    with Buckets(tmp_path, schema, "key", 7) as spilled:
        for at in range(0, 500, 13):
            spilled.add(pa.Table.from_pylist(rows[at : at + 13], schema=schema))
        found = [spilled.read(bucket).to_pylist() for bucket in range(7)]
    number = dict(
        zip((r["key"] for r in rows), bucket_of(pa.chunked_array([[r["key"] for r in rows]]), 7), strict=False)
    )
    assert found == [[row for row in rows if number[row["key"]] == bucket] for bucket in range(7)]
    # Literal values: the same on every machine and under every version.
    assert bucket_of(pa.chunked_array([["", "123456789", "a"]]), 2**32).tolist() == [0, 0xCBF43926, 0xE8B7BE43]


@pytest.mark.skipif(sys.platform == "win32", reason="files can't be removed there while they are open")
def test_killed_in_the_middle_it_leaves_nothing_that_a_later_run_minds(tmp_path: Path, make_trajectory: Make) -> None:
    folder = stored(tmp_path / "data", random_trajectories(make_trajectory, 5))
    out = tmp_path / "w"
    before = weigh_dataset(folder, WeightConfig(), out)
    script = (
        "import sys, time; from pathlib import Path; from drift.dataset import weighing\n"
        "from drift.weights.config import WeightConfig\n"
        "def stop(*_): print('there', flush=True); time.sleep(600)\n"
        "weighing._sum_of_digests = stop\n"
        "weighing.weigh_dataset(Path(sys.argv[1]), WeightConfig(beta=0.3), Path(sys.argv[2]))\n"
    )
    running = subprocess.Popen([sys.executable, "-c", script, str(folder), str(out)], stdout=subprocess.PIPE, text=True)
    try:
        assert running.stdout is not None and running.stdout.readline() == "there\n"
        os.kill(running.pid, signal.SIGKILL)
    finally:
        running.wait(30)
    # What was written before is whole; the spilled rows are gone, and all that is left is the begun file.
    assert {path.name for path in out.iterdir()} <= {"manifest.json", "weights.parquet", ".weights.parquet.tmp"}
    expected = compute_weights(outcomes(read_trajectories(folder)), WeightConfig())[1]
    assert sorted(read_weights(out, folder).weights_N.tolist()) == sorted(expected.tolist())
    again = weigh_dataset(folder, WeightConfig(), out)
    assert again["weights_hash"] == before["weights_hash"]
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "weights.parquet"]


def test_a_crash_before_the_manifest_leaves_none_and_no_weights_under_the_old_one(
    tmp_path: Path, make_trajectory: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stored(tmp_path / "data", random_trajectories(make_trajectory, 6))
    weigh_dataset(folder, WeightConfig(), tmp_path / "w")
    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(weighing, "write_manifest", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        weigh_dataset(folder, WeightConfig(beta=0.3), tmp_path / "w")
    with pytest.raises(DatasetError, match=r"without manifest\.json"):
        read_weights(tmp_path / "w", folder)


def test_memory_is_that_of_a_bucket(tmp_path: Path, make_trajectory: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weighing, "BUCKET_ROWS", 64)
    monkeypatch.setattr(buckets, "ROWS_PER_WRITE", 64)
    sizes = []
    weigh = weighing.Weigher.weigh

    def counted(self: weighing.Weigher, found: Outcomes) -> tuple[np.ndarray, np.ndarray]:
        sizes.append(len(found.success_N))
        return weigh(self, found)

    monkeypatch.setattr(weighing.Weigher, "weigh", counted)
    made = [make_trajectory(f"t{n}", k, ("1",), k == 0) for n in range(160) for k in range(4)]
    weigh_dataset(stored(tmp_path / "data", made, 50), WeightConfig(), tmp_path / "w")
    assert sum(sizes) == 640 and len(sizes) == 10 and max(sizes) <= 2 * 64
    assert pq.ParquetFile(tmp_path / "w" / weighing.FILE).metadata.num_row_groups == 10
