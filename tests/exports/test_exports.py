"""Rows for preference trainers, against lists written by hand and naive loops."""

import asyncio
import itertools
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import drift
from drift.cli import main
from drift.dataset.store import TrajectoryWriter, read_trajectories
from drift.environments.arithmetic import Arithmetic
from drift.errors import ConfigError, DatasetError
from drift.exports import run as exports
from drift.exports.config import FORMATS, ExportConfig
from drift.exports.conversations import conversations
from drift.exports.rows import opposite
from drift.policies import DEFAULT_MODEL
from drift.policies.base import Sampling, derive_seed
from drift.policies.hf import HFPolicy, load_tokenizer
from drift.rollouts.episode import Assignment, episode
from drift.types import Trajectory
from drift.weights.table import read_weights

Make = Callable[..., Trajectory]
Row = dict[str, Any]


@pytest.fixture
def data(make_trajectory: Make) -> list[Trajectory]:
    """Returns at γ = 0.9, λ = 0.5: a 1, .643, 0, −.333; b 0, −.25; c 1, 1; one conversation of c failed."""
    return [
        make_trajectory("a", 0, ("5",), True),
        make_trajectory("a", 1, ("1", "1", "5"), True),
        make_trajectory("a", 2, ("1", "2", "3")),
        make_trajectory("a", 3, ("1", "1", None)),
        make_trajectory("b", 0, ("1", "2")),
        make_trajectory("b", 1, ("1", "1")),
        make_trajectory("c", 0, ("7",), True),
        make_trajectory("c", 1, ("7",), True),
        make_trajectory("c", 2, (), error="environment.start raised OSError: gone"),
    ]


@pytest.fixture(scope="module")
def sampled() -> list[Trajectory]:
    """Conversations of the built-in policy: 6 problems, 8 each."""
    policy, factory, sampling = HFPolicy(str(DEFAULT_MODEL)), Arithmetic(), Sampling(max_new_tokens=16)
    todo = [
        Assignment(task=task, sample=k, seed=derive_seed(3, task.id, k))
        for task in factory.tasks("train", 6, 3)
        for k in range(8)
    ]

    async def hold() -> list[Trajectory]:
        return list(await asyncio.gather(*(episode(each, factory, policy, sampling) for each in todo)))

    return asyncio.run(hold())


def rows(trajectories: list[Trajectory], **settings: Any) -> tuple[list[Row], Counter[str]]:
    counts: Counter[str] = Counter()
    return list(exports.export_rows(trajectories, ExportConfig(**settings), counts)), counts


def stored(folder: Path, trajectories: list[Trajectory], shard_size: int = 2048) -> Path:
    with TrajectoryWriter(folder, {"trajectories": len(trajectories)}, [], shard_size=shard_size) as writer:
        for trajectory in trajectories:
            writer.append(trajectory)
        writer.finish()
    return folder


def ids(found: list[Row]) -> list[tuple[str, str]]:
    return [(row["chosen_id"], row["rejected_id"]) for row in found]


def test_the_best_is_paired_with_the_worst_and_so_on_inwards() -> None:
    assert opposite("abcdef", [1, 3, 2, 0, 3, 1], margin=0) == [("b", "d"), ("e", "f"), ("c", "a")]
    assert opposite("abcdef", [1, 3, 2, 0, 3, 1], margin=1) == [("b", "d"), ("e", "f")]
    assert opposite("abc", [1, 1, 1], margin=0) == []
    assert opposite("abc", [2, 1, 1], margin=0) == [("a", "c")]
    assert opposite("a", [1], margin=0) == []


