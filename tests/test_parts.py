"""Replies in parts: what chat templates put around thinking and text, trained as they write it and told apart."""

import asyncio
from typing import Any

import pytest
from tests.small_tokenizer import small_tokenizer

from drift.chat import TemplateChat, extends
from drift.errors import PolicyError
from drift.policies.base import Sampling
from drift.rollouts.episode import Assignment, episode
from drift.training.examples import rows_of
from drift.types import Completion, Message, Step, Task

LAST = (
    "{% set ns = namespace(at=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.at = loop.index0 %}"
    "{% endif %}{% endfor %}"
)
# As gpt-oss: a lane is named between the assistant's header and its text, and a reply in history ends otherwise.
LANES = (
    LAST + "{% for m in messages %}{% if m.role == 'assistant' %}{% if m.thinking and loop.index0 > ns.at %}"
    "<|open|>assistant<|lane|>inner<|say|>{{ m.thinking }}<|shut|>{% endif %}<|open|>assistant<|lane|>outer<|say|>"
    "{{ m.content }}{{ '<|done|>' if loop.last and not add_generation_prompt else '<|shut|>' }}"
    "{% else %}<|open|>{{ m.role }}<|say|>{{ m.content }}<|shut|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|open|>assistant{% endif %}"
)
# As Qwen 3.5: the prompt opens a thought, and replies before the last question lose theirs.
OPENED = (
    LAST + "{% for m in messages %}<|turn|>{{ m.role }}\n{% if m.role == 'assistant' and loop.index0 > ns.at %}"
    "<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}{{ m.content }}<|over|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n<think>\n{% endif %}"
)
# As Nemotron: the prompt opens a thought, which history has closed and empty.
CLOSED = (
    "{% for m in messages %}<|turn|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% if m.reasoning_content and loop.last %}<think>\n{{ m.reasoning_content }}\n</think>\n"
    "{% else %}<think></think>{% endif %}{% endif %}{{ m.content }}<|over|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n<think>\n{% endif %}"
)
# As GLM 4.5: the next speaker's header ends a reply, and an empty thought stands before the text.
ROLE_ENDS = (
    "<|start|>{% for m in messages %}<|{{ m.role }}|>\n{% if m.role == 'assistant' %}<think>"
    "{{ m.reasoning_content if m.reasoning_content and loop.last else '' }}</think>\n{% endif %}{{ m.content }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Thinking is kept in history.
KEPT = (
    "{% for m in messages %}<|turn|>{{ m.role }}\n{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n"
    "</think>\n\n{% endif %}{{ m.content }}<|over|>\n{% endfor %}{% if add_generation_prompt %}<|turn|>assistant\n"
    "{% endif %}"
)
# As DeepSeek R1: knows thinking in the text alone.
SPLIT = (
    "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content.split('</think>')[-1] if not loop.last else m.content }}"
    "<|over|>\n{% endfor %}{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
PLAIN = KEPT.replace("{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}", "")
# As Command R: the text is closed before the turn is.
CLOSED_TWICE = PLAIN.replace("<|over|>", "{{ '<|shut|>' if m.role == 'assistant' }}<|over|>")
# As Phi 3: a conversation that asks for nothing more is over.
OVER = PLAIN.replace("{% endif %}", "{% else %}<|done|>{% endif %}")
TEMPLATES = {
    "closed_twice": (CLOSED_TWICE, ["<|over|>"]),
    "over": (OVER, ["<|done|>"]),
    "over_sooner": (OVER, ["<|over|>", "<|done|>"]),
    "lanes": (LANES, ["<|done|>"]),
    "opened": (OPENED, ["<|over|>"]),
    "closed": (CLOSED, ["<|over|>"]),
    "role_ends": (ROLE_ENDS, ["<|stop|>", "<|user|>"]),
    "kept": (KEPT, ["<|over|>"]),
    "split": (SPLIT, ["<|over|>"]),
    "plain": (PLAIN, ["<|over|>"]),
}
MARKS = ["<|open|>", "<|lane|>", "<|say|>", "<|shut|>", "<|done|>", "<|turn|>", "<|over|>", "<|start|>", "<|stop|>"]


def chat_of(name: str, **settings: Any) -> tuple[TemplateChat, Any, list[int]]:
    """The chat, its tokenizer, and the ids that end a reply."""
    template, ends = TEMPLATES[name]
    tokenizer = small_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": MARKS})
    tokenizer.chat_template, tokenizer.eos_token = template, ends[0]
    return TemplateChat(tokenizer, source=name, **settings), tokenizer, tokenizer.convert_tokens_to_ids(ends)


def said(role: Any, content: str, thought: str = "") -> Message:
    message: Message = {"role": role, "content": content}
    if thought:
        message["reasoning_content"] = thought
    return message


def logged(name: str, thoughts: tuple[str, str], *, cut_off: bool = False) -> list[tuple[str, str]]:
    """Prompt and reply, as texts, of each reply of a logged conversation."""
    chat, tokenizer, ends = chat_of(name)
    talk = [said("user", "late"), said("assistant", "Shorten it.", thoughts[0])]
    talk += [said("user", "short"), said("assistant", "Then back.", thoughts[1])]
    found = []
    for at in (1, 3):
        prompt, reply = chat.logged(talk[: at + 1], talk[at + 1] if at == 1 else None, ends, cut_off=cut_off)
        whole = tokenizer.decode(prompt + reply)
        # The ids are those of the template's text as one.
        assert prompt + reply == tuple(tokenizer(whole, add_special_tokens=False)["input_ids"])
        found.append((tokenizer.decode(prompt), tokenizer.decode(reply)))
    return found


WHOLE = {
    "lanes": [
        "<|open|>user<|say|>late<|shut|><|open|>assistant<|lane|>outer<|say|>Shorten it.<|done|>",
        "<|open|>user<|say|>late<|shut|><|open|>assistant<|lane|>outer<|say|>Shorten it.<|shut|>"
        "<|open|>user<|say|>short<|shut|><|open|>assistant<|lane|>outer<|say|>Then back.<|done|>",
    ],
    "opened": [
        "<|turn|>user\nlate<|over|>\n<|turn|>assistant\n<think>\n\n</think>\n\nShorten it.<|over|>",
        "<|turn|>user\nlate<|over|>\n<|turn|>assistant\nShorten it.<|over|>\n<|turn|>user\nshort<|over|>\n"
        "<|turn|>assistant\n<think>\n\n</think>\n\nThen back.<|over|>",
    ],
    "closed": [
        "<|turn|>user\nlate<|over|>\n<|turn|>assistant\n<think></think>Shorten it.<|over|>",
        "<|turn|>user\nlate<|over|>\n<|turn|>assistant\n<think></think>Shorten it.<|over|>\n<|turn|>user\nshort<|over|>"
        "\n<|turn|>assistant\n<think></think>Then back.<|over|>",
    ],
    "role_ends": [
        "<|start|><|user|>\nlate<|assistant|>\n<think></think>\nShorten it.<|user|>",
        "<|start|><|user|>\nlate<|assistant|>\n<think></think>\nShorten it.<|user|>\nshort<|assistant|>\n"
        "<think></think>\nThen back.<|user|>",
    ],
    "plain": [
        "<|turn|>user\nlate<|over|>\n<|turn|>assistant\nShorten it.<|over|>",
        "<|turn|>user\nlate<|over|>\n<|turn|>assistant\nShorten it.<|over|>\n<|turn|>user\nshort<|over|>\n"
        "<|turn|>assistant\nThen back.<|over|>",
    ],
}


ENDINGS = {
    "closed_twice": [text.replace(".<", ".<|shut|><") for text in WHOLE["plain"]],
    "over": [text + "\n<|done|>" for text in WHOLE["plain"]],
    "over_sooner": WHOLE["plain"],
}


@pytest.mark.parametrize("name", [*WHOLE, *ENDINGS])
def test_a_logged_reply_has_the_ids_of_the_templates_own_text(name: str) -> None:
    found = logged(name, ("", ""))
    assert [prompt + reply for prompt, reply in found] == {**WHOLE, **ENDINGS}[name]
    for (_, reply), text in zip(found, ("Shorten it.", "Then back."), strict=True):
        assert text in reply and "late" not in reply and "short" not in reply


THOUGHT = {
    "lanes": "<|lane|>inner<|say|>Half.<|shut|><|open|>assistant<|lane|>outer<|say|>Then back.<|done|>",
    "opened": "Half.\n</think>\n\nThen back.<|over|>",
    "closed": "Half.\n</think>\nThen back.<|over|>",
    "role_ends": "\n<think>Half.</think>\nThen back.<|user|>",
    "kept": "<think>\nHalf.\n</think>\n\nThen back.<|over|>",
    # It knows thinking in the text alone, and writes none of what stands beside it.
    "split": "Then back.<|over|>",
    "plain": "Then back.<|over|>",
}


@pytest.mark.parametrize("name", THOUGHT)
def test_logged_thinking_is_trained_where_the_template_writes_it(name: str) -> None:
    assert logged(name, ("Slow.", "Half."))[1][1] == THOUGHT[name]


@pytest.mark.parametrize("name", WHOLE)
def test_a_logged_reply_that_was_cut_off_ends_with_its_text(name: str) -> None:
    for whole, (prompt, reply) in zip(WHOLE[name], logged(name, ("", ""), cut_off=True), strict=True):
        end = whole.rindex("<|")
        assert prompt + reply == whole[:end] and reply.endswith((".",))


def test_a_reply_that_the_template_leaves_out_is_refused() -> None:
    chat, tokenizer, ends = chat_of("plain")
    tokenizer.chat_template = PLAIN.replace("{{ m.content }}", "{{ m.content if m.role == 'user' }}")
    with pytest.raises(PolicyError, match=r"doesn't write the reply 'Shorten it\.' after what asks"):
        chat.logged([said("user", "late"), said("assistant", "Shorten it.")], None, ends)


def test_what_a_template_writes_otherwise_of_the_question_is_not_trained() -> None:
    chat, tokenizer, ends = chat_of("plain")
    tokenizer.chat_template = "[{{ messages | length }}]" + PLAIN
    prompt, reply = chat.logged([said("user", "late"), said("assistant", "Shorten it.")], None, ends)
    assert tokenizer.decode(prompt) == "[1]<|turn|>user\nlate<|over|>\n<|turn|>assistant\n"
    assert tokenizer.decode(reply) == "Shorten it.<|over|>"


def ids_of(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


SAMPLED = {
    "lanes": "<|lane|>inner<|say|>2 + 1<|shut|><|open|>assistant<|lane|>outer<|say|>The answer is 3.<|done|>",
    "opened": "2 + 1\n</think>\n\nThe answer is 3.<|over|>",
    "closed": "2 + 1\n</think>\nThe answer is 3.<|over|>",
    "role_ends": "\n<think>2 + 1</think>\nThe answer is 3.<|user|>",
    "kept": "<think>\n2 + 1\n</think>\n\nThe answer is 3.<|over|>",
    "split": "<think>\n2 + 1\n</think>\n\nThe answer is 3.<|over|>",
}
HEADERS = {
    "lanes": "<|lane|>outer<|say|>The answer is 3.<|done|>",
    "role_ends": "\n<think></think>\nThe answer is 3.<|user|>",
    "kept": "The answer is 3.<|over|>",
}
UNFINISHED = {
    "lanes": "<|lane|>inner<|say|>2 + 1",
    "opened": "2 + 1",
    "role_ends": "\n<think>2 + 1",
    "kept": "<think>\n2 + 1",
    "split": "<think>\n2 + 1",
}


def test_thinking_is_told_apart_by_what_the_template_puts_around_it() -> None:
    for name, (sampled, expected) in [
        *((name, (text, ("The answer is 3.", "2 + 1"))) for name, text in SAMPLED.items()),
        *((name, (text, ("The answer is 3.", ""))) for name, text in HEADERS.items()),
        *((name, (text, ("", "2 + 1"))) for name, text in UNFINISHED.items()),
    ]:
        chat, tokenizer, ends = chat_of(name)
        prompt = chat.first([said("user", "1 + 2?")])
        assert chat.parts(prompt, ids_of(tokenizer, sampled), ends) == expected, (name, sampled)


def test_a_template_without_thinking_leaves_all_of_a_reply_in_its_text() -> None:
    chat, tokenizer, ends = chat_of("plain")
    text = " <think>2 + 1</think> 3 "
    assert chat.parts((), ids_of(tokenizer, text + "<|over|>"), ends) == (text, "")


def test_a_response_template_goes_before_marks() -> None:
    chat, tokenizer, ends = chat_of("plain")
    tokenizer.response_template = {
        "start_anchor": "<|turn|>assistant\n",
        "fields": {"thinking": {"open": "(", "close": ")", "optional": True}, "content": {"close": "<|over|>"}},
    }
    prompt = chat.first([said("user", "1 + 2?")])
    assert chat.parts(prompt, ids_of(tokenizer, "(2 + 1)3<|over|>"), ends) == ("3", "2 + 1")
    begun = TemplateChat(tokenizer, source="begun", prefill="(2")
    prompt = begun.first([said("user", "1 + 2?")])
    assert begun.parts(prompt, ids_of(tokenizer, " + 1)3<|over|>"), ends) == ("3", "2 + 1")


class Listening:
    """Asks twice and writes down what it hears."""

    max_turns = 2

    def __init__(self) -> None:
        self.heard: list[str] = []

    def start(self, task: Task) -> "Listening":
        return self

    def tasks(self, split: str, count: int, seed: int) -> list[Task]:
        return []

    def opening(self) -> list[Message]:
        return [said("user", "1 + 2?")]

    async def step(self, reply: str) -> Step:
        self.heard.append(reply)
        done = len(self.heard) == 2
        return Step(
            messages=() if done else (said("user", "Sure?"),), reward=0.0, done=done, success=False, answer=None
        )


class Saying:
    """Always samples the same text."""

    context_length = None
    fingerprint = "saying"

    def __init__(self, name: str, text: str, **settings: Any) -> None:
        self.chat, self.tokenizer, self._ends = chat_of(name, **settings)
        self.ids = ids_of(self.tokenizer, text)

    async def complete(self, prompt_ids: tuple[int, ...], *, sampling: Sampling, seed: int) -> Completion:
        text, thinking = self.chat.parts(prompt_ids, self.ids, self._ends)
        return Completion(text=text, token_ids=self.ids, logprobs=None, finish_reason="stop", thinking=thinking)


@pytest.mark.parametrize("name", SAMPLED)
def test_an_environment_hears_no_thinking_and_history_is_what_the_template_makes_of_the_parts(name: str) -> None:
    environment, policy = Listening(), Saying(name, SAMPLED[name])
    task = Task(id="t", group_id="t", split="test", payload={})
    found = asyncio.run(episode(Assignment(task=task, sample=0, seed=0), environment, policy, Sampling()))
    assert environment.heard == ["The answer is 3."] * 2 and found.error is None
    assert [turn.completion.thinking for turn in found.turns] == ["2 + 1"] * 2
    assert [message["content"] for message in found.messages if message["role"] == "assistant"] == environment.heard
    assert all("reasoning_content" not in message for message in found.messages)
    first, second = found.turns
    talk = [said("user", "1 + 2?"), said("assistant", "The answer is 3.", "2 + 1"), said("user", "Sure?")]
    fields = [{**m, "thinking": m["reasoning_content"]} if "reasoning_content" in m else {**m} for m in talk]
    rendered = policy.tokenizer.apply_chat_template(fields, tokenize=False, add_generation_prompt=True)
    if name == "split":
        assert policy.tokenizer.decode(second.prompt_ids) == rendered.replace("The", "\n\nThe")
    else:
        assert policy.tokenizer.decode(second.prompt_ids) == rendered
    # Only a template that keeps the thought lets the next prompt go on from what was sampled.
    assert extends(first, second) == (name == "kept")
    rows = rows_of(found, [1.0, 1.0], normalization="sum")
    for row in rows:
        trained = [i for i, on in zip(row.token_ids, row.sampled, strict=True) if on]
        assert trained == [*policy.ids] * (3 - len(rows))


ANSWER = "The answer is 3."
# The template, how each reply begins, what is sampled after that, and the thinking in it.
PREFILLED = {
    "a thought begun": ("kept", "<think>\nLet me", " see\n</think>\n\nThe answer is 3.<|over|>", "Let me see"),
    "a thought opened by the template": (
        "opened",
        "Let me",
        " see\n</think>\n\nThe answer is 3.<|over|>",
        "Let me see",
    ),
    "a thought ended at once": ("opened", "\n</think>\n\n", "The answer is 3.<|over|>", ""),
    "no thought": ("kept", "<think>\n\n</think>\n\nThe", " answer is 3.<|over|>", ""),
    "a lane": ("lanes", "<|lane|>outer<|say|>The answer", " is 3.<|done|>", ""),
    "a word": ("plain", "The answer", " is 3.<|over|>", ""),
}


@pytest.mark.parametrize("case", PREFILLED)
def test_a_prefill_is_heard_and_never_trained(case: str) -> None:
    name, prefill, sampled, thought = PREFILLED[case]
    environment, policy = Listening(), Saying(name, sampled, system="Be brief.", prefill=prefill)
    task = Task(id="t", group_id="t", split="test", payload={})
    found = asyncio.run(episode(Assignment(task=task, sample=0, seed=0), environment, policy, Sampling()))
    assert environment.heard == [ANSWER] * 2 and found.error is None
    assert [turn.completion.thinking for turn in found.turns] == [thought] * 2
    begun = policy.tokenizer.apply_chat_template(
        [said("system", "Be brief."), said("user", "1 + 2?")], tokenize=False, add_generation_prompt=True
    )
    prompts = [turn.prompt_ids for turn in found.turns]
    assert prompts[0] == ids_of(policy.tokenizer, begun + prefill)
    assert policy.tokenizer.decode(prompts[1]).endswith(prefill) and "Sure?" in policy.tokenizer.decode(prompts[1])
    # Where history holds the reply as it was sampled, the second turn goes on from it.
    assert extends(*found.turns) == (case in ("a thought begun", "a word"))
    for row in (rows := rows_of(found, [1.0, 1.0], normalization="sum")):
        trained = [i for i, on in zip(row.token_ids, row.sampled, strict=True) if on]
        assert trained == [*policy.ids] * (3 - len(rows))


def test_the_systems_own_message_stays_below_the_settings() -> None:
    chat, tokenizer, _ = chat_of("plain", system="Be brief, <|over|>.")
    opening = [said("system", "You mend clocks."), said("user", "late")]
    ids = chat.first(opening)
    assert "system\nBe brief, <|over|>.\n\nYou mend clocks.<|over|>\n<|turn|>user" in tokenizer.decode(ids)
    assert ids.count(tokenizer.convert_tokens_to_ids("<|over|>")) == 2
    tokenizer.chat_template = PLAIN.replace("{{ m.content }}", "{{ m.content if m.role != 'system' }}")
    with pytest.raises(PolicyError, match="leaves out what the system message says"):
        TemplateChat(tokenizer, source="deaf", system="Be brief.")
