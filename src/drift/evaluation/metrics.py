"""What is measured, each as a ratio of two sums per prompt, so that one formula gives their intervals."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drift.evaluation.language import Language, language_of
from drift.types import Trajectory

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A metric ``Σ_P numerator / Σ_P denominator`` over prompts P; both arrays ``(P,)``.

    Attributes:
        numerator_P: of each prompt.
        denominator_P: of each prompt; 0 where there is nothing to measure.
        least: the least value there could be where the largest is 1, as of a share; ``None`` for any other metric.
    """

    numerator_P: Floats
    denominator_P: Floats
    least: float | None = None


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Conversations as arrays, those that failed left out.

    Attributes:
        prompts: the task ids, sorted; P of them.
        prompt_N: ``(N,)`` index of each conversation's prompt.
        solved_at_N: ``(N,)`` turn of the first success, from 1; 0 if there was none.
        turns_N: ``(N,)`` number of turns L.
        graded_NT: ``(N, T)`` whether an answer was asked for at each turn; false after the last one.
        distinct_N: ``(N,)`` number of distinct answers E.
        failures_N: ``(N,)`` replies without a readable answer where one was asked for.
        reward_N: ``(N,)`` sum of the environment's rewards.
        tokens_N: ``(N,)`` tokens sampled; −1 where the policy returned none.
        excluded: conversations that failed, or whose prompt is left out.
        options_P: ``(P,)`` answers each prompt has to choose from; infinity where there is no such number.
        language: what can be said of the replies as language.
    """

    prompts: tuple[str, ...]
    prompt_N: NDArray[np.int64]
    solved_at_N: NDArray[np.int64]
    turns_N: NDArray[np.int64]
    graded_NT: NDArray[np.bool_]
    distinct_N: NDArray[np.int64]
    failures_N: NDArray[np.int64]
    reward_N: Floats
    tokens_N: NDArray[np.int64]
    excluded: int
    options_P: Floats
    language: Language


def runs_of(
    trajectories: Sequence[Trajectory],
    prompts: Collection[str] | None = None,
    options: Mapping[str, int | None] | None = None,
) -> Runs:
    """Read the arrays off trajectories.

    Args:
        trajectories: of one policy.
        prompts: those of other prompts count as excluded.
        options: number of answers to choose from, by task id, where there is one.
    """
    kept = [t for t in trajectories if has_outcome(t) and (prompts is None or t.task_id in prompts)]
    names = tuple(sorted({t.task_id for t in kept}))
    index = {prompt: i for i, prompt in enumerate(names)}
    graded = [[turn.step.answer for turn in t.turns if turn.step.graded] for t in kept]
    longest = max((len(t.turns) for t in kept), default=0)
    graded_NT = np.zeros((len(kept), longest), bool)
    for row, t in enumerate(kept):
        graded_NT[row, : len(t.turns)] = [turn.step.graded for turn in t.turns]
    solved = [next((at for at, turn in enumerate(t.turns, 1) if turn.step.success), 0) for t in kept]
    return Runs(
        prompts=names,
        prompt_N=np.array([index[t.task_id] for t in kept], np.int64),
        solved_at_N=np.array(solved, np.int64),
        turns_N=np.array([len(t.turns) for t in kept], np.int64),
        graded_NT=graded_NT,
        distinct_N=np.array([len({*answers} - {None}) for answers in graded], np.int64),
        failures_N=np.array([answers.count(None) for answers in graded], np.int64),
        reward_N=np.array([sum(turn.step.reward for turn in t.turns) for t in kept], float),
        tokens_N=np.array([-1 if t.tokens_sampled is None else t.tokens_sampled for t in kept], np.int64),
        excluded=len(trajectories) - len(kept),
        options_P=np.array([(options or {}).get(name) or np.inf for name in names], float),
        language=language_of(kept),
    )


def has_outcome(trajectory: Trajectory) -> bool:
    """Whether a conversation was held to an end that can be measured."""
    return trajectory.error is None and bool(trajectory.turns)


def metrics(runs: Runs, max_turns: int) -> dict[str, Ratio]:
    """Every metric by name (docs/artifacts.md).

    L counts the turns in which an answer was asked for; where one was asked for at no turn up to k, or not at turn t,
    there is nothing to measure.

    ``multi@k``
        share solved within k turns, ``(1/N) Σ_i max_{t≤k} V(y_{i,t})`` (DRIFT Eq. 21).
    ``accuracy@t``
        share right at turn t, of those that were still unsolved and got there.
    ``corrected@t``
        share solved by turn t, of those wrong at turn 1 (t ≥ 2).
    ``turns_to_success``, ``turns``
        mean turn of the first success, of those solved; mean number of turns.
    ``distinct_answers``
        mean E/L of conversations of two such turns or more; 1 means nothing was repeated.
    ``format_failures``, ``reply_tokens``
        share of replies without a readable answer where one was asked for; tokens per reply.
    ``reward``
        mean reward of a conversation, in the environment's unit; a share if all lie from 0 to 1.
    """
    graded_NT = np.zeros((len(runs.turns_N), max(max_turns, runs.graded_NT.shape[1])), bool)
    graded_NT[:, : runs.graded_NT.shape[1]] = runs.graded_NT
    graded_N = graded_NT.sum(axis=1)

    mean = functools.partial(per_prompt_ratio, runs)
    ratio = functools.partial(per_prompt_ratio, runs, least=0.0)
    solved, turns = runs.solved_at_N, runs.turns_N
    one_N = np.ones_like(turns)
    found: dict[str, Ratio] = {}
    for k in range(1, max_turns + 1):
        asked = k == max_turns or bool(graded_NT[:, :k].any())
        found[f"multi@{k}"] = ratio((solved > 0) & (solved <= k), one_N * asked)
    for t in range(1, max_turns + 1):
        reached_N = graded_NT[:, t - 1] & ((solved == 0) | (solved >= t))
        found[f"accuracy@{t}"] = ratio(solved == t, reached_N)
    wrong_N = graded_NT[:, 0] & (solved != 1)
    for t in range(2, max_turns + 1):
        found[f"corrected@{t}"] = ratio(wrong_N & (solved > 1) & (solved <= t), wrong_N)
    found["turns_to_success"] = mean(solved, solved > 0)
    found["turns"] = mean(turns, one_N)
    found["distinct_answers"] = ratio(
        np.where(graded_N > 1, runs.distinct_N / np.maximum(graded_N, 1), 0.0), graded_N > 1
    )
    found["format_failures"] = ratio(runs.failures_N, graded_N)
    found["reply_tokens"] = mean(np.maximum(runs.tokens_N, 0), np.where(runs.tokens_N < 0, 0, turns))
    within = bool(((runs.reward_N >= 0) & (runs.reward_N <= 1)).all())
    found["reward"] = mean(runs.reward_N, one_N, least=0.0 if within else None)
    return found


def language_metrics(runs: Runs) -> dict[str, Ratio]:
    """The metrics of ``Language`` by name."""
    return {name: per_prompt_ratio(runs, *counts, least=0.0) for name, counts in runs.language.ratios().items()}


def per_prompt_ratio(
    runs: Runs, numerator_N: NDArray[np.generic], denominator_N: NDArray[np.generic], *, least: float | None = None
) -> Ratio:
    """Values of conversations, added up by prompt; ``least`` as in ``Ratio``."""
    top_P, bottom_P = (
        np.bincount(runs.prompt_N, weights=values_N.astype(float), minlength=len(runs.prompts)).astype(float)
        for values_N in (numerator_N, denominator_N)
    )
    return Ratio(numerator_P=top_P, denominator_P=bottom_P, least=least)
