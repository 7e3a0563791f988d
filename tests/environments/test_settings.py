import inspect

import docstring_parser
import pytest

from drift.environments import ENVIRONMENTS

NAMES = [
    "arithmetic",
    "choice",
    "clarify",
    "guess",
    "gymnasium",
    "math",
    "openenv",
    "qa",
    "reasoning",
    "tools",
    "verifiers",
]


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_of_an_environment_is_described(name: str) -> None:
    factory = ENVIRONMENTS.get(name)
    described = {each.arg_name for each in docstring_parser.parse(inspect.getdoc(factory) or "").params}
    assert described == set(inspect.signature(factory).parameters)
