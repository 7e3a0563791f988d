"""``drift verify``: a user's own replies beside what was read, from where, and the verdict."""

import json

import pytest

import drift
from drift.cli import main
from drift.errors import DatasetError

ROWS = [
    {"reply": "Seven times six: <answer>42</answer>", "gold": 42},
    {"reply": "<think>43</think>The answer is **41**.", "answer": "42"},
    {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "I can't say."}], "gold": "42"},
    {"reply": "B fits, so B is the answer.", "gold": "B", "options": ["40", "42"]},
    {"reply": "#### 7"},
]


def test_each_reply_is_shown_with_what_was_read_from_where_and_the_verdict(tmp_path, capsys):
    file = tmp_path / "replies.jsonl"
    file.write_text("\n".join(map(json.dumps, ROWS)))
    found = drift.verify(file)
    assert [(row.where, row.verdict) for row in found.rows] == [
        ("tag", "right"), ("stated", "wrong"), ("unread", "unparseable"), ("concluded", "right"), ("hash", ""),
    ]  # fmt: skip
    assert [row.answer for row in found.rows[:2]] == ["42", "41**"]
    assert found.sentences()[0].startswith("5 replies; an answer is read from 4 of them")
    assert drift.verify(ROWS[1:2], strict=True).rows[0].where == "unread"
    assert main(["verify", str(file), "--show", "1"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "right" in shown[1] and len([line for line in shown if "the answer" in line.lower()]) == 0
    assert "Verdicts: right 2, wrong 1, unparseable 1" in shown


def test_plain_lines_are_replies_and_a_row_without_a_reply_is_named(tmp_path):
    file = tmp_path / "replies.txt"
    file.write_text("The answer is 5.\nNo idea.\n")
    assert [row.where for row in drift.verify(file).rows] == ["stated", "unread"]
    with pytest.raises(DatasetError, match=r"row 2: no reply in it\. It has gold, text"):
        drift.verify([ROWS[0], {"text": "5", "gold": "5"}])
