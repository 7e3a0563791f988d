"""One recipe on any engine: who samples the base and the tuned model, and what is found wrong before anything is."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.policies.servers import PolicyServer, vllm_server

import drift
from drift.dataset.store import read_trajectories
from drift.errors import ConfigError, DatasetError, Interrupted, PolicyError, TrainingError
from drift.own_process import call_apart
from drift.policies import DEFAULT_MODEL
from drift.policies.hf import HFPolicy

MODELS = ("tuned", "base")
SMALL: dict[str, Any] = {
    "max_new_tokens": 12, "rollouts.tasks": 6, "rollouts.samples": 4, "max_steps": 10, "training.batch_size": 4,
    "evaluation.tasks": 4, "evaluation.samples": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model": "vllm:Qwen/X"}, r"model: got 'vllm:Qwen/X', .*Give model: Qwen/X, and policy: \{engine: vllm\}\."),
        ({"model": "openai:x"}, r"Give the model that it serves, and policy: \{engine: openai, model: x\}\."),
        ({"model": "openai-chat:gpt"}, r"what can be trained\. Its replies are text alone: .*drift import"),
        ({"policy": {"engine": "openai-chat"}}, r"policy\.engine: got 'openai-chat', .*token ids"),
        ({"policy": {"engine": "vlm"}}, r"unknown engine 'vlm' in policy\.engine\. Did you mean 'vllm'\?"),
        ({"policy": {"engine": {"enforce_eager": True}}}, r"arguments of vLLM's engine are policy\.arguments"),
        ({"policy": {"model": "other"}}, r"policy\.model: got 'other', expected nothing"),
        ({"policy": {"tuned": {"batch_size": -1}}}, r"policy\.batch_size: got -1"),
        ({"policy": {"tuned": {"batch_sise": 1}}}, r"unknown setting 'batch_sise'.* Did you mean 'batch_size'\?"),
        ({"policy": {"engine": "openai"}}, r"tuned model can't be measured: .* gives a whole one\. .*hf"),
        ({"policy": {"engine": "openai"}, "lora": {"r": 2}, "rounds": 2}, r"this training gives several models\."),
    ],
)  # fmt: skip
def test_what_an_engine_cannot_do_is_told_before_anything_runs(
    keys: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        drift.run("quickstart", out=tmp_path / "run", **{**SMALL, **keys})
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=message):
        drift.compare("quickstart", methods=["drift"], seeds=[1], out=tmp_path / "compare", **{**SMALL, **keys})


def test_faults_of_the_second_model_are_found_before_the_first_is_measured(tmp_path: Path) -> None:
    out, models = tmp_path / "evaluation", {"base": "default", "tuned": "default"}
    plan: dict[str, Any] = {"tasks": 4, "samples": 0, "max_new_tokens": 8, "out": out}
    for own, message in (
        ({"batch_size": -1}, r"model 'tuned': policy\.batch_size: got -1"),
        ({"bach_size": 1}, r"model 'tuned': unknown setting 'bach_size'"),
        ({"chat_template_kwargs": {"thinking": True}}, r"model 'tuned': policy\.chat_template_kwargs: got 'thinking'"),
    ):
        with pytest.raises(ConfigError, match=message):
            drift.evaluate("guess", models, policy={"tuned": own}, **plan)
    with pytest.raises(PolicyError, match=r"model 'tuned': model '\./nowhere': nothing there"):
        drift.evaluate("guess", {**models, "tuned": "./nowhere"}, **plan)
    with pytest.raises(PolicyError, match=r"model 'tuned': no server .*127\.0\.0\.1:9"):
        url = "http://127.0.0.1:9/v1"
        drift.evaluate("guess", models, policy={"tuned": {"engine": "openai-chat", "url": url, "model": "x"}}, **plan)
    assert not out.exists()
    # Another batch changes nothing, and is no setting of all.
    found = drift.evaluate("guess", models, policy={"dtype": "float32", "tuned": {"batch_size": 1}}, **plan)
    base, tuned = (read_trajectories(out / "greedy" / name) for name in models)
    assert [t.messages for t in base] == [t.messages for t in tuned]
    assert found.manifest["policies"] == models


@pytest.mark.slow
def test_a_server_samples_the_base_and_another_engine_the_tuned_model(tmp_path: Path) -> None:
    policy = {"engine": "openai", "model": "served", "tuned": {"engine": "hf", "dtype": "float32"}}
    with PolicyServer(HFPolicy(str(DEFAULT_MODEL))) as server:
        run = drift.run("guess", out=tmp_path / "run", policy={**policy, "url": server.url}, **SMALL)
    assert run is not None
    spec, measured = run.rollouts.manifest["spec"], run.evaluation.manifest
    assert spec["policy"].startswith("openai-") and spec["ids"] == "sampled"
    assert run.model.manifest["counts"]["rows"] > 0
    assert measured["policies"] == {"base": "default", "tuned": str(tmp_path / "run" / "model")}
    held = [
        read_trajectories(tmp_path / "run" / "evaluation" / "greedy" / name)[0].policy for name in ("base", "tuned")
    ]
    assert held[0].startswith("openai-") and not held[1].startswith("openai-")
    assert yaml.safe_load((run / "recipe.yaml").read_text())["policy"]["tuned"] == policy["tuned"]


@pytest.fixture
def vllm_url(tmp_path: Path) -> Iterator[str]:
    """The address of a server started by hand: vLLM with the shipped policy, which may be told to load adapters."""
    more = ("--enable-lora", "--max-num-batched-tokens", "4096", "--enforce-eager")
    allowed = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with (
        (tmp_path / "server.log").open("w") as log,
        vllm_server(DEFAULT_MODEL, *more, log=log, patience=500, **allowed) as port,
    ):
        yield f"http://127.0.0.1:{port}/v1"


@pytest.mark.vllm
@pytest.mark.timeout(1200)
def test_a_server_that_runs_is_told_to_load_the_adapter_that_was_trained(vllm_url: str, tmp_path: Path) -> None:
    policy = {"engine": "openai", "model": "served", "url": vllm_url}
    plan = {**SMALL, "lora": {"r": 4}, "learning_rate": 3e-3, "evaluation.tasks": 40, "evaluation.samples": 1}
    run = drift.run("guess", out=tmp_path / "run", policy=policy, **plan)
    assert run is not None
    assert run.evaluation.manifest["policies"] == {"base": "default", "tuned": str(run / "model" / "adapter")}
    held = {name: read_trajectories(run / "evaluation" / "greedy" / name) for name in MODELS}
    assert held["base"][0].policy != held["tuned"][0].policy
    # What the server says with the adapter is what the merged model says here, and not what the base says.
    drift.evaluate("guess", str(run / "model"), tasks=40, samples=0, max_new_tokens=12, out=tmp_path / "here")
    here = read_trajectories(tmp_path / "here" / "greedy" / "model")
    same = {
        name: sum(a.messages == b.messages for a, b in zip(found, here, strict=True)) for name, found in held.items()
    }
    assert same["tuned"] >= 36 and same["base"] < 36


def test_a_process_of_its_own_raises_here_what_it_raised_and_stops_with_its_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "apart.py").write_text(
        "import os, time\n"
        "def note(path, text):\n    open(path, 'w').write(text)\n"
        "def wait(path):\n    note(path, str(os.getpid()))\n    time.sleep(600)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    call_apart("apart:note", path=tmp_path / "noted", text="done")
    assert (tmp_path / "noted").read_text() == "done"
    with pytest.raises(DatasetError, match=r"without manifest\.json, expected model"):
        call_apart("drift.manifest:read_manifest", directory=tmp_path, kind="model")
    with pytest.raises(TrainingError, match=r"process of os:abort ended with signal 6; .* the last checkpoint"):
        call_apart("os:abort")
    with pytest.raises(ConfigError, match="can't be given all of its settings"):
        call_apart("apart:note", path=tmp_path, text=lambda: "")
    pid = tmp_path / "pid"

    def press() -> None:
        while not (pid.is_file() and pid.read_text()):
            threading.Event().wait(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(Interrupted, match="Run the same command again"):
        call_apart("apart:wait", path=pid)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
