import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drift.api import rollout
from drift.dataset.store import read_trajectories
from drift.environments.guess import Guess
from drift.errors import ConfigError, PolicyError
from drift.manifest import read_manifest
from drift.policies import DEFAULT_MODEL, make_policy
from drift.policies.base import Sampling
from drift.policies.hf import HFPolicy
from drift.policies.openai import OpenAIPolicy
from drift.rollouts.collect import collect
from drift.types import Trajectory

from .servers import FaultProxy, PolicyServer, SmallSeeds, ample, vllm_server

SETTINGS: dict[str, Any] = {"tasks": 8, "samples": 3, "sampling": Sampling(max_new_tokens=5)}


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[PolicyServer]:
    with PolicyServer(HFPolicy(str(tiny_model))) as running:
        yield running


def through(url: str, tiny_model: Path, out: Path, **settings: Any) -> list[Trajectory]:
    policy = {"url": url, "tokenizer": str(tiny_model), **settings}
    return read_trajectories(rollout("guess", model="openai:served", policy=policy, out=out, **SETTINGS))


def essence(trajectories: list[Trajectory]) -> list[Any]:
    """All that does not name the policy."""
    turns = [[(t.prompt_ids, t.completion.token_ids, t.completion.text, t.step) for t in x.turns] for x in trajectories]
    return [(x.id, x.messages, x.stop_reason, said) for x, said in zip(trajectories, turns, strict=True)]


def test_what_comes_through_the_server_is_what_the_policy_behind_it_says(
    server: PolicyServer, tiny_model: Path, tmp_path: Path
) -> None:
    begun: dict[str, Any] = {"system": "Guess well.", "prefill": "<answer>"}
    found = through(server.url, tiny_model, tmp_path / "served", **begun)
    plain = SmallSeeds(str(tiny_model), **begun)
    direct = read_trajectories(rollout("guess", model=plain, out=tmp_path / "direct", **SETTINGS))
    assert essence(found) == essence(direct)
    for ours, theirs in zip(found, direct, strict=True):
        for one, other in zip(ours.turns, theirs.turns, strict=True):
            assert one.completion.logprobs == pytest.approx(other.completion.logprobs, abs=1e-4)
    assert len(set(server.seeds)) == len(server.seeds) >= 24
    assert all(turn.completion.text.startswith("<answer>") for each in found for turn in each.turns)


@pytest.mark.slow
def test_a_fifth_of_the_requests_fail_and_every_conversation_arrives_once(
    server: PolicyServer, tiny_model: Path, tmp_path: Path
) -> None:
    begun = time.monotonic()
    calm = through(server.url, tiny_model, tmp_path / "calm")
    deadline = ample(time.monotonic() - begun)
    with FaultProxy(server.port, 0.2, deadline=deadline) as proxy:
        found = through(proxy.url, tiny_model, tmp_path / "faults", deadline=deadline, retries=12)
    assert len({t.id for t in found}) == len(found) == 24
    assert essence(found) == essence(calm)
    counted = read_manifest(tmp_path / "faults", "trajectories")["policy_errors"]
    assert counted == dict(proxy.injected) and len(counted) == 5
    assert read_manifest(tmp_path / "calm", "trajectories")["policy_errors"] == {}


def test_a_server_that_is_gone_stops_the_run_and_what_was_finished_stays(
    server: PolicyServer, tiny_model: Path, tmp_path: Path
) -> None:
    policy = OpenAIPolicy("served", url=server.url, tokenizer=str(tiny_model), retries=1, concurrency=4)
    seen = 0
    whole = policy._read

    def failing(reply: Any, prompt_ids: tuple[int, ...]) -> Any:
        nonlocal seen
        seen += 1
        if seen > 50:
            raise ValueError("not JSON")
        return whole(reply, prompt_ids)

    policy._read = failing  # type: ignore[method-assign]
    plan = {
        "environment": {"name": "guess"},
        "samples": 3,
        "seed": 1,
        "sampling": SETTINGS["sampling"],
        "concurrency": 4,
    }
    tasks = Guess().tasks("train", 8, 1)
    with pytest.raises(PolicyError, match=r"more than 5% .*failed 2 times for one request, .*with broken_reply"):
        collect(tasks, Guess(), policy, tmp_path, **plan)
    kept = len(read_trajectories(tmp_path, complete_only=False))
    assert 0 < kept < 24
    policy._read = whole  # type: ignore[method-assign]
    assert collect(tasks, Guess(), policy, tmp_path, **plan)["counts"]["trajectories"] == 24


