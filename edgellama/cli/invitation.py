"""How an invitation looks on a terminal: the code, the command for the other device, and a QR."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgellama.values import Address


def join_command(code: str, address: Address) -> str:
    """Return the command that joins with a code without any discovery: what the QR holds."""
    return f"edgellama join --peer {address} --code {code}"


def invitation_text(code: str, address: Address, seconds: int, *, qr: bool) -> str:
    """Return what a person needs to let one more device in."""
    lines = [
        f"join code {code} (for one device, {seconds // 60} minutes): run edgellama join there,",
        f"or where that does not find this device: {join_command(code, address)}",
    ]
    picture = qr_text(join_command(code, address)) if qr else ""
    return "\n".join([*lines, picture]) if picture else "\n".join(lines)


def draws_blocks() -> bool:
    """Whether stdout takes the half blocks of a QR; ask before anything stands in front of it."""
    return (sys.stdout.encoding or "").lower().startswith("utf")


def qr_text(content: str) -> str:
    """Return a QR code in half blocks; empty where it cannot be drawn."""
    try:
        import segno
    except ImportError:
        return ""
    drawn = io.StringIO()
    segno.make(content, error="l", micro=False).terminal(out=drawn, border=2, compact=True)
    return drawn.getvalue().rstrip("\n")
