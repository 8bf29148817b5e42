"""Whether a device should hold layers, by its battery and its heat: readings in, a verdict out."""

from __future__ import annotations

from typing import Final, NamedTuple

LOW_PERCENT: Final = 20.0  # and not plugged in
WELL_PERCENT: Final = 30.0  # or plugged in
BATTERY_HOT_C: Final = 43.0  # from about 45 on a battery ages quickly, and phones slow down
BATTERY_COOL_C: Final = 39.0
CHIP_NEAR_LIMIT_C: Final = 5.0  # below where the system itself would act; twice in a row
CHIP_COOL_C: Final = 20.0  # below it
WELL_FOR_S: Final = 300.0  # so long all must be well: a plan costs everybody something


class Reading(NamedTuple):
    """What a device says of itself at one moment; None is what it does not say.

    ``chip_margin_c`` is how far the hottest part is below where the system would act, in degrees.
    """

    percent: float | None = None
    is_plugged: bool | None = None
    battery_c: float | None = None
    chip_margin_c: float | None = None


NO_READING: Final = Reading()


class Wellbeing:
    """The verdict over time: a device rests at once when it must, and comes back slowly."""

    def __init__(self) -> None:
        self.reason = ""  # why it rests; empty while it need not
        self._was_chip_hot = False
        self._well_since: float | None = None

    def take(self, reading: Reading, now: float) -> str:
        """Take a reading; return why the device should rest, nothing where it need not."""
        reason = complaint(reading, chip_counts=self._was_chip_hot)
        self._was_chip_hot = _is_below(reading.chip_margin_c, CHIP_NEAR_LIMIT_C)
        if reason:
            self.reason, self._well_since = reason, None
        elif not _is_well(reading):
            self._well_since = None
        else:
            self._well_since = now if self._well_since is None else self._well_since
            if now >= self._well_since + WELL_FOR_S:
                self.reason = ""
        return self.reason


def complaint(reading: Reading, *, chip_counts: bool) -> str:
    """Return what speaks against holding layers at this moment; nothing where nothing does.

    A chip is hot for moments, so one reading of it does not count alone.
    """
    if reading.battery_c is not None and reading.battery_c >= BATTERY_HOT_C:
        return f"the battery is at {reading.battery_c:.0f} °C"
    if not reading.is_plugged and _is_below(reading.percent, LOW_PERCENT):
        return f"the battery is at {reading.percent:.0f} %"
    if chip_counts and _is_below(reading.chip_margin_c, CHIP_NEAR_LIMIT_C):
        return f"it is {reading.chip_margin_c:.0f} °C below where the system would act"
    return ""


def _is_well(reading: Reading) -> bool:
    """Whether nothing is near what would make it rest."""
    is_low = not reading.is_plugged and _is_below(reading.percent, WELL_PERCENT)
    is_hot = reading.battery_c is not None and reading.battery_c > BATTERY_COOL_C
    return not (is_low or is_hot or _is_below(reading.chip_margin_c, CHIP_COOL_C))


def _is_below(value: float | None, limit: float) -> bool:
    return value is not None and value < limit
