"""Weight transfers that wait for answers, in real threads; nothing here asserts a duration."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest
from weights_serving import KEY, CountingSource, served

from edgellama.mesh.transfer_pace import RATE_LEAST, UNLIMITED, DecodeDelay
from edgellama.net import throttle as throttle_module
from edgellama.net.supply import Supply, WeightSource
from edgellama.net.throttle import PIECE_BYTES, Throttle
from edgellama.net.transfer import TransferCancelledError, fetch_chunks

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgellama.net.own_model import OwnModel
    from edgellama.net.stored_model import StoredModel

LATE = DecodeDelay(0.050, 0.010)
SLOW = DecodeDelay(0.017, 0.010)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Collect what would be slept, and sleep none of it."""
    slept: list[float] = []
    monkeypatch.setattr(throttle_module.time, "sleep", slept.append)
    return slept


def test_without_answers_nothing_waits(waits: list[float]) -> None:
    throttle = Throttle()
    for _ in range(100):
        throttle.hold()
        with throttle.turn():
            throttle.passed(1 << 20)
    assert not throttle.is_limited()
    assert waits == []


def test_what_goes_keeps_to_the_rate(waits: list[float]) -> None:
    throttle = Throttle()
    throttle.token_came(SLOW)
    assert throttle.rate() == RATE_LEAST  # nothing had been carried: half of nothing
    for _ in range(10):
        throttle.passed(PIECE_BYTES)
    # Each piece but the first waits until those before it have gone at this rate.
    assert len(waits) == 9
    assert max(waits) <= 9 * PIECE_BYTES / RATE_LEAST


def test_in_the_middle_of_a_chunk_a_little_may_always_go(waits: list[float]) -> None:
    throttle = Throttle()
    throttle.token_came(LATE)
    assert throttle.rate() == 0
    for _ in range(3):
        throttle.passed(PIECE_BYTES)
    assert max(waits) <= 2 * PIECE_BYTES / RATE_LEAST


def test_a_chunk_waits_until_tokens_are_quick_again() -> None:
    throttle, begun = Throttle(), threading.Event()
    throttle.token_came(LATE)
    passed: list[float] = []

    def hold() -> None:
        begun.set()
        throttle.hold()
        passed.append(throttle.rate())

    thread = threading.Thread(target=hold)
    thread.start()
    assert begun.wait(10)
    while thread.is_alive():
        time.sleep(0.01)
        throttle.token_came(DecodeDelay(0.010, 0.010))
    assert passed == [RATE_LEAST] or passed[0] > RATE_LEAST


def test_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle_module, "HOLD_MAX_S", 0.2)
    throttle = Throttle()
    throttle.token_came(LATE)
    throttle.hold()
    assert throttle.rate() == 0
    cancelled = threading.Event()
    cancelled.set()
    throttle.hold(cancelled)


def test_a_fetch_beside_answers_asks_for_one_chunk_at_a_time(
    own: OwnModel, stored: StoredModel, every: list[int]
) -> None:
    """Tokens come as quickly as ever, so the rate grows; the fetch is whole in the end."""
    throttle = Throttle()
    throttle.token_came(SLOW)
    out, most = 0, 0
    lock = threading.Lock()

    def before(index: int) -> None:
        nonlocal out, most
        throttle.token_came(DecodeDelay(0.010, 0.010))
        if throttle.is_limited():
            with lock:
                out += 1
                most = max(most, out)
            time.sleep(0.01)
            with lock:
                out -= 1

    wanted = [index for index in every if own.manifest.chunk(index).size < 1 << 17][:6]
    with served(CountingSource(own, before=before)) as address:
        supply = Supply(lambda: [WeightSource(address, original=True)], KEY, throttle=throttle)
        fetch_chunks(stored, wanted, supply)
    assert stored.missing(wanted) == []
    assert most == 1


def test_a_fetch_that_waits_can_be_cancelled(
    own: OwnModel, stored: StoredModel, every: list[int]
) -> None:
    cancelled, throttle = threading.Event(), Throttle()
    keeps_late = threading.Thread(target=lambda: _keep_late(throttle, cancelled))
    keeps_late.start()
    throttle.token_came(LATE)
    source = CountingSource(own)
    with served(source) as address:
        sources = [WeightSource(address, original=True)]
        supply = Supply(lambda: sources, KEY, cancelled, throttle=throttle)
        timer = threading.Timer(0.3, cancelled.set)
        timer.start()
        with pytest.raises(TransferCancelledError):
            fetch_chunks(stored, every, supply)
        timer.join()
    keeps_late.join()
    assert source.read == []
    assert throttle.rate() in (0, UNLIMITED)


def _keep_late(throttle: Throttle, until: threading.Event) -> None:
    tell: Callable[[DecodeDelay], None] = throttle.token_came
    while not until.wait(0.05):
        tell(LATE)
