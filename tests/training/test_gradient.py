"""The gradient of a real training step against the formula, by a plain model of transformers, reply by reply.

A step has the gradient ``Σ_rows factor/divisor Σ_t w_t ∇(−log p(reply_t | prompt_t))``; over all rows that is the mean
over all weighed conversations. It is read from the optimizer's first moment, in the checkpoints of a run whose rate is
too small to move a parameter.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from drift.api import train, weigh
from drift.dataset.store import TrajectoryWriter
from drift.errors import DatasetError, TrainingError
from drift.manifest import read_manifest
from drift.policies.fingerprint import fingerprint
from drift.policies.hf import load_model
from drift.training.plan import PlanOptions, Rows, plan_steps, steps_per_pass
from drift.types import Completion, Step, Trajectory, Turn

Weights = Mapping[str, Sequence[float]]
KEEP_ALL = [{"skip_small": None}]
UNBOUNDED = [{"bound_negative": None}, {"skip_small": None}]
CHAINS: dict[str, dict[str, Any]] = {
    "terminal": {"scheme": "drift", "beta": 0.5, "turns": "terminal", "steps": KEEP_ALL},
    "all": {"scheme": "refit", "repetition": 0.0, "outcome": "reward", "steps": KEEP_ALL},
    "first": {"scheme": "bolt", "beta": 0.5, "steps": KEEP_ALL},
    "credited": {"scheme": "drift", "beta": 0.5, "turns": {"credited": -0.3}, "steps": UNBOUNDED},
    "negative": {"scheme": "swift", "steps": UNBOUNDED},
}


@dataclass(frozen=True)
class Recorded:
    """A data set, and of each reply ``∇(−log p(reply | prompt ids))`` and log p under the tiny model in float64."""

    folder: Path
    model: Path
    trajectories: dict[str, Trajectory]
    gradients: dict[tuple[str, int], torch.Tensor]
    logprobs: dict[tuple[str, int], list[float]]

    def total(self, coefficients: Mapping[tuple[str, int], float]) -> torch.Tensor:
        """The sum of the replies' gradients, each times its coefficient."""
        return sum(
            (value * self.gradients[reply] for reply, value in coefficients.items() if value),
            start=torch.zeros_like(next(iter(self.gradients.values()))),
        )

    def share(self, name: str, turn: int, normalization: str) -> float:
        """By what a reply's log-likelihood is divided."""
        count = len(self.trajectories[name].turns[turn].completion.token_ids)
        return 1.0 if normalization == "sum" else 1 / max(1, count)


def in_the_optimizers_order(named: Mapping[str, torch.Tensor]) -> list[str]:
    """Parameters with weight decay first, as ``Trainer`` groups them."""
    plain = [name for name in named if "norm" in name or "bias" in name]
    return [name for name in named if name not in plain] + plain


def reply_gradient(model: Any, turn: Turn) -> tuple[torch.Tensor, list[float]]:
    prompt, reply = turn.prompt_ids, turn.completion.token_ids
    ids = torch.tensor([[*prompt, *reply]])
    model.zero_grad()
    logprobs = torch.log_softmax(model(input_ids=ids).logits[0, :-1], -1).gather(-1, ids[0, 1:, None])
    (-logprobs[len(prompt) - 1 :].sum()).backward()
    parameters = dict(model.named_parameters())
    gradient = torch.cat([parameters[name].grad.flatten() for name in in_the_optimizers_order(parameters)])
    return gradient, logprobs[len(prompt) - 1 :].flatten().tolist()


