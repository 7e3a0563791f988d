"""What is measured, each as a ratio of two sums per prompt, so that one bootstrap serves them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drift.types import Trajectory

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A metric ``Σ_P numerator / Σ_P denominator`` over prompts P; both arrays ``(P,)``."""

    numerator_P: Floats
    denominator_P: Floats


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Conversations as arrays, those that failed left out.

    Attributes:
        prompts: the task ids, sorted; P of them.
        prompt_N: ``(N,)`` index of each conversation's prompt.
        solved_at_N: ``(N,)`` turn of the first success, from 1; 0 if there was none.
        turns_N: ``(N,)`` number of turns L.
        distinct_N: ``(N,)`` number of distinct answers E.
        failures_N: ``(N,)`` replies without a readable answer.
        tokens_N: ``(N,)`` tokens sampled; −1 where the policy told none.
        excluded: conversations that failed.
    """

    prompts: tuple[str, ...]
    prompt_N: NDArray[np.int64]
    solved_at_N: NDArray[np.int64]
    turns_N: NDArray[np.int64]
    distinct_N: NDArray[np.int64]
    failures_N: NDArray[np.int64]
    tokens_N: NDArray[np.int64]
    excluded: int


def runs_of(trajectories: Sequence[Trajectory]) -> Runs:
    """Read the arrays off trajectories."""
    kept = [t for t in trajectories if t.error is None and t.turns]
    prompts = tuple(sorted({t.task_id for t in kept}))
    index = {prompt: i for i, prompt in enumerate(prompts)}
    answers = [[turn.step.answer for turn in t.turns if turn.step.answer is not None] for t in kept]
    solved = [next((at for at, turn in enumerate(t.turns, 1) if turn.step.success), 0) for t in kept]
    return Runs(
        prompts=prompts,
        prompt_N=np.array([index[t.task_id] for t in kept], np.int64),
        solved_at_N=np.array(solved, np.int64),
        turns_N=np.array([len(t.turns) for t in kept], np.int64),
        distinct_N=np.array([len(set(given)) for given in answers], np.int64),
        failures_N=np.array([len(t.turns) - len(given) for t, given in zip(kept, answers, strict=True)], np.int64),
        tokens_N=np.array([-1 if t.tokens_sampled is None else t.tokens_sampled for t in kept], np.int64),
        excluded=len(trajectories) - len(kept),
    )


def metrics(runs: Runs, max_turns: int) -> dict[str, Ratio]:
    """Every metric by name (docs/artifacts.md).

    ``multi@k``
        share solved within k turns, ``(1/N) Σ_i max_{t≤k} V(y_{i,t})`` (DRIFT Eq. 21).
    ``accuracy@t``
        share right at turn t, of those that were still unsolved and got there.
    ``corrected@t``
        share solved by turn t, of those wrong at turn 1 (t ≥ 2).
    ``turns_to_success``, ``turns``
        mean turn of the first success, of those solved; mean number of turns.
    ``distinct_answers``
        mean E/L of conversations of two turns or more; 1 means nothing was repeated.
    ``format_failures``, ``reply_tokens``
        share of replies without a readable answer; tokens per reply.
    """
    count = len(runs.prompts)

    def ratio(numerator_N: NDArray[np.generic], denominator_N: NDArray[np.generic]) -> Ratio:
        top_P, bottom_P = (
            np.bincount(runs.prompt_N, weights=values_N.astype(float), minlength=count).astype(float)
            for values_N in (numerator_N, denominator_N)
        )
        return Ratio(numerator_P=top_P, denominator_P=bottom_P)

    solved, turns = runs.solved_at_N, runs.turns_N
    one_N = np.ones_like(turns)
    found: dict[str, Ratio] = {}
    for k in range(1, max_turns + 1):
        found[f"multi@{k}"] = ratio((solved > 0) & (solved <= k), one_N)
    for t in range(1, max_turns + 1):
        reached_N = (turns >= t) & ((solved == 0) | (solved >= t))
        found[f"accuracy@{t}"] = ratio(solved == t, reached_N)
    for t in range(2, max_turns + 1):
        found[f"corrected@{t}"] = ratio((solved > 1) & (solved <= t), solved != 1)
    found["turns_to_success"] = ratio(solved, solved > 0)
    found["turns"] = ratio(turns, one_N)
    found["distinct_answers"] = ratio(np.where(turns > 1, runs.distinct_N / turns, 0.0), turns > 1)
    found["format_failures"] = ratio(runs.failures_N, turns)
    found["reply_tokens"] = ratio(np.maximum(runs.tokens_N, 0), np.where(runs.tokens_N < 0, 0, turns))
    return found
