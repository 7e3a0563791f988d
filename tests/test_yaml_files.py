"""YAML that somebody wrote is refused in time where it is more than a recipe may be, and what is wrong is said."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from drift.errors import ConfigError
from drift.yaml_files import read_mapping

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9))


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("policy: &p {model: m, settings: {a: 1}}\njudge: {<<: *p, model: n}\nsteps: [a, {b: 2.5}]\n")
    policy = {"model": "m", "settings": {"a": 1}}
    assert read_mapping(path) == {"policy": policy, "judge": {**policy, "model": "n"}, "steps": ["a", {"b": 2.5}]}
    path.write_text("# nothing\n")
    assert read_mapping(path) == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\na: 4\n", "the key 'a' is there 3 times from line 1 on, expected once"),
        ("x: {beta: 1,\n  beta: 2}\n", "the key 'beta' is there 2 times from line 1 on, expected once"),
        ("a: &a [1, *a]\n", "line 1 refers to itself"),
        ("a: &a\n  b: {c: *a}\n", "refers to itself"),
        (BOMB, "more than 20,000 values, or is more than 50 deep"),
        ("a: " + "[" * 60 + "]" * 60, "line 1 is more than 50 deep"),
        ("".join(" " * n + "a:\n" for n in range(60)), "more than 20,000 values, or is more than 50 deep"),
        ("a: " + "[" * 90_000, "line 1 is more than 50 deep"),
        ("{" * 20_000, "line 1 is more than 50 deep"),
        ("- " * 20_000, "it is nested too deep"),
        ("a: 0x" + "9" * 4000, "line 1 has a number of 4,002 characters, expected at most 100"),
        ("0x" + "9" * 4000, "has a number of 4,002 characters"),
        ("a: " + "x" * 200_000, "it has more bytes than expected, at most 200,000"),
        ("- a\n", "expected keys and values"),
        ("1: a\n", "expected keys and values"),
        ("a: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
        ("a: [1\n", "can't be read as YAML"),
    ],
    ids=lambda value: value[:20],
)
def test_what_no_recipe_is_gets_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        read_mapping(path)
    assert str(path) in str(caught.value)


def test_many_keys_take_no_more_time_each(tmp_path: Path) -> None:
    def seconds(count: int) -> float:
        path = tmp_path / "r.yaml"
        path.write_text(f"a: {{{', '.join(f'k{n}' for n in range(count))}}}")
        begun = time.process_time()
        read_mapping(path)
        return time.process_time() - begun

    # Counting each among all of them took 20 times as long for 9 times as many.
    assert min(seconds(9000) for _ in range(3)) < 14 * min(seconds(1000) for _ in range(3))


def test_open_brackets_take_no_more_time_each(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("{" * 20_000)
    begun = time.process_time()
    with pytest.raises(ConfigError):
        read_mapping(path)
    # It was four seconds and more.
    assert time.process_time() - begun < 1
