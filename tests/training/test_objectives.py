"""Losses beside the weighted NLL: their gradients against plain loops, where they lead, and what they refuse."""

import itertools
import math
import random
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from drift.errors import ConfigError, DatasetError
from drift.registry import data_of
from drift.training.config import TrainingConfig
from drift.training.examples import build_examples
from drift.training.forward import padded_batch, tree_batch, use_trees, use_weighted_loss
from drift.training.objectives import find_loss, token_kl
from drift.training.plan import pack, pack_padded
from drift.types import Completion, Step, Trajectory, Turn
from drift.weights.schemes import drift_weights

VOCABULARY = 61
LOSSES: list[Any] = [
    "nll", "tapered", {"importance": 1.2}, "token_probability", {"anchored": 0.3}, {"nll_kl": {"kl": 30.0}},
    "advantage_regression",
]  # fmt: skip


def make_model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=128, initializer_range=0.4, attn_implementation="eager",
    )  # fmt: skip
    return LlamaForCausalLM(config).double()


@dataclass(frozen=True)
class Reply:
    """A reply with log μ of its tokens, and the weight it has."""

    conversation: str
    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    base: tuple[float, ...]
    weight: float

    def logprobs(self, model: Any) -> torch.Tensor:
        logits = model(input_ids=torch.tensor([[*self.prompt, *self.ids]])).logits[0, len(self.prompt) - 1 : -1]
        return torch.log_softmax(logits, -1).gather(-1, torch.tensor(self.ids)[:, None]).flatten()


def some_replies(model: Any, signed: bool) -> list[Reply]:
    """Four conversations that share their opening, two of them a first reply, two the begin of one; μ is near π."""
    rng = random.Random(5)

    def some(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, VOCABULARY) for _ in range(count))

    opening, begin, first, feedback = some(20), some(3), some(5), some(4)
    replies = []
    for number, said in enumerate([(first, some(4)), (first, some(2)), (begin + some(2), some(5)), (begin + some(4),)]):
        prompt = opening
        for at, ids in enumerate(said):
            weight = (0.7, 2.0, 0.4, 1.5)[number] * (-1 if signed and number in (0, 3) else 1)
            reply = Reply(str(number), prompt, ids, (0.0,), 0.0 if (number, at) == (1, 0) else weight)
            exact = reply.logprobs(model).tolist()
            replies.append(replace(reply, base=tuple(min(value + rng.gauss(0, 0.3), -1e-3) for value in exact)))
            prompt = prompt + ids + feedback
    return replies


def as_trajectories(replies: list[Reply]) -> tuple[list[Trajectory], dict[str, list[float]]]:
    step = Step(messages=(), reward=0.0, done=True, success=False, answer=None)
    made, weights = [], {}
    for name, group in itertools.groupby(replies, key=lambda reply: reply.conversation):
        own = list(group)
        turns = [
            Turn(
                prompt_ids=each.prompt,
                completion=Completion(text="", token_ids=each.ids, logprobs=each.base, finish_reason="stop"),
                step=step,
            )
            for each in own
        ]
        made.append(
            Trajectory(
                id=name, task_id="t", group_id="t", sample=int(name), policy="p", seed=1, messages=(),
                turns=tuple(turns), stop_reason="turns",
            )
        )  # fmt: skip
        weights[name] = [each.weight for each in own]
    return made, weights