@pytest.mark.parametrize("seed", range(20))
def test_pairs_are_disjoint_ordered_and_the_widest_that_there_are(seed: int) -> None:
    rng = random.Random(seed)
    values = [rng.choice([0.0, 0.25, 0.5, 1.0]) for _ in range(rng.randint(0, 9))]
    pairs = opposite(range(len(values)), values, margin=0)
    flat = [at for pair in pairs for at in pair]
    assert len(set(flat)) == len(flat)
    gaps = [values[better] - values[worse] for better, worse in pairs]
    assert all(gap > 0 for gap in gaps) and gaps == sorted(gaps, reverse=True)
    # No set of disjoint pairs of that number has a larger sum of gaps.
    best = 0.0
    for chosen in itertools.permutations(range(len(values)), 2 * len(pairs)) if len(values) <= 6 else ():
        best = max(best, sum(values[a] - values[b] for a, b in zip(chosen[::2], chosen[1::2], strict=True)))
    assert len(values) > 6 or sum(gaps) == pytest.approx(best)


def test_conversations_of_a_prompt_are_paired_by_return(data: list[Trajectory]) -> None:
    found, counts = rows(data, format="dpo")
    assert ids(found) == [("a#0", "a#3"), ("a#1", "a#2"), ("b#0", "b#1")]
    assert [row["chosen_return"] for row in found] == pytest.approx([1.0, 0.81 - 0.5 / 3, 0.0])
    assert [row["rejected_return"] for row in found] == pytest.approx([-1 / 3, 0.0, -0.25])
    assert counts == {
        "rows": 3, "prompts": 3, "failed": 1, "prompts_without_row": 1, "rows_without_ids": 0, "histories": 3,
        "histories_without_pair": 1,
    }  # fmt: skip
    assert found[0]["prompt"] == [{"role": "user", "content": "question a"}]
    assert found[0]["chosen"] == [{"role": "assistant", "content": "<answer>5</answer>"}]
    assert [message["content"] for message in found[0]["rejected"]] == [
        "<answer>1</answer>", "Incorrect.", "<answer>1</answer>", "Incorrect.", "no idea",
    ]  # fmt: skip
    assert ids(rows(data, format="dpo", pairs=1)[0]) == [("a#0", "a#3"), ("b#0", "b#1")]
    assert ids(rows(data, format="dpo", margin=0.5)[0]) == [("a#0", "a#3"), ("a#1", "a#2")]
    # Without the penalty the unsolved are equal: a#2 and a#3 in the order of their samples, and b has no pair.
    assert ids(rows(data, format="dpo", repetition=0.0)[0]) == [("a#0", "a#3"), ("a#1", "a#2")]


def test_of_whole_conversations_only_what_was_sampled_is_marked(data: list[Trajectory]) -> None:
    row = rows(data, format="dpo")[0][1]
    said, feedback = list(b"<answer>1</answer>"), [9, 8]
    assert row["sampled_ids"]["prompt"] == [1, 2, 3]
    assert row["sampled_ids"]["chosen"] == said + feedback + said + feedback + list(b"<answer>5</answer>")
    assert row["sampled_ids"]["chosen_mask"] == ([1] * 18 + [0] * 2) * 2 + [1] * 18


def test_last_replies_follow_the_history_of_the_better_one(data: list[Trajectory]) -> None:
    found, counts = rows(data, format="dpo-final")
    assert ids(found) == [("a#0", "a#3"), ("a#1", "a#2"), ("b#0", "b#1")]
    assert [len(row["prompt"]) for row in found] == [1, 5, 3]
    assert found[1]["chosen"] == [{"role": "assistant", "content": "<answer>5</answer>"}]
    assert found[1]["rejected"] == [{"role": "assistant", "content": "<answer>3</answer>"}]
    assert found[1]["sampled_ids"]["rejected"] == list(b"<answer>3</answer>")
    assert found[1]["sampled_ids"]["prompt"] == list(data[1].turns[-1].prompt_ids)
    assert counts["same_replies"] == 0


def test_last_replies_can_be_kept_to_those_of_one_history(data: list[Trajectory]) -> None:
    # a#1 and a#3 said the same twice; nobody else shares the history of a last reply with somebody of another return,
    # but for b, where both said 1 first.
    found, counts = rows(data, format="dpo-final", history="shared")
    assert ids(found) == [("a#1", "a#3"), ("b#0", "b#1")]
    for row in found:
        rejected = next(t for t in data if t.id == row["rejected_id"])
        assert [message["content"] for message in row["prompt"]] == [
            message["content"] for message in rejected.messages[:-1]
        ]
        assert row["sampled_ids"]["prompt"] == list(rejected.turns[-1].prompt_ids)
    assert counts["histories"] == 5


