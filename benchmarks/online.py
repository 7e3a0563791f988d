"""DRIFT beside online GRPO from the same base: what each costs until both solve as many held-out tasks.

    python benchmarks/online.py OUT [--environment arithmetic] [--seeds 1 2 3] [--offline drift,RATE,TASKS,K,STEPS,ROWS]
    python benchmarks/online.py OUT --sweep grpo,RATE,PROMPTS,SAMPLES,MINIBATCHES,PASSES drift,RATE,TASKS,K,STEPS,ROWS …

In the place of ``drift`` may stand any other scheme, ``auto`` say.

Both have one process, one base, the shaped return of DRIFT Eq. 12 and the same batch of generation, and take turns.
What counts is multi@T, greedy, on held-out tasks, measured outside of the timed part on models saved on the way. The
target is the lower of the two final values. Costs are wall-clock and processor seconds and sampled tokens: for DRIFT
those of its rollouts, of weighing, and of training up to the checkpoint; for GRPO those of the rounds up to the saved
model.
The last line is JSON with every figure.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import drift
from drift.baselines.config import OnlineConfig
from drift.environments import make_environment
from drift.manifest import read_manifest
from drift.policies.base import DEFAULT_MODEL, Sampling
from drift.training.config import TrainingConfig

SHORT = Sampling(max_new_tokens=16)
BATCH = 256
HELD_OUT = 300
# Both as the sweep of docs/LOG.md leaves them.
OFFLINE = {"arithmetic": "drift,3e-4,200,4,60,32", "guess": "drift,3e-4,400,16,60,128"}
TRAINING = TrainingConfig(
    max_steps=60, learning_rate=3e-4, rows_together=1, save_steps=5, arguments={"save_total_limit": 99}
)
GRPO = OnlineConfig(
    tasks=400, rounds=80, prompts=16, samples=4, sampling=SHORT, generation_batch=BATCH, save_rounds=5,
    learning_rate=3e-4, warmup=0.0, arguments={"weight_decay": 0.0, "logging_steps": 5},
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Point:
    """A model on the way, and what it had cost by then."""

    model: str
    seconds: float
    processor: float
    tokens: int
    value: float = float("nan")


def offline(environment: str, seed: int, entry: str, out: Path) -> list[Point]:
    """Sample once, weigh, train, by SCHEME,RATE,TASKS,K,STEPS,ROWS; a point for each checkpoint, of even cost."""
    scheme, rate, *sizes = entry.split(",")
    tasks, samples, steps, rows = map(int, sizes)
    config = replace(TRAINING, learning_rate=float(rate), max_steps=steps, batch_size=rows)
    start, used = time.monotonic(), time.process_time()
    drift.rollout(
        environment,
        out=out / "rollouts",
        policy={"batch_size": BATCH},
        tasks=tasks,
        samples=samples,
        sampling=SHORT,
        seed=seed,
    )
    drift.weigh(out / "rollouts", out=out / "weights", scheme=scheme)
    sampled, sampled_processor = time.monotonic() - start, time.process_time() - used
    drift.train(out / "rollouts", out / "weights", out=out / "model", config=config, seed=seed)
    trained, trained_processor = time.monotonic() - start - sampled, time.process_time() - used - sampled_processor
    tokens = read_manifest(out / "rollouts", "trajectories")["cost"]["tokens_sampled"]
    points = []
    for step in range(config.save_steps, config.max_steps + 1, config.save_steps):
        folder = out / "model" / "checkpoints" / f"checkpoint-{step}"
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(DEFAULT_MODEL / name, folder)
        share = step / config.max_steps
        point = Point(
            model=str(folder),
            seconds=sampled + share * trained,
            processor=sampled_processor + share * trained_processor,
            tokens=tokens,
        )
        points.append(point)
    return points


def online(environment: str, seed: int, config: OnlineConfig, out: Path, start: str = "default") -> list[Point]:
    """GRPO: a point for each saved round."""
    drift.train_online(environment, out=out, model=start, config=config, seed=seed)
    rows = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    return [
        Point(
            model=str(out / "rounds" / str(row["round"])),
            seconds=row["seconds"],
            processor=row["processor_seconds"],
            tokens=row["tokens_sampled"],
        )
        for row in rows
        if row["round"] % config.save_rounds == 0
    ]


def measured(environment: str, points: list[Point], out: Path, tasks: int) -> list[Point]:
    """The points with greedy multi@T on held-out tasks, the same for all."""
    drift.evaluate(
        environment,
        {f"p{at}": point.model for at, point in enumerate(points)},
        out=out,
        tasks=tasks,
        samples=0,
        sampling=SHORT,
        policy={"batch_size": BATCH},
    )
    rows = {(row["policy"], row["metric"]): row["value"] for row in json.loads((out / "estimates.json").read_text())}
    metric = f"greedy/multi@{make_environment(environment).max_turns}"
    return [replace(point, value=rows[f"p{at}", metric]) for at, point in enumerate(points)]


def reached(points: list[Point], target: float) -> Point | None:
    """The first point that is at the target."""
    return next((point for point in points if point.value >= target), None)


def told(name: str, points: list[Point]) -> None:
    """Print a curve."""
    print(f"{name}: processor s, sampled tokens, multi@T")
    for point in points:
        print(f"  {point.processor:7.1f} s ({point.seconds:6.1f} s) {point.tokens:8d}  {100 * point.value:5.1f} %")


def compare(environment: str, seed: int, entry: str, out: Path, *, after: bool) -> dict[str, Any]:
    """One seed: DRIFT, GRPO, and with ``after`` GRPO from DRIFT's model."""
    curves = {
        "drift": offline(environment, seed, entry, out / "drift"),
        "grpo": online(environment, seed, GRPO, out / "grpo"),
    }
    before = curves["drift"][-1]
    further = online(environment, seed, GRPO, out / "grpo-after-drift", str(out / "drift" / "model")) if after else []
    curves["drift, then grpo"] = [
        replace(
            point,
            seconds=point.seconds + before.seconds,
            processor=point.processor + before.processor,
            tokens=point.tokens + before.tokens,
        )
        for point in further
    ]
    for name in [name for name in curves if curves[name]]:
        curves[name] = measured(
            environment, curves[name], out / "evaluation" / name.replace(" ", "-").replace(",", ""), HELD_OUT
        )
        told(f"seed {seed}, {name}", curves[name])
    ratios: dict[str, Any] = {}
    for name, points in curves.items():
        if name == "grpo" or not points:
            continue
        target = min(points[-1].value, curves["grpo"][-1].value)
        ours, theirs = reached(points, target), reached(curves["grpo"], target)
        assert ours is not None and theirs is not None
        ratios[name] = {
            "target": target,
            **{key: getattr(theirs, key) / getattr(ours, key) for key in ("seconds", "processor", "tokens")},
            "ours": asdict(ours),
            "grpo": asdict(theirs),
        }
        print(
            f"seed {seed}, {name} to {100 * target:.1f} %: GRPO takes {ratios[name]['processor']:.2f} times its "
            f"processor time, {ratios[name]['seconds']:.2f} times its wall clock, {ratios[name]['tokens']:.2f} times "
            "its tokens"
        )
    return {"seed": seed, "ratios": ratios, "curves": {name: list(map(asdict, c)) for name, c in curves.items()}}


