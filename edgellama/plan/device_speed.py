"""A device's speed as two numbers, and how a measurement corrects them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgellama.values import DeviceSpeed

if TYPE_CHECKING:
    from collections.abc import Sequence

SPEED_PAST: Final = 1 << 32  # of each number: what a message has room for


def layers_ns(speed: DeviceSpeed, layer_bytes: Sequence[int]) -> int:
    """Return what layers of so many packed bytes take for one token."""
    return sum(speed.layer_ns + speed.kib_ns * size // 1024 for size in layer_bytes)


def corrected(speed: DeviceSpeed, layer_bytes: Sequence[int], measured_ns: int) -> DeviceSpeed:
    """Return the speed by which these layers take what was measured.

    Both numbers are taken to have been wrong by the same factor; 0 of either is kept.
    """
    foretold_ns = layers_ns(speed, layer_bytes)
    if foretold_ns <= 0 or measured_ns <= 0:
        return speed
    return DeviceSpeed(
        _bounded(speed.layer_ns * measured_ns // foretold_ns),
        _bounded(speed.kib_ns * measured_ns // foretold_ns),
        speed.head_kib_ns,
    )


def with_head(speed: DeviceSpeed, home_bytes: int, measured_ns: int) -> DeviceSpeed:
    """Return the speed by which embedding, head and sampling take what was measured."""
    if home_bytes <= 0 or measured_ns <= 0:
        return speed
    return speed._replace(head_kib_ns=_bounded(measured_ns * 1024 // home_bytes))


def _bounded(number: int) -> int:
    return min(max(0, number), SPEED_PAST - 1)
