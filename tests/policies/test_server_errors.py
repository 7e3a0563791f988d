"""Errors and replies as vLLM, llama.cpp, TGI, LM Studio and hosted models give them, by public reports."""

import json
import time
from email.utils import formatdate
from typing import Any

import pytest

from drift.errors import PolicyError
from drift.policies.base import RequestFailed, UnusableReply
from drift.policies.replies import BrokenReply, chat_completion, checked_for_filter, ids_of
from drift.policies.server_errors import asked_to_wait, error_in_reply, read_error

SENT = ("model", "messages", "max_tokens", "temperature", "top_k", "min_p", "seed", "stop")
# Status, body, "kind name fields", words that must be there.
ERRORS: list[tuple[int, Any, str, str]] = [
    # vLLM: the second names max_tokens, and is about the context.
    (400, {"message": "maximum context length is 96 tokens, got 120", "code": 400}, "context context", "120"),
    (
        400,
        {"error": {"message": "max_tokens is too large: 90. The context length is 96, the input 50", "type": "Bad"}},
        "context context max_tokens",
        "the input 50",
    ),
    # llama.cpp: known by its type alone.
    (400, {"error": {"type": "exceed_context_size_error", "message": "no room"}}, "context context", "no room"),
    # TGI: the error is a string, in two sentences.
    (422, {"error": "`inputs` tokens + `max_new_tokens` must be <= 96. Given: 120"}, "context context", "120"),
    (422, {"error": "`inputs` must have less than 96 tokens. Given: 120"}, "context context", "120"),
    # LM Studio.
    (400, {"error": "The prompt's 120 tokens are more than the context length of 96."}, "context context", "96"),
    (400, [{"error": {"message": "input token count exceeds the maximum, 96"}}], "context context", "96"),
    (400, {"type": "error", "error": {"message": "prompt is too long: 120 tokens > 96"}}, "context context", "120"),
    (400, {"message": "Input is too long for requested model."}, "context context", "too long"),
    (413, "too large", "context context", "too large"),
    # Groq, Bedrock, Cerebras, Zhipu, Gemini; vLLM, which took the prompt from the context; a gateway that passes it on.
    (400, {"error": {"message": "Reduce the length of the messages."}}, "context context", "Reduce"),
    (400, {"message": "Too many input tokens"}, "context context", "Too many"),
    (400, {"message": "Current length is 120 while limit is 96"}, "context context", "96"),
    (400, {"error": {"code": "1261", "message": "The prompt exceeds the length"}}, "context context", "exceeds"),
    (400, {"error": {"message": "the input has 120 tokens, it only supports 96"}}, "context context", "only supports"),
    (400, {"message": "max_tokens must be at least 1, got -24.", "code": 400}, "context context max_tokens", "-24"),
    (400, {"error": {"code": 400, "raw": '{"error": {"code": "context_length_exceeded"}}'}}, "context context", "{"),
    # OpenAI: of a list; and of a model that thinks.
    (
        400,
        {"error": {"message": "'stop': array too long", "param": "stop", "code": "array_above_max_length"}},
        "fields http_400 stop",
        "",
    ),
    (400, {"error": {"message": "Could not finish the message, raise max_tokens"}}, "prompt http_400 max_tokens", ""),
    # As many words of length, but of the reply that is asked for, and of a rate.
    (
        400,
        {"error": {"message": "at most 96 completion tokens", "param": "max_tokens"}},
        "fields http_400 max_tokens",
        "",
    ),
    (429, {"error": {"message": "Rate limit: more than 96 input tokens a minute"}}, "passing http_429", ""),
    (400, {"error": {"code": "content_filter", "message": "held back"}}, "prompt content_filter", "held back"),
    (403, {"error": {"code": 403, "message": "Your input was flagged"}}, "prompt content_filter", "flagged"),
    # DeepSeek, Zhipu, xAI, LiteLLM.
    (400, {"detail": "Content Exists Risk"}, "prompt content_filter", "Risk"),
    (400, {"error": {"code": "1301", "message": "unsafe or sensitive content"}}, "prompt content_filter", "unsafe"),
    (403, {"code": "no permission", "error": "It violates usage guidelines"}, "prompt content_filter", "violates"),
    (400, {"error": {"type": "None", "message": "A guardrail says no"}}, "prompt content_filter", "guardrail"),
    (400, {"error": {"message": "template failed", "param": "messages"}}, "prompt http_400", "template failed"),
    (422, {"detail": [{"loc": ["body", "top_k"], "msg": "Unknown"}]}, "fields http_422 top_k", "top_k: Unknown"),
    (400, {"error": {"message": "Unrecognized: min_p, seed"}}, "fields http_400 min_p seed", ""),
    # Gemini; servers written in Rust, which list what they know.
    (400, {"error": {"message": "topK may be 1 to 40. Temperature may be 1"}}, "fields http_400 temperature top_k", ""),
    (422, "unknown field `min_p`, expected one of `seed`, `temperature`", "fields http_422 min_p", "expected"),
    (400, {"error": {"message": "stop here: nothing to do for this model"}}, "prompt http_400", ""),
    (401, {"message": "who are you"}, "everything http_401", "who are you"),
    (
        400,
        {"error": {"message": "API key not valid", "status": "INVALID_ARGUMENT"}},
        "everything http_401",
        "not valid",
    ),
    (404, {"detail": "Not Found"}, "everything http_404", "Not Found"),
    # DeepSeek, Mistral, LM Studio, Ollama.
    (400, {"error": {"message": "Model Not Exist"}}, "everything http_404", "Not Exist"),
    (400, {"message": "Invalid model: m", "type": "invalid_model"}, "everything http_404", "Invalid"),
    (400, {"error": {"message": "none here", "code": "model_not_found"}}, "everything http_404", "none here"),
    (400, {"error": {"message": '"m" does not support chat'}}, "everything http_404", "chat"),
    (402, {"error": {"message": "Insufficient Balance"}}, "everything http_402", "Balance"),
    # Anthropic, LiteLLM, Moonshot.
    (400, {"error": {"message": "Your credit balance is too low"}}, "everything http_402", "credit"),
    (400, {"error": {"type": "budget_exceeded", "message": "10 of 9"}}, "everything http_402", "10 of 9"),
    (429, {"error": {"type": "exceeded_current_quota_error", "message": "empty"}}, "everything http_429", "empty"),
    # Bedrock, GitHub.
    (400, {"__type": "x", "message": "Throttled: too many requests"}, "passing http_400", "Throttled"),
    (403, {"message": "secondary rate limit"}, "passing http_403", "secondary"),
    # TGI: the generation failed.
    (424, {"error": "failed during generation", "error_type": "generation"}, "passing http_424", "failed"),
    (429, {"error": {"code": "insufficient_quota", "message": "used up"}}, "everything http_429", "used up"),
    (503, {"error": {"message": "Loading model"}}, "passing http_503", "Loading model"),
    (502, "<html><style>b {}</style><h1>Bad</h1>" + "<p>x</p>" * 99, "passing http_502", "Bad x"),
]


