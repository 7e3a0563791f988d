"""How often the verifiers are right, and how fast, on every gold answer of GSM8K and TheoremQA.

    python benchmarks/verifiers.py FOLDER

FOLDER holds gsm8k_train.jsonl, gsm8k_test.jsonl and theoremqa_test.json. The last line is JSON with every figure.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from drift.environments.questions import check_answer
from drift.verifiers import Verification, Verifier, make_verifier
from drift.verifiers.math import plain_decimal

# A tower of powers: math-verify alone computes it for ever.
HANGING = r"\boxed{9^{9^{9^{9^{9}}}}}"
FALSE_ACCEPTANCES = (("-3", "3"), ("1/2", "1/3"), ("2e-3", "2"), ("1,000", "1"))
SPELLINGS: dict[str, Callable[[int], str]] = {
    "$1,000": lambda n: f"{'-' if n < 0 else ''}${abs(n):,}",
    "1000.00": lambda n: f"{n}.00",
    r"\boxed{1000}": lambda n: rf"\boxed{{{n}}}",
    "1{,}000": lambda n: f"{n:,}".replace(",", "{,}"),
    r"\frac{2000}{2}": lambda n: rf"\frac{{{2 * n}}}{{2}}",
    "a whole reply": lambda n: f"I add them up.\nSo the total is $\\boxed{{{n:,}}}$ in all.",
}
NEIGHBOURS: dict[str, Callable[[int], int]] = {
    "+1": lambda n: n + 1,
    "-1": lambda n: n - 1,
    "sign": lambda n: -n,
    "x10": lambda n: 10 * n,
}
# Whole replies: what a model writes around an answer.
DECORATIONS = (
    "<answer>{}</answer>", "<answer>**{}**</answer>", "<answer>`{}`</answer>", "<answer>{}.</answer>",
    "<answer>$ {} $</answer>", r"<answer>\boxed{{{}}}</answer>", r"So $\boxed{{{}}}$.", "It adds up.\n#### {}",
    "The answer is {}.", "**Answer:** {}", "Final Answer:\n\n**{}**", "<think>Or 7?</think>The answer is {}.",
    "## Answer\n{}", "<answer>The answer is {}</answer>", "<b>Answer: {}</b>", "Therefore, the answer is **{}**.",
    "答案是 {}。", "Die Antwort ist {}.", "<answer>x = {}</answer>", "<answer>{}\n",
)  # fmt: skip
FORMULAS = (
    r"\frac{3}{7}", r"2\sqrt{5}", r"x^2-4x+1", "(3,-8)", r"\frac{\pi}{6}", "[2,9)", r"12\%", "1.25", r"3+2i",
    r"\{1,4,6\}", "2^{10}", r"\sqrt[3]{4}", r"y=3x-2", r"\frac{x+1}{x-2}", "5!", r"(-\infty,4]", "0.375", "6:5",
)  # fmt: skip
Pair = tuple[str, str]


def gsm8k(folder: Path) -> list[str]:
    """Every gold answer, as written after ``####``."""
    golds = []
    for name in ("gsm8k_train.jsonl", "gsm8k_test.jsonl"):
        with (folder / name).open(encoding="utf-8") as file:
            golds += [json.loads(line)["answer"].rsplit("####", 1)[1].strip() for line in file]
    return golds


def check_all(verifier: Verifier, pairs: Iterable[Pair]) -> list[Verification]:
    """The outcome of each (reply, gold), all in flight at once."""

    async def run() -> list[Verification]:
        return list(await asyncio.gather(*(verifier.verify_async(*pair) for pair in pairs)))

    return asyncio.run(run())


def shares(verifier: Verifier, golds: list[str]) -> dict[str, Any]:
    """Share right over all spellings of each gold, and share accepted over all spellings of its wrong neighbours."""
    own: dict[str, float] = {}
    accepted = dict.fromkeys(NEIGHBOURS, 0)
    tried = 0
    for spelling, write in SPELLINGS.items():
        outcomes = check_all(verifier, [(write(int(gold.replace(",", ""))), gold) for gold in golds])
        own[spelling] = sum(outcome.right for outcome in outcomes) / len(outcomes)
        for neighbour, move in NEIGHBOURS.items():
            moved = [(gold, move(int(gold.replace(",", "")))) for gold in golds]
            pairs = [(write(value), gold) for gold, value in moved if value != int(gold.replace(",", ""))]
            accepted[neighbour] += sum(outcome.right for outcome in check_all(verifier, pairs))
            tried += len(pairs)
    return {
        "right": sum(own.values()) / len(own),
        "right_by_spelling": own,
        "checks": len(golds) * len(SPELLINGS),
        "accepted_wrong": sum(accepted.values()) / tried,
        "accepted_wrong_by_neighbour": accepted,
        "checks_wrong": tried,
    }


