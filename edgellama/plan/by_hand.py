"""A plan's facts as a person states them on the command line, device by device."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

from edgellama.errors import MisuseError
from edgellama.plan.device_speed import SPEED_PAST
from edgellama.values import DeviceFacts, DeviceSpeed, LinkFacts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgellama.values import ModelFacts

MILLISECONDS_MAX: Final = 60_000.0
MEGABITS_MAX: Final = 1_000_000.0
NUMBERS_MAX: Final = 1024  # of a list: as many as a mesh has devices


def parse_numbers(text: str, option: str, largest: float) -> list[float]:
    """Return the positive numbers of ``1.5,20``; MisuseError names the option."""
    parts = text.split(",")
    try:
        numbers = [float(part) for part in parts[: NUMBERS_MAX + 1]]
    except ValueError:
        numbers = []
    if not 1 <= len(numbers) <= NUMBERS_MAX or not all(0 < n <= largest for n in numbers):
        raise MisuseError(
            f"{option} {text[:40]!r}: write numbers above 0 and up to {largest:g}, such as 5,12.5"
        )
    return numbers


def stated_devices(
    model: ModelFacts, ram_bytes: Sequence[int], layer_ms: Sequence[float]
) -> list[DeviceFacts]:
    """Return devices with so much memory each, and milliseconds a layer (none: not known)."""
    mean_bytes = max(1, sum(model.layer_bytes) // model.layers)
    speeds: list[DeviceSpeed | None] = [None] * len(ram_bytes)
    if layer_ms:
        speeds = [_speed(ms, mean_bytes) for ms in _for_each(layer_ms, "--speed", len(ram_bytes))]
    return [
        DeviceFacts(f"{number:032x}", f"device {number}", size, speed)
        for number, (size, speed) in enumerate(zip(ram_bytes, speeds, strict=True), start=1)
    ]


def stated_links(
    devices: Sequence[DeviceFacts], rtt_ms: Sequence[float], megabits: Sequence[float]
) -> list[LinkFacts]:
    """Return the links between all devices.

    A device's round trip is that to another one like it: between two unlike ones it is the mean.
    Of two rates the lower counts. Nothing said of round trips leaves the links unknown.
    """
    if not rtt_ms:
        return []
    trips = _for_each(rtt_ms, "--rtt", len(devices))
    rates = _for_each(megabits, "--rate", len(devices)) if megabits else [0.0] * len(devices)
    return [
        LinkFacts(
            devices[one].node,
            devices[other].node,
            round((trips[one] + trips[other]) * 500),
            round(min(rates[one], rates[other]) * 125_000),
        )
        for one, other in itertools.permutations(range(len(devices)), 2)
    ]


def _for_each(numbers: Sequence[float], option: str, count: int) -> Sequence[float]:
    if len(numbers) not in (1, count):
        raise MisuseError(f"{option} has {len(numbers)} numbers for {count} devices: give 1 or all")
    return list(numbers) * (count // len(numbers))


def _speed(ms: float, layer_bytes: int) -> DeviceSpeed:
    """Return the speed of a device that takes so long for a layer, all of it for its weights."""
    kib_ns = max(1, min(round(ms * 1e6 * 1024 / layer_bytes), SPEED_PAST - 1))
    return DeviceSpeed(0, kib_ns, kib_ns)
