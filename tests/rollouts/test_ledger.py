import sys
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from drift.errors import ConfigError, PolicyError
from drift.rollouts.config import ClusterConfig
from drift.rollouts.episode import Assignment
from drift.rollouts.fleet import connect, slots
from drift.rollouts.ledger import Ledger
from drift.types import Task

WORKERS = st.sampled_from(["a", "b", "c"])


def assignments(count: int) -> list[Assignment]:
    return [
        Assignment(task=Task(id=f"t{at}", group_id=f"t{at}", split="train", payload={}), sample=0, seed=at)
        for at in range(count)
    ]


class LedgerMachine(RuleBasedStateMachine):
    """Workers are handed assignments, deliver them late or twice, and are lost while a message is still on its way."""

    def __init__(self) -> None:
        super().__init__()
        self.todo = assignments(12)
        self.ledger = Ledger(self.todo)
        self.on_the_way: list[tuple[str, str]] = []
        self.accepted: Counter[str] = Counter()
        self.dropped = 0

    @rule(worker=WORKERS, count=st.integers(0, 6))
    def hand_out(self, worker: str, count: int) -> None:
        taken = self.ledger.take(worker, count)
        assert len(taken) <= count
        for assignment in taken:
            # Nothing that is there is held again.
            assert not self.accepted[assignment.trajectory_id]
            self.on_the_way.append((worker, assignment.trajectory_id))

    @precondition(lambda self: self.on_the_way)
    @rule(data=st.data(), again=st.booleans())
    def deliver(self, data: Any, again: bool) -> None:
        at = data.draw(st.integers(0, len(self.on_the_way) - 1))
        worker, key = self.on_the_way[at] if again else self.on_the_way.pop(at)
        if self.ledger.deliver(worker, key):
            self.accepted[key] += 1
        else:
            self.dropped += 1

    @rule(worker=WORKERS)
    def lose(self, worker: str) -> None:
        held = self.ledger.held(worker)
        assert self.ledger.lose(worker) <= held
        assert self.ledger.held(worker) == 0

    @invariant()
    def counted(self) -> None:
        assert self.ledger.left == len(self.todo) - len(self.accepted)
        assert all(count == 1 for count in self.accepted.values())
        assert self.ledger.duplicates == self.dropped

    def teardown(self) -> None:
        """Whatever happened, a worker that lives on brings the rest, and each is there once."""
        for worker in ("a", "b", "c"):
            self.ledger.lose(worker)
        while taken := self.ledger.take("last", 5):
            for assignment in taken:
                assert self.ledger.deliver("last", assignment.trajectory_id)
                self.accepted[assignment.trajectory_id] += 1
        assert self.ledger.left == 0
        assert self.accepted == Counter(assignment.trajectory_id for assignment in self.todo)


TestLedgerMachine = LedgerMachine.TestCase


def test_what_a_lost_worker_held_is_handed_out_next_in_its_old_order() -> None:
    ledger = Ledger(assignments(6))
    first = ledger.take("a", 3)
    assert ledger.deliver("a", "t1#0")
    assert ledger.lose("a") == 2
    assert [a.trajectory_id for a in ledger.take("b", 9)] == ["t0#0", "t2#0", "t3#0", "t4#0", "t5#0"]
    assert [a.trajectory_id for a in first] == ["t0#0", "t1#0", "t2#0"] and ledger.requeued == 2


def test_a_result_that_nobody_asked_for_is_a_fault_of_the_program() -> None:
    with pytest.raises(AssertionError, match="nobody asked for"):
        Ledger(assignments(2)).deliver("a", "t7#0")


@given(left=st.integers(0, 500), held=st.integers(0, 100), concurrency=st.integers(1, 64), workers=st.integers(1, 8))
def test_a_worker_is_handed_no_more_than_its_share_and_its_room(
    left: int, held: int, concurrency: int, workers: int
) -> None:
    ledger = Ledger(assignments(left))
    held = len(ledger.take("a", held))
    room = ledger.room("a", concurrency=concurrency, workers=workers)
    assert room >= 0
    if room:
        assert held + room <= concurrency + max(1, concurrency // 4)
        assert (held + room - 1) * workers < left
    if left and not held:
        # Somebody with nothing to do is always handed something.
        assert room >= 1


def test_the_first_worker_leaves_the_others_their_share() -> None:
    ledger = Ledger(assignments(90))
    for worker in ("a", "b", "c"):
        assert len(ledger.take(worker, ledger.room(worker, concurrency=512, workers=3))) == 30
    assert ledger.room("a", concurrency=512, workers=3) == 0


def node(name: str, cpus: float = 0, gpus: float = 0, alive: bool = True) -> dict[str, Any]:
    return {"NodeID": name, "Alive": alive, "Resources": {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}}


@pytest.mark.parametrize(
    ("settings", "nodes", "expected"),
    [
        # Without GPUs one worker per node that has the cores; the head keeps none free.
        ({}, [node("head"), node("a", 8), node("b", 2), node("dead", 8, alive=False)], {"a": 1, "b": 1}),
        # One per GPU, and nodes without any get none.
        ({}, [node("head", 16), node("a", 64, 8), node("b", 3, 8)], {"a": 8, "b": 3}),
        ({"gpus": 4}, [node("a", 64, 8), node("b", 64, 2)], {"a": 2}),
        ({"gpus": 0.5}, [node("a", 64, 1)], {"a": 2}),
        ({"gpus": 0, "cpus": 4}, [node("a", 64, 8), node("b", 2)], {"a": 1}),
        ({"gpus": 0, "cpus": 0}, [node("head")], {"head": 1}),
        # A number leaves the choice of nodes to Ray, also of those that are not there yet.
        ({"workers": 3}, [node("a", 1)], {"": 3}),
    ],
)
def test_where_workers_are_put(settings: dict[str, Any], nodes: list[dict[str, Any]], expected: dict[str, int]) -> None:
    found = slots(nodes, ClusterConfig(address="auto", **settings))
    assert Counter(name for name, _ in found) == expected and len(set(found)) == len(found)


@pytest.mark.parametrize(
    "settings",
    [
        {"address": "somewhere"},
        {"address": "ray://host:10001"},
        {"address": "host:port"},
        {"workers": 0},
        {"gpus": -1},
        {"gpus": 1.5},
        {"cpus": -1},
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"cluster\.{next(iter(settings))}: got"):
        ClusterConfig(**settings)


@pytest.mark.parametrize("address", ["", "auto", "local", "10.0.0.1:6379", "head.example:6379", "[::1]:6379"])
def test_addresses_that_are_taken(address: str) -> None:
    assert ClusterConfig(address=address).address == address


def test_without_ray_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    # What an import finds where a package is missing.
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PolicyError, match=r"pip install 'drift-rl\[ray\]'"):
        connect("auto")