def some_conversations(policy: str) -> list[Trajectory]:
    """Prompts of 2 to 5 conversations of 1 to 3 replies of unequal length, in no order."""
    rng = random.Random(4)

    def some(least: int, most: int) -> tuple[int, ...]:
        return tuple(rng.randrange(8, 300) for _ in range(rng.randint(least, most)))

    made = []
    for prompt, size in enumerate((5, 2, 4, 3, 4, 5)):
        opening = some(20, 30)
        for sample in range(size):
            ids, turns, count = opening, [], rng.randint(1, 3)
            for at in range(count):
                reply, last = some(1, 9), at == count - 1
                # An empty reply trains nothing.
                reply = () if (prompt, sample, at) == (0, 1, 0) else reply
                solved = last and rng.random() < 0.6
                step = Step(
                    messages=() if last else ({"role": "user", "content": "No."},),
                    reward=rng.choice([0.0, 0.25]) + solved,
                    done=last,
                    success=solved,
                    answer=str(rng.randrange(3)),
                )
                completion = Completion(text="x", token_ids=reply, logprobs=None, finish_reason="stop")
                turns.append(Turn(prompt_ids=ids, completion=completion, step=step))
                ids = (*ids, *reply, *some(2, 6))
            made.append(
                Trajectory(
                    id=f"t{prompt}#{sample}",
                    task_id=f"t{prompt}",
                    group_id=f"t{prompt}",
                    sample=sample,
                    policy=policy,
                    seed=1,
                    messages=({"role": "user", "content": "?"},),
                    turns=tuple(turns),
                    stop_reason="success" if turns[-1].step.success else "turns",
                )
            )
    # One whose template rewrote what was said before, and one that failed.
    at = next(at for at, each in enumerate(made) if len(each.turns) == 3)
    first, second, third = made[at].turns
    second = replace(second, prompt_ids=(*first.prompt_ids, *some(3, 3)))
    third = replace(third, prompt_ids=(*second.prompt_ids, *second.completion.token_ids, *some(2, 2)))
    made[at] = replace(made[at], turns=(first, second, third))
    made.append(replace(made[0], id="t0#9", sample=9, error="it broke", stop_reason="error"))
    return rng.sample(made, len(made))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Recorded:
    folder = tmp_path_factory.mktemp("recorded") / "data"
    made = some_conversations(fingerprint(*load_model(str(tiny_model))))
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    gradients, logprobs, rng = {}, {}, random.Random(8)
    for place, each in enumerate(made):
        turns = list(each.turns)
        for at, turn in enumerate(turns):
            if turn.completion.token_ids:
                gradients[each.id, at], logprobs[each.id, at] = reply_gradient(model, turn)
            # The policy that sampled was near the model.
            near = tuple(min(value + rng.gauss(0, 0.2), 0.0) for value in logprobs.get((each.id, at), []))
            turns[at] = replace(turn, completion=replace(turn.completion, logprobs=near))
        made[place] = replace(each, turns=tuple(turns))
    with TrajectoryWriter(folder, {"trajectories": len(made), "policy": made[0].policy}, []) as writer:
        for trajectory in made:
            writer.append(trajectory)
        writer.finish()
    zero = torch.zeros_like(next(iter(gradients.values())))
    for each in made:
        for at in range(len(each.turns)):
            gradients.setdefault((each.id, at), zero)
    return Recorded(folder, tiny_model, {each.id: each for each in made}, gradients, logprobs)


def weights_in(path: Path) -> dict[str, list[float]]:
    table = pq.read_table(path)
    return dict(zip(table.column("id").to_pylist(), table.column("weights").to_pylist(), strict=True))


def weighed(recorded: Recorded, out: Path, chain: str) -> Path:
    weights = weigh(recorded.folder, out=out, **CHAINS[chain])
    values = [value for each in weights_in(weights / "weights.parquet").values() for value in each]
    assert any(value < 0 for value in values) == (chain in ("credited", "negative"))
    return weights


def whole_gradient(recorded: Recorded, weights: Weights, normalization: str) -> torch.Tensor:
    """``(1/N) Σ w_t ∇(−log p(reply_t | prompt_t))``, or of the mean over each reply's tokens."""
    return recorded.total(
        {
            (name, at): weight * recorded.share(name, at, normalization) / len(weights)
            for name, values in weights.items()
            for at, weight in enumerate(values)
        }
    )


# Nothing but the gradient moves a parameter, and each step leaves a checkpoint.
PLAIN = {"weight_decay": 0.0, "max_grad_norm": 0.0, "save_total_limit": 99}


