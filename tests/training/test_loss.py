import math

import pytest
import torch

from drift.training.examples import rows_of
from drift.training.forward import padded_batch
from drift.training.loss import weighted_loss
from drift.types import Example


def naive_loss(logits: torch.Tensor, ids: torch.Tensor, weight: torch.Tensor, rows: int) -> float:
    """The formula, one token at a time, in Python floats."""
    total = 0.0
    for b in range(ids.shape[0]):
        for t in range(1, ids.shape[1]):
            scores = logits[b, t - 1].tolist()
            top = max(scores)
            log_z = top + math.log(sum(math.exp(score - top) for score in scores))
            total -= weight[b, t].item() * (scores[ids[b, t]] - log_z)
    return total / rows


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits_BTV = torch.randn(4, 7, 11, generator=generator, dtype=torch.float64) * 3
    ids_BT = torch.randint(0, 11, (4, 7), generator=generator)
    weight_BT = torch.randn(4, 7, generator=generator, dtype=torch.float64)
    weight_BT[torch.rand(4, 7, generator=generator) < 0.5] = 0
    return logits_BTV, ids_BT, weight_BT


def test_the_loss_is_the_formula(batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    logits, ids, weight = batch
    assert weighted_loss(logits, ids, weight, 4).item() == pytest.approx(naive_loss(logits, ids, weight, 4), rel=1e-5)
    assert (weight < 0).any()


def test_the_denominator_is_rows_and_survives_weights_that_cancel(
    batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    logits, ids, weight = batch
    weight = torch.zeros_like(weight)
    weight[0, 3], weight[1, 3] = 1.0, -1.0
    assert weight.sum() == 0
    found = weighted_loss(logits, ids, weight, 4).item()
    assert math.isfinite(found) and found == pytest.approx(naive_loss(logits, ids, weight, 4), rel=1e-5)
    doubled = weighted_loss(logits, ids, 2 * weight, 4).item()
    assert doubled == pytest.approx(2 * found, rel=1e-6)


def test_a_weight_of_zero_gives_a_gradient_of_zero(batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    logits, ids, weight = batch
    weight[2] = 0
    logits.requires_grad_()
    weighted_loss(logits, ids, weight, 4).backward()
    assert logits.grad is not None
    assert not logits.grad[2].any() and logits.grad[0].any()
    logits.grad = None
    nothing = weighted_loss(logits, ids, torch.zeros_like(weight), 4)
    nothing.backward()
    assert nothing.item() == 0 and not logits.grad.any()


def test_padding_changes_nothing(make_trajectory, tiny_model) -> None:  # type: ignore[no-untyped-def]
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    rows: list[Example] = []
    for k, answers in enumerate([("1",), ("1", "2", "33"), ("4", "5")]):
        rows += rows_of(make_trajectory("t", k, answers), [0.5 + k] * len(answers), normalization="mean")

    def loss(chosen: list[Example]) -> torch.Tensor:
        batch = padded_batch(chosen)
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        return weighted_loss(logits, batch.input_ids, batch.weight, 3)

    together = loss(rows)
    separate = sum(loss([row]).item() for row in rows)
    assert together.item() == pytest.approx(separate, rel=1e-5)


def test_uniform_weights_are_plain_fine_tuning(make_trajectory, tiny_model) -> None:  # type: ignore[no-untyped-def]
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    rows = [rows_of(make_trajectory("t", k, ("1", "2")), [1.0, 1.0], normalization="sum")[0] for k in range(3)]
    batch = padded_batch(rows)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}

    weighted_loss(model(**inputs).logits, batch.input_ids, batch.weight, 3).backward()
    ours = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    # The library's own supervised loss: a sum over labels, divided by the number it is told.
    labels = torch.where(batch.weight != 0, batch.input_ids, -100)
    model(**inputs, labels=labels, num_items_in_batch=3).loss.backward()
    for mine, parameter in zip(ours, model.parameters(), strict=True):
        assert torch.allclose(mine, parameter.grad, rtol=1e-5, atol=1e-7)
