"""Replies of several models to openings held out of a log, side by side, and which of them a judge prefers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drift.evaluation.metrics import Ratio
from drift.event_loop import run_to_end
from drift.files import write_atomic
from drift.policies import make_policy
from drift.policies.base import ContextExceeded, RequestFailed, Sampling, UnusableReply, derive_seed, next_reply
from drift.progress import Progress
from drift.types import Message, Trajectory
from drift.verifiers import make_verifier
from drift.verifiers.judge import Judge
from drift.verifiers.ranking import RUBRIC, rank

FILE = "replies.jsonl"
# Openings that are answered unless evaluation.tasks says otherwise.
OPENINGS = 20


def opening_of(trajectory: Trajectory) -> tuple[Message, ...]:
    """What stands before the first reply."""
    after = sum(1 + len(turn.step.messages) for turn in trajectory.turns)
    return trajectory.messages[: len(trajectory.messages) - after]


def replies_of(model: str, openings: Sequence[Sequence[Message]], sampling: Sampling, settings: Any) -> list[str]:
    """The model's greedy reply to each opening; nothing where it has none that can be used."""
    policy = make_policy(model, {"dtype": settings["dtype"]}, device=settings["device"])
    greedy = Sampling(max_new_tokens=sampling.max_new_tokens, stop=sampling.stop, temperature=0.0)

    async def one(messages: Sequence[Message]) -> str:
        try:
            seed = derive_seed("side by side", json.dumps(messages))
            return (await next_reply(policy, messages, None, sampling=greedy, seed=seed))[1].text
        except (ContextExceeded, RequestFailed, UnusableReply):
            return ""
        finally:
            bar.advance()

    async def together() -> list[str]:
        try:
            return await asyncio.gather(*map(one, openings))
        finally:
            close = getattr(policy, "aclose", None)
            await close() if close else None

    with Progress("replies", len(openings), unit="replies") as bar:
        return run_to_end(together())


def write_side_by_side(
    path: Path, held: Sequence[Trajectory], replies: Mapping[str, Sequence[str]], judge: Mapping[str, Any]
) -> tuple[dict[str, Ratio], dict[str, Any]]:
    """Write what each model says to each opening beside what was logged, and let the judge, if there is one, compare.

    It sees the replies of all models at once, in the order given and in the reverse, and says what it thinks of them as
    ``drift rank`` asks it to. An opening counts where both were read.

    Args:
        path: of the JSON lines.
        held: a conversation for each of P openings.
        replies: by model, ``(P,)``.
        judge: settings of the verifier judge; nothing asks none.

    Returns:
        By model, its share of the other models that it beats, ties being half, by opening; and facts for the manifest.
    """
    openings, names = [list(opening_of(each)) for each in held], list(replies)
    rows: list[dict[str, Any]] = [
        {
            "id": each.id,
            "opening": opening,
            "logged": each.turns[0].completion.text,
            "replies": {name: replies[name][at] for name in names},
        }
        for at, (each, opening) in enumerate(zip(held, openings, strict=True))
    ]
    facts: dict[str, Any] = {"openings": len(rows)}
    ratios: dict[str, Ratio] = {}
    if judge and len(names) > 1:
        settings = {key: value for key, value in judge.items() if key != "tasks"}
        made = make_verifier("judge", {"rubric": RUBRIC, **settings})
        assert isinstance(made, Judge)
        found = run_to_end(_preferred(made, [[_said(row, name) for name in names] for row in rows]))
        for row, shares in zip(rows, found, strict=True):
            row["preferred"] = None if shares is None else dict(zip(names, shares, strict=True))
        read_P = np.array([shares is not None for shares in found], float)
        for at, name in enumerate(names):
            share_P = np.array([0.0 if shares is None else shares[at] for shares in found])
            ratios[name] = Ratio(numerator_P=share_P, denominator_P=read_P)
        facts["judge"] = {"fingerprint": made.fingerprint, "counts": dict(made.counts), "compared": int(read_P.sum())}
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(errors="replace"))
    return ratios, facts


def _said(row: Mapping[str, Any], name: str) -> list[Message]:
    return [*row["opening"], {"role": "assistant", "content": row["replies"][name]}]


async def _preferred(judge: Judge, compared: Sequence[Sequence[Sequence[Message]]]) -> list[list[float] | None]:
    """Of each opening the mean of both orders, or ``None`` where either could not be read."""

    async def one(said: Sequence[Sequence[Message]]) -> list[float] | None:
        try:
            (forth, _), (back, _) = await asyncio.gather(rank(judge, said), rank(judge, said[::-1]))
        except RequestFailed:
            return None
        bar.advance()
        return None if forth is None or back is None else np.mean([forth, back[::-1]], axis=0).tolist()

    try:
        with Progress("compare replies", len(compared), unit="openings") as bar:
            return await asyncio.gather(*map(one, compared))
    finally:
        await judge.aclose()
