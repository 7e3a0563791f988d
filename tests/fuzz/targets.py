"""What is fuzzed: functions of one text that raise where something hostile got through."""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import os
import random
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tests.small_tokenizer import small_tokenizer

from drift.chat import TemplateChat
from drift.dataset.imports import FORMATS
from drift.dataset.imports.base import BadRow
from drift.dataset.imports.files import open_source
from drift.dataset.imports.run import make_reader
from drift.environments.answers import extract_answer, parse_whole_number
from drift.environments.base import fault_of_messages
from drift.environments.mentions import numbers_named, options_named
from drift.environments.tool_calls import canonical_calls, parse_calls
from drift.errors import ConfigError, DatasetError, PolicyError
from drift.policies import DEFAULT_MODEL
from drift.policies.base import UnusableReply
from drift.policies.replies import chat_completion, first_choice, ids_of
from drift.policies.server_errors import error_in_reply, read_error
from drift.problems.boxed import boxed
from drift.recipe import Recipe, check_keys
from drift.secrets import scrubbed
from drift.terminal import clean
from drift.verifiers.choice import Choice
from drift.verifiers.exact import Exact
from drift.verifiers.expressions import expression
from drift.verifiers.judge import HIGHEST, LOWEST, read_score
from drift.verifiers.numeric import Numeric
from drift.verifiers.quoting import quote
from drift.verifiers.reading import boxed_answer, read, spoken, tagged
from drift.weights.table import read_file
from drift.yaml_files import read_mapping

OPTIONS = ("a red fox", "a blue whale", "a grey owl", "a green frog")
NUMERIC, CHOICE, EXACT = Numeric(), Choice(), Exact()
# (gold, what is claimed last): a verifier must not accept the claim, whatever stands before it.
WRONG_NUMBERS = (("1000", "1001"), ("1000", "-1000"), ("3", "-3"), ("1/2", "1/3"), ("2", "2e-3"), ("1", "1,000"))
WRONG_LETTERS = (("A", "B"), ("C", "D"), ("B", "A"))


CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")
# In memory where there is such a place: a disk takes longer than what is tried.
_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
SCRATCH = Path(tempfile.mkdtemp(prefix="drift-fuzz-", dir=_MEMORY))
atexit.register(shutil.rmtree, SCRATCH, ignore_errors=True)
TEMPLATE: Any = small_tokenizer()
TEMPLATE_END = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
_TABLE = io.BytesIO()
pq.write_table(pa.table({"id": [f"t{at}#0" for at in range(50)], "weights": [[1.0, 0.5]] * 50}), _TABLE)
PARQUET = _TABLE.getvalue()


def answers(text: str) -> None:
    found = extract_answer(text)
    assert found is None or found in text
    number = parse_whole_number(text)
    assert number is None or isinstance(number, int)
    assert boxed(text) is None or isinstance(boxed(text), str)
    for reply in (text, text.replace("<think>", "")):
        answer = read(reply)
        assert answer is None or (answer.answer.strip() and 0 < answer.sure <= 1)
    formula = expression(text)
    assert formula is None or formula.parts or formula.words


def mentions(text: str) -> None:
    assert options_named(text, OPTIONS) <= {0, 1, 2, 3}
    numbers_named(text)


def tool_calls(text: str) -> None:
    parsed = parse_calls(text)
    assert (parsed.calls is None) == bool(parsed.reason)
    canonical_calls(parsed.calls or ())


def numeric(text: str) -> None:
    for gold, wrong in WRONG_NUMBERS[len(text) % 6 : len(text) % 6 + 2]:
        assert not NUMERIC.verify(f"{text}\n\nThe answer is \\boxed{{{wrong}}}.", gold).right, (gold, wrong)
    NUMERIC.verify(text, "12.5")


def choice(text: str) -> None:
    gold, wrong = WRONG_LETTERS[len(text) % 3]
    reply = f"{text}\n\nThe final answer is ({wrong})."
    # What a thought that never ends swallows is not claimed, and a tag or box comes before a sentence.
    said = spoken(reply)
    claimed = f"({wrong})" in said and tagged(said) is None and boxed_answer(said) is None
    assert not (claimed and CHOICE.verify(reply, gold, options=OPTIONS).right), (gold, wrong)
    CHOICE.verify(text, "A", options=OPTIONS)


def exact(text: str) -> None:
    assert not EXACT.verify(f"{text}\n<answer>Paris</answer>", "London").right
    EXACT.verify(text, "Paris")


def judge(text: str) -> None:
    score, reason = read_score(text)
    assert (score is None) == bool(reason)
    assert score is None or LOWEST <= score <= HIGHEST


def quoting(text: str) -> None:
    quoted = quote([("user", text), ("assistant", text[::-1])], tags=("score",), max_characters=2000)
    lines = quoted.text.split("\n")
    # Only our own lines carry the code: what is quoted can neither end its quotation nor begin another.
    assert sum(quoted.code in line for line in lines) == 3 and "<score>" not in quoted.text
    quoted.text.encode("utf-8")


_NAMES = (
    *("messages", "conversations", "prompt", "question", "instruction", "input", "output", "completion", "response"),
    *("completions", "responses", "answers", "candidates", "chosen", "rejected", "history", "request", "attributes"),
    *("trajectories", "observations", "system", "tools", "tool_calls", "function", "arguments", "reward", "rewards"),
    *(
        "score",
        "rank",
        "success",
        "id",
        "group_id",
        "role",
        "from",
        "content",
        "value",
        "text",
        "type",
        "weight",
        "name",
    ),
)


