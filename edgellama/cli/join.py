"""``edgellama join``: this device takes its part in a mesh until it is told to leave."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import click

from edgellama.cli.options import (
    backend,
    code,
    key,
    key_choice,
    kv,
    model_file,
    note,
    open_mesh,
    peer_addresses,
    peers,
    size_in_bytes,
    split,
    split_choice,
    threads,
    transport,
    wire,
)

if TYPE_CHECKING:
    from types import FrameType

    from edgellama.node.admission import Access
    from edgellama.node.joining import JoinOptions


@click.command(name="join", short_help="Offer this device to the mesh.")
@click.option("--model", metavar="FILE", help="The GGUF file that the mesh shall host.")
@click.option("--name", help="How others see this device. Default: its host name.")
@click.option(
    "--ram", type=size_in_bytes, metavar="SIZE", help="What the model may use, such as 300M or 2G."
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    help="UDP and TCP port. Default: 7711, else a free one.",
)
@click.option("--listen", metavar="ADDRESS", help="Only this address of the device.")
@peers
@transport
@key
@code
@open_mesh
@threads
@click.option("--context", type=click.IntRange(16), help="Positions of KV cache for an answer.")
@click.option("--sessions", type=click.IntRange(1, 64), help="Answers made at the same time.")
@kv
@wire
@split
@backend
@click.option("--stay", is_flag=True, help="Hold layers whatever the battery and the heat.")
@click.option("--no-mdns", is_flag=True, help="Neither announce nor look for devices by mDNS.")
def command(
    model: str | None,
    name: str | None,
    ram: int | None,
    port: int | None,
    listen: str | None,
    peers: tuple[str, ...],
    transport: str,
    key: str | None,
    code: str | None,
    open_mesh: bool,
    threads: int | None,
    context: int | None,
    sessions: int | None,
    kv_kind: str | None,
    wire: str | None,
    split: str | None,
    purpose: str | None,
    backend: str,
    stay: bool,
    no_mdns: bool,
) -> None:
    """Offer this device's memory and cores to the mesh on this network, until Ctrl-C.

    The first device makes a mesh and shows a code that lets another one in. One device names the
    model with --model; the others receive just their own layers.
    """
    from edgellama.net.paths import StatePaths
    from edgellama.node.admission import access_to_join
    from edgellama.node.joining import JoinOptions

    wanted_split = split_choice(split, purpose)
    gguf, named = model_file(model) if model else None, peer_addresses(peers)
    paths = StatePaths.locate()
    paths.make()
    ask_person = _ask_person if sys.stdin.isatty() else None
    choice = replace(key_choice(key, code, open_mesh=open_mesh), name=name or "")
    access = access_to_join(choice, paths, named, ask_person, mdns=not no_mdns)
    options = JoinOptions(
        mesh_key=access.key,
        key_is_kept=access.is_kept,
        model=gguf,
        name=name,
        ram_bytes=ram,
        port=port,
        listen=listen,
        peers=(*access.friends, *named),
        context=context or 0,
        mdns=not no_mdns,
        backend=backend,
        threads=threads,
        kv_kind=kv_kind or "",
        wire=wire or "",
        transport=transport,
        split=wanted_split,
        sessions=sessions or 0,
        stays=stay,
    )
    _run(options, access)
    note("left the mesh")


def _run(options: JoinOptions, access: Access) -> None:
    """Run the member until Ctrl-C, or until it ends by itself."""
    from edgellama.cli.view import open_view
    from edgellama.node.joining import joined
    from edgellama.plan.sizes import format_size

    leaving = _leave_on_signals()
    with open_view() as view, joined(options, view) as member:
        leaving.started = True
        me = member.core.membership.me
        view.tell(
            f"{me.name} offers {format_size(me.ram_bytes)} at {member.address}, "
            + ("OPEN mesh: any device here can join and read" if not access.key else "encrypted")
        )
        if access.is_new:
            view.invite(*member.invite())
        is_leaving = False
        while not member.wait(view.refresh_s):
            if leaving.asked and not is_leaving:
                is_leaving = True
                member.act(member.core.hand_over)
            view.show(member.status())


def _ask_person(question: str) -> str:
    """Ask on the terminal; an empty answer is one."""
    answer: str = click.prompt(question, default="", show_default=False, err=True)
    return answer


@dataclass
class _Leaving:
    """What a signal has asked for."""

    started: bool = False
    asked: bool = False


def _leave_on_signals() -> _Leaving:
    """Note signals to end once the member runs; before that, and a second time, they do at once.

    Ctrl-C, SIGTERM, and SIGHUP of a terminal that is closed, unless ``nohup`` keeps it away.
    """
    leaving = _Leaving()
    hang_up = getattr(signal, "SIGHUP", None)  # Windows knows none
    terminals = [number for number in (1, 2) if os.isatty(number)]

    def handle(number: int, _frame: FrameType | None) -> None:
        if number == hang_up:
            _to_nowhere(terminals)
        if not leaving.started or leaving.asked:
            raise KeyboardInterrupt
        leaving.asked = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
    if hang_up is not None and signal.getsignal(hang_up) != signal.SIG_IGN:
        signal.signal(hang_up, handle)
    return leaving


def _to_nowhere(terminals: list[int]) -> None:
    """Let what is still said go nowhere: a write to a terminal that is closed is an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in terminals:
        os.dup2(nowhere, number)
    os.close(nowhere)
