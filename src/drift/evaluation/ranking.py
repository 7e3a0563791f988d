"""The ranking stage: a judge puts the conversations of each prompt in an order, of which rewards are made."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from drift.checksums import sum_of
from drift.dataset.lock import DirectoryLock
from drift.dataset.rewards import FILE, KIND, write_rewards
from drift.dataset.store import read_checked, read_trajectories
from drift.environments.base import stable_unit
from drift.errors import DatasetError, EnvironmentFault
from drift.evaluation.judging import OPEN, key_of, read_answers
from drift.event_loop import run_to_end
from drift.files import write_atomic
from drift.manifest import check_out, write_manifest
from drift.policies.base import RequestFailed
from drift.progress import Progress
from drift.secrets import refuse_secrets
from drift.types import Trajectory
from drift.verifiers import make_verifier
from drift.verifiers.judge import Judge
from drift.verifiers.ranking import RUBRIC, rank, ranking_prompt

ANSWERS = "rankings.jsonl"


def rank_dataset(data: Path, settings: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Rank the conversations of each prompt against each other; writes rewards and a manifest, which it returns.

    The judge sees all K of a prompt at once, twice: in an order that hangs on the prompt, and in the reverse, so that
    what it gives to whoever comes first cancels. A reward is the share of the others that a conversation beats, ties
    being half, as the mean of both. What was answered before by the same judge is not asked again.

    Args:
        data: directory of trajectories.
        settings: of the verifier judge; ``rubric`` is one for rankings unless given.
        out: directory of ``rewards.parquet``.

    Raises:
        ConfigError: a setting is wrong.
        DatasetError: no prompt has two conversations, or ``out`` holds something else.
        EnvironmentFault: nothing of what the judge said could be read.
    """
    start = time.monotonic()
    check_out(out, KIND)
    refuse_secrets(settings, "judge")
    judge = make_verifier("judge", {"rubric": RUBRIC, **settings})
    assert isinstance(judge, Judge)
    manifest = read_checked(data)
    groups: dict[str, list[Trajectory]] = defaultdict(list)
    for each in read_trajectories(data):
        if each.error is None and each.turns:
            groups[each.group_id].append(each)
    compared = {name: found for name, found in groups.items() if len(found) > 1}
    if not compared:
        raise DatasetError(f"{data}: no prompt has two conversations to rank. Sample at least two for each.")
    with DirectoryLock(out):
        passes = run_to_end(_rank_all(judge, compared, out / ANSWERS))
        rewards: dict[str, float] = {}
        for name, found in compared.items():
            if read := [shares for shares in passes[name] if shares is not None]:
                rewards |= zip([each.id for each in found], np.mean(read, axis=0).tolist(), strict=True)
        if not rewards:
            counts = ", ".join(f"{key} {count}" for key, count in sorted(judge.counts.items()))
            raise EnvironmentFault(
                f"the judge ranked no prompt's conversations ({counts}), expected <ranking>2 > 1</ranking>. "
                "Use a stronger judge, or more retries."
            )
        write_rewards(out / FILE, rewards)
        content = {
            "dataset_hash": manifest["dataset_hash"],
            "judge": {"settings": dict(settings), "fingerprint": judge.fingerprint, "counts": dict(judge.counts)},
            "prompts": len(compared),
            "conversations": len(rewards),
            "alone": sum(len(found) == 1 for found in groups.values()),
            "unread": sum(shares is None for both in passes.values() for shares in both),
            "disagreement": disagreements(compared, passes, rewards),
            "file_sum": sum_of(out / FILE),
            "cost": {"seconds": round(time.monotonic() - start, 3)},
        }
        write_manifest(out, KIND, content, sources={"data": data})
    return content


def disagreements(
    groups: Mapping[str, Sequence[Trajectory]],
    passes: Mapping[str, Sequence[Sequence[float] | None]],
    rewards: Mapping[str, float],
) -> dict[str, Any]:
    """Share of pairs of a prompt that two orders put the other way round, of the ``pairs`` that both tell apart.

    ``orders``: the two passes of the judge; ``logged``: its rewards and those that were recorded.
    """
    counts = {"orders": [0, 0], "logged": [0, 0]}
    for name, found in groups.items():
        logged = [sum(turn.step.reward for turn in each.turns) for each in found]
        given = [rewards.get(each.id, 0.0) for each in found]
        forth, back = passes[name]
        both = {"orders": (forth, back)} if forth is not None and back is not None else {}
        for kind, (one, other) in {**both, "logged": (given, logged)}.items():
            signs = [(one[a] - one[b]) * (other[a] - other[b]) for a, b in combinations(range(len(found)), 2)]
            counts[kind][0] += sum(sign < 0 for sign in signs)
            counts[kind][1] += sum(sign != 0 for sign in signs)
    return {
        kind: {"share": other_way / pairs if pairs else None, "pairs": pairs}
        for kind, (other_way, pairs) in counts.items()
    }


async def _rank_all(
    judge: Judge, groups: Mapping[str, Sequence[Trajectory]], path: Path
) -> dict[str, list[list[float] | None]]:
    """Of each prompt what both passes gave, in the order of its conversations."""
    gate, answers, found = asyncio.Semaphore(OPEN), read_answers(path), {}

    async def one(name: str) -> None:
        order = sorted(range(len(groups[name])), key=lambda at: stable_unit("rank", groups[name][at].id))
        found[name] = [await in_order(name, each) for each in (order, order[::-1])]
        bar.advance()

    async def in_order(name: str, order: Sequence[int]) -> list[float] | None:
        said = [groups[name][at].messages for at in order]
        key = key_of(judge, ranking_prompt(judge, said))
        if key not in answers:
            async with gate:
                try:
                    shares, reason = await rank(judge, said)
                except RequestFailed as failure:
                    shares, reason = None, str(failure)
            answers[key] = {"scores": dict(enumerate(shares or [])), "reason": reason}
        answers[key]["group"] = name
        values = list(answers[key]["scores"].values())
        return [values[order.index(at)] for at in range(len(order))] if values else None

    try:
        with Progress("rank", len(groups), unit="prompts") as bar:
            async with asyncio.TaskGroup() as tasks:
                for name in groups:
                    tasks.create_task(one(name))
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    finally:
        rows = (json.dumps({"key": key, **answers[key]}, ensure_ascii=True) + "\n" for key in sorted(answers))
        write_atomic(path, "".join(rows).encode())
        await judge.aclose()
    return found
