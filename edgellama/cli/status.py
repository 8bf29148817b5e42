"""``edgellama status``: how the mesh stands."""

from __future__ import annotations

import json as json_module
from typing import TYPE_CHECKING, Any

import click

from edgellama.cli.options import as_json, key, key_choice, peers, transport
from edgellama.cli.reaching import way_to_mesh
from edgellama.values import WIRE_F16

if TYPE_CHECKING:
    from edgellama.values import LinkCounters, StageTimes
    from edgellama.wire.measurement_messages import FactsReply
    from edgellama.wire.messages import StatusReply


@click.command(name="status", short_help="Show the devices and who holds which layers.")
@peers
@transport
@key
@as_json
def command(peers: tuple[str, ...], transport: str, key: str | None, as_json: bool) -> None:
    """Show the devices of the mesh, who holds which layers, and what the links carry."""
    status = mesh_status(peers, key, transport)
    if as_json:
        click.echo(json_module.dumps(status_object(status)))
        return
    from edgellama.cli.tables import show, status_table

    show(status_table(status))


def mesh_status(peers: tuple[str, ...], key: str | None, transport: str = "auto") -> StatusReply:
    """Ask a device of this device's mesh how it stands."""
    from edgellama.node.asking import ask_for_status

    return ask_for_status(*way_to_mesh(peers, key_choice(key)), transport)


def facts_of_mesh(peers: tuple[str, ...], key: str | None, transport: str = "auto") -> FactsReply:
    """Ask a device of this device's mesh for all that it makes plans of."""
    from edgellama.node.asking import ask_for_facts

    return ask_for_facts(*way_to_mesh(peers, key_choice(key)), transport)


def status_object(status: StatusReply) -> dict[str, Any]:
    """Return the object that ``status --json`` prints."""
    model = status.model[0] if status.model else None
    return {
        "ready": status.ready,
        "epoch": status.epoch,
        "model": model
        and {
            "name": model.name,
            "hash": model.root,
            "layers": model.layers,
            "bytes": model.file_bytes,
        },
        "context": status.context,
        "split": status.split,
        "kv": status.kv_kind,
        "open": status.open_mesh,
        "exact": all(member.wire == WIRE_F16 for member in status.members),
        "trouble": status.trouble,
        "answered_by": status.node,
        "nodes": [
            {
                "id": member.record.node,
                "name": member.record.name,
                "address": f"{member.record.host}:{member.record.port}",
                "ram_bytes": member.record.ram_bytes,
                "layers": list(member.span),
                "home": member.home,
                "activations": member.wire,
                "transport": member.transport,
                "state": member.record.state,
                "intent": member.record.intent or "stays",
                "trial_s": member.trial_s,
                "backend": member.record.backend,
                "release": member.record.release,
                "wire": wire_object(member.counters),
                "predicted": times_object(member.predicted),
                "measured": times_object(member.measured),
            }
            for member in status.members
        ],
    }


def times_object(times: StageTimes) -> dict[str, float | None]:
    """Return what a stage takes for a token, as JSON shows it; null is not known."""
    return {
        "compute_ms": times.compute_ns / 1e6 if times.compute_ns else None,
        "hop_ms": times.hop_ns / 1e6 if times.hop_ns else None,
        "link_bytes_per_s": times.bytes_per_s or None,
    }


def wire_object(counters: LinkCounters) -> dict[str, int]:
    """Return what links have carried, as JSON shows it."""
    return {
        "bytes_sent": counters.bytes_sent,
        "bytes_received": counters.bytes_received,
        "packets_sent": counters.packets_sent,
        "packets_received": counters.packets_received,
        "packets_retransmitted": counters.packets_retransmitted,
    }
