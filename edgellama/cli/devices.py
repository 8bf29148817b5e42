"""``edgellama devices``: who belongs to the mesh."""

from __future__ import annotations

import json as json_module

import click

from edgellama.cli.options import as_json, key, peers, transport
from edgellama.cli.status import mesh_status


@click.command(name="devices", short_help="List the devices of the mesh.")
@peers
@transport
@key
@as_json
def command(peers: tuple[str, ...], transport: str, key: str | None, as_json: bool) -> None:
    """List the devices of the mesh with the names and identities that forget takes."""
    status = mesh_status(peers, key, transport)
    if as_json:
        devices = [
            {
                "id": member.record.node,
                "name": member.record.name,
                "address": f"{member.record.host}:{member.record.port}",
                "state": member.record.state,
            }
            for member in status.members
        ]
        click.echo(json_module.dumps({"open": status.open_mesh, "devices": devices}))
        return
    from edgellama.cli.tables import devices_table, show

    show(devices_table(status))
