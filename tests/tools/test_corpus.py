import asyncio
import itertools
from pathlib import Path

import pytest
from tools.default_policy.config import Flaws
from tools.default_policy.corpus import conversations, label
from tools.default_policy.pretrain import Encoder, make_tokenizer, micro_batches
from transformers import AutoTokenizer

from drift.chat import TemplateChat
from drift.environments.answers import extract_answer
from drift.environments.arithmetic import Arithmetic
from drift.types import Message, Task


def task_of(question: str) -> Task:
    a, sign, b = question.removeprefix("What is ").removesuffix("?").split()
    kind = {"+": "add", "-": "sub", "*": "mul"}[sign]
    answer = {"add": int(a) + int(b), "sub": int(a) - int(b), "mul": int(a) * int(b)}[kind]
    payload = {"kind": kind, "a": int(a), "b": int(b), "question": question, "answer": answer}
    return Task(id=question, group_id=question, split="train", payload=payload)


@pytest.fixture(scope="module")
def played() -> list[list[Message]]:
    return list(itertools.islice(conversations(5, Flaws()), 8000))


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What is 12 + 34?", "add/plain"),
        ("What is 95 + 54?", "add/plain"),
        ("What is 19 + 11?", "add/carry"),
        ("What is 34 - 12?", "sub/plain"),
        ("What is 41 - 19?", "sub/carry"),
    ],
)
def test_problems_are_told_apart_by_their_last_digits(question: str, expected: str) -> None:
    assert label(task_of(question)) == expected


def test_first_answers_are_right_as_often_as_the_flaws_say(played: list[list[Message]]) -> None:
    flaws = Flaws()
    found: dict[str, list[bool]] = {}
    for messages in played:
        if messages[0]["content"].startswith("What is"):
            task = task_of(messages[0]["content"])
            right = extract_answer(messages[1]["content"]) == str(task.payload["answer"])
            found.setdefault(label(task), []).append(right)
    assert found.keys() == flaws.right.keys()
    for kind, hits in found.items():
        # An answer without the tag counts as wrong here, so the rate is a little lower than the flaw.
        expected = flaws.right[kind] * (1 - flaws.no_tag)
        error = (expected * (1 - expected) / len(hits)) ** 0.5
        assert abs(sum(hits) / len(hits) - expected) < 4 * error, kind


def test_wrong_answers_are_repeated_as_often_as_the_flaws_say(played: list[list[Message]]) -> None:
    again = [messages[3]["content"] == messages[1]["content"] for messages in played if len(messages) > 3]
    rate = sum(again) / len(again)
    # New guesses of a number can also hit the last one; in arithmetic a new answer never does.
    arithmetic = [m[3]["content"] == m[1]["content"] for m in played if len(m) > 3 and m[0]["content"][0] == "W"]
    error = (0.7 * 0.3 / len(arithmetic)) ** 0.5
    assert abs(sum(arithmetic) / len(arithmetic) - 0.7) < 4 * error
    assert rate >= 0.69


def test_the_environments_feedback_is_the_real_one(played: list[list[Message]]) -> None:
    for messages in played[:300]:
        if not messages[0]["content"].startswith("What is"):
            continue
        environment = Arithmetic().start(task_of(messages[0]["content"]))
        assert environment.opening() == messages[:1]
        for at in range(1, len(messages), 2):
            step = asyncio.run(environment.step(messages[at]["content"]))
            assert list(step.messages) == messages[at + 1 : at + 2]
            assert step.done == (at == len(messages) - 1)


def test_no_held_out_problem_is_in_the_corpus(played: list[list[Message]]) -> None:
    held_out = {task.payload["question"] for task in Arithmetic().tasks("test", 600, 0)}
    assert not held_out & {messages[0]["content"] for messages in played}


def test_cutting_after_the_first_reply_does_not_look_at_it() -> None:
    cut = list(itertools.islice(conversations(5, Flaws(), first_turn_share=1.0), 4000))
    assert all(len(messages) == 2 for messages in cut)
    kinds = [task_of(m[0]["content"]) for m in cut if m[0]["content"].startswith("What is")]
    right = [
        extract_answer(m[1]["content"]) == str(task_of(m[0]["content"]).payload["answer"])
        for m in cut
        if m[0]["content"].startswith("What is")
    ]
    flaws = Flaws()
    expected = sum(flaws.right[label(task)] for task in kinds) / len(kinds) * (1 - flaws.no_tag)
    assert abs(sum(right) / len(right) - expected) < 4 * (0.25 / len(right)) ** 0.5


def test_the_encoder_gives_the_ids_of_template_and_saved_tokenizer(
    played: list[list[Message]], tiny_model: Path
) -> None:
    made, loaded = make_tokenizer(0, Flaws(), 300), AutoTokenizer.from_pretrained(tiny_model)
    for tokenizer in (made, loaded):
        chat, encode = TemplateChat(tokenizer, source="test"), Encoder(made)
        for messages in played[:60]:
            ids, mask = encode(messages)
            assert tokenizer.apply_chat_template(messages, tokenize=False) == tokenizer.decode(ids)
            reply = tokenizer(messages[-1]["content"] + "<|end|>", add_special_tokens=False)["input_ids"]
            assert [*chat.first(messages[:-1]), *reply] == ids
            said = "".join(m["content"] + "<|end|>" for m in messages if m["role"] == "assistant")
            assert tokenizer.decode([i for i, s in zip(ids, mask, strict=True) if s]) == said


def test_micro_batches_hold_every_row_once_with_its_mask() -> None:
    rows = [([n] * n, [0] * (n - 1) + [1]) for n in (3, 9, 1, 4, 7, 2, 5)]
    parts = micro_batches(rows, 3)
    assert len(parts) == 3
    found = [
        (ids[: int(ids[0])].tolist(), mask[: int(ids[0])].tolist())
        for ids_BT, mask_BT in parts
        for ids, mask in zip(ids_BT, mask_BT, strict=True)
    ]
    assert sorted(found) == sorted(rows)
    assert sum(int(mask_BT.sum()) for _, mask_BT in parts) == 7