def test_the_same_words_are_preferred_to_nothing(make_trajectory: Make) -> None:
    lucky = [make_trajectory("a", 0, ("1", "5"), True), make_trajectory("a", 1, ("2", "2", "5"))]
    found, counts = rows(lucky, format="dpo-final")
    assert found == [] and counts["same_replies"] == 1
    noisy = [make_trajectory("a", 0, ("5",), True), make_trajectory("a", 1, ("5",))]
    for format in ("dpo", "dpo-step"):
        assert rows(noisy, format=format)[0] == []


def naive_steps(trajectories: list[Trajectory], limit: int) -> set[tuple[Any, ...]]:
    """Step-wise pairs by exhaustive search: (history, better, worse, their mean returns)."""
    value = {c.trajectory.id: c.value for c in conversations(trajectories, ExportConfig())}
    after: dict[Any, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for t in trajectories:
        for at, turn in enumerate(t.turns):
            replies = [other.completion.text for other in t.turns[:at]]
            after[t.group_id, turn.prompt_ids, tuple(replies)][turn.completion.text].append(t.id)
    found = set()
    for history, replies in after.items():
        means = [(sum(value[i] for i in each) / len(each), text) for text, each in replies.items()]
        pairs = 0
        # The first of equals is the one whose reply was met first.
        order = [text for _, text in sorted(means, key=lambda pair: -pair[0])]
        mean = {text: m for m, text in means}
        while len(order) > 1 and mean[order[0]] > mean[order[-1]] and pairs < limit:
            better, worse = order.pop(0), order.pop()
            found.add((history[1], better, worse, round(mean[better], 9), round(mean[worse], 9)))
            pairs += 1
    return found


@pytest.mark.parametrize("limit", [1, 4])
def test_step_pairs_are_those_of_a_naive_search(sampled: list[Trajectory], limit: int) -> None:
    found, counts = rows(sampled, format="dpo-step", pairs=limit)
    assert {
        (
            tuple(row["sampled_ids"]["prompt"]),
            row["chosen"][0]["content"],
            row["rejected"][0]["content"],
            round(row["chosen_return"], 9),
            round(row["rejected_return"], 9),
        )
        for row in found
    } == naive_steps(sampled, limit)
    assert len(found) == counts["rows"] > 10
    assert max(row["turn"] for row in found) > 1
    assert all(len(row["chosen"]) == len(row["rejected"]) == 1 for row in found)


def test_step_pairs_by_hand(data: list[Trajectory]) -> None:
    found, _ = rows(data[:4], format="dpo-step")
    # Turn 1: "5" is worth 1, "1" the mean of .643, 0 and −.333. Turn 2 after "1": "1" .155, "2" 0. Turn 3 after 1, 1.
    assert [(row["turn"], row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in found] == [
        (1, "<answer>5</answer>", "<answer>1</answer>"),
        (2, "<answer>1</answer>", "<answer>2</answer>"),
        (3, "<answer>5</answer>", "no idea"),
    ]
    r1 = 0.81 - 0.5 / 3
    assert [row["chosen_return"] for row in found] == pytest.approx([1.0, (r1 - 1 / 3) / 2, r1])
    assert [row["rejected_return"] for row in found] == pytest.approx([(r1 - 1 / 3) / 3, 0.0, -1 / 3])
    assert [(row["chosen_count"], row["rejected_count"]) for row in found] == [(1, 3), (2, 1), (1, 1)]


def test_single_conversations_are_labelled_by_success_or_by_return(data: list[Trajectory]) -> None:
    found, counts = rows(data, format="kto")
    labels = {row["completion_id"]: row["label"] for row in found}
    assert labels == {t.id: t.success for t in data if t.error is None}
    assert (counts["good"], counts["bad"]) == (4, 4)
    above, _ = rows(data, format="kto", threshold=0.7)
    assert [row["completion_id"] for row in above if row["label"]] == ["a#0", "c#0", "c#1"]
    assert found[1]["completion"] == [dict(message) for message in data[1].messages[1:]]


@pytest.mark.parametrize("format", FORMATS)
def test_sampled_ids_and_mask_are_what_was_seen_and_sampled(sampled: list[Trajectory], format: Any) -> None:
    by_id = {t.id: t for t in sampled}
    for row in rows(sampled, format=format)[0]:
        for name in ("chosen", "rejected") if "chosen" in row else ("completion",):
            trajectory = by_id[row[f"{name}_id"]]
            last = trajectory.turns[row.get("turn", 0) - 1]
            got, mask = row["sampled_ids"][name], row["sampled_ids"][f"{name}_mask"]
            whole = [*row["sampled_ids"]["prompt"], *got]
            if name != "rejected" or format in ("dpo", "dpo-step"):
                assert whole == [*last.prompt_ids, *last.completion.token_ids]
            trained = [i for i, kept in zip(got, mask, strict=True) if kept]
            turns = trajectory.turns if format in ("dpo", "kto") else [last]
            assert trained == [i for turn in turns for i in turn.completion.token_ids]


def test_what_opened_differently_is_not_compared(make_trajectory: Make) -> None:
    one, other = make_trajectory("a", 0, ("5",), True), make_trajectory("a", 1, ("1",))
    other = replace(other, messages=({"role": "user", "content": "another opening"}, *other.messages[1:]))
    for format in ("dpo", "dpo-final", "dpo-step"):
        assert rows([one, other], format=format)[0] == []


def test_text_alone_is_exported_without_ids(data: list[Trajectory]) -> None:
    silent = [
        replace(
            t,
            text_only=True,
            turns=tuple(
                replace(turn, prompt_ids=(), completion=replace(turn.completion, token_ids=(), logprobs=None))
                for turn in t.turns
            ),
        )
        for t in data
    ]
    found, counts = rows(silent, format="dpo")
    assert ids(found) == [("a#0", "a#3"), ("a#1", "a#2"), ("b#0", "b#1")]
    assert counts["rows_without_ids"] == 3 and not any("sampled_ids" in row for row in found)


def test_rewritten_history_leaves_the_ids_of_several_replies_out(data: list[Trajectory]) -> None:
    first, second, third = data[1].turns
    forgetful = replace(data[1], turns=(first, replace(second, prompt_ids=(4, 5)), third))
    found, counts = rows([data[0], data[3], forgetful], format="kto")
    assert ["sampled_ids" in row for row in found] == [True, False, True]
    assert counts["rows_without_ids"] == 1


@pytest.mark.parametrize("format", FORMATS)
def test_the_file_does_not_depend_on_shards_or_on_how_much_fits_in_memory(
    data: list[Trajectory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: Any
) -> None:
    config, folder = ExportConfig(format=format), stored(tmp_path / "a", data)
    more = {"weights": drift.weigh(folder, out=tmp_path / "w").path} if "sft" in format else {}
    whole = exports.export_dataset(folder, tmp_path / "a.jsonl", config, **more)
    exports.export_dataset(stored(tmp_path / "b", data[::-1], shard_size=2), tmp_path / "b.jsonl", config, **more)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    monkeypatch.setattr(exports, "BUCKET_ROWS", 4)
    parts = exports.export_dataset(tmp_path / "b", tmp_path / "c.jsonl", config, **more)
    assert sorted((tmp_path / "c.jsonl").read_text().splitlines()) == sorted(
        (tmp_path / "a.jsonl").read_text().splitlines()
    )
    assert parts["counts"] == whole["counts"]
    assert json.loads((tmp_path / "c.jsonl.manifest.json").read_text())["counts"]["rows"] == whole["counts"]["rows"]


def test_replies_of_any_text_come_back_from_the_file(make_trajectory: Make, tmp_path: Path) -> None:
    hostile = 'end"}\n{"prompt": [] \x00\x1b[2J \u2028 \ufdd0 <|im_end|> ' + "x" * 100_000
    told = make_trajectory("a", 0, (hostile,), True)
    folder = stored(tmp_path / "data", [told, make_trajectory("a", 1, ("1",))])
    drift.export(folder, out=tmp_path / "rows.jsonl")
    lines = (tmp_path / "rows.jsonl").read_text().split("\n")
    assert len(lines) == 2 and lines[1] == ""
    assert json.loads(lines[0])["chosen"][0]["content"] == f"<answer>{hostile}</answer>"


def test_rendering_again_is_compared_with_what_was_sampled(sampled: list[Trajectory], tmp_path: Path) -> None:
    folder = stored(tmp_path / "data", sampled)
    told = drift.export(folder, out=tmp_path / "rows.jsonl", format="kto", model="default")
    assert told["rendered"] == {
        "same_ids": 48, "same_but_for_the_end": 0, "other_ids": 0, "refused": 0, "no_ids": 0,
    }  # fmt: skip
    # A template that ends a turn with a line break, as Qwen's does, has the trainer train that break too.
    tokenizer = load_tokenizer(str(DEFAULT_MODEL))
    tokenizer.chat_template += "{{ '\\n' }}"
    told = exports.export_dataset(folder, tmp_path / "rows.jsonl", ExportConfig(format="kto"), tokenizer=tokenizer)
    assert told["rendered"]["same_but_for_the_end"] == 48
    # A reply whose ids are not those that its text is tokenized to.
    spelled = [tokenizer.convert_tokens_to_ids(letter) for letter in "ok"]
    short = next(t for t in sampled if len(t.turns) == 1)
    turn = short.turns[0]
    odd = replace(
        short,
        messages=(short.messages[0], {"role": "assistant", "content": "oknow"}),
        turns=(replace(turn, completion=replace(turn.completion, text="oknow", token_ids=(*spelled, 7, 1))),),
    )
    told = exports.export_dataset(
        stored(tmp_path / "odd", [odd]), tmp_path / "odd.jsonl", ExportConfig(format="kto"), tokenizer=tokenizer
    )
    assert told["rendered"]["other_ids"] == 1


def test_the_command_line_says_what_was_made(
    data: list[Trajectory], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = stored(tmp_path / "data", data), tmp_path / "rows.jsonl"
    assert main(["export", str(folder), "--out", str(out), "--format", "dpo-step", "--pairs", "1"]) == 0
    assert f"{out}: rows 4, prompts 3, prompts without row 1, failed 1" in capsys.readouterr().out
    assert main(["export", str(folder), "--out", str(out), "--format", "kto", "--model", "default"]) == 0
    assert "rendered again: other ids 8" in capsys.readouterr().out
    assert main(["export", str(folder), "--out", str(out), "--model", "./nowhere"]) == 2
    assert "model './nowhere': nothing there" in capsys.readouterr().err


def test_nothing_to_export_is_an_error_that_leaves_no_file(make_trajectory: Make, tmp_path: Path) -> None:
    folder = stored(tmp_path / "data", [make_trajectory("a", k, ("5",), True) for k in range(3)])
    with pytest.raises(DatasetError, match=r"nothing to export as dpo .*'histories_without_pair': 1.*Sample more"):
        drift.export(folder, out=tmp_path / "rows.jsonl")
    assert not list(tmp_path.glob("rows*"))


def test_messages_that_do_not_fit_the_turns_are_refused(data: list[Trajectory]) -> None:
    broken = replace(data[1], messages=data[1].messages[:-1])
    with pytest.raises(DatasetError, match=r"trajectory 'a#1': its messages don't have the replies"):
        rows([broken], format="kto")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "ppo"}, "export.format: got 'ppo', expected one of dpo, dpo-final, dpo-step, kto"),
        ({"pairs": 0}, "export.pairs"),
        ({"margin": -1.0}, "export.margin"),
        ({"gamma": 0.0}, "export.gamma"),
        ({"history": "any"}, "export.history"),
        ({"outcome": "luck"}, "export.outcome"),
        ({"repetition": -0.5}, "export.repetition"),
    ],
)
def test_settings_are_checked(settings: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ExportConfig(**settings)


# --- logs, and weights ----------------------------------------------------------------------------------------------


def as_logged(trajectory: Trajectory) -> Trajectory:
    """The same conversation as a log has it, of which nobody said whether it succeeded."""
    *before, last = trajectory.turns
    return replace(trajectory, turns=(*before, replace(last, step=replace(last.step, success=None, graded=False))))


def test_what_nobody_judged_is_neither_good_nor_bad(make_trajectory: Make, tmp_path: Path) -> None:
    log = [as_logged(make_trajectory("a", k, (str(k),), rewards=(float(k),))) for k in range(1, 6)]
    judged = make_trajectory("a", 6, ("6",), True)
    made, counts = rows([*log, judged], format="kto")
    assert [(row["completion_id"], row["label"]) for row in made] == [("a#6", True)] and counts["unlabelled"] == 5
    made, counts = rows(log, format="kto", outcome="reward", threshold=2.5, gamma=1.0)
    assert [row["label"] for row in made] == [False, False, True, True, True] and counts["unlabelled"] == 0
    assert rows(log, format="dpo")[1]["unlabelled"] == 5
    # Where no success is known at all, rewards are what pairs differ by.
    folder = stored(tmp_path / "log", log)
    manifest = drift.export(folder, out=tmp_path / "pairs.jsonl", format="dpo")
    assert manifest["config"]["outcome"] == "reward" and manifest["counts"]["rows"] == 2
    with pytest.raises(DatasetError, match=r"nothing to export as kto .*'unlabelled': 5.*say with threshold"):
        drift.export(folder, out=tmp_path / "kto.jsonl", format="kto")


def test_weighted_conversations_come_out_and_in_again(make_trajectory: Make, tmp_path: Path) -> None:
    log = [make_trajectory("a", k, ("1", "2", "3"), rewards=(0.0, 0.0, float(k))) for k in range(4)]
    folder = stored(tmp_path / "data", log)
    steps = [{"skip_small": None}]
    weights = drift.weigh(folder, "swift", outcome="reward", turns={"credited": -0.5}, steps=steps, out=tmp_path / "w")
    table = read_weights(tmp_path / "w", folder)
    manifest = drift.export(folder, out=tmp_path / "sft.jsonl", format="sft", weights=weights)
    made = [json.loads(line) for line in (tmp_path / "sft.jsonl").read_text().splitlines()]
    positive = {name: [max(weight, 0.0) for weight in given] for name, given in table.items() if max(given) > 0}
    assert len(made) == len(positive) == 2 and manifest["counts"]["without_weight"] == 2
    assert manifest["counts"]["replies_below_zero"] == sum(w < 0 for given in table.values() for w in given)
    for row in made:
        said = [message for message in row["messages"] if message["role"] == "assistant"]
        assert [message["weight"] for message in said] == positive[row["id"]]
        assert row["weight"] == max(positive[row["id"]])
        assert [message["content"] for message in row["messages"]] == [m["content"] for m in log[0].messages]
    drift.export(folder, out=tmp_path / "gpt.jsonl", format="sft-sharegpt", weights=weights)
    other = [json.loads(line) for line in (tmp_path / "gpt.jsonl").read_text().splitlines()]
    names = {"user": "human", "assistant": "gpt"}
    for row, same in zip(other, made, strict=True):
        told = [(each["from"], each["value"], each.get("weight")) for each in row["conversations"]]
        assert told == [(names[m["role"]], m["content"], m.get("weight")) for m in same["messages"]]
    wrong: list[tuple[dict[str, Any], str]] = [({"format": "sft"}, "a directory of them with the format sft")]
    for settings, said in [*wrong, ({"weights": weights}, "none with the format dpo")]:
        with pytest.raises(ConfigError, match=said):
            drift.export(folder, out=tmp_path / "no.jsonl", **settings)
    # In again: what our own export says is what was weighed.
    drift.read_logs(tmp_path / "sft.jsonl", out=tmp_path / "again")
    again = read_trajectories(tmp_path / "again")
    assert [t.messages for t in again] == [t.messages for t in log[2:]]
    assert [sum(turn.step.reward for turn in t.turns) for t in again] == [2.0, 3.0]