@pytest.mark.parametrize(("status", "body", "expected", "words"), ERRORS)
def test_an_error_is_known_by_codes_and_status_first(status: int, body: Any, expected: str, words: str) -> None:
    found = read_error(status, body if isinstance(body, str) else json.dumps(body), SENT)
    assert " ".join([found.kind, found.name, *sorted(found.fields)]) == expected
    assert words in found.words and "<p" not in found.words and len(found.words) <= 300


def test_a_pause_is_asked_for_in_seconds_or_as_a_date() -> None:
    assert asked_to_wait("1.5") == 1.5 and asked_to_wait("") == asked_to_wait("soon") == 0
    assert 28 < asked_to_wait(formatdate(time.time() + 30, usegmt=True)) <= 30
    for words, seconds in [("Try again in 1m2.5s.", 62.5), ("Retry after 33 seconds", 33), ("try again in a while", 0)]:
        assert read_error(429, json.dumps({"message": words})).wait == seconds
    assert read_error(429, '{"message": "try again in 20ms"}', retry_after="2").wait == 2


def test_an_error_in_a_body_of_status_200_is_an_error() -> None:
    """OpenRouter's and LM Studio's: the status was sent before the model failed."""
    whole = error_in_reply({"error": {"code": 429, "message": "slow down"}})
    within = error_in_reply({"choices": [{"finish_reason": "error", "error": {"code": 502, "message": "gone"}}]})
    plain = error_in_reply({"error": "`inputs` must have less than 96 tokens. Given: 120", "error_type": "validation"})
    other = error_in_reply({"error": "the engine stumbled"})
    assert whole and within and plain and other
    assert [(e.kind, e.status) for e in (whole, within, plain, other)] == [
        ("passing", 429),
        ("passing", 502),
        ("context", 400),
        ("passing", 500),
    ]
    assert error_in_reply({"choices": [{"message": {"content": "a"}}], "error": None}) is None
    for body, expected in [
        (
            {"object": "error", "message": "maximum context length is 96 tokens, got 120", "code": 400},
            "context context",
        ),
        ({"code": 401, "msg": "expired", "success": False}, "everything http_401"),
        ({"error": "Unexpected endpoint or method. (POST /chat/completions)"}, "everything http_404"),
        ({"choices": None, "base_resp": {"status_code": 1002, "status_msg": "too fast"}}, "passing http_500"),
        ({"choices": [{"message": {"content": "a"}}], "error": {"code": 502, "message": "gone"}}, "passing http_502"),
        ({"result": None, "errors": [{"code": 7009, "message": "away"}], "messages": []}, "passing http_500"),
    ]:
        found = error_in_reply(body)
        assert found and f"{found.kind} {found.name}" == expected, body
    for none in ({"id": "r", "choices": []}, {}, {"message": {"role": "assistant", "content": "a"}}, [], None):
        assert error_in_reply(none) is None


def chat(message: dict[str, Any], finish: Any = "stop") -> Any:
    return {"choices": [{"message": {"role": "assistant", **message}, "finish_reason": finish}]}


