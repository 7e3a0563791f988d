"""Generators of reasoning-gym with graded scores for the built-in policy: a base for each, warm-started.

The policy that comes with drift has never seen these problems. A base learns their form, and some of what is right,
from scripted conversations in the environment itself, on training problems alone; every method starts from that base.
With the extra ``reasoning-gym``:

    python benchmarks/gym_base.py complex runs/gym/complex
    drift compare benchmarks/gym-complex.yaml --model runs/gym/complex/model

Learning rates are compared with ``rates.py``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from drift.api import read_logs, train, weigh
from drift.environments import make_environment
from drift.environments.base import open_episode
from drift.types import Message


def slip_complex(answer: str, rng: random.Random) -> str:
    """A complex number like ``5.0 - 15.0i`` with one part off by 1, 2 or 10, or with the other sign."""
    number = complex(answer.replace(" ", "").replace("i", "j"))
    parts = [int(number.real), int(number.imag)]
    at = rng.randrange(2)
    by = rng.choices([1, -1, 2, -2, 10, -10, 0], [3, 3, 2, 2, 1, 1, 2])[0]
    parts[at] = parts[at] + by if by else -parts[at]
    return f"{parts[0]:.1f} {'-' if parts[1] < 0 else '+'} {abs(parts[1]):.1f}i"


def slip_time(answer: str, rng: random.Random) -> str:
    """A duration like ``01:10`` that is off by some minutes."""
    hours, minutes = map(int, answer.split(":"))
    by = rng.choices([1, -1, 2, -2, 4, -4, 10], [3, 3, 2, 2, 1, 1, 1])[0]
    total = abs(60 * hours + minutes + by)
    return f"{total // 60:02d}:{total % 60:02d}"


def slip_count(answer: str, rng: random.Random) -> str:
    """A count that is off by 1, 2, 3 or 5."""
    return str(max(0, int(answer) + rng.choices([1, 2, 3, 5], [3, 2, 2, 1])[0] * rng.choice([1, -1])))


SLIPS: dict[str, Callable[[str, random.Random], str]] = {
    "complex_arithmetic": slip_complex,
    "time_intervals": slip_time,
    "calendar_arithmetic": slip_count,
}


def answers(environment: Any, indices: list[int]) -> dict[int, str]:
    """The right answers to problems of the environment, by their numbers."""
    import reasoning_gym

    problems = reasoning_gym.create_dataset(
        environment.generator, size=environment.seeds, seed=0, **environment.arguments
    )
    found = {}
    for at in indices:
        # As where answers are scored: some generators draw from the random numbers of the whole process.
        random.seed(at)
        np.random.seed(at)
        found[at] = str(problems[at]["answer"])
    return found


class Assistant:
    """Says what is right with some chance, else something near it, and often insists when told that it is not right."""

    def __init__(self, truth: str, slip: Callable[[str, random.Random], str], rng: random.Random, script: Any) -> None:
        self._truth, self._slip, self._rng, self._script, self._last = truth, slip, rng, script, ""

    def reply(self) -> str:
        """The next answer."""
        if not self._last or self._rng.random() >= self._script["insist"]:
            text = self._truth
            slips = 0 if self._rng.random() < self._script["right"] else self._rng.choice([1, 1, 2])
            for _ in range(slips):
                text = self._slip(text, self._rng)
            self._last = text
        return f"<answer>{self._last}</answer>"


async def play(environment: Any, script: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    """Scripted conversations on training problems: messages, and the sum of the rewards."""
    rng = random.Random(f"gym/{seed}")
    tasks = environment.tasks("train", script["conversations"], seed)
    truths = answers(environment, [int(task.payload["index"]) for task in tasks])
    played = []
    for task in tasks:
        episode = environment.start(task)
        messages: list[Message] = await open_episode(episode)
        assistant = Assistant(truths[int(task.payload["index"])], SLIPS[environment.generator], rng, script)
        reward, done = 0.0, False
        while not done:
            messages.append({"role": "assistant", "content": assistant.reply()})
            step = await episode.step(messages[-1]["content"])
            messages.extend(step.messages)
            reward, done = reward + step.reward, step.done
        played.append({"messages": messages, "reward": reward})
    return played


def make_base(comparison: Path, out: Path, seed: int) -> Path:
    """Fine-tune the built-in policy on scripted conversations, every reply of each alike; the model's folder."""
    values = yaml.safe_load(comparison.read_text(encoding="utf-8"))
    bases = yaml.safe_load(comparison.with_name("gym-base.yaml").read_text(encoding="utf-8"))
    script = bases[comparison.stem.removeprefix("gym-")]
    recipe = values["recipe"]
    environment = make_environment(recipe["environment"])
    out.mkdir(parents=True, exist_ok=True)
    log = out / "log.jsonl"
    played = asyncio.run(play(environment, script["script"], seed))
    log.write_text("".join(json.dumps(each) + "\n" for each in played), encoding="utf-8")
    data = read_logs(log, model="default", out=out / "logged")
    weights = weigh(data, "sft", out=out / "weights", turns="all")
    train(data, weights, out=out / "model", seed=seed, **script["training"])
    return out / "model"


def main() -> None:
    """Make a base."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", help="gym-TASK.yaml beside this file")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=9, help="of the base")
    given = parser.parse_args()
    comparison = Path(__file__).with_name(f"gym-{given.task}.yaml")
    print(make_base(comparison, given.out, given.seed))


if __name__ == "__main__":
    main()
