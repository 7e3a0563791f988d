"""A planted key and a planted password are in no artifact, no output and no error text, whatever fails."""

import asyncio
import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tests.policies.servers import FaultProxy, PolicyServer

from drift.api import rollout
from drift.cli import main
from drift.dataset.store import read_trajectories
from drift.environments.guess import Guess
from drift.errors import ConfigError, PolicyError
from drift.policies import make_policy
from drift.policies.base import DEFAULT_MODEL, Sampling
from drift.policies.hf import HFPolicy
from drift.recipe import Recipe
from drift.rollouts.collect import collect
from drift.secrets import refuse_secrets, scrubbed
from drift.types import Message, Step

# In small letters, as the servers read headers.
KEY = "sk-planted-3f9c1d77aa0b4e52"
PASSWORD = "planted-pass-81c6e0"


class Echoing(FaultProxy):
    """Fails every third request, and says the key in the body of each failure; with ``refuses``, for good."""

    refuses = False
    asked = 0

    async def respond(self, path: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        self.asked += 1
        if not path.endswith("/completions") or not (self.refuses or self.asked % 3 == 0):
            return await super().respond(path, body, writer)
        said = f"Incorrect API key provided: {KEY} (Authorization: Bearer {KEY}), from http://me:{PASSWORD}@there/v1"
        status = 401 if self.refuses else (500, 429, 503)[self.asked % 9 // 3]
        self.injected["refused" if self.refuses else f"http_{status}"] += 1
        writer.write(self.packed(status, json.dumps({"error": {"message": said, "code": KEY}}).encode()))
        await writer.drain()
        return None


@pytest.fixture(scope="module")
def proxy() -> Iterator[Echoing]:
    with PolicyServer(HFPolicy(str(DEFAULT_MODEL))) as server, Echoing(server.port, 0.0) as running:
        yield running


def traces(found: bytes | str, name: str = "") -> list[str]:
    """Which secrets, in which spelling, are in something."""
    data = found if isinstance(found, bytes) else found.encode()
    spellings = [KEY, PASSWORD, *(base64.b64encode(s.encode()).decode().rstrip("=") for s in (KEY, f"me:{PASSWORD}"))]
    return [f"{name}: {s}" for s in spellings if s.encode() in data]


def search(folder: Path) -> tuple[list[str], int]:
    """The traces in every file below a folder, Parquet unpacked; and how many files there are."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    found = []
    for path in files:
        found += traces(path.read_bytes(), str(path)) + traces(str(path))
        if path.suffix == ".parquet":
            found += traces(repr(pq.read_table(path).to_pydict()) + repr(pq.read_schema(path).metadata), str(path))
    return found, len(files)


@pytest.fixture
def drift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command beside its artifacts, the secrets in its environment, and returns what it says on both outputs."""
    monkeypatch.chdir(tmp_path)
    for name, value in (("OPENAI_API_KEY", KEY), ("OTHER_KEY", KEY), ("HF_TOKEN", PASSWORD)):
        monkeypatch.setenv(name, value)

    def run(*arguments: str, code: int = 0) -> str:
        ended = main(arguments)
        said = "".join(capfd.readouterr())
        assert ended == code, (arguments, said)
        return said

    return run


SHORT = ["--max-new-tokens", "12"]


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_a_planted_key_is_nowhere_after_a_whole_run_with_failures(
    proxy: Echoing, drift: Callable[..., str], tmp_path: Path
) -> None:
    served = ["--model", "openai:served", "--policy"]
    settings = {"url": proxy.url, "tokenizer": "default", "retries": 6}
    said = drift(
        *("rollout", "arithmetic", "--tasks", "8", "--samples", "3", *SHORT, "--out", "rollouts", *served),
        json.dumps(settings),
    )
    assert f"bearer {KEY}" in proxy.keys and proxy.injected.total() >= 10
    said += drift("weigh", "rollouts", "--out", "weights")
    small = ["--max-steps", "3", "--batch-size", "8", "--save-steps", "1", "--any-policy"]
    said += drift("train", "rollouts", "weights", "--out", "model", *small)
    models = json.dumps({"base": "default", "tuned": "model", "served": "openai:served"})
    said += drift(
        *("evaluate", "arithmetic", "--models", models, "--tasks", "4", "--samples", "1", *SHORT),
        *("--policy", json.dumps({**settings, "key_env": "OTHER_KEY"}), "--out", "evaluation"),
    )
    said += drift("report", ".", "--out", "report.html")
    said += drift("check", ".")
    proxy.refuses = True
    try:
        refused = drift(
            *("rollout", "arithmetic", "--tasks", "4", "--samples", "2", *SHORT, "--out", "refused", *served),
            json.dumps(settings),
            code=2,
        )
    finally:
        proxy.refuses = False
    assert "refuses a request with status 401" in refused and "Incorrect API key provided: ***" in refused
    found, files = search(tmp_path)
    assert not found and not traces(said) and not traces(refused), found
    # Rollouts, weights, checkpoints with their optimizers, the model, conversations of three policies, the page.
    assert files >= 30 and (tmp_path / "report.html").is_file()


def test_an_address_with_a_password_is_refused_before_anything_is_written(
    proxy: Echoing, drift: Callable[..., str], tmp_path: Path
) -> None:
    url = f"http://me:{PASSWORD}@127.0.0.1:{proxy.port}/v1"
    served = ["--model", "openai:served", "--policy.url", url, "--policy.tokenizer", "default"]
    said = drift("rollout", "arithmetic", "--tasks", "2", "--samples", "2", "--out", "r", *served, code=2)
    assert "policy.url: got 'http://***@127.0.0.1:" in said and "without a user name and password" in said
    recipe = tmp_path / "elsewhere.yaml"
    recipe.write_text(f"model: openai:served\npolicy: {{url: '{url}'}}\n")
    said += drift("run", str(recipe), "--out", "run", code=2)
    recipe.unlink()
    # What can't even be parsed is repeated in the message.
    said += drift("rollout", "arithmetic", "--out", "r", "--policy", f"{{url: {url}", code=2)
    assert not traces(said) and search(tmp_path)[0] == []


@pytest.mark.parametrize(
    "settings",
    [
        {"api_key": KEY},
        {"request": {"extra": [{"Authorization": f"Bearer {KEY}"}]}},
        {"judge": {"policy": "openai:x", "settings": {"url": f"https://{PASSWORD}@there/v1"}}},
    ],
)
def test_secrets_in_settings_are_refused_wherever_settings_are_read(settings: dict[str, Any]) -> None:
    for make in (
        lambda: Recipe(policy=settings),
        lambda: Recipe(environment={"name": "guess", **settings}),
        lambda: make_policy("openai-chat:served", settings),
        lambda: refuse_secrets(settings, "x"),
    ):
        with pytest.raises(ConfigError) as refused:
            make()
        assert "key_env" in str(refused.value) and not traces(str(refused.value))


def test_what_looks_like_a_secret_and_is_none_is_left_alone() -> None:
    harmless = {"url": "http://127.0.0.1:8000/v1?to=a@b", "key_env": "OTHER_KEY", "max_tokens": 3, "mail": "a@b.c"}
    refuse_secrets(harmless, "x")
    assert scrubbed(json.dumps(harmless)) == json.dumps(harmless)


class Telling(Guess):
    """Fails at the first reply, and says secrets in doing so."""

    def start(self, task: object) -> "Telling":  # type: ignore[override]
        return self

    def opening(self) -> list[Message]:
        return [{"role": "user", "content": "?"}]

    async def step(self, reply: str) -> Step:
        raise OSError(f"https://me:{PASSWORD}@there answered 403 to the key {KEY}")


def test_what_an_environment_says_when_it_fails_is_stored_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_SERVICE_TOKEN", KEY)
    plan: dict[str, Any] = {"environment": {"name": "telling"}, "samples": 1, "seed": 1}
    plan["sampling"] = Sampling(max_new_tokens=4)
    with pytest.raises(Exception, match="every conversation failed"):
        collect(Guess().tasks("train", 2, 1), Telling(), make_policy("scripted:a"), tmp_path, **plan)
    errors = {str(t.error) for t in read_trajectories(tmp_path)}
    assert errors == {"environment.step raised OSError: https://***@there answered 403 to the key ***"}
    assert search(tmp_path)[0] == []


def test_a_server_that_is_not_there_is_told_without_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    served: dict[str, Any] = {"model": "openai-chat:served", "policy": {"url": "http://127.0.0.1:9/v1"}}
    with pytest.raises(PolicyError) as refused:
        rollout(**served, tasks=1, samples=1, out=tmp_path / "r")
    assert not traces(str(refused.value))


# Names under which a secret is one whatever it is.
NAMES = (
    *("api_key", "apiKey", "OPENAI_API_KEY", "openai_api_key", "x-api-key", "hf_token", "HF_TOKEN", "hub_token"),
    *("client_secret", "clientSecret", "aws_secret_access_key", "access_key", "private_key", "signing_key"),
    *("password", "db_password", "passwd", "pwd", "passphrase", "access-token", "auth_token", "bearer_token"),
    *("refresh_token", "Authorization", "Proxy-Authorization", "bearer", "credentials", "cookie", "secret", "secrets"),
    *("github_token", "wandb_api_key", "personal_token", "connection_string", "session_token", "apikey"),
)
# What issuers give, and what is random, under any name.
VALUES = (
    *("sk-proj-Ab3dEf6hIj9kLm2nOp5q", "sk-ant-api03-abcdefghij0123456789", "hf_AbCdEfGhIjKlMnOpQrSt"),
    *(
        "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
        "github_pat_11ABCDEFG0abcdefghijklmnop",
        "glpat-abcdefghij0123456789",
    ),
    *("xoxb-1234567890-abcdefghij", "AKIAIOSFODNN7EXAMPLE", "AIzaSyA1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q"),
    *("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NSJ9.c2lnbmF0dXJl", "-----BEGIN RSA PRIVATE KEY-----\nMIIEow"),
    *("Bearer abcdefghij0123456789", "Zx8Lq2Vb7Kt4Nw9Rc3Yp6Hd1", "q7Zk2Vx9Lw4Tb8Nc3Rm6Yp1Hd5Js0Gf"),
)
HARMLESS = (
    *("/data/models/Qwen2.5-7B-Instruct", "org/Mistral-7B-Instruct-v0.3-GPTQ-Int4", "Qwen2ForCausalLMInstruct7B"),
    *("cosine_with_min_lr", "OPENAI_API_KEY", "skip", "sk-learn", "token"),
    *("drift.environments.arithmetic:Arithmetic", "2026-11-28T10:00:00Z", "a" * 60, "feedback.score", "[TOOL_CALLS]"),
)


def test_every_name_and_every_issuers_key_is_refused_and_hidden() -> None:
    for name in NAMES:
        with pytest.raises(ConfigError, match="a secret, which recipes and manifests would keep"):
            refuse_secrets({"deep": [{name: "tiger7"}]}, "x")
        assert "tiger7" not in scrubbed(f"failed: {name}=tiger7, and {{'{name}': 'tiger7'}}"), name
    for value in VALUES:
        for name in ("note", "token", "key", "extra"):
            with pytest.raises(ConfigError, match="key"):
                refuse_secrets({name: value}, "x")
        hidden = scrubbed(f"the server said: {value} is wrong, key={value}")
        assert value not in hidden or value[:4] in ("Zx8L", "q7Zk")
    with pytest.raises(ConfigError, match="a secret"):
        refuse_secrets({"token": "9f86d081884c7d659a2feaa0c55ad015"}, "x")
    refuse_secrets({"revision": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b"}, "x")
    for value in HARMLESS:
        for name in ("note", "key", "token", "pad_token", "max_tokens", "key_env", "reward_key", "model"):
            refuse_secrets({name: value}, "x")
        assert scrubbed(f"got {value!r}: no") == f"got {value!r}: no"


def test_secrets_are_refused_in_every_part_of_a_recipe_and_in_objects(tmp_path: Path) -> None:
    from drift.training.config import TrainingConfig

    class Own(Guess):
        openai_api_key = ""

    own = Own()
    object.__setattr__(own, "openai_api_key", KEY)
    for make in (
        lambda: Recipe(data={"file": "log.jsonl", "columns": {"hf_token": KEY}}),
        lambda: Recipe(policy={"tuned": {"x-api-key": KEY}}),
        lambda: TrainingConfig(arguments={"hub_token": KEY}),
        lambda: rollout(own, model="scripted:a", tasks=2, samples=1, out=tmp_path / "out"),
    ):
        with pytest.raises(ConfigError, match="a secret"):
            make()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"url": "https://there/v1?api_key=hunter2hunter2"},
        {"url": "https://there/b?sv=2021&sig=aB3dE5fG7hJ9kL1mN2pQ4rS6tU8vW0xY%3D"},
        {"url": "https://there/#access_token=hunter2hunter2"},
        {"url": "https://hooks.slack.com/services/T00000000/B00000000/aB3dE5fG7hJ9kL1mN2pQ4rS6"},
        {"headers": ["Authorization: Bearer hunter2hunter2"]},
        {"headers": [["Authorization", "Bearer hunter2hunter2"]]},
        {"headers": [{"name": "X-Api-Key", "value": "hunter2hunter2"}]},
        {"headers": "X-Api-Key: hunter2hunter2"},
        {"arguments": ["--api-key", "hunter2hunter2"]},
        {"arguments": ["--api-key=hunter2hunter2"]},
        {"arguments": '{"api_key": "hunter2hunter2"}'},
        {"env": ["OPENAI_API_KEY=hunter2hunter2"]},
        {"api_keys": ["hunter2hunter2"]},
        {"password": {"value": "hunter2hunter2"}},
        {"sk-proj-abcdefghijklmnopqrst": 1},
        {"x": "xai-abcdefghijklmnopqrstuvwxyz"},
        {"x": "dapi0123456789abcdef0123456789abcdef"},
        {"x": "-----BEGIN PGP PRIVATE KEY BLOCK-----\nlQOYBF"},
    ],
    ids=str,
)
def test_secrets_within_texts_lists_and_addresses_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as refused:
        refuse_secrets(settings, "x")
    said = scrubbed(f"the server got {settings}")
    assert "key_env" in str(refused.value)
    for text in (str(refused.value), said if "value" not in str(settings) else ""):
        assert not any(part in text for part in ("hunter2", "aB3dE5", "abcdefghijkl", "0123456789abcdef", "lQOY")), text


def test_what_speaks_of_secrets_and_holds_none_is_left_alone() -> None:
    harmless = {
        "prompt": "Grade the reply. A password: correct ones have eight letters. The answer's key = value pairs count.",
        "words": ["cookie", "password", "secretary"],
        "stop": ["--", "Authorization:"],
        "url": "https://there/v1?model=a/b&revision=0123456789abcdef0123456789abcdef01234567",
        "arguments": ["--tokenizer", "org/name", "--max-key-length", "100000000"],
        "code": "print('hello')",
    }
    refuse_secrets(harmless, "x")


def test_the_key_of_a_variable_with_any_name_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "correct horse battery")
    with pytest.raises(PolicyError, match="no server"):
        make_policy("openai-chat:served", {"url": "http://127.0.0.1:9/v1", "key_env": "MINE"})
    assert scrubbed("got correct horse battery") == "got ***"
