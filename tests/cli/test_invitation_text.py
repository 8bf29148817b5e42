"""What a person reads and scans to let a device in."""

from __future__ import annotations

import io
import sys

import pytest

from edgellama.cli.invitation import draws_blocks, invitation_text, join_command, qr_text
from edgellama.cli.view import LiveView
from edgellama.values import Address
from edgellama.wire.join_code import parse_code

HERE = Address("192.168.1.23", 7711)
CODE = parse_code("7-amber-otter")
COMMAND = "edgellama join --peer 192.168.1.23:7711 --code 7-amber-otter"


class Terminal(io.StringIO):
    def __init__(self, encoding: str) -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:
        return self._encoding


def test_the_command_can_be_typed_as_it_stands() -> None:
    assert join_command("7-amber-otter", HERE) == COMMAND
    assert parse_code(COMMAND.split()[-1])
    assert invitation_text("7-amber-otter", HERE, 300, qr=False).splitlines() == [
        "join code 7-amber-otter (for one device, 5 minutes): run edgellama join there,",
        f"or where that does not find this device: {COMMAND}",
    ]


def test_the_qr_holds_the_command_to_the_last_module(monkeypatch: pytest.MonkeyPatch) -> None:
    import segno

    monkeypatch.setattr(sys, "stdout", Terminal("utf-8"))
    drawn = qr_text(COMMAND).splitlines()
    matrix = [list(row) for row in segno.make(COMMAND, error="l", micro=False).matrix]
    border, size = 2, len(matrix)
    assert len(drawn[0]) == size + 2 * border
    halves = {" ": (1, 1), "\u2588": (0, 0), "\u2580": (0, 1), "\u2584": (1, 0)}  # ink is a gap
    rows: list[list[int]] = []
    for line in drawn:
        upper, lower = zip(*(halves[sign] for sign in line), strict=True)
        rows += [list(upper), list(lower)]
    inner = [row[border : border + size] for row in rows[border : border + size]]
    assert inner == matrix
    assert invitation_text("7-amber-otter", HERE, 300, qr=True).endswith("\n".join(drawn))


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_live_display_of_join_shows_the_qr_too(
    monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    """While it runs it stands in for stdout, and knows no encoding."""
    terminal = Terminal(encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    with LiveView() as view:
        view.invite(CODE, HERE, 300)
    assert COMMAND in terminal.getvalue()
    assert (qr_text(COMMAND) in terminal.getvalue()) == (encoding == "utf-8")


def test_no_qr_where_it_cannot_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal("ascii"))
    assert not draws_blocks()
    monkeypatch.setattr(sys, "stdout", Terminal("utf-8"))
    assert draws_blocks()
    monkeypatch.setitem(sys.modules, "segno", None)
    assert qr_text(COMMAND) == ""
    assert "\n\n" not in invitation_text("7-amber-otter", HERE, 300, qr=True)
