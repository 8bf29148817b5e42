"""Offers measured again: what the process itself holds is offered again, small changes are not."""

from __future__ import annotations

import pytest

from edgellama.net.facts import NOTHING
from edgellama.net.memory import OwnMemory
from edgellama.node import memory_offer
from edgellama.node.memory_offer import MemoryOffer

MIB = 1 << 20


class Machine:
    """A machine with so much available beside what the process holds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.available = 1000 * MIB
        self.own: OwnMemory | None = OwnMemory(40 * MIB, 30 * MIB)
        self.told: list[OwnMemory] = []
        monkeypatch.setattr(memory_offer, "own_memory", lambda: self.own)
        monkeypatch.setattr(memory_offer, "ram_offer_bytes", self.offer)

    def offer(self, overhead_bytes: int, held: OwnMemory = NOTHING) -> int:
        self.told.append(held)
        return self.available + held.anonymous_bytes - overhead_bytes


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_what_the_process_took_for_the_model_is_offered_again(machine: Machine) -> None:
    offer = MemoryOffer(None, 100 * MIB)
    assert offer.told_bytes == 900 * MIB
    machine.available -= 300 * MIB
    machine.own = OwnMemory(340 * MIB, 500 * MIB)
    assert offer.changed() is None
    assert machine.told[-1] == OwnMemory(300 * MIB, 470 * MIB)


def test_only_changes_of_an_eighth_are_told(machine: Machine) -> None:
    offer = MemoryOffer(None, 100 * MIB)
    machine.available -= 112 * MIB
    assert offer.changed() is None
    machine.available -= 2 * MIB
    assert offer.changed() == offer.told_bytes == 786 * MIB
    assert offer.changed() is None
    machine.available = 2000 * MIB
    assert offer.changed() == 1900 * MIB


def test_between_plans_only_what_is_held_counts(machine: Machine) -> None:
    offer = MemoryOffer(None, 100 * MIB)
    machine.available = 600 * MIB
    assert offer.shrunk_below(500 * MIB) is None
    assert offer.shrunk_below(501 * MIB) == 500 * MIB
    assert offer.shrunk_below(501 * MIB) is None  # told already
    machine.available = 2000 * MIB
    assert offer.shrunk_below(501 * MIB) is None


def test_what_the_person_said_stays(machine: Machine) -> None:
    offer = MemoryOffer(300 * MIB, 100 * MIB)
    machine.available = 0
    assert offer.told_bytes == 300 * MIB
    assert offer.changed() is None
    assert offer.shrunk_below(200 * MIB) is None


def test_a_system_that_does_not_tell_what_is_held_is_measured_once(machine: Machine) -> None:
    machine.own = None
    offer = MemoryOffer(None, 100 * MIB)
    machine.available = 0
    assert offer.told_bytes == 900 * MIB
    assert offer.changed() is None
