"""How a target that has timers is played with: turn by turn, and at the end nobody says a word."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from edgellama.testing.fuzzing.feed import Feed

if TYPE_CHECKING:
    from collections.abc import Callable

TURNS_MAX: Final = 48
SILENCE_S_MAX: Final = 60.0


class _Timed(Protocol):
    def next_timer(self) -> float | None: ...
    def handle_timer(self, now: float) -> None: ...


class Hostile(Protocol):
    """A part of ours, and others who say to it what the fuzzer likes."""

    now: float

    @property
    def victim(self) -> _Timed:
        """The part of ours."""
        ...

    def settle(self) -> None:
        """Do what a driver does; it must come to an end."""
        ...


H = TypeVar("H", bound=Hostile)


def play(hostile: H, data: bytes, turn: Callable[[H, Feed], None]) -> None:
    """Take the turns that the bytes say."""
    feed = Feed(data)
    for _ in range(TURNS_MAX):
        if not feed:
            return
        turn(hostile, feed)
        hostile.settle()


def wait(hostile: Hostile, seconds: float) -> None:
    """Let time pass, and then what is due happen."""
    hostile.now += seconds
    timer = hostile.victim.next_timer()
    if timer is not None and timer <= hostile.now:
        hostile.victim.handle_timer(hostile.now)


def fall_silent(hostile: Hostile, is_over: Callable[[], bool]) -> None:
    """Let time pass until it is over: soon enough, or a silent peer would stay for ever."""
    deadline = hostile.now + SILENCE_S_MAX
    while not is_over():
        timer = hostile.victim.next_timer()
        assert timer is not None
        assert timer <= deadline, "a silent peer stays for ever"
        wait(hostile, max(timer - hostile.now, 0.0))
        hostile.settle()