def by_a_loop(model: Any, replies: list[Reply], loss: Any, normalization: str) -> torch.Tensor:
    """Each formula, token by token, every reply computed for itself. Llama rounds to 32 bits on its way, also here."""
    name, setting = (loss, 0.0) if isinstance(loss, str) else next(iter(loss.items()))
    setting = setting["kl"] if isinstance(setting, dict) else setting
    total = torch.zeros((), dtype=torch.float64)
    whole: dict[str, Any] = {}
    for reply in replies:
        if not reply.weight:
            continue
        logp = reply.logprobs(model)
        gap = sum(value - base for value, base in zip(logp.tolist(), reply.base, strict=True))
        if name == "advantage_regression":
            so_far = whole.get(reply.conversation, -math.log(reply.weight))
            whole[reply.conversation] = so_far + logp.sum() - sum(reply.base)
            continue
        weight = reply.weight / (len(reply.ids) if normalization == "mean" else 1)
        for value, base in zip(logp, reply.base, strict=True):
            factor = {
                "tapered": min(1.0, math.exp(gap)) if weight < 0 else 1.0,
                "importance": min(setting, math.exp(gap)),
                "token_probability": math.exp(value.item()),
                "anchored": math.exp(value.item()),
            }.get(name, 1.0)
            total = total - weight * factor * value
            if name in ("anchored", "nll_kl"):
                mu, pi = math.exp(base), value.exp()
                kl = mu * torch.log(mu / pi) + (1 - mu) * torch.log((1 - mu) / (1 - pi))
                total = total + setting * abs(weight) * kl
    return total + sum(gap**2 for gap in whole.values())


def gradient(model: Any) -> torch.Tensor:
    found = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    model.zero_grad()
    return found


@pytest.mark.parametrize("normalization", ["sum", "mean"])
@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_trees_and_padded_rows_have_the_gradient_of_the_formula(loss: Any, normalization: str) -> None:
    regression = loss == "advantage_regression"
    if regression and normalization == "mean":
        with pytest.raises(ConfigError, match=r"training\.normalization: got 'mean', expected sum with the loss adv"):
            TrainingConfig(loss=loss, normalization="mean")
        return
    model = make_model()
    replies = some_replies(model, signed=not regression)
    expected = by_a_loop(model, replies, loss, normalization)
    expected.backward()
    wanted = gradient(model)
    trajectories, weights = as_trajectories(replies)
    rows = list(
        build_examples(
            trajectories, weights, Counter(), normalization=normalization, max_length=None, loss=find_loss(loss)
        )
    )
    use_weighted_loss(model, find_loss(loss))
    for trees, tokens in [(True, 999), (True, 45), (False, 999), (False, 70)]:
        use_trees(model, trees)
        batches = [tree_batch(tree) for tree in pack(rows, tokens)] if trees else []
        batches += [] if trees else [padded_batch([rows[at] for at in part]) for part in pack_padded(rows, tokens)]
        assert (len(batches) > 1) == (tokens < 999)
        losses = [model(batch=batch) for batch in batches]
        for each in losses:
            each.backward()
        use_trees(model, False)
        assert sum(each.item() for each in losses) == pytest.approx(expected.item(), rel=1e-5), (trees, tokens)
        found = gradient(model)
        assert float((found - wanted).norm() / wanted.norm()) < 1e-5, (trees, tokens)
    # The test would be empty if it were the gradient of another loss.
    by_a_loop(model, replies, "tapered" if loss == "nll" else "nll", normalization).backward()
    assert float((gradient(model) - wanted).norm() / wanted.norm()) > 0.01


# --- where they lead: replies of one token, all of them listed, μ in exact proportion -------------------------------

MU = np.array([0.5, 0.3, 0.15, 0.05])


def limit(loss: Any, weights: np.ndarray, mu: np.ndarray = MU, steps: int = 500, rate: float = 4.0) -> np.ndarray:
    """Where gradient descent on ``E_μ[loss]`` ends; the policy has a logit for each reply, and begins at μ."""
    found = find_loss(loss)
    logits_A = torch.tensor(np.log(mu)).requires_grad_()
    given = {"base_T": torch.tensor(np.log(mu)), "reply_T": torch.arange(len(mu))}
    weight_T = torch.tensor(mu * weights)
    if loss == "advantage_regression":
        given["base_T"], weight_T = given["base_T"] + torch.tensor(np.log(weights)), torch.tensor(mu)
    asked = {name: given[name] for name in data_of(found.function)}
    for _ in range(steps):
        (slope,) = torch.autograd.grad(
            found.function(torch.log_softmax(logits_A, 0), weight_T, **asked, **found.settings), logits_A
        )
        with torch.no_grad():
            logits_A -= rate * slope
    return torch.softmax(logits_A.detach(), 0).numpy()