def replies(pairs: list[Pair]) -> list[Verification]:
    """The outcome of each (whole reply, gold) as an environment judges it."""
    verifier = make_verifier("math")

    async def run() -> list[Verification]:
        checks = [check_answer(verifier, reply, gold, ()) for reply, gold in pairs]
        return list(await asyncio.gather(*checks))

    return asyncio.run(run())


def decorated(golds: list[str]) -> dict[str, Any]:
    """How many golds are right in every decoration, and how many neighbours of theirs are paid in the same ones."""
    right = replies([(form.format(gold), gold) for gold in golds for form in DECORATIONS])
    moved = [(gold, f"{int(gold.replace(',', '')) + 1:,}") for gold in golds]
    wrong = replies([(form.format(other), gold) for gold, other in moved for form in DECORATIONS])
    missed = Counter(DECORATIONS[at % len(DECORATIONS)] for at, found in enumerate(right) if not found.right)
    return {
        "checks": len(right),
        "right": sum(found.right for found in right) / len(right),
        "missed": dict(missed),
        "paid_wrong": sum(found.right for found in wrong),
    }


def mutated(golds: list[str], count: int) -> dict[str, Any]:
    """How many of ``count`` golds that one symbol was changed in are still paid; all of these are listed."""
    rng = random.Random(1)
    pairs: list[tuple[str, str, str]] = []
    while len(pairs) < count:
        gold = rng.choice(FORMULAS if rng.random() < 0.5 else golds)
        at, symbol = rng.randrange(len(gold)), rng.choice("0123456789.-+/^x,()")
        changed = gold[:at] + rng.choice(("", symbol, symbol + gold[at])) + gold[at + 1 :]
        if changed.strip() and changed != gold:
            pairs.append((rng.choice(DECORATIONS).format(changed), gold, changed))
    found = replies([(reply, gold) for reply, gold, _ in pairs])
    paid = Counter((gold, changed) for (_, gold, changed), one in zip(pairs, found, strict=True) if one.right)
    return {"checks": count, "paid": sum(paid.values()), "which": [[*pair, times] for pair, times in paid.items()]}


def rates(verifier: Verifier, golds: list[str]) -> dict[str, float]:
    """Checks per second: spellings right and wrong as they come, only those that need a worker, and polynomials."""
    numbers = [(gold, int(gold.replace(",", ""))) for gold in golds]
    mixed = [
        (write(value + wrong), gold) for gold, value in numbers for wrong in (0, 1) for write in SPELLINGS.values()
    ]
    hard = [(reply, gold) for reply, gold in mixed if plain_decimal(reply) is None]
    algebra = [
        (rf"The answer is $x^2+{value}x+\frac{{{value}}}{{3}}$", rf"\frac{{{value}}}{{3}}+x^2+{value}x")
        for _, value in numbers
    ]
    found = {}
    for name, pairs in (("mixed", mixed), ("worker", hard), ("algebra", algebra[:1000])):
        start = time.perf_counter()
        check_all(verifier, pairs)
        found[name] = len(pairs) / (time.perf_counter() - start)
    return found


def deadline(golds: list[str]) -> dict[str, Any]:
    """Seconds until a check that hangs is given up, what it is called, and whether the others came through."""
    verifier = make_verifier("math", {"deadline": 2.0})
    verifier.verify(r"\frac{2}{2}", "1")
    start = time.perf_counter()
    alone = verifier.verify(HANGING, "5")
    seconds = time.perf_counter() - start
    pairs = [(rf"\frac{{{2 * int(gold.replace(',', ''))}}}{{2}}", gold) for gold in golds[:200]]
    among = check_all(verifier, [*pairs[:100], (HANGING, "5"), *pairs[100:]])
    return {
        "deadline_s": 2.0,
        "seconds": seconds,
        "verdict": alone.verdict,
        "reason": alone.reason,
        "others_right": sum(outcome.right for outcome in among) / len(pairs),
    }