def test_replies_of_every_form() -> None:
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "so"}]}, {"type": "text", "text": "a"}]
    for message, finish, expected in [
        ({"content": "a", "reasoning_content": "so"}, "eos_token", ("a", "so", "stop")),
        ({"content": "a", "reasoning": "so"}, None, ("a", "so", "stop")),
        ({"content": [*parts, {"type": "text", "text": "b"}]}, "stop", ("ab", "so", "stop")),
        ({"content": None, "refusal": "No."}, "stop", ("No.", "", "refusal")),
        ({"content": "<think>so</think>\n\na"}, "stop", ("a", "so", "stop")),
        ({"content": "", "tool_calls": []}, "max_tokens", ("", "", "length")),
        ({"content": "a"}, "model_length", ("a", "", "length")),
        ({"content": "a"}, {"type": "length", "length": 8}, ("a", "", "length")),
        ({"content": "a"}, "stop_sequence", ("a", "", "stop")),
        ({"content": ["a", {"text": "b"}]}, "stop", ("ab", "", "stop")),
        ({"content": {"type": "text", "text": "a"}, "reasoning": {"content": "so"}}, "stop", ("a", "so", "stop")),
        ({"content": [{"type": "redacted_thinking", "data": "x"}, *parts]}, "stop", ("a", "so", "stop")),
        ({"content": "a", "thinking_blocks": [{"thinking": "so"}]}, "stop", ("a", "so", "stop")),
        ({"content": "a\ud800"}, "stop", ("a\ufffd", "", "stop")),
    ]:
        found = chat_completion(chat(message, finish))
        assert (found.text, found.thinking, found.finish_reason) == expected, message
    for message, finish, kind, thinking in [
        ({"content": None, "reasoning_content": "so"}, "length", "reasoning_only", "so"),
        ({"content": None, "tool_calls": [{"function": {"name": "look"}}]}, "tool_calls", "tool_calls", ""),
        ({"content": "It beg"}, "content_filter: SAFETY", "content_filter", ""),
        ({"content": "It beg"}, "content_filter: guardrail_intervened", "content_filter", ""),
        ({"content": None}, "tool_calls: MALFORMED_FUNCTION_CALL", "tool_calls", ""),
    ]:
        with pytest.raises(UnusableReply) as caught:
            chat_completion(chat(message, finish))
        assert caught.value.kind == kind and caught.value.completion.thinking == thinking
        assert caught.value.completion.finish_reason == finish.partition(":")[0]
    # Hosted models count the tokens of a thought that they don't tell.
    unseen = {**chat({"content": ""}, "length"), "usage": {"completion_tokens_details": {"reasoning_tokens": 8}}}
    with pytest.raises(UnusableReply, match=r"reasoning_only.*Raise max_new_tokens"):
        chat_completion(unseen)
    with pytest.raises(RequestFailed, match="not_text"):
        chat_completion(chat({"content": [{"type": "image_url", "image_url": {}}]}))
    # vLLM ends what it could not finish with 200 and this reason.
    broken_off = [(chat({"content": "It"}, reason), f"finish_{reason}") for reason in ("abort", "canceled", "timeout")]
    for broken, name in [*broken_off, ({"choices": []}, "empty_choices")]:
        with pytest.raises(BrokenReply, match=name):
            chat_completion(broken)


def test_ids_are_taken_where_a_server_tells_them_and_nowhere_else() -> None:
    llama = {"content": [{"id": 5, "logprob": -0.5}, {"id": 6, "logprob": -1.0}]}
    told: dict[str, Any] = {"choices": [{"logprobs": llama, "finish_reason": "stop"}], "usage": {"prompt_tokens": 3}}
    assert ids_of(told, (1, 2, 3)) == ((5, 6), (-0.5, -1.0))
    with pytest.raises(PolicyError, match=r"changed the prompt \(2 ids sent, 3 seen\)"):
        ids_of(told, (1, 2))
    vllm = {"token_ids": [5], "prompt_token_ids": [1], "logprobs": None, "finish_reason": "length"}
    assert ids_of({"choices": [vllm], "usage": {"prompt_tokens": 9}}, (1,)) == ((5,), None)
    assert ids_of({"choices": [{"text": "a", "logprobs": {"token_logprobs": [-1.0]}}]}, (1,)) is None
    # Older vLLMs, asked so; a proxy that counts nothing; two replies in another order.
    named = {"tokens": ["token_id:5", "token_id:6"], "token_logprobs": [-0.5, -1.0]}
    assert ids_of({"choices": [{"logprobs": named}], "usage": {"prompt_tokens": 0}}, (1, 2)) == ((5, 6), (-0.5, -1.0))
    told["usage"] = {"prompt_tokens": "3"}
    told["choices"] = [{"index": 1, "token_ids": [9]}, {"index": 0, "token_ids": [5]}]
    assert ids_of(told, (1, 2, 3)) == ((5,), None)
    assert checked_for_filter(chat_completion(chat({"content": "a"}))).text == "a"