def trained_gradients(recorded: Recorded, weights: Path, out: Path, **settings: Any) -> list[torch.Tensor]:
    """The gradient of each step of a run whose rate is too small for a float32 to change."""
    fixed = {"learning_rate": 1e-30, "save_steps": 1, "arguments": PLAIN}
    train(recorded.folder, weights, out=out, model=str(recorded.model), device="cpu", **{**fixed, **settings})
    steps = read_manifest(out, "model")["steps"]
    shapes = {n: p.shape for n, p in AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).named_parameters()}
    before, gradients = torch.zeros(()), []
    for step in range(1, steps + 1):
        state = torch.load(out / "checkpoints" / f"checkpoint-{step}" / "optimizer.pt", weights_only=True)
        moments = [state["state"][at]["exp_avg"] for group in state["param_groups"] for at in group["params"]]
        ordered = in_the_optimizers_order(shapes)
        assert [moment.shape for moment in moments] == [shapes[name] for name in ordered]
        moment = torch.cat([each.flatten() for each in moments]).double()
        beta = state["param_groups"][0]["betas"][0]
        # m_s = β m_{s−1} + (1 − β) g_s
        gradients.append((moment - beta * before) / (1 - beta))
        before = moment
    return gradients


def difference(gradient: torch.Tensor, expected: torch.Tensor) -> float:
    """As a share of what is expected."""
    assert float(expected.norm()) > 0
    return float((gradient - expected).norm() / expected.norm())


# Plan, tokens of a pass, and whether prefixes are shared.
WAYS = (("balanced", 90, True), ("uniform", 8192, True), ("uniform", 1, True), ("balanced", 90, False))


@pytest.mark.parametrize(
    ("chain", "normalization", "ways"),
    [
        ("negative", "sum", WAYS),
        *((chain, "sum", WAYS[:1]) for chain in CHAINS if chain != "negative"),
        ("negative", "mean", WAYS[1:2]),
        *(pytest.param(chain, kind, WAYS, marks=pytest.mark.slow) for chain in CHAINS for kind in ("sum", "mean")),
    ],
)
def test_a_step_of_all_rows_has_the_gradient_of_the_weights_in_the_file(
    recorded: Recorded, tmp_path: Path, chain: str, normalization: str, ways: Sequence[tuple[str, int, bool]]
) -> None:
    weights = weighed(recorded, tmp_path / "weights", chain)
    values = weights_in(weights / "weights.parquet")
    # Those that failed are not weighed; those of weight 0 count in the mean.
    assert values.keys() == {name for name, each in recorded.trajectories.items() if each.error is None}
    expected = whole_gradient(recorded, values, normalization)
    for plan, tokens, share in ways:
        (gradient,) = trained_gradients(
            recorded,
            weights,
            tmp_path / f"{plan}-{tokens}-{share}",
            plan=plan,
            tokens_per_batch=tokens,
            attention="auto" if share else "sdpa",
            batch_size=1000,
            max_steps=1,
            normalization=normalization,
        )
        assert difference(gradient, expected) < 1e-5, (plan, tokens, share)


def rows_by_hand(recorded: Recorded, weights: Weights) -> list[list[tuple[str, int]]]:
    """The replies of each row, rows by id: a prompt that is not what was seen and said before begins another."""
    rows = []
    for name in sorted(weights):
        parts: list[list[tuple[str, int]]] = []
        seen: tuple[int, ...] | None = None
        for at, turn in enumerate(recorded.trajectories[name].turns):
            if not turn.completion.token_ids:
                continue
            if seen is None or turn.prompt_ids[: len(seen)] != seen:
                parts.append([])
            parts[-1].append((name, at))
            seen = (*turn.prompt_ids, *turn.completion.token_ids)
        rows += [part for part in parts if any(weights[reply][at] for reply, at in part)]
    return rows


def planned_gradients(
    recorded: Recorded, weights: Weights, steps: int, plan: str, batch_size: int
) -> tuple[list[torch.Tensor], int]:
    """The gradient of each step from the plan's factors, and how many steps a pass has."""
    rows = rows_by_hand(recorded, weights)
    facts = Rows(
        group_N=np.array([int(row[0][0][1]) for row in rows]),
        length_N=np.ones(len(rows), np.int64),
        mass_N=np.array([max(abs(weights[name][at]) for name, at in row) for row in rows]),
    )
    options = PlanOptions(plan=plan, batch_size=batch_size, conversations=len(weights), together=1, ranks=1, seed=1)
    found = []
    for step in plan_steps(facts, steps, options):
        coefficients = {
            (name, at): weights[name][at] * factor / step.divisor
            for index, factor in zip(step.ranks[0].tolist(), step.factors[0].tolist(), strict=True)
            for name, at in rows[index]
        }
        found.append(recorded.total(coefficients))
    assert len(found) == steps
    return found, int(steps_per_pass(facts, options))