def test_tapered_ends_where_its_positive_weights_lead_and_plain_nll_nowhere() -> None:
    weights = np.array([-1.0, 2.0, 1.0, -3.0])
    positive = MU * np.maximum(weights, 0)
    reached = limit("tapered", weights)
    assert np.abs(reached - positive / positive.sum()).max() < 1e-3
    # The nats by which a reply of negative weight is pushed away: fewer and fewer in one, ever as many in the other.
    pushed = {
        loss: [-np.log(limit(loss, weights, steps=at, rate=1)[0]) for at in (50, 100, 150)] for loss in LOSSES[:2]
    }
    assert np.diff(pushed["tapered"]).max() < 1 and np.diff(pushed["nll"]).min() > 20


def test_tapered_unlearns_what_plain_nll_of_successes_leaves_behind() -> None:
    # Two failures as likely; one is pushed away, the other is not told of.
    weights, mu = np.array([1.0, -1.0, 0.0]), np.array([0.2, 0.4, 0.4])
    reached, without = (
        limit(loss, each, mu, steps=10) for loss, each in [("tapered", weights), ("nll", np.maximum(weights, 0))]
    )
    assert reached[1] < reached[2] and without[1] == pytest.approx(without[2], rel=1e-9)
    assert reached[0] > without[0] + 0.03


def test_importance_is_the_policy_gradient_until_it_is_clipped() -> None:
    weights = np.array([0.0, 1.0, 1.5, 0.5])
    assert limit({"importance": 1e9}, weights)[2] > 0.99
    # Past the clip a reply counts c μ w: π = c μ w / C for those with w > C, where C makes the sum 1.
    reached = limit({"importance": 1.5}, weights)
    kept = MU * weights * (weights > 1.5 * (MU * weights)[1:3].sum())
    assert kept.nonzero()[0].tolist() == [1, 2] and np.abs(reached - kept / kept.sum()).max() < 1e-3
    # With equal weights it is indifferent once all of π has one.
    success = np.array([0.0, 1.0, 0.0, 1.0])
    assert limit({"importance": 16.0}, success)[[1, 3]].sum() > 0.99


def test_token_probability_ends_at_the_mode_and_its_anchor_holds_it_back() -> None:
    weights = np.array([0.2, 1.0, 1.5, 0.5])
    assert limit("token_probability", weights).argmax() == 1 == (MU * weights).argmax()
    assert limit("token_probability", weights).max() > 0.995
    mu, weights, kl = np.array([0.7, 0.3]), np.array([0.5, 2.0]), 0.4

    def objective(p: float) -> float:
        pi = np.array([p, 1 - p])
        return float((mu * weights * pi).sum() - kl * (mu * weights).sum() * (mu * np.log(mu / pi)).sum())

    best = max((at / 10_000 for at in range(1, 10_000)), key=objective)
    assert 0.1 < best < 0.6
    assert limit({"anchored": kl}, weights, mu)[0] == pytest.approx(best, abs=1e-3)


def test_nll_with_a_kl_stays_between_the_weights_and_the_policy_that_sampled() -> None:
    mu, weights, kl = np.array([0.7, 0.3]), np.array([0.1, 2.0]), 0.5
    mean = (mu * weights).sum()
    assert limit({"nll_kl": kl}, weights, mu) == pytest.approx(mu * (weights / mean + kl) / (1 + kl), abs=1e-6)


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_advantage_regression_reaches_drifts_optimum(beta: float) -> None:
    returns = np.array([0.0, 1.0, 0.9, -0.25])
    path_N = np.repeat(np.arange(4), np.rint(MU * 20).astype(int))
    weights_N = drift_weights(returns[path_N], np.zeros(len(path_N)), beta=beta)
    weights = np.array([weights_N[path_N == path][0] for path in range(4)])
    optimum = MU * np.exp(returns / beta)
    reached = limit("advantage_regression", weights, rate=0.3)
    assert np.abs(reached - optimum / optimum.sum()).max() < 1e-6
    # β² times it is OAPL's, whose V̂ is β log Ẑ.
    value = beta * math.log((MU * np.exp(returns / beta)).sum())
    assert beta * np.log(weights) == pytest.approx(returns - value, abs=1e-12)


