"""Whole rollouts against servers that answer as real ones do when something is not as a client hopes."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drift.api import evaluate, rollout
from drift.dataset.store import read_trajectories
from drift.errors import ConfigError, PolicyError
from drift.policies import make_policy
from drift.policies.scripted import ScriptedPolicy

from .servers import AnsweringServer

Answer = Callable[[dict[str, Any], int], Any]
SAMPLERS = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "repeat_penalty": 1.0}


def through(answer: Answer, out: Path, tasks: int = 3, models: Any = ("m",), owner: str = "x", **policy: Any) -> Any:
    """Rollouts of ``tasks`` tasks, two conversations each, and the requests that they made."""
    with AnsweringServer(answer, models, owner) as server:
        settings = {"url": server.url, "retries": 2, **policy}
        more: dict[str, Any] = {"tasks": tasks, "samples": 2, "max_new_tokens": 8, "out": out}
        made = rollout("arithmetic", model="openai-chat:m", policy=settings, **more)
    return made, server.requests


def text(request: dict[str, Any]) -> str:
    return f"<answer>{request['seed']}</answer>"


def first_prompt(answer: Any) -> Answer:
    """``answer`` for the conversations of the prompt that is asked first, a good reply for all others."""
    poisoned: list[str] = []

    def answered(request: dict[str, Any], number: int) -> Any:
        opening = request["messages"][0]["content"]
        poisoned.append(opening)
        return answer if opening == poisoned[0] else text(request)

    return answered


def error(status: int, message: str, **more: Any) -> tuple[int, Any]:
    return status, {"error": {"message": message, **more}}


@pytest.mark.parametrize(
    ("answer", "kind", "attempts"),
    [
        (error(400, "held back", code="content_filter"), "content_filter", 1),
        (error(500, "tripped over it"), "http_500", 3),
        (error(400, "the template failed"), "http_400", 1),
        ({"choices": []}, "empty_choices", 3),
        (b'{"choices": [{"mess', "broken_reply", 3),
        (b"[" * 100_000, "broken_reply", 3),
        ({"error": {"code": 403, "message": "flagged by moderation"}}, "content_filter", 1),
        ({"choices": [{"finish_reason": "abort", "message": {"content": "It"}}]}, "finish_abort", 3),
    ],
)
def test_one_prompt_that_fails_is_counted_and_the_others_go_on(
    answer: Any, kind: str, attempts: int, tmp_path: Path
) -> None:
    made, requests = through(first_prompt(answer), tmp_path)
    manifest = made.manifest
    assert manifest["failures"] == {kind: 2} and manifest["counts"]["trajectories"] == 6
    failed = [t for t in read_trajectories(tmp_path) if t.error is not None]
    assert len({t.task_id for t in failed}) == 1 and all(not t.turns for t in failed)
    bad = Counter(request["seed"] for request in requests if request["messages"] == list(failed[0].messages))
    # The very same request each time.
    assert sorted(bad.values()) == [attempts, attempts]
    assert any(line.strip().startswith(f"2 {kind}, such as: server {kind}: ") for line in made.summary())
    again, requests = through(first_prompt(answer), tmp_path)
    assert not requests and again.manifest["policy_errors"] == manifest["policy_errors"]


def test_what_a_server_says_it_read_and_wrote_is_in_the_manifest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def answered(request: dict[str, Any], number: int) -> Any:
        choice = {"finish_reason": "stop", "message": {"content": text(request)}}
        return {"model": "other", "choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 3}}

    made, requests = through(answered, tmp_path, tasks=1)
    # Some answer with what they have loaded, whatever was asked for.
    assert "replies are of 'other', where 'm' was asked for" in capsys.readouterr().err
    count = len(requests)
    assert made.manifest["policy_usage"] == {
        "replies": count,
        "prompt_tokens": 10 * count,
        "completion_tokens": 3 * count,
    }


def test_replies_that_can_not_be_gone_on_from_are_recorded_and_counted(tmp_path: Path) -> None:
    thought = {"role": "assistant", "content": None, "reasoning": "first this"}
    body = {"choices": [{"finish_reason": "length", "message": thought}]}
    made, _ = through(first_prompt(body), tmp_path / "a")
    lost = [t for t in read_trajectories(made) if t.error is not None]
    assert [(t.turns[0].completion.thinking, t.turns[0].completion.finish_reason) for t in lost] == [
        ("first this", "length")
    ] * 2
    assert made.manifest["replies"]["reasoning_only"] == 2
    assert any("raise max_new_tokens or switch thinking off" in line for line in made.summary())
    with pytest.raises(PolicyError, match=r"every conversation failed \(reasoning_only 6\).*Raise max_new_tokens"):
        through(lambda *_: body, tmp_path / "b")
    assert len(read_trajectories(tmp_path / "b")) == 6


def test_an_empty_reply_is_what_was_said_and_never_sent_back(tmp_path: Path) -> None:
    made, requests = through(lambda request, _: "" if request["seed"] % 2 else text(request), tmp_path)
    assert not any(message["content"] == "" for request in requests for message in request["messages"])
    found = read_trajectories(made)
    empty = [t for t in found if t.turns[-1].completion.text == ""]
    assert len(empty) == made.manifest["replies"]["empty_reply"] and all(t.error is None for t in found)
    assert {t.stop_reason for t in empty} <= {"context", "turns"} and len(empty) > 0


TOO_LONG = [
    error(422, "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 96. Given: 90 `inputs` tokens"),
    {"error": "Tokens to keep from the initial prompt are more than the context length (n_keep: 120, n_ctx: 96)"},
]


@pytest.mark.parametrize("answer", TOO_LONG)
def test_too_long_ends_a_conversation_and_at_every_first_turn_the_run(answer: Any, tmp_path: Path) -> None:
    def later(request: dict[str, Any], _: int) -> Any:
        return answer if len(request["messages"]) > 1 else text(request)

    made, requests = through(later, tmp_path / "later")
    assert made.manifest["counts"]["stop_context"] == 6 and len(requests) == 12 and not made.manifest["failures"]
    with pytest.raises(PolicyError, match=r"no conversation got a reply \(context 6\).*Lower max_new_tokens"):
        through(lambda *_: answer, tmp_path / "first")
    # Nothing was recorded, so that other settings may follow in the same place.
    through(lambda request, _: text(request), tmp_path / "first", tasks=2)


def test_a_context_that_is_too_small_is_told_at_the_start(tmp_path: Path) -> None:
    policy = ScriptedPolicy(["<answer>1</answer>"])
    policy.context_length = 16
    for count, told in (
        (16, r"max_new_tokens: got 16, expected less than the policy's context of 16"),
        (9, "no conver"),
    ):
        with pytest.raises((ConfigError, PolicyError), match=told):
            rollout("arithmetic", model=policy, tasks=2, samples=1, max_new_tokens=count, out=tmp_path)


def test_samplers_of_the_server_are_switched_off_by_its_own_names(tmp_path: Path) -> None:
    def sent(owner: str) -> dict[str, Any]:
        _, requests = through(lambda request, _: text(request), tmp_path / owner, tasks=1, owner=owner)
        assert all(0 <= request["seed"] < 2**31 for request in requests)
        assert len({request["seed"] for request in requests}) == len(requests)
        return requests[0]

    assert SAMPLERS.items() <= sent("somebody").items()
    assert {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}.items() <= sent("vllm").items()
    assert {"repeat_penalty": 1.0, "xtc_probability": 0.0, "typical_p": 1.0}.items() <= sent("llamacpp").items()


def test_fields_that_a_server_refuses_are_left_out_and_that_is_said(tmp_path: Path) -> None:
    def strict(request: dict[str, Any], _: int) -> Any:
        unknown = sorted(request.keys() & {*SAMPLERS, "seed"})
        if unknown:
            return 422, {"detail": [{"loc": ["body", name], "msg": "not permitted"} for name in unknown]}
        if "max_tokens" in request:
            return error(400, "give 'max_completion_tokens' for 'max_tokens'", param="max_tokens")
        return f"<answer>{len(request['messages'])}</answer>"

    made, requests = through(strict, tmp_path / "a")
    assert requests[-1]["max_completion_tokens"] == 8 and not requests[-1].keys() & SAMPLERS.keys()
    assert {f"left_out_{name}" for name in SAMPLERS} | {"renamed_max_tokens"} <= made.manifest["policy_errors"].keys()
    assert any(line.startswith("THE SERVER REFUSES min_p, ") for line in made.summary())
    assert made.manifest["repeated_tasks"] == {"tasks": 3, "all_alike": 3}
    assert any("NOTHING TO COMPARE" in line for line in made.summary())
    hint = r"status 400: temperature may be 1.*--policy '\{request: \{temperature: null\}\}'"
    answer = error(400, "temperature may be 1", param="temperature")
    with AnsweringServer(lambda *_: answer) as server, pytest.raises(PolicyError, match=hint):
        policy = {"url": server.url}
        rollout("arithmetic", model="openai-chat:m", policy=policy, temperature=0.5, out=tmp_path / "b", tasks=1)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (error(401, "key sk-pl***wxyz is wrong"), r"status 401: key \*\*\* is wrong. The key .* variable SOME_KEY"),
        (error(429, "used up", code="insufficient_quota"), "status 429: used up"),
        (error(404, "no model m"), r"no model m. Check policy.url .* It lists models/m"),
        ({"error": "Unexpected endpoint or method. (POST /x)"}, r"method. \(POST /x\). Check policy.url"),
        ((429, {"error": "tomorrow"}, "Retry-After: 86400\r\n"), "asks to wait 86,400 seconds"),
    ],
)
def test_what_is_wrong_for_every_request_stops_the_run(
    answer: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-planted-wxyz")
    with pytest.raises(PolicyError, match=words) as caught:
        through(lambda *_: answer, tmp_path, models=("models/m",), key_env="SOME_KEY")
    assert "wxyz" not in str(caught.value)


def test_what_is_refused_after_replies_is_of_that_prompt_until_many_are(tmp_path: Path) -> None:
    seen: dict[str, int] = {}

    def firewall(request: dict[str, Any], _: int) -> Any:
        place = seen.setdefault(request["messages"][0]["content"], len(seen))
        return (403, b"<html><h1>Blocked</h1></html>") if place == 1 else text(request)

    made, _ = through(firewall, tmp_path / "a")
    assert made.manifest["failures"] == {"http_403": 2}
    with pytest.raises(PolicyError, match="status 403: no more for this key"):
        late = error(403, "no more for this key")
        through(lambda request, n: late if n > 2 else text(request), tmp_path / "b", tasks=20, max_failed=1)


def test_a_pause_that_is_asked_for_is_no_fault_and_a_loading_model_is_waited_for(tmp_path: Path) -> None:
    def busy(request: dict[str, Any], number: int) -> Any:
        return (429, {"error": "wait"}, "Retry-After: 0.01\r\n") if number < 20 else text(request)

    loading = error(503, "Loading model")
    made, _ = through(busy, tmp_path / "a", tasks=1, retries=0, models=loading)
    assert made.manifest["policy_errors"] == {"http_429": 20} and not made.manifest["failures"]


def test_too_many_failures_stop_the_run_and_after_a_remedy_it_goes_on(tmp_path: Path) -> None:
    refused = error(400, "held back", code="content_filter")

    def half(request: dict[str, Any], _: int) -> Any:
        return refused if "+" in request["messages"][0]["content"] else text(request)

    with pytest.raises(PolicyError, match=r"of 40 conversations got no reply, more than 5% .*status 400: held back"):
        through(half, tmp_path, tasks=20)
    kept = len(read_trajectories(tmp_path, complete_only=False))
    made, _ = through(half, tmp_path, tasks=20, max_failed=1)
    failed = made.manifest["failures"]["content_filter"]
    assert 3 < failed < 40 and kept + failed <= made.manifest["counts"]["trajectories"] == 40
    with pytest.raises(PolicyError, match="8 prompts in a row"):
        through(lambda *_: error(500, "down"), tmp_path / "down", tasks=40, retries=0, max_failed=1)


def test_a_server_that_is_gone_stops_the_run_at_the_first_request_that_is_given_up(tmp_path: Path) -> None:
    with AnsweringServer(lambda request, _: text(request)) as server:
        policy = make_policy("openai-chat:m", {"url": server.url, "retries": 1, "max_failed": 1})
    with pytest.raises(PolicyError, match=r"unreachable.*run the same command again"):
        rollout("arithmetic", model=policy, tasks=1, samples=1, out=tmp_path)


def test_an_evaluation_counts_what_failed_and_what_its_judge_was_refused(tmp_path: Path) -> None:
    graded: list[str] = []
    spoken = first_prompt(error(400, "held back", code="content_filter"))

    def answer(request: dict[str, Any], number: int) -> Any:
        asked = request["messages"][0]["content"]
        if not asked.startswith("Grade"):
            return spoken(request, number)
        graded.append(asked)
        return error(500, "stumbled") if asked == graded[0] else "<score>7</score>"

    with AnsweringServer(answer) as server:
        settings = {"url": server.url, "retries": 0}
        judge = {"policy": "openai-chat:m", "policy_settings": settings}
        more: dict[str, Any] = {"tasks": 5, "samples": 0, "policy": settings, "judge": judge, "out": tmp_path}
        made = evaluate("arithmetic", {"served": "openai-chat:m"}, **more)
    assert made.manifest["cost"]["greedy/served"]["failures"] == {"content_filter": 1}
    assert (made.manifest["quality"]["judge"]["tasks"], made.manifest["quality"]["judge"]["scored"]) == (4, 3)
    assert "greedy/served: 1 content_filter failed and are left out." in made.summary()