STEPS: dict[str, Any] = {"batch_size": 6, "rows_together": 1, "tokens_per_batch": 150, "max_steps": 5, "warmup": 0.5}


@pytest.mark.parametrize("chain", [pytest.param("terminal", marks=pytest.mark.slow), "negative"])
@pytest.mark.parametrize("plan", ["uniform", "balanced", "drawn"])
def test_every_step_has_the_gradient_of_its_rows_and_factors(
    recorded: Recorded, tmp_path: Path, plan: str, chain: str
) -> None:
    weights = weighed(recorded, tmp_path / "weights", chain)
    values = weights_in(weights / "weights.parquet")
    expected, of_pass = planned_gradients(recorded, values, 5, plan, 6)
    found = trained_gradients(recorded, weights, tmp_path / "model", plan=plan, **STEPS)
    for gradient, wanted in zip(found, expected, strict=True):
        assert difference(gradient, wanted) < 1e-5
    # The steps differ, and balanced ones are together the whole of it.
    assert difference(found[0], found[1]) > 0.1
    if plan == "balanced":
        assert 2 <= of_pass <= 5
        whole = sum(found[:of_pass], start=torch.zeros_like(found[0])) / of_pass
        assert difference(whole, whole_gradient(recorded, values, "sum")) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["uniform", "balanced", "drawn"])
def test_two_ranks_have_the_gradient_of_the_plain_sum(recorded: Recorded, tmp_path: Path, plan: str) -> None:
    weights = weighed(recorded, tmp_path / "weights", "negative")
    values = weights_in(weights / "weights.parquet")
    expected, _ = planned_gradients(recorded, values, 3, plan, 6)
    given = {**STEPS, "max_steps": 3, "num_processes": 2}
    found = trained_gradients(recorded, weights, tmp_path / "model", plan=plan, **given)
    assert read_manifest(tmp_path / "model", "model")["ranks"] == 2
    for gradient, wanted in zip(found, expected, strict=True):
        assert difference(gradient, wanted) < 1e-5
    if plan != "drawn":
        given = {**given, "max_steps": 1, "batch_size": 1000}
        (gradient,) = trained_gradients(recorded, weights, tmp_path / "whole", plan=plan, **given)
        assert difference(gradient, whole_gradient(recorded, values, "sum")) < 1e-5


def written(path: Path, weights: Weights) -> Path:
    pq.write_table(
        pa.table({"id": list(weights), "weights": list(weights.values()), "note": ["mine"] * len(weights)}), path
    )
    return path


