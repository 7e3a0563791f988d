"""Caches of conversations that may go on, found again by the ids that they are of, within a budget of memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

# Keys and values of each layer, (H, T, D), for T ids.
Layers = list[tuple[torch.Tensor, torch.Tensor]]
# Ids that are looked up together; what a prompt has in common with others is found to a block, then to the id.
_BLOCK = 16
_CPU_SHARE, _DEVICE_SHARE = 0.4, 0.8


def memory_to_use(device: torch.device) -> int:
    """Bytes that caches may take: a share of what is free now on the device, or of this machine's memory."""
    if device.type == "cuda":
        return int(_DEVICE_SHARE * torch.cuda.mem_get_info(device)[0])
    free = 4 << 30
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    # Of a container with less than the machine.
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        free = min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return max(0, int(_CPU_SHARE * free))


def block_keys(ids: Sequence[int]) -> list[int]:
    """A hash for each whole block of ids, of it and all before it."""
    keys, key = [], 0
    for end in range(_BLOCK, len(ids) + 1, _BLOCK):
        key = hash((key, *ids[end - _BLOCK : end]))
        keys.append(key)
    return keys


def first_block_after(count: int) -> int:
    """Which block of a prompt is the first that the first ``count`` ids don't hold whole."""
    return count // _BLOCK


class Kept:
    """The cache of some ids.

    Args:
        ids: what it is of.
        layers: keys and values.
        shared: whether several prompts begin with it.
    """

    def __init__(self, ids: Sequence[int], layers: Layers, *, shared: bool) -> None:
        self.ids, self.layers, self.shared = tuple(ids), layers, shared
        self.keys = block_keys(self.ids)
        self.bytes = sum(each.numel() * each.element_size() for pair in layers for each in pair)


class KeptCaches:
    """The caches used last, as many as ``budget`` bytes hold."""

    def __init__(self, budget: int = 0) -> None:
        self.budget, self.bytes = budget, 0
        self._kept: OrderedDict[Kept, None] = OrderedDict()
        self._by_block: dict[int, Kept] = {}

    def longest(self, ids: Sequence[int], keys: Sequence[int]) -> tuple[Kept | None, int]:
        """What is kept of the longest beginning of ``ids``, and how many ids that is: less than all of them.

        Args:
            ids: of a prompt.
            keys: their ``block_keys``.
        """
        for key in reversed(keys):
            found = self._by_block.get(key)
            if found is not None:
                pairs = zip(found.ids, ids[:-1], strict=False)
                count = next((at for at, (one, other) in enumerate(pairs) if one != other), None)
                return found, min(len(found.ids), len(ids) - 1) if count is None else count
        return None, 0

    def put(self, kept: Kept) -> None:
        """Keep ``kept``; what was not used for longest makes room for it."""
        if kept.bytes > self.budget:
            return
        self._kept[kept] = None
        self._by_block.update(dict.fromkeys(kept.keys, kept))
        self.bytes += kept.bytes
        while self.bytes > self.budget:
            self.drop(next(iter(self._kept)))

    def use(self, kept: Kept) -> None:
        """Note that ``kept`` is used."""
        if kept in self._kept:
            self._kept.move_to_end(kept)

    def drop(self, kept: Kept) -> None:
        """Let ``kept`` go."""
        if kept not in self._kept:
            return
        del self._kept[kept]
        self.bytes -= kept.bytes
        for key in kept.keys:
            if self._by_block.get(key) is kept:
                del self._by_block[key]

    def clear(self) -> None:
        """Let everything go."""
        self._kept.clear()
        self._by_block.clear()
        self.bytes = 0
