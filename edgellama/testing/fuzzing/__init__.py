"""What is done with hostile bytes, one function a target; ``tools/fuzz.py`` gives it the bytes.

A target takes any bytes and returns. It passes over the errors that its part of edgellama is
meant to raise for bytes from outside, and lets everything else out: that is a finding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from edgellama.testing.fuzzing import link, mesh, model_files, mutation, streams, transfer, wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Target(NamedTuple):
    """``run`` takes any bytes; ``seeds`` are honest ones, to begin with.

    ``mutated(data, bytes_max, seed)`` changes an input in a way that its parser lets pass.
    """

    run: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]
    bytes_max: int
    mutated: Callable[[bytes, int, int], bytes] | None = None


TARGETS: Final[dict[str, Target]] = {
    "datagrams": Target(wire.datagrams, wire.datagram_seeds, 1300),
    "frames": Target(wire.frames, wire.frame_seeds, 1168),
    "messages": Target(wire.messages, wire.message_seeds, 2048),
    "activations": Target(wire.activations, wire.activation_seeds, 1024),
    "link": Target(link.link, link.link_seeds, 2048),
    "stream_frames": Target(streams.stream_frames, streams.stream_frame_seeds, 1024),
    "streams": Target(streams.streams, streams.stream_seeds, 2048),
    "mesh": Target(mesh.mesh, mesh.mesh_seeds, 4096, mutation.mutated),
    "gguf": Target(model_files.gguf, model_files.gguf_seeds, 4096),
    "templates": Target(model_files.templates, model_files.template_seeds, 1024),
    "manifests": Target(transfer.manifests, transfer.manifest_seeds, 2048),
    "weight_server": Target(transfer.weight_server, transfer.weight_server_seeds, 1024),
    "weight_client": Target(transfer.weight_client, transfer.weight_client_seeds, 2048),
    "pairing": Target(transfer.pairing, transfer.pairing_seeds, 1024),
}