def test_what_one_token_tells_of_the_kl_is_never_more_than_there_is() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        mu, pi = rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(5))
        told = token_kl(torch.tensor(np.log(mu)), torch.tensor(np.log(pi))).numpy()
        assert (told >= 0).all() and told.max() <= (mu * np.log(mu / pi)).sum() + 1e-12
        assert np.abs(token_kl(torch.tensor(np.log(mu)), torch.tensor(np.log(mu))).numpy()).max() < 1e-12
    # A token that is certain makes no infinity, in 32 bits either.
    sure = torch.tensor([0.0, -1e-9, -20.0, 0.0], requires_grad=True)
    told = token_kl(torch.tensor([-0.5, 0.0, 0.0, 0.0]), sure)
    told.sum().backward()
    assert bool(told.isfinite().all()) and sure.grad is not None and bool(sure.grad.isfinite().all())


# --- what they refuse ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        ("taperd", r"unknown loss 'taperd'.*Did you mean 'tapered'"),
        ({"importance": 0}, r"training\.loss\.importance\.clip: got 0, expected a number > 0"),
        ({"importance": {"clop": 3}}, r"unknown setting 'clop' in training\.loss of importance.*'clip'"),
        ({"tapered": 3}, r"training\.loss\.tapered: got 3, expected nothing: it has no settings"),
        (
            "drift.weights.schemes:star_weights",
            r"got 'first_wrong_N, success_N, turns_N', expected no arrays but base_T",
        ),
    ],
    ids=str,
)
def test_a_loss_that_cannot_be_is_refused_with_the_settings(loss: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TrainingConfig(loss=loss)


def test_what_a_conversation_lacks_is_said_with_its_name() -> None:
    replies = some_replies(make_model(), signed=False)
    trajectories, weights = as_trajectories(replies)
    turn = trajectories[2].turns[0]
    unknown = replace(turn, completion=replace(turn.completion, logprobs=None))
    imported = replace(trajectories[2], turns=(unknown, *trajectories[2].turns[1:]))

    def rows(loss: Any, given: list[Trajectory], weights: dict[str, list[float]]) -> int:
        made = build_examples(given, weights, Counter(), normalization="sum", max_length=None, loss=find_loss(loss))
        return len(list(made))

    for loss in LOSSES:
        if loss in ("nll", "token_probability"):
            assert rows(loss, [imported], weights) == 1
            continue
        with pytest.raises(DatasetError, match=r"conversation '2' has no log-probabilities.*nll or token_probability"):
            rows(loss, [imported], weights)
        # What is not trained is not asked for.
        assert rows(loss, [imported], {"2": [0.0, 0.0]}) == 0
    with pytest.raises(DatasetError, match=r"conversation '0' has weights \[0\.5, 0\.7\]; the loss advantage_regress"):
        rows("advantage_regression", trajectories, {**weights, "0": [0.5, 0.7]})
    with pytest.raises(DatasetError, match=r"conversation '0' has weights \[-0\.5\]"):
        rows("advantage_regression", trajectories, {**weights, "0": [-0.5, -0.5]})
    second = trajectories[0].turns[1]
    rewritten = replace(
        trajectories[0], turns=(trajectories[0].turns[0], replace(second, prompt_ids=second.prompt_ids[3:]))
    )
    with pytest.raises(DatasetError, match=r"conversation '0' has 2 rows, as its template rewrites history"):
        rows("advantage_regression", [rewritten], weights)
    assert rows("advantage_regression", [rewritten], {"0": [0.0, 0.7]}) == 1
