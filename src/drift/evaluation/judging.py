"""Grades of held-out conversations by a judge model, on the six criteria of Refit and Swift."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drift.environments.base import stable_unit
from drift.errors import EnvironmentFault, require
from drift.evaluation.config import EvaluationConfig
from drift.evaluation.estimates import Measured
from drift.evaluation.metrics import Ratio, has_outcome
from drift.event_loop import run_to_end
from drift.files import write_atomic
from drift.policies.base import RequestFailed
from drift.progress import Progress
from drift.types import Trajectory
from drift.verifiers import make_verifier
from drift.verifiers.base import Verification
from drift.verifiers.judge import CONVERSATION_RUBRIC, CRITERIA, Judge

FOLDER = "judge"
OVERALL = "overall"
# Requests to the judge that are open at once.
OPEN = 32


def make_judge(config: EvaluationConfig) -> Judge:
    """The judge, with the rubric of whole conversations and its criteria unless the settings name others."""
    settings = {name: value for name, value in config.judge.items() if name != "tasks"}
    made = make_verifier("judge", {"rubric": CONVERSATION_RUBRIC, "criteria": CRITERIA, **settings})
    assert isinstance(made, Judge)
    where = "evaluation.judge.criteria"
    require(OVERALL not in made.criteria, where, made.criteria, f"no {OVERALL}: it is the name of the whole score")
    return made


def judge_policies(
    held: Mapping[str, Sequence[Trajectory]], references: Mapping[str, str], config: EvaluationConfig, out: Path
) -> tuple[list[Measured], dict[str, Any]]:
    """Let the judge grade conversations of every policy on the same tasks; scores go to ``out/judge/<policy>.jsonl``.

    A conversation that was graded before by the same judge and rubric is not graded again. A task counts for a
    criterion if the judge gave every policy a score there, so that differences are of the same tasks.

    Args:
        held: conversations by policy, one for each task.
        references: the right answer by task id, for the judge.
        config: which judge, and how many tasks.
        out: the evaluation.

    Returns:
        What was measured, and for the manifest: ``tasks``, ``seconds``, the judge's ``fingerprint`` and ``counts``.

    Raises:
        EnvironmentFault: the judge gave no score that could be read.
    """
    start, judge = time.monotonic(), make_judge(config)
    by_task = {name: {t.task_id: t for t in found if has_outcome(t)} for name, found in held.items()}
    common = set.intersection(*(set(found) for found in by_task.values()))
    # The same ones for the same tasks, whatever they are sorted by.
    tasks = sorted(sorted(common, key=lambda task: stable_unit("judge", task))[: config.judge_tasks])
    scores = run_to_end(_judge_all(judge, by_task, tasks, references, out / FOLDER))
    names = (*judge.criteria, OVERALL)
    known = {name: [all(name in scores[p][task] for p in by_task) for task in tasks] for name in names}
    if not any(known[OVERALL]):
        counts = ", ".join(f"{key} {count}" for key, count in sorted(judge.counts.items()))
        raise EnvironmentFault(
            f"the judge scored no task for every policy ({counts}), expected <score>N</score>. "
            "Use a stronger judge, or more retries (evaluation.judge)."
        )
    measured = []
    for policy in by_task:
        ratios = {}
        for name in names:
            counted_P = np.array(known[name], float)
            top_P = np.array([scores[policy][task].get(name, 0.0) for task in tasks]) * counted_P
            ratios[f"judge_{name}"] = Ratio(numerator_P=top_P, denominator_P=counted_P)
        measured.append(Measured(policy=policy, ratios=ratios, trajectories=len(tasks), excluded=0))
    facts = {
        "tasks": len(tasks),
        "scored": int(sum(known[OVERALL])),
        "fingerprint": judge.fingerprint,
        "counts": dict(judge.counts),
        "seconds": round(time.monotonic() - start, 3),
    }
    return measured, facts


async def _judge_all(
    judge: Judge,
    by_task: Mapping[str, Mapping[str, Trajectory]],
    tasks: Sequence[str],
    references: Mapping[str, str],
    folder: Path,
) -> dict[str, dict[str, dict[str, float]]]:
    """Scores by policy, task and criterion; a score that could not be read is missing."""
    gate, found = asyncio.Semaphore(OPEN), {}
    try:
        for policy, conversations in by_task.items():
            path = folder / f"{policy}.jsonl"
            before = read_answers(path)
            rows: dict[str, dict[str, Any]] = {}

            async def one(trajectory: Trajectory, rows: dict[str, dict[str, Any]] = rows, before: Any = before) -> None:
                reference = references.get(trajectory.task_id, "")
                key = key_of(judge, judge.prompt(trajectory.messages, reference))
                if key not in before:
                    async with gate:
                        try:
                            before[key] = _scores(await judge.judge(trajectory.messages, reference))
                        except RequestFailed as failure:
                            before[key] = {"scores": {}, "reason": str(failure)}
                rows[trajectory.task_id] = {"id": trajectory.id, "key": key, **before[key]}
                bar.advance()

            try:
                with Progress(f"{policy}, judged", len(tasks), unit="conversations") as bar:
                    async with asyncio.TaskGroup() as group:
                        for task in tasks:
                            group.create_task(one(conversations[task]))
            except BaseExceptionGroup as failed:
                raise failed.exceptions[0] from None
            finally:
                lines = (json.dumps(rows[task], ensure_ascii=True) + "\n" for task in sorted(rows))
                write_atomic(path, "".join(lines).encode())
            found[policy] = {task: dict(rows[task]["scores"]) for task in tasks}
    finally:
        await judge.aclose()
    return found


def _scores(found: Verification) -> dict[str, Any]:
    if found.score is None:
        return {"scores": {}, "reason": found.reason}
    return {"scores": {**found.scores, OVERALL: found.score}, "reason": ""}


def key_of(judge: Judge, prompt: str) -> str:
    """What tells one question to one judge from every other."""
    asked = (judge.fingerprint, sorted(judge.sampling.items()), judge.retries, judge.retry_temperature, prompt)
    return hashlib.sha256("\x1f".join(map(str, asked)).encode(errors="replace")).hexdigest()


def read_answers(path: Path) -> dict[str, dict[str, Any]]:
    """What was judged before, by key; a file that can't be read holds nothing."""
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return {row["key"]: {"scores": dict(row["scores"]), "reason": row["reason"]} for row in rows}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
