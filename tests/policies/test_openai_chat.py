import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drift.api import evaluate, read_logs, rollout, train, weigh
from drift.dataset.store import read_trajectories
from drift.environments.guess import Guess
from drift.errors import DatasetError
from drift.manifest import read_manifest
from drift.policies import make_policy
from drift.policies.base import DEFAULT_MODEL, Sampling
from drift.policies.hf import HFPolicy
from drift.rollouts.collect import collect
from drift.types import Trajectory

from .servers import FaultProxy, PolicyServer, SmallSeeds, ample

SETTINGS: dict[str, Any] = {"tasks": 4, "samples": 3, "sampling": Sampling(max_new_tokens=12)}


@pytest.fixture(scope="module")
def server() -> Iterator[PolicyServer]:
    with PolicyServer(HFPolicy(str(DEFAULT_MODEL))) as running:
        yield running


def through(url: str, out: Path, **settings: Any) -> list[Trajectory]:
    policy = {"url": url, **settings}
    return read_trajectories(rollout("arithmetic", model="openai-chat:served", policy=policy, out=out, **SETTINGS))


def said(trajectories: list[Trajectory]) -> list[Any]:
    return [(t.id, t.messages, t.stop_reason, [turn.step for turn in t.turns]) for t in trajectories]


def test_text_alone_says_what_the_policy_behind_the_server_says(server: PolicyServer, tmp_path: Path) -> None:
    found = through(server.url, tmp_path / "text")
    direct = read_trajectories(
        rollout("arithmetic", model=SmallSeeds(str(DEFAULT_MODEL)), out=tmp_path / "direct", **SETTINGS)
    )
    # A first reply is prompted alike; later prompts of the server are tokenized again, which may differ.
    first = [(t.id, t.turns[0].completion.text) for t in found]
    assert first == [(t.id, t.turns[0].completion.text) for t in direct]
    assert all(t.text_only and t.tokens_sampled is None for t in found)
    assert not any(t.text_only for t in direct)
    assert all(turn.prompt_ids == turn.completion.token_ids == () for t in found for turn in t.turns)
    assert all(turn.completion.logprobs is None for t in found for turn in t.turns)
    manifest = read_manifest(tmp_path / "text", "trajectories")
    assert manifest["spec"]["ids"] == "none" and manifest["cost"]["tokens_sampled"] is None
    assert read_manifest(tmp_path / "direct", "trajectories")["spec"]["ids"] == "sampled"


@pytest.mark.slow
def test_a_fifth_of_the_requests_fail_and_every_conversation_arrives_once(server: PolicyServer, tmp_path: Path) -> None:
    begun = time.monotonic()
    calm = through(server.url, tmp_path / "calm")
    deadline = ample(time.monotonic() - begun)
    with FaultProxy(server.port, 0.2, deadline=deadline) as proxy:
        found = through(proxy.url, tmp_path / "faults", deadline=deadline, retries=12)
    assert said(found) == said(calm)
    assert read_manifest(tmp_path / "faults", "trajectories")["policy_errors"] == dict(proxy.injected)


def test_text_is_trained_on_once_it_is_tokenized_and_the_manifest_says_so(server: PolicyServer, tmp_path: Path) -> None:
    text = tmp_path / "text"
    found = through(server.url, text)
    weights = weigh(text, scheme="rft", out=tmp_path / "weights-text")
    with pytest.raises(DatasetError, match=r"holds text alone.* --format trajectories --model default --out"):
        train(text, weights, out=tmp_path / "model", max_steps=1, any_policy=True)
    again = read_logs(text, format="trajectories", out=tmp_path / "ids")
    spec = read_manifest(again, "trajectories")["spec"]
    assert spec["ids"] == "retokenized"
    assert spec["import"]["format"] == "trajectories"
    assert spec["import"]["sha256"] == read_manifest(text, "trajectories")["dataset_hash"]
    tokenized = {t.turns[-1].step.info["id"]: t for t in read_trajectories(again)}
    # Only conversations with a reply of no text at all are left out.
    assert len(tokenized) + read_manifest(again, "trajectories")["excluded"].get("empty_content", 0) == len(found)
    chat = HFPolicy(str(DEFAULT_MODEL)).chat
    for original in found:
        if original.id not in tokenized:
            continue
        made = tokenized[original.id]
        assert made.messages == original.messages and made.success == original.success
        assert [t.step.answer for t in made.turns] == [t.step.answer for t in original.turns]
        assert not made.text_only and made.turns[0].prompt_ids == chat.first(original.messages[:1])
    model = train(again, weigh(again, scheme="rft", out=tmp_path / "weights"), max_steps=1, out=tmp_path / "model")
    assert read_manifest(model, "model")["counts"]["rows"] > 0


def test_a_server_model_can_be_measured(server: PolicyServer, tmp_path: Path) -> None:
    import json

    from drift.reporting.facts import costs, read_facts

    out = evaluate(
        "arithmetic",
        {"base": "default", "served": "openai-chat:served"},
        policy={"url": server.url},
        tasks=15,
        samples=0,
        sampling=SETTINGS["sampling"],
        out=tmp_path / "evaluation",
    )
    rows = {(r["policy"], r["metric"]): r["value"] for r in json.loads((out / "estimates.json").read_text())}
    assert rows["served", "greedy/multi@1"] == rows["base", "greedy/multi@1"]
    assert rows["served", "greedy/reply_tokens"] is None and rows["base", "greedy/reply_tokens"] > 1
    assert costs(read_facts(tmp_path))[0]["tokens"] == "unknown"


def test_fields_of_the_request_can_be_changed_added_and_left_out(server: PolicyServer, tmp_path: Path) -> None:
    server.requests.clear()
    policy = make_policy(
        "openai-chat:served",
        {"url": server.url, "request": {"stop": ["</answer>"], "top_k": 5, "presence_penalty": None, "top_p": 0.5}},
    )
    plan = {"environment": {"name": "guess"}, "samples": 1, "seed": 1, "sampling": SETTINGS["sampling"]}
    collect(Guess().tasks("train", 1, 1), Guess(), policy, tmp_path, **plan)
    sent = server.requests[0]
    assert sent["messages"][0]["role"] == "user" and sent["model"] == "served"
    assert (sent["stop"], sent["top_k"], sent["top_p"], sent["max_tokens"]) == (["</answer>"], 5, 0.5, 12)
    assert "presence_penalty" not in sent


def test_a_conversation_that_outgrows_the_context_ends_there_and_the_others_go_on(
    server: PolicyServer, tmp_path: Path
) -> None:
    long: dict[str, Any] = {"tasks": 20, "samples": 1, "max_new_tokens": 225}
    policy = {"url": server.url}
    found = read_trajectories(rollout("arithmetic", model="openai-chat:served", policy=policy, out=tmp_path, **long))
    stops = {t.stop_reason for t in found}
    assert len(found) == 20 and "context" in stops and stops <= {"context", "success", "turns"}
    assert all(t.error is None for t in found if t.turns)