def sweep(environment: str, out: Path, named: list[str]) -> dict[str, Any]:
    """Either method with other settings, on a seed that nothing else is measured with; GRPO has 3,840 conversations."""
    found = {}
    for entry in named:
        method, *values = entry.split(",")
        if method != "grpo":
            points = offline(environment, 77, entry, out / entry)
        else:
            rate, (prompts, samples, minibatches, passes) = float(values[0]), map(int, values[1:])
            config = replace(
                GRPO,
                rounds=3840 // (prompts * samples),
                save_rounds=max(1, 640 // (prompts * samples)),
                prompts=prompts,
                samples=samples,
                minibatches=minibatches,
                passes=passes,
                learning_rate=rate,
            )
            points = online(environment, 77, config, out / entry)
        found[entry] = measured(environment, points, out / "evaluation" / entry, 200)
        told(entry, found[entry])
    return {entry: list(map(asdict, points)) for entry, points in found.items()}


def main() -> None:
    """Run the comparison, or the sweep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--environment", default="arithmetic", choices=sorted(OFFLINE))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--offline", default="", help="SCHEME,RATE,TASKS,K,STEPS,ROWS; as swept unless given")
    parser.add_argument("--after", action="store_true", help="GRPO from the other's model too")
    parser.add_argument("--sweep", nargs="+", default=[])
    given = parser.parse_args()
    if given.out.exists() and any(given.out.iterdir()):
        parser.error(
            f"{given.out} holds an earlier run: what is done already takes no time. Remove it, or name another."
        )
    if given.sweep:
        print(json.dumps(sweep(given.environment, given.out, given.sweep)))
        return
    entry = given.offline or OFFLINE[given.environment]
    runs = [
        compare(given.environment, seed, entry, given.out / f"seed-{seed}", after=given.after) for seed in given.seeds
    ]
    print(json.dumps({"environment": given.environment, "offline": entry, "runs": runs}))


if __name__ == "__main__":
    main()