def _invented(rng: random.Random, text: str, depth: int = 0) -> Any:
    """A value under the names that logs have, at random."""
    kind = rng.choice(("text", "word", "number", "none", "list", "object", "object") if depth < 4 else ("text", "word"))
    if kind in ("list", "object"):
        inner = [_invented(rng, text, depth + 1) for _ in range(rng.randrange(4))]
        return inner if kind == "list" else {rng.choice(_NAMES): each for each in inner}
    told = {"text": text, "word": rng.choice(("user", "assistant", "system", "tool", "1")), "none": None}
    return told.get(kind, rng.choice((1, 0, True, -2.5, float("nan"), 1e400)))


def imports(text: str) -> None:
    rng = random.Random(text.encode(errors="replace"))
    rows: list[Any] = [
        {"messages": [{"role": "user", "content": text}], "reward": 1},
        {"messages": text, "reward": text},
        {"prompt": text, "responses": [text, text[::-1]], "rewards": text},
        {rng.choice(_NAMES): _invented(rng, text) for _ in range(rng.randint(1, 6))},
    ]
    with contextlib.suppress(ValueError, RecursionError):
        parsed = json.loads(text)
        rows += [parsed, {"prompt": "?", "completions": parsed, "rewards": parsed}]
    for row in rows:
        if not isinstance(row, Mapping):
            continue
        for name in ("auto", "drift", "mathdial", rng.choice(FORMATS.names())):
            try:
                make_reader(name, {})(row)
            except BadRow as bad:
                assert bad.reason and bad.detail


def recipes(text: str) -> None:
    path = SCRATCH / "recipe.yaml"
    for data in (text, f"weights: {{beta: {text}}}", f"a: &a [{text}, *a]\nb: {text}"):
        path.write_text(data, encoding="utf-8", errors="replace")
        with contextlib.suppress(ConfigError):
            check_keys(read_mapping(path), Recipe, "fuzz")


def sources_of_templates(text: str) -> None:
    with contextlib.suppress(PolicyError):
        TEMPLATE.chat_template = text[:2000] + TEMPLATE_END
        TemplateChat(TEMPLATE, source="fuzz").first([{"role": "user", "content": "x"}])


# Each may start a process.
sources_of_templates.most = 2000  # type: ignore[attr-defined]


def servers(text: str) -> None:
    for body in (text, f'{{"choices": [{{"message": {text}}}]}}', f'{{"error": {{"message": {json.dumps(text)}}}}}'):
        error = read_error((200, 400, 429, 500)[len(text) % 4], body, sent=("seed", "top_k"), retry_after=text[:20])
        assert not CONTROL.search(clean(scrubbed(str(error))))
        with contextlib.suppress(ValueError, RecursionError):
            reply = json.loads(body)
            error_in_reply(reply)
            # What the server's client takes for a reply in no known form.
            with contextlib.suppress(LookupError, TypeError, AttributeError, UnusableReply):
                chat_completion(reply)
                ids_of(first_choice(reply), (1, 2))


def parquet(text: str) -> None:
    rng, data = random.Random(text.encode(errors="replace")), bytearray(PARQUET)
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    path = SCRATCH / "weights.parquet"
    path.write_bytes(data[: rng.randint(len(data) // 2, len(data))] if rng.random() < 0.3 else data)
    with contextlib.suppress(DatasetError):
        read_file(path)
    with contextlib.suppress(DatasetError):
        for _ in open_source(path):
            pass


def logs(text: str) -> None:
    rng = random.Random(text.encode(errors="replace"))
    path = SCRATCH / f"log{rng.choice(('.jsonl', '.json', '.csv', '.tsv', '.gz', '.zst', '.parquet'))}"
    path.write_bytes(text.encode(errors="surrogatepass"))
    with contextlib.suppress(DatasetError):
        for _ in open_source(path):
            pass
    path.unlink()


def _math() -> Callable[[str], None]:
    from drift.verifiers.math import Math

    # Workers of their own, so that what a deadline ends is counted and costs no other input.
    verifier = Math(workers=1, deadline=1.0, memory_mb=1024)

    def math(text: str) -> None:
        gold, wrong = (("\\frac{1}{2}", "\\frac{1}{3}"), ("x^2", "x^3"), ("1000", "1,001"))[len(text) % 3]
        assert not verifier.verify(f"{text}\n\nThe answer is \\boxed{{{wrong}}}.", gold).right, (gold, wrong)
        assert verifier.verify(text, gold).answer is None or text

    # Two checks, each begun three times at most, and workers that start meanwhile.
    math.deadline = 120.0  # type: ignore[attr-defined]
    return math


def _templates() -> Callable[[str], None]:
    from transformers import AutoTokenizer

    from drift.chat import TemplateChat

    tokenizer = AutoTokenizer.from_pretrained(DEFAULT_MODEL)
    chat = TemplateChat(tokenizer, source="default")
    control = set(tokenizer.all_special_ids)
    plain = [token for token in chat.first([{"role": "user", "content": "x"}]) if token in control]

    def templates(text: str) -> None:
        messages = [{"role": "user", "content": text[:2000]}]
        if fault_of_messages(messages):
            return
        found = chat.first(messages)
        assert [token for token in found if token in control] == plain

    return templates


def all_targets() -> dict[str, Callable[[str], None]]:
    """Every target by name."""
    found = (answers, mentions, tool_calls, numeric, choice, exact, judge, quoting, imports)
    found += (recipes, sources_of_templates, servers, parquet, logs)
    return {**{target.__name__: target for target in found}, "math": _math(), "templates": _templates()}
