"""Pages of a small run: what is on them, that nothing on them is markup but ours, and that they grow with the run."""

import dataclasses
import html
import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlencode

import pytest
from tests.viewer.conftest import HOSTILE, saying, write

import drift
from drift.artifacts import TRAJECTORIES, Artifact
from drift.dataset.store import TrajectoryWriter, read_trajectories
from drift.errors import ConfigError, DatasetError
from drift.manifest import write_manifest
from drift.policies import DEFAULT_MODEL
from drift.types import Message, Trajectory
from drift.viewer.beside import shared_tree
from drift.viewer.library import Library
from drift.viewer.pages import Pages
from drift.viewer.text import visible
from drift.viewer.tokens import _load, pieces
from drift.weights.table import read_weights


def text_of(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", page))


def test_each_conversation_is_shown_with_what_is_stored_and_what_is_trained(run: Path) -> None:
    pages = Pages(Library(run))
    table = read_weights(run / "weights", run / "rollouts")
    for each in read_trajectories(run / "rollouts"):
        page = pages.conversation({"id": each.id})
        shown = re.findall(r'<div class="text">(.*?)</div>', page, re.DOTALL)
        assert [text_of(text) for text in shown] == [visible(message["content"]) for message in each.messages]
        weights = [
            float(found) for found in re.findall(r"<span>weight ([-\d.e]+)(?: \(|</span>)", page)[each.id in table :]
        ]
        expected = [float(f"{w:.4g}") for w in table[each.id]] if each.id in table else [0.0] * len(each.turns)
        assert weights == expected
        rewards = [float(found) for found in re.findall(r"<span>reward ([-\d.e]+)</span>", page)]
        assert rewards[1:] == [float(f"{turn.step.reward:.4g}") for turn in each.turns]
        for turn in each.turns:
            if turn.step.answer is not None:
                assert f"<code>{html.escape(turn.step.answer)}</code>" in page


def test_a_conversation_that_is_not_whole_is_named(tmp_path: Path, make_trajectory: Callable[..., Trajectory]) -> None:
    one = make_trajectory("t", 0, ("1", "2"))
    write(tmp_path / "rollouts", [dataclasses.replace(one, messages=one.messages[:1])])
    with pytest.raises(DatasetError, match="'t#0' of rollouts is not as drift writes them"):
        Pages(Library(tmp_path)).conversation({"id": "t#0"})


def test_nothing_that_was_said_is_markup(run: Path) -> None:
    pages = Pages(Library(run))
    found = pages._library.find({"q": "evil"}, patience=math.inf)
    name, group = (texts[int(found.order[0])].as_py() for texts in (found.columns.ids, found.columns.groups))
    exported = pages.export(found, [int(found.order[0])])
    made = [pages.run({}), pages.conversations({"q": HOSTILE}), pages.conversation({"id": name}), exported]
    for page in (*made, pages.tree({"prompt": group}), pages.problem(HOSTILE)):
        assert page.count("<script") == page.count('<script src="viewer.js" defer></script>') and "<img" not in page
        assert not set(page) & set("\u202e\x1b\x00\u2028") and "1234321" not in page
    assert r"\u202e\x1b[2J\x00\u2028" in text_of(exported) and "<style>" in exported and "viewer.js" not in exported
    assert "default-src 'none'" in exported


def test_a_tree_says_each_conversation_again(random_trajectories: Callable[..., list[Trajectory]]) -> None:
    for seed in range(5):
        said = [each.messages for each in random_trajectories(seed, prompts=4)]
        order, rows = shared_tree(said)
        columns: list[list[Message]] = [[] for _ in said]
        for row in rows:
            spread = [cell.message for cell in row for _ in range(cell.span)]
            assert len(spread) == len(said)
            for column, message in zip(columns, spread, strict=True):
                column += [message] if message else []
        assert [tuple(column) for column in columns] == [said[at] for at in order] and sorted(order) == list(
            range(len(said))
        )
        # What begins alike is one cell: there are as many as there are different beginnings.
        beginnings = {json.dumps(one[: depth + 1]) for one in said for depth in range(len(one))}
        assert sum(cell.message is not None for row in rows for cell in row) == len(beginnings)


def test_pieces_are_the_reply_and_their_log_probabilities_its_sum() -> None:
    tokenizer, rng = _load(str(DEFAULT_MODEL)), random.Random(1)
    assert tokenizer is not None
    for text in ("What is 12 + 30?", "<answer>7</answer>", "naïve 日本語 🙂🙂 é", "", " spaces  and\nlines "):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        logprobs = [-rng.random() for _ in ids]
        split = list(pieces(tokenizer, ids, logprobs))
        assert "".join(piece.text for piece in split) == tokenizer.decode(ids, skip_special_tokens=False)
        assert [each for piece in split for each in piece.token_ids] == ids
        assert math.isclose(sum(piece.logprob or 0 for piece in split), sum(logprobs))


def test_tokens_are_coloured_where_the_run_says_whose_they_are(
    tmp_path: Path, make_trajectory: Callable[..., Trajectory]
) -> None:
    tokenizer = _load(str(DEFAULT_MODEL))
    one = make_trajectory(answers=("8",))
    ids = tuple(tokenizer.encode("<answer>8</answer>", add_special_tokens=False).ids)
    completion = one.turns[0].completion
    object.__setattr__(completion, "token_ids", ids)
    object.__setattr__(completion, "logprobs", tuple(-3.0 * at for at in range(len(ids))))
    write(tmp_path / "rollouts", [one])
    query = {"id": one.id, "colour": "logprob"}
    assert "the tokenizer of the model that sampled them is not here" in text_of(
        Pages(Library(tmp_path)).conversation(query)
    )
    (tmp_path / "recipe.yaml").write_text("model: default\n")
    page = Pages(Library(tmp_path)).conversation(query)
    shades = re.findall(r'class="t l(\d)" title="([\d ]+): log p (-?[\d.]+)"', page)
    assert [int(name) for _, names, _ in shades for name in names.split()] == list(ids)
    assert [shade for shade, _, _ in shades][:3] == ["0", "5", "7"]


def test_a_list_goes_on_by_pages_and_leads_through_conversations(run: Path) -> None:
    pages = Pages(Library(run))
    query = {"sort": "-weight", "success": "no"}
    found = pages._library.find(query, patience=math.inf)
    ids = [found.columns.ids[int(at)].as_py() for at in found.order]
    listed = []
    for at in range(1, 1 + -(-len(ids) // 25)):
        page = pages.conversations({**query, "page": str(at)})
        listed += [html.unescape(name) for name in re.findall(r'<a class="row"[^>]*>([^<]*)</a>', page)]
    assert listed == ids and 'rel="next"' not in page
    middle = pages.conversation({**query, "id": ids[7]})
    for rel, name in (("prev", ids[6]), ("next", ids[8])):
        address = re.search(rf'rel="{rel}" href="conversation\?([^"]*)"', middle)
        assert (
            address
            and urlencode({"id": name}) in html.unescape(address.group(1))
            and "sort=-weight" in address.group(1)
        )


def test_pages_grow_while_conversations_are_held(tmp_path: Path, make_trajectory: Callable[..., Trajectory]) -> None:
    with TrajectoryWriter(tmp_path / "rollouts", {"trajectories": 9}, [], shard_size=100) as writer:
        pages = Pages(Library(tmp_path))
        for count in (0, 3, 9):
            for sample in range(writer.count, count):
                writer.append(make_trajectory("t", sample))
            writer.flush()
            page = pages.conversations({})
            assert f"<b>{count}</b> of {count} conversations" in page and "data-live" in page
            assert f"{count} conversations of 9 so far" in pages.run({}) and page.count('class="row"') == count
        writer.finish()
    assert "data-live" not in Pages(Library(tmp_path)).conversations({})


def test_policies_are_compared_on_each_task(tmp_path: Path, make_trajectory: Callable[..., Trajectory]) -> None:
    solved = {"base": [0, 1, 0, 1], "tuned": [1, 0, 0, 1]}
    for name, each in solved.items():
        made = [make_trajectory(f"task {at}", solved=bool(right)) for at, right in enumerate(each)]
        made[0] = saying(made[0], f"{name} says so")
        write(tmp_path / "evaluation" / "greedy" / name, made)
    content = {"policies": dict.fromkeys(solved, "default"), "modes": ["greedy"], "max_turns": 1, "cost": {}}
    write_manifest(tmp_path / "evaluation", "evaluation", content)
    pages = Pages(Library(tmp_path))
    for change, tasks in (("gained", [0]), ("lost", [1]), ("same", [2, 3]), ("", [0, 1, 2, 3])):
        page = pages.compare({"change": change})
        assert re.findall(r"<a class=\"row\"[^>]*>task (\d)</a>", page) == list(map(str, tasks))
    page = text_of(pages.compare({"task": "task 0", "change": "gained"}))
    assert "base says so" in page and "tuned says so" in page and page.count("question task 0") == 2


def test_a_selection_is_one_page_that_a_notebook_shows_too(run: Path) -> None:
    page = drift.view(run, export=run / "page.html", select="data=rollouts&error=none&sort=-weight", rows=4)
    assert page is not None
    made = page.path.read_text()
    found = Library(run).find({"error": "none", "sort": "-weight"}, patience=math.inf)
    ids = [found.columns.ids[int(at)].as_py() for at in found.order[:4]]
    assert [html.unescape(name) for name in re.findall(r'class="one"[^>]*><summary>([^<]*)<', made)] == ids
    assert "<a " not in made and "srcdoc" in page._repr_html_()
    shown = Artifact(run / "rollouts", TRAJECTORIES)._repr_html_()
    assert "srcdoc" in shown and shown.count(html.escape('class="one"')) == 10
    for select, words in (("colour=2&nonsense=1", "nonsense"), ("id=none", "none"), ("data=weights", "weights")):
        with pytest.raises(ConfigError, match=words):
            drift.view(run, export=run / "page.html", select=select)
    with pytest.raises(DatasetError, match="no stage of drift"):
        drift.view(run / "rollouts" / "shards", export=run / "page.html")
