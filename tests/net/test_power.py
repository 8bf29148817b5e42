"""Battery and heat, as Termux's command and Linux's files say them."""

from __future__ import annotations

import sys
from queue import SimpleQueue
from typing import TYPE_CHECKING

import pytest

from edgellama.mesh.wellbeing import NO_READING, Reading
from edgellama.net.power import PowerSources, parse_termux, read_power
from edgellama.node.power_watch import PowerWatch

if TYPE_CHECKING:
    from pathlib import Path

PHONE = """{
  "present": true, "technology": "Li-ion", "health": "GOOD", "plugged": "UNPLUGGED",
  "status": "DISCHARGING", "temperature": 31.4, "voltage": 3894, "current": -412000,
  "current_average": null, "percentage": 17, "level": 17, "scale": 100
}"""

needs_a_shell = pytest.mark.skipif(sys.platform == "win32", reason="the fake command is a script")


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_text(f"{content}\n")


def command(folder: Path, output: str) -> str:
    path = folder / "termux-battery-status"
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{output}\nEND\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("text", "reading"),
    [
        (PHONE, Reading(17.0, False, 31.4)),
        ('{"percentage": 50, "plugged": "PLUGGED_AC"}', Reading(50.0, True)),
        ('{"percentage": 101, "plugged": 1, "temperature": "hot"}', NO_READING),
        ('{"percentage": true, "temperature": 999}', NO_READING),
        ('{"percentage": NaN}', NO_READING),
        ("[1]", NO_READING),
        ("", NO_READING),
        ("Termux:API is not installed", NO_READING),
    ],
)
def test_what_termux_says(text: str, reading: Reading) -> None:
    assert parse_termux(text) == reading


def test_a_laptop(tmp_path: Path) -> None:
    supplies, thermal = tmp_path / "power_supply", tmp_path / "thermal"
    write(supplies / "AC", type="Mains", online=0)
    write(supplies / "BAT0", type="Battery", capacity=62, temp=312)
    write(supplies / "BAT1", type="Battery", capacity=40)
    write(supplies / "mouse", type="Battery", scope="Device", capacity=3)
    zone = {"temp": 61000, "trip_point_0_type": "passive", "trip_point_0_temp": 62000}
    write(thermal / "thermal_zone0", **zone)
    zone |= {"trip_point_1_type": "critical", "trip_point_1_temp": 105000}
    write(thermal / "thermal_zone1", **zone)
    write(thermal / "thermal_zone2", temp=-274000, **dict(list(zone.items())[1:]))
    write(thermal / "cooling_device0", cur_state=0)
    reading = read_power(PowerSources(tmp_path, None))
    assert reading == Reading(40.0, False, pytest.approx(31.2), pytest.approx(44.0))
    (supplies / "AC" / "online").write_text("1\n")
    assert read_power(PowerSources(tmp_path, None)).is_plugged


def test_a_board_without_anything(tmp_path: Path) -> None:
    assert read_power(PowerSources(tmp_path / "nothing", None)) == NO_READING
    assert read_power(PowerSources(tmp_path, str(tmp_path / "no command"))) == NO_READING


@needs_a_shell
def test_the_command_goes_before_the_files(tmp_path: Path) -> None:
    write(tmp_path / "power_supply" / "BAT0", type="Battery", capacity=90)
    assert read_power(PowerSources(tmp_path, command(tmp_path, PHONE))).percent == 17.0


@needs_a_shell
def test_the_watch_says_what_changes_and_no_more(tmp_path: Path) -> None:
    battery = tmp_path / "power_supply" / "BAT0"
    write(battery, type="Battery", capacity=10)
    said: SimpleQueue[str] = SimpleQueue()
    watch = PowerWatch(PowerSources(tmp_path, None), said.put, read_s=0.01)
    watch.start()
    assert "10 %" in said.get(timeout=20)
    (battery / "capacity").write_text("9")
    with pytest.raises(Exception):  # noqa: B017 - Empty: it rests already
        said.get(timeout=0.2)
    watch.stop()
