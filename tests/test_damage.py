"""Damages planted in a whole run: what ``check`` says of them."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from drift.audit import audit
from drift.files import json_bytes
from drift.manifest import seal_of

# How many of each kind are planted here; make slow plants ten times as many.
FEW, MANY = 1, 10


def files(run: Path, name: str = "*") -> list[Path]:
    return sorted(path for path in run.rglob(name) if path.is_file() and path.stat().st_size)


def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def flipped(name: str) -> Callable[[Path, random.Random], None]:
    return lambda run, rng: flip(rng.choice(files(run, name)), rng)


def gone(name: str) -> Callable[[Path, random.Random], None]:
    return lambda run, rng: rng.choice([path for path in files(run, name) if "checkpoints" not in str(path)]).unlink()


def swapped(one: str, other: str) -> Callable[[Path, random.Random], None]:
    def swap(run: Path, rng: random.Random) -> None:
        (run / one).rename(run / "aside")
        (run / other).rename(run / one)
        (run / "aside").rename(run / other)

    return swap


def edited(stage: str, keys: str, value: object, *, sealed: bool = False) -> Callable[[Path, random.Random], None]:
    """A key of a manifest changed; with ``sealed``, by somebody who knows how manifests are sealed."""

    def edit(run: Path, rng: random.Random) -> None:
        path = run / stage / "manifest.json"
        content = json.loads(path.read_text())
        at = content
        *heads, last = keys.split(".")
        for head in heads:
            at = at[head]
        at[last] = value if not isinstance(value, int) else value + rng.randrange(1000)
        if sealed:
            content["seal"] = seal_of(content)
        path.write_bytes(json_bytes(content))

    return edit


def linked_and_flipped(run: Path, rng: random.Random) -> None:
    shutil.move(run / "weights", run.parent / "elsewhere")
    (run / "weights").symlink_to(run.parent / "elsewhere")
    flip(run / "weights" / "weights.parquet", rng)


def sums_gone_and_weights_flipped(run: Path, rng: random.Random) -> None:
    (run / "model" / "sums.json").unlink()
    flip(run / "model" / "model.safetensors", rng)


def recipe_edited(run: Path, rng: random.Random) -> None:
    path = run / "recipe.yaml"
    path.write_text(path.read_text().replace("learning_rate: 0.0001", f"learning_rate: 0.000{rng.randrange(2, 9)}"))


def cut_short(run: Path, rng: random.Random) -> None:
    path = rng.choice([path for path in files(run) if path.name != ".lock"])
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def manifest_of_another_stage(run: Path, rng: random.Random) -> None:
    shutil.copy(run / "evaluation/greedy/base/manifest.json", run / "rollouts")


def added(name: str, text: str) -> Callable[[Path, random.Random], None]:
    return lambda run, rng: (run / name).write_text(text) and None


KINDS: dict[str, Callable[[Path, random.Random], None]] = {
    "a bit of any file": lambda run, rng: flip(rng.choice(files(run)), rng),
    "a bit of a manifest": flipped("manifest.json"),
    "a bit of a shard": flipped("*.parquet"),
    "a bit of the model": flipped("*.safetensors"),
    "a bit of JSON": flipped("*.json"),
    "a bit of lines": flipped("*.jsonl"),
    "a bit of the page": flipped("report.html"),
    "a manifest gone": gone("manifest.json"),
    "sums gone, weights changed": sums_gone_and_weights_flipped,
    "a shard gone": gone("*.parquet"),
    "the record gone": gone("run.json"),
    "base and tuned swapped": swapped("evaluation/greedy/base", "evaluation/greedy/tuned"),
    "greedy and rollouts swapped": swapped("evaluation/greedy/base", "rollouts"),
    "seed edited": edited("rollouts", "spec.seed", 2),
    "beta edited": edited("weights", "config.beta", 3),
    "counts edited": edited("model", "counts.rows", 7),
    "beta edited and sealed": edited("weights", "config.beta", 3, sealed=True),
    "result edited and sealed": edited("evaluation", "tasks", 9, sealed=True),
    "a linked stage changed": linked_and_flipped,
    "recipe edited": recipe_edited,
    "cut short": cut_short,
    "another stage's manifest": manifest_of_another_stage,
    "tokens added": added("model/added_tokens.json", '{"<x>": 3}'),
    "weights added": added("model/model-00002-of-00002.safetensors", "x"),
    "losses added": added("model/held-out.jsonl", '{"step": 1, "loss": 0.1}\n'),
    "refusals added": added("rollouts/rejected.jsonl", '{"row": 1}\n'),
    "a comparison added": added("comparison.json", "{}"),
}


def told(run: Path) -> tuple[bool, bool]:
    """Whether something is wrong, and whether something is told to be harmless."""
    found = audit(run)
    return any(each.state not in ("ok", "harmless") for each in found), any(each.state == "harmless" for each in found)


def plant(finished: Path, tmp_path: Path, count: int) -> tuple[dict[str, int], list[str]]:
    """How many of each kind are found, or told to be harmless; and which are silent."""
    counts, silent = {"found": 0, "harmless": 0}, []
    for kind, damage in KINDS.items():
        for turn in range(count):
            run, rng = tmp_path / "planted" / "run", random.Random(f"{kind}/{turn}")
            shutil.copytree(finished, run)
            before = {path: path.read_bytes() for path in files(run)}
            damage(run, rng)
            wrong, harmless = told(run)
            changed = [path for path, data in before.items() if not path.is_file() or path.read_bytes() != data]
            counts["found" if wrong else "harmless"] += 1
            if not wrong and not harmless and {path.name for path in changed} != {".lock"}:
                silent.append(f"{kind}/{turn}: {[str(path.relative_to(run)) for path in changed]}")
            shutil.rmtree(run.parent)
    return counts, silent


def test_no_damage_is_silent(finished: Path, tmp_path: Path) -> None:
    counts, silent = plant(finished, tmp_path, FEW)
    assert not silent and counts["found"] >= len(KINDS) - 4, counts


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_damage_of_many_is_silent(finished: Path, tmp_path: Path) -> None:
    counts, silent = plant(finished, tmp_path, MANY)
    print(counts)
    assert not silent and sum(counts.values()) == MANY * len(KINDS)
