"""How many tokens a pass has, where nobody says: as many as the memory that is left can hold."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from drift.api import train
from drift.manifest import read_manifest
from drift.policies.hf import load_model
from drift.training.arguments import with_lora
from drift.training.config import TrainingConfig
from drift.training.estimate import FEWEST, MOST, TRAINED, WEIGHT, tokens_that_fit
from drift.training.forward import padded_batch, tree_batch, use_trees, use_weighted_loss
from drift.training.tree import build_tree
from drift.types import Example

LORA = {"r": 2, "lora_dropout": 0.5, "target_modules": "all-linear"}


def prepared(folder: Path, config: TrainingConfig, *, trees: bool) -> Any:
    model, _ = load_model(str(folder))
    if config.lora:
        model = with_lora(model, config.lora)
    use_weighted_loss(model, config.objective)
    use_trees(model, trees)
    model.train()
    return model


def allocated(model: Any, count: int, *, trees: bool) -> int:
    """Bytes that are there after a forward pass and were not before it, as torch's own profiler counts them."""
    weight = (0.0,) + (1.0,) * (count - 1)
    row = Example(
        trajectory_id="", group_id="", token_ids=(5,) * count, sampled=tuple(w > 0 for w in weight), weight=weight
    )
    batch = tree_batch(build_tree([row])) if trees else padded_batch([row])
    model(batch=batch).backward()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        loss = model(batch=batch)
    assert loss.requires_grad
    return sum(event.self_cpu_memory_usage for event in seen.key_averages())


@pytest.mark.parametrize("trees", [True, False])
@pytest.mark.parametrize("lora", [{}, LORA], ids=["whole", "adapter"])
def test_a_pass_fills_half_of_what_weights_and_optimizer_leave(tiny_model: Path, trees: bool, lora: Any) -> None:
    config = TrainingConfig(lora=lora)
    model = prepared(tiny_model, config, trees=trees)
    counts = {each.requires_grad: 0 for each in model.parameters()}
    for each in model.parameters():
        counts[each.requires_grad] += each.numel()
    held = WEIGHT * counts.get(False, 0) + TRAINED * counts[True]
    grown = (allocated(model, 192, trees=trees) - allocated(model, 64, trees=trees)) / 128

    def found(tokens: float, longest: int = 1000) -> int:
        return tokens_that_fit(model, longest, config, trees=trees, memory=int(held + 2 * tokens * grown))

    # A power of 2, so that a little more or less memory changes nothing; the mean of two borders is far from both.
    assert [found(tokens) for tokens in (768, 1536, 3072, 6144)] == [512, 1024, 2048, 4096]
    assert (found(1), found(1e6)) == (FEWEST, MOST)
    assert tokens_that_fit(model, 1000, config, trees=trees, memory=0) == FEWEST


def test_processes_of_one_machine_share_its_memory_and_checkpoints_in_a_pass_need_little(tiny_model: Path) -> None:
    model = prepared(tiny_model, TrainingConfig(), trees=True)
    held = TRAINED * sum(each.numel() for each in model.parameters())
    grown = (allocated(model, 192, trees=True) - allocated(model, 64, trees=True)) / 128
    memory = int(2 * held + 2 * 1536 * grown)
    found = {n: tokens_that_fit(model, 9, TrainingConfig(num_processes=n), trees=True, memory=memory) for n in (1, 2)}
    assert found[1] > found[2] == 512
    thrifty = TrainingConfig(arguments={"gradient_checkpointing": True})
    assert tokens_that_fit(model, 9, thrifty, trees=True, memory=0) == MOST


def test_what_training_draws_is_not_changed_by_looking(tiny_model: Path) -> None:
    config = TrainingConfig(lora=LORA)
    model = prepared(tiny_model, config, trees=True)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    tokens_that_fit(model, 100, config, trees=True, memory=2**30)
    assert torch.equal(torch.rand(3), expected)
    assert all(each.grad is None for each in model.parameters())


def test_the_manifest_says_what_was_found_and_it_is_found_again(
    weighed: tuple[Path, Path], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drift.training.optimize.memory_of", lambda _: (0, ""))
    given: dict[str, Any] = {"model": str(tiny_model), "max_steps": 2, "batch_size": 8, "learning_rate": 1e-3}
    found = train(*weighed, out=tmp_path / "found", **given)
    said = train(*weighed, out=tmp_path / "said", **{**given, "tokens_per_batch": FEWEST})
    assert [read_manifest(each.path, "model")["tokens_per_batch"] for each in (found, said)] == [FEWEST, FEWEST]
    assert (found.path / "model.safetensors").read_bytes() == (said.path / "model.safetensors").read_bytes()
