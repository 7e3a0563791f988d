import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from drift.training import divergence
from drift.training.divergence import estimated_kl, exact_kl, sampled_logprobs
from drift.types import Example


def model_of(folder: Path, noise: float = 0.0, seed: int = 1):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += noise * torch.randn_like(parameter)
    return model


def rows(count: int = 5) -> list[Example]:
    """Conversations of two replies with something between; a first token that is marked can't count."""
    rng = random.Random(2)
    made = []
    for n in range(count):
        lengths = [rng.randint(1, 6) for _ in range(4)]
        sampled = [n == 1] * lengths[0] + [True] * lengths[1] + [False] * lengths[2] + [True] * lengths[3]
        ids = tuple(rng.randrange(8, 300) for _ in sampled)
        made.append(
            Example(trajectory_id=str(n), group_id="g", token_ids=ids, sampled=tuple(sampled), weight=(1.0,) * len(ids))
        )
    return made


def naive_distributions(model, row):
    """(log-probabilities over the vocabulary, id) of each sampled token, each prefix on its own."""
    for at in range(1, len(row.token_ids)):
        if row.sampled[at]:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([row.token_ids[:at]])).logits[0, -1]
            yield torch.log_softmax(logits, -1).numpy(), row.token_ids[at]


@pytest.mark.parametrize("budget", [divergence.BUDGET, 1])
def test_both_match_a_loop_over_prefixes_in_batches_and_alone(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    monkeypatch.setattr(divergence, "BUDGET", budget)
    p, q = model_of(tiny_model), model_of(tiny_model, 0.05)
    kl_R, tokens_R = exact_kl(p, q, rows())
    logs = sampled_logprobs(q, rows())
    for at, row in enumerate(rows()):
        ours, theirs = list(naive_distributions(p, row)), list(naive_distributions(q, row))
        expected = sum(
            float(np.sum(np.exp(one) * (one - other))) for (one, _), (other, _) in zip(ours, theirs, strict=True)
        )
        # The logits are taken in float32.
        assert kl_R[at] == pytest.approx(expected, rel=1e-4) and expected > 0.01
        assert tokens_R[at] == len(ours)
        assert logs[at] == pytest.approx([log[token] for log, token in theirs], rel=1e-5)


def test_a_model_is_nowhere_from_itself(tiny_model: Path) -> None:
    p = model_of(tiny_model)
    assert exact_kl(p, p, rows())[0] == pytest.approx(np.zeros(5), abs=1e-9)
    logs = sampled_logprobs(p, rows())
    assert estimated_kl(logs, logs) == 0.0


def test_the_estimate_is_without_bias_over_all_that_could_be_sampled(tiny_model: Path) -> None:
    p, q = model_of(tiny_model), model_of(tiny_model, 0.05)
    prompt = (9, 20, 31)
    # Every reply of one token, weighed by its chance: the mean of the estimate is the sum over the vocabulary.
    every = [
        Example(
            trajectory_id=str(v),
            group_id="g",
            token_ids=(*prompt, v),
            sampled=(False,) * 3 + (True,),
            weight=(0.0,) * 3 + (1.0,),
        )
        for v in range(304)
    ]
    ours, theirs = sampled_logprobs(p, every), sampled_logprobs(q, every)
    mean = sum(float(np.exp(one[0])) * estimated_kl([one], [other]) for one, other in zip(ours, theirs, strict=True))
    assert mean == pytest.approx(exact_kl(p, q, every[:1])[0][0], rel=1e-4)
    assert all(estimated_kl([one], [other]) >= 0 for one, other in zip(ours, theirs, strict=True))


def test_the_estimate_by_hand() -> None:
    # Two conversations: ratios 2 and 1/2 in the first, 1 in the second.
    base = [np.log([0.2, 0.4]), np.log([0.3])]
    tuned = [np.log([0.4, 0.2]), np.log([0.3])]
    first = (2 - 1 - np.log(2)) + (0.5 - 1 + np.log(2))
    assert estimated_kl(base, tuned) == pytest.approx(first / 2, rel=1e-12)
    assert estimated_kl([np.log([0.5])], [np.array([-np.inf])]) == np.inf


def test_tokens_that_the_first_model_never_says_add_nothing(tiny_model: Path) -> None:
    p, q = model_of(tiny_model), model_of(tiny_model)
    for model, low in ((p, float("-inf")), (q, -5.0)):
        head = model.get_output_embeddings()
        bias = torch.zeros(304, dtype=torch.float64)
        bias[7] = low
        plain = head.forward
        head.forward = lambda hidden, plain=plain, bias=bias: plain(hidden) + bias
    kl_R, _ = exact_kl(p, q, rows())
    assert np.isfinite(kl_R).all() and (kl_R > 0).any()
