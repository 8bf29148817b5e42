"""The search for the longest datagram that a path takes, and the way back."""

from __future__ import annotations

import pytest

from edgellama.link.path_mtu import (
    BLACK_HOLE_LOSSES,
    FIRST_PAUSE_S,
    LENGTHS,
    MAX_PROBES,
    RAISE_TIMER_S,
    TRUSTED_ARRIVALS,
    PathMtu,
)
from edgellama.wire.datagram import DATAGRAM_BYTES_BASE, DATAGRAM_BYTES_MAX


def search(path: PathMtu, takes: int, now: float) -> list[int]:
    """Let the path take so many bytes and no more; return the probes that were sent."""
    probes = []
    while probe := path.next_probe(now):
        probes.append(probe)
        path.on_probe_sent()
        assert path.next_probe(now) == 0, "one at a time"
        if probe <= takes:
            path.on_probe_arrived(probe)
        else:
            path.on_probe_lost(now)
    return probes


def test_the_lengths_fall_from_the_longest_datagram_to_above_the_base() -> None:
    assert list(LENGTHS) == sorted(LENGTHS, reverse=True)
    assert LENGTHS[0] == DATAGRAM_BYTES_MAX
    assert LENGTHS[-1] > DATAGRAM_BYTES_BASE


@pytest.mark.parametrize(
    ("takes", "found"),
    [(9000, 1472), (1472, 1472), (1471, 1464), (1400, 1392), (1300, 1252), (1251, 1200), (0, 1200)],
)
def test_the_longest_that_arrives_is_found(takes: int, found: int) -> None:
    path = PathMtu()
    assert path.datagram_bytes == DATAGRAM_BYTES_BASE
    probes = search(path, takes, 0.0)
    assert path.datagram_bytes == found
    tried = [length for length in LENGTHS if length > takes]
    assert len(probes) == MAX_PROBES * len(tried) + (found > DATAGRAM_BYTES_BASE)
    assert search(path, takes, RAISE_TIMER_S - 1.0) == []


def test_a_probe_lost_by_chance_is_sent_again() -> None:
    path = PathMtu()
    path.on_probe_sent()
    path.on_probe_lost(0.0)
    assert search(path, 1472, 0.0) == [1472]
    assert path.datagram_bytes == 1472


def test_a_path_that_takes_no_more_than_the_base_is_tried_again_later() -> None:
    path = PathMtu()
    search(path, 1200, 5.0)
    assert path.next_probe(5.0 + RAISE_TIMER_S) == 1472


def black_hole(path: PathMtu, now: float, first: int) -> bool:
    return [path.on_long_lost(first + at, now) for at in range(BLACK_HOLE_LOSSES)][-1]


def test_long_datagrams_that_all_vanish_are_a_black_hole() -> None:
    path = PathMtu()
    search(path, 1472, 0.0)
    path.on_long_arrived(1, 10)
    assert black_hole(path, 20.0, 11)
    assert path.datagram_bytes == DATAGRAM_BYTES_BASE
    assert path.next_probe(20.0) == 0
    assert search(path, 1400, 20.0 + FIRST_PAUSE_S)[-1] == 1392


def test_loss_by_chance_is_none() -> None:
    path = PathMtu()
    search(path, 1472, 0.0)
    for number in range(0, 1000, 2):
        path.on_long_arrived(1, number + 1)
        assert not path.on_long_lost(number, 1.0), "a later one has arrived"
    assert path.datagram_bytes == 1472


def test_each_further_black_hole_makes_the_pause_longer_until_long_ones_arrive() -> None:
    path = PathMtu()
    now, pauses = 0.0, []
    for _ in range(12):
        search(path, 1472, now)
        assert black_hole(path, now, 0)
        began = now
        while not path.next_probe(now):
            now += 0.5
        pauses.append(now - began)
    assert pauses[:4] == [FIRST_PAUSE_S * factor for factor in (1, 2, 4, 8)]
    assert pauses[-1] == RAISE_TIMER_S
    search(path, 1472, now)
    path.on_long_arrived(TRUSTED_ARRIVALS, 1)
    assert black_hole(path, now, 2)
    assert path.next_probe(now + FIRST_PAUSE_S) == 1472


def test_falling_back_from_the_base_changes_nothing() -> None:
    assert not PathMtu().fall_back(0.0)
