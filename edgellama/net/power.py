"""What this device says of its battery and its heat; what cannot be read is left out of account."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from edgellama.mesh.wellbeing import NO_READING, Reading

if TYPE_CHECKING:
    from collections.abc import Iterable

COMMAND_TIMEOUT_S: Final = 10.0  # without Termux's companion app its commands never end
CELSIUS_LEAST: Final = -50.0  # sensors that are not there say what they like
CELSIUS_MOST: Final = 200.0


class PowerSources(NamedTuple):
    """Where to read: the folder of Linux's devices, and Termux's command, if it is there."""

    devices: Path
    command: str | None


def power_sources() -> PowerSources:
    """Return the sources of this machine."""
    return PowerSources(Path("/sys/class"), shutil.which("termux-battery-status"))


def read_power(sources: PowerSources) -> Reading:
    """Return what is to be known now; takes up to COMMAND_TIMEOUT_S on a phone."""
    if sources.command is not None:
        return parse_termux(_output_of(sources.command))
    percent, is_plugged, battery_c = _batteries(sources.devices / "power_supply")
    margins = [_margin(zone) for zone in _folders(sources.devices / "thermal", "thermal_zone")]
    known = [margin for margin in margins if margin is not None]
    return Reading(percent, is_plugged, battery_c, min(known, default=None))


def parse_termux(text: str) -> Reading:
    """Return what ``termux-battery-status`` has printed; nothing where it is not its JSON."""
    try:
        said: Any = json.loads(text)
    except ValueError:
        return NO_READING
    if not isinstance(said, dict):
        return NO_READING
    plugged = said.get("plugged")
    is_plugged = plugged != "UNPLUGGED" if isinstance(plugged, str) else None
    return Reading(_number(said.get("percentage"), 0, 100), is_plugged, _celsius(said, 1.0))


def _celsius(said: dict[str, Any], unit: float) -> float | None:
    value = _number(said.get("temperature"), CELSIUS_LEAST / unit, CELSIUS_MOST / unit)
    return None if value is None else value * unit


def _number(value: object, least: float, most: float) -> float | None:
    """Return a number that is one, between these."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if least <= value <= most else None


def _batteries(folder: Path) -> tuple[float | None, bool | None, float | None]:
    """Return the least charged battery's percentage, whether power comes in, the hottest one."""
    percents, plugged, celsius = [], [], []
    for supply in _folders(folder, ""):
        kind = _text(supply / "type")
        if kind == "Battery" and _text(supply / "scope") != "Device":  # not that of a mouse
            percents.append(_read(supply / "capacity", 1.0, 0, 100))
            celsius.append(_read(supply / "temp", 0.1, CELSIUS_LEAST, CELSIUS_MOST))
        elif kind in ("Mains", "USB", "Wireless"):
            plugged.append(_text(supply / "online") == "1")
    is_plugged = any(plugged) if plugged else None
    return _known(min, percents), is_plugged, _known(max, celsius)


def _margin(zone: Path) -> float | None:
    """Return how many degrees a part is below the least of where the system acts hard on it."""
    celsius = _read(zone / "temp", 0.001, CELSIUS_LEAST, CELSIUS_MOST)
    limits = [
        _read(kind.with_name(kind.name.replace("_type", "_temp")), 0.001, 1, CELSIUS_MOST)
        for kind in _folders(zone, "trip_point_")
        if kind.name.endswith("_type") and _text(kind) in ("hot", "critical")
    ]
    limit = _known(min, limits)
    return None if celsius is None or limit is None else limit - celsius


def _known(choose: Any, values: Iterable[float | None]) -> float | None:
    chosen: float | None = choose((each for each in values if each is not None), default=None)
    return chosen


def _folders(folder: Path, prefix: str) -> list[Path]:
    try:
        return sorted(each for each in folder.iterdir() if each.name.startswith(prefix))
    except OSError:
        return []


def _read(path: Path, unit: float, least: float, most: float) -> float | None:
    try:
        value = int(_text(path)) * unit
    except ValueError:
        return None
    return value if least <= value <= most else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _output_of(command: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 (what the person's own path names, no shell)
            [command], capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.SubprocessError, ValueError):
        return ""
    return done.stdout
