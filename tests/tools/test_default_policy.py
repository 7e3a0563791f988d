from pathlib import Path
from typing import Any

import pytest
import torch
from tools.default_policy.__main__ import main
from tools.default_policy.calibration import calibrate, reply_probability
from tools.default_policy.config import Flaws, PretrainConfig
from tools.default_policy.make import make_default_policy
from tools.default_policy.pretrain import Encoder

from drift.api import rollout
from drift.dataset.outcomes import outcomes
from drift.dataset.store import read_trajectories
from drift.evaluation.intervals import ratio_value
from drift.evaluation.metrics import metrics, runs_of
from drift.manifest import read_manifest
from drift.policies import DEFAULT_MODEL
from drift.policies.base import Sampling
from drift.policies.hf import load_model
from drift.types import Message

SMALL = PretrainConfig(steps=40, knowing_steps=20, hidden=32, layers=1, heads=2, feed_forward=64, rows=16)


@pytest.mark.slow
def test_a_smaller_policy_can_be_made_twice_and_learns(tmp_path: Path) -> None:
    first = make_default_policy(SMALL, tmp_path / "a")
    second = make_default_policy(SMALL, tmp_path / "b")
    assert first["loss"] == second["loss"] and first["calibration"] == second["calibration"]
    a, b = (load_model(str(tmp_path / name))[0].state_dict() for name in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a)
    longer = make_default_policy(PretrainConfig(**{**vars(SMALL), "steps": 120, "knowing_steps": 60}), tmp_path / "c")
    assert longer["loss"] < first["loss"] - 0.2


def test_reply_probability_is_that_of_sampling(tiny_model: Path) -> None:
    model, tokenizer = load_model(str(tiny_model))
    encode = Encoder(tokenizer)
    asked: Message = {"role": "user", "content": "What is 12 + 34?"}
    short: list[Message] = [asked, {"role": "assistant", "content": "4"}]
    long: list[Message] = [*short, {"role": "user", "content": "No."}, {"role": "assistant", "content": "46"}]
    for messages, found in zip((short, long), reply_probability(model, encode, [short, long]), strict=True):
        ids = encode(messages)[0]
        start = len(encode(messages[:-1])[0]) + 1
        expected = 1.0
        for at in range(start, len(ids)):
            with torch.inference_mode():
                expected *= torch.softmax(model(torch.tensor([ids[:at]])).logits[0, -1].double(), -1)[ids[at]].item()
        assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_the_shipped_policy_fits_and_is_calibrated_to_its_flaws() -> None:
    weights = DEFAULT_MODEL / "model.safetensors"
    assert weights.stat().st_size <= 4_000_000
    assert {path.suffix for path in DEFAULT_MODEL.iterdir()} <= {".json", ".safetensors", ".jinja"}
    manifest = read_manifest(DEFAULT_MODEL, "policy")
    assert 1_000_000 <= manifest["parameters"] <= 5_000_000
    model, tokenizer = load_model(str(DEFAULT_MODEL))
    flaws = Flaws()
    found = calibrate(model, Encoder(tokenizer), flaws)
    assert found == pytest.approx(manifest["calibration"], abs=2e-3)
    for kind, right in flaws.right.items():
        assert found[f"right/{kind}"] == pytest.approx(right * (1 - flaws.no_tag), abs=0.08), kind
        assert found[f"insist/{kind}"] == pytest.approx(flaws.insist, abs=0.08), kind


@pytest.mark.slow
def test_the_shipped_policy_starts_where_the_papers_base_models_start(tmp_path: Path) -> None:
    greedy: dict[str, Any] = {"tasks": 100, "samples": 1, "max_new_tokens": 16, "temperature": 0}
    measured = runs_of(read_trajectories(rollout(out=tmp_path / "greedy", split="test", **greedy)))
    found = {name: ratio_value(ratio) for name, ratio in metrics(measured, 5).items()}
    # Wrong more often than right at turn 1, and mostly saying the same again.
    assert found["multi@1"] is not None and 0.05 < found["multi@1"] < 0.5
    assert found["distinct_answers"] is not None and found["distinct_answers"] < 0.5
    drawn = outcomes(read_trajectories(rollout(out=tmp_path / "sampled", tasks=30, samples=12, max_new_tokens=16)))
    kinds: dict[str, set[bool]] = {}
    for group, success in zip(drawn.groups, drawn.success_N.tolist(), strict=True):
        kinds.setdefault(group, set()).add(success)
    # Prompts that hold both successes and failures.
    assert sum(len(found) == 2 for found in kinds.values()) >= 0.6 * len(kinds)


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [Sampling(max_new_tokens=16, temperature=0), Sampling(max_new_tokens=16)])
def test_batches_of_8_and_64_give_the_same_conversations(tmp_path: Path, sampling: Sampling) -> None:
    from drift.manifest import read_manifest

    settings: dict[str, Any] = {"tasks": 36, "samples": 2, "sampling": sampling}
    hashes = {
        read_manifest(rollout(out=tmp_path / str(size), policy={"batch_size": size}, **settings), "trajectories")[
            "dataset_hash"
        ]
        for size in (8, 64)
    }
    assert len(hashes) == 1


@pytest.mark.slow
def test_the_shipped_policy_also_plays_the_guessing_game(tmp_path: Path) -> None:
    drawn = outcomes(read_trajectories(rollout("guess", out=tmp_path, tasks=40, samples=4, max_new_tokens=16)))
    assert 0.02 < drawn.success_N.mean() < 0.6
    assert drawn.failures_N.sum() < 0.1 * drawn.turns_N.sum()


def test_the_command_prints_the_calibration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = {"steps": 2, "knowing_steps": 1, "hidden": 16, "layers": 1, "heads": 1, "rows": 4, "feed_forward": 16}
    main(["--out", str(tmp_path / "policy"), *(f"--{name}={value}" for name, value in small.items())])
    assert "insist/add/plain" in capsys.readouterr().out
    assert (tmp_path / "policy" / "model.safetensors").is_file()
