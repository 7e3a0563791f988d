"""YAML that somebody wrote, read with limits: no key twice, nothing within itself, no aliases that grow without end."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from drift.errors import ConfigError

# What no recipe comes near; what is larger takes seconds to parse.
MOST_BYTES = 200_000
MOST_VALUES = 20_000
DEEPEST = 50
LONGEST_NUMBER = 100


def read_mapping(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file; none where it is empty.

    Raises:
        ConfigError: it can't be read, is not YAML, has a key twice, refers to itself, grows past what a recipe may be,
            or is no mapping.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def fetch_flow_collection_start(self, TokenClass: Any) -> None:
            # A bracket takes the longer the more are open.
            if self.flow_level > DEEPEST:
                raise ValueError(f"line {self.line + 1} is more than {DEEPEST} deep")
            super().fetch_flow_collection_start(TokenClass)

    try:
        with path.open("rb") as file:
            # A device may have no end.
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ValueError(f"it has more bytes than expected, at most {MOST_BYTES:,}")
        # Not the C parser: it ends the process where it is nested too deep.
        loader = Loader(data)
        node = loader.get_single_node()
        if node is not None:
            _check(node, [], [0])
        values = loader.construct_document(node) if node is not None else {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        deep = isinstance(error, RecursionError)
        words = "it is nested too deep" if deep else " ".join(str(error).split()).rstrip(".")
        raise ConfigError(f"{path} can't be read as YAML: {words}. Correct it (spaces, no tabs).") from error
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path}: got {str(values)[:80]!r}, expected keys and values (in {path}).")
    return values


def _check(node: Any, above: list[int], count: list[int]) -> None:
    """Raise ``ValueError`` for what ``read_mapping`` refuses below ``node``; an alias counts as what it stands for."""
    count[0] += 1
    place = f"line {node.start_mark.line + 1}"
    if id(node) in above:
        raise ValueError(f"{place} refers to itself")
    if count[0] > MOST_VALUES or len(above) > DEEPEST:
        raise ValueError(f"by {place} it has more than {MOST_VALUES:,} values, or is more than {DEEPEST} deep")
    if isinstance(node.value, str):
        if len(node.value) > LONGEST_NUMBER and node.tag.endswith((":int", ":float")):
            raise ValueError(
                f"{place} has a number of {len(node.value):,} characters, expected at most {LONGEST_NUMBER}"
            )
        return
    pairs = node.value and isinstance(node.value[0], tuple)
    keys = Counter(key.value for key, _ in node.value if isinstance(key.value, str)) if pairs else Counter[str]()
    for key, times in keys.items():
        if times > 1 and key != "<<":
            raise ValueError(f"the key {key!r} is there {times} times from {place} on, expected once")
    for each in node.value:
        for child in each if pairs else [each]:
            _check(child, [*above, id(node)], count)
