import pytest
from tests.small_tokenizer import small_tokenizer
from transformers import PreTrainedTokenizerFast

from drift.chat import ByteChat, TemplateChat, extends
from drift.errors import PolicyError
from drift.types import Completion, Message, Step, Turn

PLAIN = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Trims what the assistant said, as many published templates do, and puts a newline between messages.
TRIMMING = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Drops what was thought before </think> from all but the newest reply: what Qwen 3 and its like do.
FORGETTING = (
    "{% for m in messages %}<|{{ m['role'] }}|>"
    "{{ m['content'].split('</think>')[-1] if m['role'] == 'assistant' else m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Counts turns in the header, so that text before the reply depends on what follows it.
NUMBERING = (
    "[{{ messages | length }} messages]{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return small_tokenizer()


def chat_with(tokenizer: PreTrainedTokenizerFast, template: str) -> TemplateChat:
    tokenizer.chat_template = template
    return TemplateChat(tokenizer, source="test")


def turn(prompt: tuple[int, ...], ids: tuple[int, ...], text: str) -> Turn:
    step = Step(messages=({"role": "user", "content": "No."},), reward=0.0, done=False, success=False, answer=None)
    completion = Completion(text=text, token_ids=ids, logprobs=None, finish_reason="stop")
    return Turn(prompt_ids=prompt, completion=completion, step=step)


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_sampled_ids_are_kept_where_tokenizing_again_would_give_others(tokenizer: PreTrainedTokenizerFast) -> None:
    chat = chat_with(tokenizer, PLAIN)
    opening: list[Message] = [{"role": "user", "content": "What is 2 + 2?"}]
    prompt = chat.first(opening)
    assert prompt == ids_of(tokenizer, "<|user|>What is 2 + 2?<|end|><|assistant|>")
    # "<answer>" letter by letter: a policy can sample that, no tokenizer would write it.
    letters = tuple(i for letter in "<answer>4</answer>" for i in ids_of(tokenizer, letter))
    end = tokenizer.eos_token_id
    assert letters != ids_of(tokenizer, "<answer>4</answer>")
    text = tokenizer.decode(letters)
    messages: list[Message] = [*opening, {"role": "assistant", "content": text}, {"role": "user", "content": "No."}]
    following = chat.next(messages, turn(prompt, (*letters, end), text))
    assert following == (*prompt, *letters, end, *ids_of(tokenizer, "<|user|>No.<|end|><|assistant|>"))


def test_a_reply_cut_short_gets_the_templates_end_of_turn(tokenizer: PreTrainedTokenizerFast) -> None:
    chat = chat_with(tokenizer, PLAIN)
    opening: list[Message] = [{"role": "user", "content": "Hi"}]
    prompt, reply = chat.first(opening), ids_of(tokenizer, "so lo")
    messages: list[Message] = [*opening, {"role": "assistant", "content": "so lo"}, {"role": "user", "content": "No."}]
    following = chat.next(messages, turn(prompt, reply, "so lo"))
    assert following == (*prompt, *reply, *ids_of(tokenizer, "<|end|><|user|>No.<|end|><|assistant|>"))


def test_whitespace_that_a_template_trims_stays_in_the_ids(tokenizer: PreTrainedTokenizerFast) -> None:
    chat = chat_with(tokenizer, TRIMMING)
    opening: list[Message] = [{"role": "user", "content": "Hi"}]
    prompt, reply = chat.first(opening), (*ids_of(tokenizer, " yes "), tokenizer.eos_token_id)
    messages: list[Message] = [*opening, {"role": "assistant", "content": " yes "}, {"role": "user", "content": "No."}]
    following = chat.next(messages, turn(prompt, reply, " yes "))
    assert following == (*prompt, *reply, *ids_of(tokenizer, "\n<|user|>No.<|end|>\n<|assistant|>"))


def test_a_template_that_drops_thinking_gets_a_prompt_of_its_own(tokenizer: PreTrainedTokenizerFast) -> None:
    chat = chat_with(tokenizer, FORGETTING)
    opening: list[Message] = [{"role": "user", "content": "Hi"}]
    prompt, text = chat.first(opening), "<think>hm</think>4"
    first = turn(prompt, (*ids_of(tokenizer, text), tokenizer.eos_token_id), text)
    messages: list[Message] = [*opening, {"role": "assistant", "content": text}, {"role": "user", "content": "No."}]
    following = chat.next(messages, first)
    assert following == ids_of(tokenizer, "<|user|>Hi<|end|><|assistant|>4<|end|><|user|>No.<|end|><|assistant|>")
    assert not extends(first, turn(following, (1,), "x"))


def test_a_template_that_rewrites_what_came_before_gets_a_prompt_of_its_own(tokenizer: PreTrainedTokenizerFast) -> None:
    chat = chat_with(tokenizer, NUMBERING)
    opening: list[Message] = [{"role": "user", "content": "Hi"}]
    first = turn(chat.first(opening), ids_of(tokenizer, "4"), "4")
    messages: list[Message] = [*opening, {"role": "assistant", "content": "4"}, {"role": "user", "content": "No."}]
    following = chat.next(messages, first)
    expected = "[3 messages]<|user|>Hi<|end|><|assistant|>4<|end|><|user|>No.<|end|><|assistant|>"
    assert following == ids_of(tokenizer, expected)


def test_a_tokenizer_without_a_template_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = None
    with pytest.raises(PolicyError, match="'some/model' has no chat template"):
        TemplateChat(tokenizer, source="some/model")


def test_byte_chat_extends_what_was_said() -> None:
    chat = ByteChat()
    prompt = chat.first([{"role": "user", "content": "é?"}])
    assert bytes(prompt).decode() == "user: é?\nassistant: "
    messages: list[Message] = [
        {"role": "user", "content": "é?"},
        {"role": "assistant", "content": "ja"},
        {"role": "user", "content": "No."},
    ]
    following = chat.next(messages, turn(prompt, tuple(b"ja"), "ja"))
    assert bytes(following).decode() == "user: é?\nassistant: ja\nuser: No.\nassistant: "