def test_the_key_goes_to_the_server_and_nowhere_else(
    server: PolicyServer, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-planted-0123")
    server.keys.clear()
    through(server.url, tiny_model, tmp_path / "run", key_env="MY_KEY")
    assert server.keys == {"bearer sk-planted-0123"}
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"sk-planted" not in path.read_bytes(), path


def refusing(change: Any, tiny_model: Path, **settings: Any) -> str:
    with PolicyServer(HFPolicy(str(tiny_model)), change) as server:
        policy = make_policy("openai:served", {"url": server.url, "tokenizer": str(tiny_model), **settings})
        plan = {"environment": {"name": "guess"}, "samples": 1, "seed": 1, "sampling": SETTINGS["sampling"]}
        import tempfile

        with tempfile.TemporaryDirectory() as folder, pytest.raises(PolicyError) as caught:
            collect(Guess().tasks("train", 1, 1), Guess(), policy, Path(folder), **plan)
    return str(caught.value)


def test_replies_that_can_not_be_trained_on_are_refused(tiny_model: Path) -> None:
    def without_ids(reply: dict[str, Any]) -> dict[str, Any]:
        del reply["choices"][0]["token_ids"]
        return reply

    def other_prompt(reply: dict[str, Any]) -> dict[str, Any]:
        reply["choices"][0]["prompt_token_ids"].append(1)
        return reply

    def no_choice(reply: dict[str, Any]) -> dict[str, Any]:
        return {**reply, "choices": []}

    assert "returned no token ids" in refusing(without_ids, tiny_model)
    assert "changed the prompt" in refusing(other_prompt, tiny_model)
    assert "no conversation got a reply (empty_choices 1)" in refusing(no_choice, tiny_model, retries=0)


def test_a_request_that_the_server_refuses_is_not_sent_again(
    server: PolicyServer, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted-0123")

    class Refusing(FaultProxy):
        asked = 0

        async def respond(self, path: str, body: bytes, writer: Any) -> None:
            if not path.endswith("/completions"):
                return await super().respond(path, body, writer)
            self.asked += 1
            writer.write(self.packed(401, b'{"error": {"message": "bad key sk-planted-0123"}}'))
            await writer.drain()
            return None

    with Refusing(server.port, 0.0) as proxy:
        with pytest.raises(PolicyError, match=r"status 401: .*bad key \*\*\*") as caught:
            through(proxy.url, tiny_model, tmp_path)
        assert "sk-planted" not in str(caught.value)
        assert proxy.asked <= 24


def test_mistakes_are_told_before_anything_is_sampled(
    server: PolicyServer, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        with pytest.raises(PolicyError, match=r"no server that speaks OpenAI's interface at .*Start it"):
            OpenAIPolicy("served", url=nobody, tokenizer=str(tiny_model))
    OpenAIPolicy("other", url=server.url, tokenizer=str(tiny_model))
    assert "it lists served, not 'other'" in capsys.readouterr().err
    with pytest.raises(PolicyError, match=r"tokenizer './nowhere' can't be loaded"):
        OpenAIPolicy("served", url=server.url, tokenizer="./nowhere")
    with pytest.raises(ConfigError, match=r"Did you mean 'retries'\?"):
        make_policy("openai:served", {"retrys": 1})
    for wrong in ({"concurrency": 0}, {"deadline": 0}, {"retries": -1}, {"max_failed": 5}):
        with pytest.raises(ConfigError, match=f"policy.{next(iter(wrong))}: got"):
            OpenAIPolicy("served", url=server.url, tokenizer=str(tiny_model), **wrong)
    policy = OpenAIPolicy("served", url=server.url, tokenizer=str(tiny_model))
    assert policy.context_length == 256 and policy.fingerprint.startswith("openai-")


@pytest.fixture(scope="module")
def vllm_port() -> Iterator[int]:
    """vLLM with the shipped policy on loopback."""
    more = ("--max-num-batched-tokens", "32768")
    with vllm_server(DEFAULT_MODEL, *more, patience=280, VLLM_CPU_KVCACHE_SPACE="2") as port:
        yield port


@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_vllm_serves_trajectories_that_the_model_itself_scores_alike(vllm_port: int, tmp_path: Path) -> None:
    import torch

    from drift.policies.hf import load_model

    url = f"http://127.0.0.1:{vllm_port}/v1"
    policy = {"url": url, "tokenizer": "default", "deadline": 60.0, "retries": 12}
    settings: dict[str, Any] = {"model": "openai:served", "tasks": 100, "samples": 4, "max_new_tokens": 16}
    found = read_trajectories(rollout(policy=policy, out=tmp_path / "served", **settings))
    assert len(found) == 400 and 0.2 < sum(t.success for t in found) / 400 < 0.9
    model, _ = load_model(str(DEFAULT_MODEL))
    for trajectory in found[:100]:
        turn = trajectory.turns[-1]
        ids = torch.tensor([[*turn.prompt_ids, *turn.completion.token_ids]])
        with torch.inference_mode():
            own = torch.log_softmax(model(ids).logits[0, :-1], -1).gather(-1, ids[0, 1:, None])[:, 0]
        assert turn.completion.logprobs == pytest.approx(own[len(turn.prompt_ids) - 1 :].tolist(), abs=2e-3)
    with FaultProxy(vllm_port, 0.2, deadline=5.0) as proxy:
        broken = {**policy, "url": proxy.url, "deadline": 5.0}
        again = read_trajectories(rollout(policy=broken, out=tmp_path / "faults", **settings))
        assert len({t.id for t in again}) == 400
        assert read_manifest(tmp_path / "faults", "trajectories")["policy_errors"].keys() == proxy.injected.keys()


@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_vllm_answers_in_text_alone_too(vllm_port: int, tmp_path: Path) -> None:
    policy = {"url": f"http://127.0.0.1:{vllm_port}/v1", "deadline": 2.0, "retries": 12}
    settings: dict[str, Any] = {"model": "openai-chat:served", "tasks": 100, "samples": 1, "max_new_tokens": 16}
    found = read_trajectories(rollout(policy=policy, out=tmp_path, **settings))
    assert len(found) == 100 and all(t.text_only for t in found) and 0.2 < sum(t.success for t in found) / 100 < 0.9
