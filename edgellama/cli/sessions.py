"""``edgellama sessions``: the conversations that are kept, and ``sessions rm`` to remove one."""

from __future__ import annotations

import json as json_module
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import click

from edgellama.cli.options import as_json, key, key_choice, note, peers
from edgellama.cli.reaching import way_to_mesh
from edgellama.errors import MisuseError, NoMeshError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgellama.node.session_shelf import SessionShelf


@click.group(
    name="sessions", invoke_without_command=True, short_help="List or remove kept conversations."
)
@peers
@key
@as_json
@click.pass_context
def command(context: click.Context, peers: tuple[str, ...], key: str | None, as_json: bool) -> None:
    """List the sessions that `edgellama ask --session NAME` has made, here and in the mesh."""
    if context.invoked_subcommand is not None:
        context.obj = peers, key
        return
    with _shelf(peers, key) as shelf:
        known = list(shelf.known().values())
    if as_json:
        rows = [
            {
                "name": each.name,
                "questions": each.question,
                "state": each.state,
                "tokens": each.tokens,
                "model": each.model_name,
                "asked_ms": each.asked_ms,
            }
            for each in known
        ]
        click.echo(json_module.dumps(rows))
    elif not known:
        note("no sessions yet; edgellama ask --session NAME begins one")
    else:
        from edgellama.cli.tables import sessions_table, show

        show(sessions_table(known))


@command.command(name="rm", short_help="Remove a session.")
@click.argument("name")
@click.pass_context
def remove(context: click.Context, name: str) -> None:
    """Remove the session NAME from this device and from the members of the mesh that run now."""
    peers, key = context.obj
    with _shelf(peers, key) as shelf:
        was_there = shelf.remove(name)
    if not was_there:
        raise MisuseError(f"there is no session {name}; edgellama sessions lists them")
    note(f"removed {name}")


@contextmanager
def _shelf(peers: tuple[str, ...], key: str | None) -> Iterator[SessionShelf]:
    """Open the sessions of this device and of its mesh; without a mesh those of this device."""
    from edgellama.net.session_files import SessionFiles
    from edgellama.node.asking import mesh_asker
    from edgellama.node.session_shelf import Elsewhere, Nowhere, SessionShelf

    way = way_to_mesh(peers, key_choice(key))
    elsewhere: Elsewhere = Nowhere()
    with ExitStack() as stack:
        try:
            asker = mesh_asker(*way)
            elsewhere = stack.enter_context(asker)
        except NoMeshError as error:
            if peers:
                raise
            note(f"{error}: this is about this device alone")
        yield SessionShelf(SessionFiles(way.paths.sessions), elsewhere)
