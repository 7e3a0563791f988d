"""What stages wrote, in plain sentences with rounded figures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np


def chain_line(record: Mapping[str, Any]) -> str:
    """How weights were made, in a line: the chain of a manifest."""
    links = [record["turns"], *record["steps"]]
    parts = [f"{record['scheme']}{_settings(record['settings'])}", *(_link(each) for each in links)]
    over = " over answers" if record.get("repetition_over") == "answers" else ""
    shaping = f"γ {record['gamma']:g}, λ {record['repetition']:g}{over}"
    within = "" if record["baseline"] == "task" else f" − {_baseline(record['baseline'])}"
    return f"{_outcome(record['outcome'])} ({shaping}){within} → {' → '.join(parts)}"


def _outcome(outcome: str | Mapping[str, Any]) -> str:
    return outcome if isinstance(outcome, str) else ", ".join(f"{name} {value}" for name, value in outcome.items())


def _baseline(baseline: str | Mapping[str, str]) -> str:
    return baseline if isinstance(baseline, str) else f"mean by {baseline['column']}"


def chosen(manifest: Mapping[str, Any]) -> Iterator[str]:
    """What was left to the data and what it made of that, and which conversations had nothing to go by."""
    chain, automatic = manifest["chain"], manifest["automatic"]
    if "auto" in manifest:
        yield manifest["auto"]["why"]
    if "outcome" in automatic and chain["outcome"] != "success":
        yield "What counts is the reward: no conversation says whether it succeeded."
    if "baseline" in automatic and chain["baseline"] != "task":
        yield (
            "Most prompts have few conversations, so each is measured against what the words of its prompt and its "
            "others let one expect (baseline fitted)."
        )
    unlabelled = manifest["excluded"].get("unlabelled", 0)
    if unlabelled:
        yield f"{unlabelled:,} conversations were left out: they don't say how they went."


def _link(record: str | Mapping[str, Any]) -> str:
    name, settings = (record, {}) if isinstance(record, str) else next(iter(record.items()))
    return f"{name}{_settings(settings)}"


def _settings(settings: Mapping[str, Any]) -> str:
    shown = [f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in settings.items()]
    return f" ({', '.join(shown)})" if shown else ""


def sentences(report: Mapping[str, Any]) -> Iterator[str]:
    """The diagnostics of a manifest in plain sentences with rounded figures."""
    count, groups, successes = report["trajectories"], report["groups"], report["successes"]
    mixed, equal = round(report["mixed_share"] * groups), report["groups_with_equal_returns"]
    graded = report["outcome"] != "success" and "above" not in report["outcome"]
    within = report["baseline"] == "task"
    if graded:
        low, high = report["return_histogram"]["edges"][0], report["return_histogram"]["edges"][-1]
        yield f"{count:,} conversations have returns from {low:.3g} to {high:.3g}."
        if within:
            yield f"{groups - equal:,} of {groups:,} prompts have returns that differ ({1 - equal / groups:.0%})."
    else:
        yield f"{successes:,} of {count:,} conversations succeeded ({successes / count:.0%})."
        yield (
            f"{mixed:,} of {groups:,} prompts hold both successes and failures ({report['mixed_share']:.0%}); "
            f"{report['groups_without_success']:,} without any success."
        )
    if not within:
        yield f"The baseline ({_baseline(report['baseline'])}) explains {report['explained']:.0%} of their variance."
    if graded:
        if within and equal == groups:
            yield "NO PROMPT HAS RETURNS THAT DIFFER: weights can't tell better from worse within one."
    elif not successes:
        yield "NOTHING SUCCEEDED: before training on this, look at what the policy replies, and how it is judged."
    elif not mixed and within:
        yield "NO PROMPT IS MIXED: weights can't tell better from worse within one. Take other tasks, or more samples."
    if report.get("beta") is not None:
        share = report["beta"]["effective_share"]
        aim = "" if share is None else f", at which {share:.0%} of a prompt's conversations count"
        beta = report["beta"]["value"]
        yield f"β was found to be {'without effect: all weigh alike' if beta is None else f'{beta:.3g}{aim}'}."
    for step in report["steps"]:
        if step["conversations"] or abs(step["share"]) >= 5e-4:
            verb, share = "took" if step["share"] >= 0 else "added", abs(step["share"])
            lost = f"; {step['conversations']:,} conversations have no weight any more" if step["conversations"] else ""
            yield f"{_link(step['step'])} {verb} {share:.1%} of the weight{lost}."
    kept = count - report["zero_weights"]
    yield f"{kept:,} conversations have a weight; they count like {report['ess']:,.0f} of equal weight."


def summary_of(kind: str, manifest: Mapping[str, Any], path: Path) -> Iterator[str]:
    """What a person wants to know of what a stage wrote to ``path``."""
    if kind == "trajectories":
        yield from _conversations(manifest, path)
    elif kind == "weights":
        yield from chosen(manifest)
        yield from sentences(manifest["diagnostics"])
    elif kind == "rewards":
        yield from _ranking(manifest)
    elif kind == "model":
        yield from _training(manifest)
    elif kind == "likelihood":
        yield from _likelihood(manifest, path)
    elif kind == "evaluation":
        from drift.reporting.facts import read_facts, verdict, warnings_of

        facts = read_facts(path, conversations=0)
        yield from (*warnings_of(facts), verdict(facts))
    else:
        yield f"{len(manifest['methods'])} methods, seeds {', '.join(map(str, manifest['seeds']))}."


def _of(count: int, prompts: int, what: str = "conversation") -> str:
    return f"{count:,} {what}{'s' * (count != 1)} of {prompts:,} prompt{'s' * (prompts != 1)}"


def _ranking(manifest: Mapping[str, Any]) -> Iterator[str]:
    yield f"{_of(manifest['conversations'], manifest['prompts'])} were ranked by the judge."
    unread, asked = manifest["unread"], 2 * manifest["prompts"]
    if unread:
        yield f"{unread:,} of {asked:,} rankings could not be read, so that some rest on one order or none."
    if manifest["alone"]:
        yield f"{manifest['alone']:,} conversations are the only ones of their prompt and have no reward."
    told = {"orders": "Shown in the reverse order the judge turns round", "logged": "It disagrees with the rewards on"}
    for kind, words in told.items():
        found = manifest["disagreement"][kind]
        if found["pairs"]:
            yield f"{words} {found['share']:.0%} of {found['pairs']:,} pairs that both tell apart."


def _replies(manifest: Mapping[str, Any]) -> Iterator[str]:
    """What is odd about the replies of rollouts."""
    names = {
        "empty_reply": "were empty",
        "reasoning_only": "were thinking alone: raise max_new_tokens or switch thinking off",
        "refusal": "were refusals",
        "tool_calls": "were calls of tools",
        "content_filter": "were cut off by the server's filter",
    }
    replies, asked = manifest.get("replies", {}), manifest.get("policy_errors", {})
    odd = [f"{replies[kind]:,} {said}" for kind, said in names.items() if replies.get(kind)]
    if odd:
        yield f"Of the replies {'; '.join(odd)}."
    early = manifest["counts"].get("stop_context", 0) - manifest.get("failures", {}).get("context", 0)
    if early:
        yield f"{early:,} conversations ended early: too long to go on, or after an empty reply."
    left_out = [kind.removeprefix("left_out_") for kind in asked if kind.startswith("left_out_")]
    if left_out:
        yield (
            f"THE SERVER REFUSES {', '.join(left_out)}: its own defaults apply, so that replies may come from another "
            "distribution than the one asked for."
        )
    again = {kind: count for kind, count in asked.items() if not kind.startswith(("left_out_", "renamed_"))}
    if again:
        yield f"Requests that were sent again: {', '.join(f'{count:,} {kind}' for kind, count in again.items())}."
    repeated, temperature = manifest.get("repeated_tasks", {}), manifest["spec"].get("sampling", {}).get("temperature")
    if temperature and repeated.get("all_alike"):
        tasks, alike = repeated["tasks"], repeated["all_alike"]
        yield f"In {alike:,} of {tasks:,} tasks all conversations say the same at temperature {temperature:g}" + (
            ": THERE IS NOTHING TO COMPARE; the server may ignore temperature and seed." if alike == tasks else "."
        )


def _short(words: str) -> str:
    return words if len(words) <= 240 else words[:240] + " …"


def _conversations(manifest: Mapping[str, Any], path: Path) -> Iterator[str]:
    from drift.dataset.outcomes import stream_outcomes

    counts = manifest["counts"]
    failures, words = manifest.get("failures", {}), manifest.get("failure_words", {})
    if failures:
        yield f"{sum(failures.values()):,} of {counts['trajectories']:,} conversations failed and are left out:"
        yield from (f"  {count:,} {kind}, such as: {_short(words[kind])}" for kind, count in failures.items())
    yield from _replies(manifest)
    # Ten bytes of each, where names would take ten times as much: prompts are told apart by their hashes.
    keys: list[Any] = []
    success, known, low, high = [], [], math.inf, -math.inf
    for part in stream_outcomes(path):
        names = part["group_id"]
        keys.append(np.fromiter(map(hash, names.dictionary.to_pylist()), np.int64)[names.indices.to_numpy()])
        success.append(part["success"])
        known.append(part["known"])
        low, high = min(low, part["reward"].min(initial=low)), max(high, part["reward"].max(initial=high))
    group_N = np.unique(np.concatenate(keys), return_inverse=True)[1]
    count = len(group_N)
    if not count:
        return
    groups, unknown = int(group_N.max()) + 1, len(group_N) - sum(int(each.sum()) for each in known)
    right_G, size_G = np.bincount(group_N, weights=np.concatenate(success)), np.bincount(group_N)
    right, mixed = int(right_G.sum()), int(((right_G > 0) & (right_G < size_G)).sum())
    if unknown == count:
        yield f"{_of(count, groups)}; rewards go from {low:.3g} to {high:.3g}."
        return
    told, share = f" of {count - unknown:,} that say so" if unknown else "", right / (count - unknown)
    yield f"{_of(count, groups)}; {right:,}{told} succeeded ({share:.0%})."
    yield (
        f"{mixed:,} of {groups:,} prompts hold both successes and failures ({mixed / groups:.0%}); "
        f"{int((right_G == 0).sum()):,} without any success."
    )
    if not right and low < high:
        yield f"NOTHING COUNTS AS A SUCCESS, but rewards go from {low:.3g} to {high:.3g}: weigh by outcome reward."
    elif not right:
        yield (
            "NOTHING SUCCEEDED: look at what the policy replies and how it is judged, take easier tasks, or longer "
            "replies (max_new_tokens)."
        )
    elif not mixed and groups < count:
        yield "NO PROMPT IS MIXED: weights can't tell better from worse within one. Take other tasks, or more samples."


def _likelihood(manifest: Mapping[str, Any], path: Path) -> Iterator[str]:
    rows = json.loads((path / "estimates.json").read_text())
    found = {(row["policy"], row["metric"].partition("/")[2]): row for row in rows}
    good, bad = manifest["good"], manifest["conversations"] - manifest["good"]
    yield (
        f"{_of(manifest['conversations'], manifest['prompts'], 'held-out conversation')}, {good:,} rated above the "
        f"mean and {bad:,} not; nats per token of their replies, 95 % intervals over prompts:"
    )
    for policy in dict.fromkeys(row["policy"] for row in rows):
        parts = [f"{word} {_interval(found[policy, metric])}" for metric, word in _LIKELIHOODS.items()]
        yield f"{policy}: {', '.join(parts)}."
    for policy in manifest["policies"]:
        if (policy, "preferred") in found:
            told = _interval(found[policy, "preferred"])
            yield f"The judge finds {policy}'s reply better than another's in {told} of pairs, a tie being half."
    yield from _side_by_side(path / "replies.jsonl")
    yield (
        "These are replies of whoever was logged: finding good ones likelier shows that a model learned from the "
        "ratings, not that its own replies are better. For that somebody must read or judge those."
    )


def _side_by_side(path: Path, *, shown: int = 2, longest: int = 160) -> Iterator[str]:
    """Some of what models reply to held-out openings, cut short, and where the rest is."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for row in map(json.loads, lines[:shown]):
        said = {"asked": row["opening"][-1]["content"], "logged": row["logged"], **row["replies"]}
        yield "; ".join(f"{name}: {shorten(text, longest, placeholder=' …')!r}" for name, text in said.items())
    if lines:
        yield f"Replies to {len(lines)} held-out openings, side by side: {path}"


_LIKELIHOODS = {"nll_good": "well rated", "nll_bad": "badly rated", "nll": "all", "nll_weighted": "weighted"}


def _interval(row: Mapping[str, Any]) -> str:
    if row["value"] is None:
        return "n/a"
    span = "" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
    return f"{row['value']:.3f}{span}"


def _training(manifest: Mapping[str, Any]) -> Iterator[str]:
    counts = manifest["counts"]
    if "rounds" in manifest:
        held, failed = counts["conversations"], counts["failed"]
        yield f"{manifest['rounds']:,} rounds of {held:,} conversations in all, {manifest['steps']:,} steps."
        if failed:
            yield f"{failed:,} conversations failed."
        return
    rows = counts.get("rows") or counts.get("pairs") or 0
    yield f"{manifest['steps']:,} steps on {rows:,} rows."
    skipped = {
        key.removeprefix("skipped_").replace("_", " "): n for key, n in counts.items() if key.startswith("skipped")
    }
    if any(skipped.values()):
        yield "Left out: " + ", ".join(f"{n:,} {key}" for key, n in skipped.items() if n) + "."
