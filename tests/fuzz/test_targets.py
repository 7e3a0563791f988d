"""A small share of the stream in the ordinary suite; ``make test-fuzz`` runs a million inputs."""

import random

import pytest
from tests.fuzz.run import checked, text_of
from tests.fuzz.targets import all_targets

TARGETS = all_targets()


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_fragments_get_nowhere(name: str) -> None:
    for at in range(min(200, getattr(TARGETS[name], "most", 20_000) // 100)):
        origin = f"suite/{name}/{at}"
        checked(name, TARGETS[name], text_of(random.Random(origin)), origin)


def test_a_target_that_lets_something_through_is_told() -> None:
    def accepts(text: str) -> None:
        assert "x" not in text

    with pytest.raises(RuntimeError, match=r"accepts failed on here: AssertionError"):
        checked("accepts", accepts, "x", "here")
