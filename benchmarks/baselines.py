"""How near weights of a log come to the best policy, for each baseline at one conversation a prompt, beside K = 4.

    python benchmarks/baselines.py [--seeds 10] [--conversations 1200]

The log is simulated, so that the best policy is known. Prompts are of twelve kinds (four topics, three levels), a
policy picks one of six replies to each kind, and a rating adds up what the prompt is worth (most of it told by its
words), what the reply is worth to its kind, and noise. What is trained is a table of logits, from those of the policy
that was logged, by gradient descent on the weighted loss. The figure is the share of the way from its value to that of
the best policy, mean and standard error over seeds. The last line is JSON with every figure.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift.dataset.outcomes import Outcomes, outcomes
from drift.types import Completion, Message, Step, Trajectory, Turn
from drift.weights.config import WeightConfig
from drift.weights.stage import compute_weights

Floats = NDArray[np.float64]
TOPICS, LEVELS, REPLIES = 4, 3, 6
STEPS, RATE = 300, 10.0
BASELINES: dict[str, Any] = {
    "dataset": "dataset",
    "leave_one_out": "leave_one_out",
    "column": {"column": "level"},
    "fitted": "fitted",
}
SCHEMES: dict[str, dict[str, Any]] = {
    "swift": {"scheme": "swift"},
    "swift, negatives unbounded": {"scheme": "swift", "steps": [{"bound_negative": 1.0}]},
    "drift": {"scheme": "drift", "beta": 0.5},
    "awr": {"scheme": "awr", "beta": 0.5},
}


@dataclass(frozen=True, kw_only=True)
class World:
    """What is true: the worth of each reply to each kind of prompt, ``(C, A)``, and the logged policy's logits."""

    worth_CA: Floats
    logits_CA: Floats
    level_L: Floats
    topic_T: Floats

    @classmethod
    def drawn(cls, random: np.random.Generator) -> World:
        """One at random."""
        cells = TOPICS * LEVELS
        return cls(
            worth_CA=random.normal(0, 0.5, (cells, REPLIES)),
            logits_CA=random.normal(0, 1, (cells, REPLIES)),
            level_L=np.array([-1.5, 0.0, 1.5]),
            topic_T=random.normal(0, 0.5, TOPICS),
        )

    def value(self, logits_CA: Floats) -> float:
        """The mean worth of the replies of a policy."""
        return float((softmax(logits_CA) * self.worth_CA).sum(axis=1).mean())

    def regained(self, logits_CA: Floats) -> float:
        """The share of the way from the logged policy to the best one."""
        before, best = self.value(self.logits_CA), float(self.worth_CA.max(axis=1).mean())
        return (self.value(logits_CA) - before) / (best - before)


def softmax(logits_CA: Floats) -> Floats:
    """Rows of probabilities."""
    raised = np.exp(logits_CA - logits_CA.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def log_of(world: World, random: np.random.Generator, prompts: int, samples: int) -> tuple[Outcomes, Any, Any]:
    """Rated conversations of the logged policy; the kind of each, and the reply."""
    made: list[Trajectory] = []
    cells, replies = [], []
    chances_CA = softmax(world.logits_CA)
    for prompt in range(prompts):
        topic, level = int(random.integers(TOPICS)), int(random.integers(LEVELS))
        cell = topic * LEVELS + level
        filler = " ".join(f"word{word}" for word in random.integers(0, 200, 8))
        worth = 3 + world.level_L[level] + world.topic_T[topic] + random.normal(0, 0.5)
        for sample in range(samples):
            reply = int(random.choice(REPLIES, p=chances_CA[cell]))
            rating = worth + world.worth_CA[cell, reply] + random.normal(0, 0.5)
            cells.append(cell)
            replies.append(reply)
            made.append(conversation(f"p{prompt}", sample, f"topic{topic} level{level} {filler}", rating, level))
    return outcomes(made, words=True, notes=("level",)), np.array(cells), np.array(replies)


def conversation(prompt: str, sample: int, text: str, rating: float, level: int) -> Trajectory:
    """One of one turn, as an import makes it."""
    opening: Message = {"role": "user", "content": text}
    step = Step(messages=(), reward=rating, done=True, success=None, answer=None, info={"level": level}, graded=False)
    completion = Completion(text="reply", token_ids=(1,), logprobs=None, finish_reason="stop")
    return Trajectory(
        id=f"{prompt}#{sample}",
        task_id=prompt,
        group_id=prompt,
        sample=sample,
        policy="logged",
        seed=0,
        messages=(opening, {"role": "assistant", "content": "reply"}),
        turns=(Turn(prompt_ids=(1,), completion=completion, step=step),),
        stop_reason="turns",
    )


def trained(world: World, weights_N: Floats, cell_N: Any, reply_N: Any) -> Floats:
    """Logits after gradient descent on ``−(1/N) Σ w log p``."""
    logits_CA, mass_CA = world.logits_CA.copy(), np.zeros_like(world.logits_CA)
    np.add.at(mass_CA, (cell_N, reply_N), weights_N / len(weights_N))
    for _ in range(STEPS):
        logits_CA += RATE * (mass_CA - mass_CA.sum(axis=1, keepdims=True) * softmax(logits_CA))
    return logits_CA


def measure(seed: int, conversations: int) -> dict[str, float]:
    """The share regained of each scheme with each baseline, in one world."""
    random = np.random.default_rng(seed)
    world, found = World.drawn(random), {}
    single, grouped = (log_of(world, random, conversations // samples, samples) for samples in (1, 4))
    plans: Mapping[str, tuple[Any, Any]] = {
        **{f"K=1 {name}": (single, baseline) for name, baseline in BASELINES.items()},
        "K=4 task": (grouped, "task"),
        "K=4 leave_one_out": (grouped, "leave_one_out"),
        "K=4 fitted": (grouped, "fitted"),
    }
    for scheme, settings in SCHEMES.items():
        for name, ((log, cell_N, reply_N), baseline) in plans.items():
            weights = compute_weights(log, WeightConfig(outcome="reward", baseline=baseline, **settings))
            found[f"{scheme}: {name}"] = world.regained(trained(world, weights.weights_T, cell_N, reply_N))
    plain = compute_weights(single[0], WeightConfig(scheme="sft")).weights_T
    found["sft: K=1"] = world.regained(trained(world, plain, *single[1:]))
    return found


def main() -> None:
    """Print a table, and every figure as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--conversations", type=int, default=1200)
    given = parser.parse_args()
    runs = [measure(seed, given.conversations) for seed in range(given.seeds)]
    figures = {name: [run[name] for run in runs] for name in runs[0]}
    for name, values in figures.items():
        error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
        print(f"{name:50} {np.mean(values):6.1%} ± {error:.1%}")
    print(json.dumps({name: [round(value, 4) for value in values] for name, values in figures.items()}))


if __name__ == "__main__":
    main()