def theoremqa(folder: Path) -> dict[str, Any]:
    """Per answer type, the share of golds that the verifier of that type finds equal to themselves."""
    records = json.loads((folder / "theoremqa_test.json").read_text(encoding="utf-8"))
    numeric, exact, choice = make_verifier("numeric"), make_verifier("exact"), make_verifier("choice")
    verifiers = {"bool": exact, "option": choice}
    right: dict[str, list[bool]] = {}
    for record in records:
        kind, gold = record["Answer_type"], str(record["Answer"])
        verifier = verifiers.get(kind, numeric)
        outcomes = [verifier.verify(spelling, gold) for spelling in (gold, rf"\boxed{{{gold}}}", f" {gold}. ")]
        # exact compares text: a box is another text to it.
        right.setdefault(kind, []).append(all(o.right for o in (outcomes if kind != "bool" else outcomes[::2])))
    return {
        "self_consistent": sum(map(sum, right.values())) / len(records),
        "by_type": {kind: sum(each) / len(each) for kind, each in sorted(right.items())},
        "golds": len(records),
    }


def main() -> int:
    """Measure, print, and end with one line of JSON."""
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        print(f"usage: {sys.argv[0]} FOLDER (with gsm8k_train.jsonl, gsm8k_test.jsonl and theoremqa_test.json)")
        return 2
    folder = Path(sys.argv[1])
    golds = gsm8k(folder)
    verifier = make_verifier("math")
    verifier.verify(r"\frac{2}{2}", "1")
    accepted = [
        [reply, gold, name]
        for reply, gold in FALSE_ACCEPTANCES
        for name in ("numeric", "math")
        if make_verifier(name).verify(reply, gold).right
    ]
    figures: dict[str, Any] = {
        "cores": len(os.sched_getaffinity(0)),
        "gsm8k_golds": len(golds),
        "gsm8k": shares(verifier, golds),
        "decorated": decorated(golds[:: max(1, len(golds) // 1000)]),
        "mutated": mutated(golds, min(20_000, 20 * len(golds))),
        "checks_per_second": rates(verifier, golds[:1500]),
        "hanging": deadline(golds),
        "theoremqa": theoremqa(folder),
        "false_acceptances": accepted,
    }
    own, speed, hang = figures["gsm8k"], figures["checks_per_second"], figures["hanging"]
    print(f"GSM8K, {len(golds)} golds, verifier math")
    for spelling, share in own["right_by_spelling"].items():
        print(f"  {spelling:16} {share:8.3%} right")
    print(f"  all {own['checks']} checks: {own['right']:.3%} right (wanted ≥ 99.5 %)")
    print(f"  {own['checks_wrong']} wrong neighbours: {own['accepted_wrong']:.4%} accepted (wanted ≤ 0.1 %)")
    around, changed = figures["decorated"], figures["mutated"]
    print(
        f"  {around['checks']} decorated replies: {around['right']:.3%} right (≥ 99.5 % wanted); not {around['missed']}"
    )
    print(f"  as many wrong ones in the same decorations: {around['paid_wrong']} paid (wanted 0)")
    print(f"  {changed['checks']} golds with one symbol changed: {changed['paid']} paid: {changed['which']}")
    print(f"Checks per second on {figures['cores']} cores (wanted ≥ 500)")
    print(
        f"  mixed spellings {speed['mixed']:.0f}, worker only {speed['worker']:.0f}, polynomials {speed['algebra']:.0f}"
    )
    print(
        f"Hanging input: {hang['verdict']} ({hang['reason']}) after {hang['seconds']:.2f} s of {hang['deadline_s']} s;"
    )
    print(f"  {hang['others_right']:.1%} of the checks around it came through right")
    theorem = figures["theoremqa"]
    print(f"TheoremQA, {theorem['golds']} golds: {theorem['self_consistent']:.2%} self-consistent (wanted ≥ 99 %)")
    for kind, share in theorem["by_type"].items():
        print(f"  {kind:16} {share:8.2%}")
    print(f"False acceptances of method.md: {len(accepted)} of {len(FALSE_ACCEPTANCES)} accepted")
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
