"""What is sampled to learn from, and where: on this machine, or on workers of a Ray cluster."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from drift.errors import require

# Conversations open at once, in this process or on each worker, unless said otherwise.
CONCURRENCY = 512
# Tasks that are drawn unless said otherwise, as published, or all there are where those are fewer.
TASKS = 1800
# Conversations of one prompt that can be asked for.
MOST_SAMPLES = 100_000
_HOST_PORT = re.compile(r"[^\s:/]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5}")


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How many conversations are sampled.

    Args:
        tasks: number of tasks; null is 1,800, or all there are where those are fewer.
        samples: K, conversations per task.
        first: adaptive sampling: so many conversations of every task first, the rest only for prompts that these leave
            undecided (neither all right nor all wrong); weights correct for it. 0 samples every prompt K times.
    """

    tasks: int | None = None
    samples: int = 16
    first: int = 0

    def __post_init__(self) -> None:
        require(self.tasks is None or self.tasks >= 1, "rollouts.tasks", self.tasks, "a whole number ≥ 1")
        sound = 1 <= self.samples <= MOST_SAMPLES
        require(sound, "rollouts.samples", self.samples, f"a whole number from 1 to {MOST_SAMPLES:,}")
        sound = self.first == 0 or 2 <= self.first <= self.samples
        require(sound, "rollouts.first", self.first, f"0, or a whole number from 2 to samples ({self.samples})")


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Workers of a Ray cluster that hold the conversations. Where they are held changes no conversation.

    Args:
        address: empty holds them in this process; ``auto`` is the cluster that this machine belongs to, ``HOST:PORT``
            the one with that head (this machine must belong to it too), ``local`` starts Ray on this machine alone.
        workers: how many engines; ``auto`` is one for each share of ``gpus`` (without GPUs one per node), also on nodes
            that join later.
        gpus: GPUs of one worker, such as the tensor parallel size; ``auto`` is 1 if the cluster has GPUs, else 0.
        cpus: CPU cores that Ray keeps for one worker, and threads of an engine that computes on them.
    """

    address: str = ""
    workers: int | Literal["auto"] = "auto"
    gpus: float | Literal["auto"] = "auto"
    cpus: float = 1.0

    def __post_init__(self) -> None:
        where = "cluster"
        known = self.address in ("", "auto", "local") or _HOST_PORT.fullmatch(self.address) is not None
        require(known, f"{where}.address", self.address, "nothing, auto, local, or HOST:PORT")
        workers, gpus = self.workers, self.gpus
        require(workers == "auto" or workers >= 1, f"{where}.workers", workers, "auto or a whole number ≥ 1")
        sound = gpus == "auto" or gpus == 0 or 0 < gpus < 1 or (gpus >= 1 and float(gpus).is_integer())
        require(sound, f"{where}.gpus", gpus, "auto, 0, a part of one GPU, or a whole number")
        require(self.cpus >= 0, f"{where}.cpus", self.cpus, "a number ≥ 0")