def test_weights_from_a_file_made_by_anything_are_what_is_trained(
    recorded: Recorded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(6)
    names = sorted(name for name, each in recorded.trajectories.items() if each.error is None)
    left_out, zero, negative = names[3:5], names[7], names[9]
    weights = {
        name: [rng.choice([-0.5, 0.0, 1.0, 3.0]) for _ in recorded.trajectories[name].turns]
        for name in names
        if name not in left_out
    }
    weights[zero] = [0.0] * len(weights[zero])
    weights[negative] = [-1.0] * len(weights[negative])
    # Conversations that the data set does not have are nobody's, which is said.
    path = written(tmp_path / "mine.parquet", {**weights, "elsewhere#0": [9.0, 9.0]})
    (gradient,) = trained_gradients(recorded, path, tmp_path / "model", plan="balanced", batch_size=1000, max_steps=1)
    assert difference(gradient, whole_gradient(recorded, weights, "sum")) < 1e-5
    manifest = read_manifest(tmp_path / "model", "model")
    assert f"1 of {len(weights) + 1} weights are of conversations that" in capsys.readouterr().err
    assert manifest["weights"] == {"file": "mine.parquet"}
    without = sum(not any(values) for values in weights.values())
    assert manifest["counts"] == {
        "conversations": len(weights),
        "rows": len(rows_by_hand(recorded, weights)),
        # Those left out, and the one that failed.
        "skipped_unweighted": len(left_out) + 1,
        "skipped_zero_weight": without,
        "skipped_too_long": 0,
    }
    # The same numbers from the same file are the same run; others are another.
    base = {"model": str(recorded.model), "device": "cpu", "out": tmp_path / "model"}
    settings = {"plan": "balanced", "batch_size": 1000, "max_steps": 1, "learning_rate": 1e-30, "save_steps": 1}
    settings |= {"arguments": PLAIN}
    train(recorded.folder, path, **base, **settings)
    written(path, {**weights, negative: [-0.9] * len(weights[negative])})
    with pytest.raises(DatasetError, match="holds the training of another run: weights_hash"):
        train(recorded.folder, path, **base, **settings)


def test_a_file_that_does_not_fit_the_data_is_refused(recorded: Recorded, tmp_path: Path) -> None:
    names = sorted(name for name, each in recorded.trajectories.items() if each.error is None)
    weights = {name: [1.0] * len(recorded.trajectories[name].turns) for name in names}
    wrong = names[5]
    replies = len(weights[wrong])
    given: dict[str, Any] = {"model": str(recorded.model), "device": "cpu", "max_steps": 1, "out": tmp_path / "model"}
    for count in (replies + 1, replies - 1):
        path = written(tmp_path / "wrong.parquet", {**weights, wrong: [1.0] * count})
        with pytest.raises(DatasetError, match=f"conversation '{wrong}' has {replies} replies and {count} weights"):
            train(recorded.folder, path, **given)
    path = written(tmp_path / "others.parquet", {"elsewhere#0": [1.0]})
    with pytest.raises(TrainingError, match=r"no rows to train on.*'skipped_unweighted': 24"):
        train(recorded.folder, path, **given)
    assert not (tmp_path / "model" / "manifest.json").exists()


def coefficients(recorded: Recorded, weights: Weights, loss: str) -> dict[tuple[str, int], float]:
    """What each reply's gradient of −log p counts under ``loss``, from the log-probabilities in the data."""

    def gap(name: str, at: int) -> float:
        base = recorded.trajectories[name].turns[at].completion.logprobs or ()
        return math.fsum(recorded.logprobs.get((name, at), [])) - math.fsum(base)

    found = {(name, at): weight for name, values in weights.items() for at, weight in enumerate(values) if weight}
    if loss == "tapered":
        return {reply: w * (min(1.0, math.exp(gap(*reply))) if w < 0 else 1.0) for reply, w in found.items()}
    # d/dθ (Σ gap − log w)² = −2 (Σ gap − log w) Σ ∇(−log p)
    off = {n: math.fsum(gap(n, at) for at, w in enumerate(ws) if w) - math.log(max(ws)) for n, ws in weights.items()}
    return {(name, at): -2 * off[name] for name, at in found}


@pytest.mark.parametrize(
    ("loss", "settings"),
    [
        ("tapered", {"plan": "uniform"}),
        ("advantage_regression", {"plan": "drawn", "attention": "sdpa"}),
        pytest.param("tapered", {"plan": "balanced", "num_processes": 2}, marks=pytest.mark.slow),
        pytest.param("advantage_regression", {"plan": "uniform", "num_processes": 2}, marks=pytest.mark.slow),
    ],
)
def test_a_step_has_the_gradient_of_the_loss_over_passes_and_ranks(
    recorded: Recorded, tmp_path: Path, loss: str, settings: dict[str, Any]
) -> None:
    rng = random.Random(9)
    weights: dict[str, list[float]] = {}
    for name, each in recorded.trajectories.items():
        if each.error is None:
            values = [rng.choice([-1.0, -0.4, 0.5, 2.0]) for _ in each.turns]
            rewritten = len(rows_by_hand(recorded, {name: values})) > 1
            terminal = [0.0] * (len(values) - 1)
            regressed = [*terminal, 0.7] if rewritten else [rng.choice([0.2, 1.0, 3.0])] * len(values)
            weights[name] = values if loss == "tapered" else regressed
    path = written(tmp_path / "weights.parquet", weights)
    given = {"tokens_per_batch": 90, "batch_size": 1000, "max_steps": 1, **settings}
    (gradient,) = trained_gradients(recorded, path, tmp_path / "model", loss=loss, **given)
    wanted = {reply: value / len(weights) for reply, value in coefficients(recorded, weights, loss).items()}
    assert difference(gradient, recorded.total(wanted)) < 1e-4
    assert difference(gradient, whole_gradient(recorded, weights, "sum")) > 0.05
    assert read_manifest(tmp_path / "model", "model")["spec"]["config"]["loss"] == loss
