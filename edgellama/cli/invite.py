"""``edgellama invite``: a code that lets one more device into the mesh."""

from __future__ import annotations

import json as json_module
import secrets
import sys

import click

from edgellama.cli.invitation import draws_blocks, invitation_text, join_command
from edgellama.cli.options import as_json, key, key_choice


@click.command(name="invite", short_help="Show a code that lets one more device in.")
@key
@as_json
def command(key: str | None, as_json: bool) -> None:
    """Show a join code of the mesh that this device takes part in, as text and as a QR.

    It is good for one device, three tries and five minutes. A code before it becomes void.
    """
    from edgellama.net.paths import StatePaths
    from edgellama.node.admission import access_to_ask
    from edgellama.node.asking import ask_this_device
    from edgellama.values import Address
    from edgellama.wire.key_messages import InviteQuery, InviteReply

    paths = StatePaths.locate()
    access = access_to_ask(key_choice(key), paths, ())
    reply = ask_this_device(InviteQuery(secrets.randbits(64)), access.key, paths)
    assert isinstance(reply, InviteReply)
    address = Address(reply.host, reply.port)
    if as_json:
        invitation = {"code": reply.code, "address": str(address), "seconds": reply.seconds}
        command = join_command(reply.code, address)
        click.echo(json_module.dumps({**invitation, "command": command}))
        return
    qr = sys.stdout.isatty() and draws_blocks()
    click.echo(invitation_text(reply.code, address, reply.seconds, qr=qr))
