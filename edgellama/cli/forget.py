"""``edgellama forget``: the mesh goes on without a device, under another key."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import click

from edgellama.cli.options import key, key_choice
from edgellama.cli.status import mesh_status
from edgellama.errors import MisuseError

if TYPE_CHECKING:
    from edgellama.wire.messages import MemberRecord, StatusReply


@click.command(name="forget", short_help="Shut a device out of the mesh.")
@click.argument("device")
@key
def command(device: str, key: str | None) -> None:
    """Shut DEVICE out: the other devices that run now get another key, and it does not.

    DEVICE is a name or the beginning of an identity, as edgellama devices shows them. A device
    that does not run at the moment has to join again with a code.
    """
    from edgellama.net.paths import StatePaths
    from edgellama.node.admission import access_to_ask
    from edgellama.node.asking import ask_this_device
    from edgellama.wire.key_messages import Forget, Forgotten

    status = mesh_status((), key)
    target = _chosen(status, device)
    paths = StatePaths.locate()
    access = access_to_ask(key_choice(key), paths, ())
    reply = ask_this_device(Forget(secrets.randbits(64), target.node), access.key, paths)
    assert isinstance(reply, Forgotten)
    names = {member.record.node: member.record.name for member in status.members}
    told = ", ".join(names.get(node, node[:8]) for node in reply.told)
    click.echo(f"{target.name} is forgotten; another key has gone to {told or 'no other device'}")


def _chosen(status: StatusReply, device: str) -> MemberRecord:
    """Return the one member that is meant; MisuseError when none or several are."""
    records = [member.record for member in status.members]
    found = [each for each in records if each.name == device]
    if not found and device:
        found = [each for each in records if each.node.startswith(device.lower())]
    if not found:
        raise MisuseError(f"no device here is called {device[:64]!r}: see edgellama devices")
    if len(found) > 1:
        raise MisuseError(f"{device[:64]!r} is {len(found)} devices: give more of its identity")
    return found[0]
