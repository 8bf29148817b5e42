"""Trials that show how fast this device computes a token, before it has made any.

When a node starts it tries its kernels on weights made up for it, which is enough for a first
plan; when it has loaded layers of a model for the first time it tries those. What real tokens take
corrects both (``edgellama.mesh.measurements``).
"""

from __future__ import annotations

import mmap
import time
from statistics import median_low
from typing import TYPE_CHECKING, Final

import numpy as np
from edgellama_kernels import HiddenRows, PackedMatrix, WeightKind, packed_bytes

from edgellama.errors import EdgellamaError
from edgellama.model.head import Head
from edgellama.model.stage import Stage
from edgellama.plan.device_speed import SPEED_PAST, corrected, with_head
from edgellama.values import DeviceSpeed, LinkFacts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from edgellama_kernels import Kernels

    from edgellama.link.endpoint import PeerInfo
    from edgellama.node.engine import LoadedSpan
    from edgellama.values import LinkCounters, ModelFacts, NodeId

COLUMNS: Final = 2048
# More than any cache of such devices holds, where weights stream from memory; NumPy is bound by
# arithmetic, and slow enough with a twentieth of that.
ROWS: Final = {"numba": 20_480, "numpy": 1024}
SMALL: Final = 64  # rows and columns of a matmul that is nothing but its call
# What a layer costs whatever its size, in such calls: compiled, all layers are one call's work.
CALLS_OF_A_LAYER: Final = {"numba": 1, "numpy": 16}
TIMES: Final = 3  # after one to warm up
LONG_ENOUGH_NS: Final = 500_000_000  # then what was timed so far must do
POSITIONS: Final = 64  # of the KV cache that a trial fills
ROUND_TRIP_PAST_US: Final = 1 << 32
RATE_PAST: Final = 1 << 48
PERMILLE: Final = 1000


def kernel_speed(kernels: Kernels) -> DeviceSpeed:
    """Return what the kernels take for made-up weights: Q4_0, as most models are."""
    large = _made_up_matrix(ROWS[kernels.name], COLUMNS)
    small = _made_up_matrix(SMALL, SMALL)
    large_ns = _usual_ns(lambda: _multiply(kernels, large))
    small_ns = _usual_ns(lambda: _multiply(kernels, small))
    kib_ns = max(1, (large_ns - small_ns) * 1024 // large.buffer.nbytes)
    layer_ns = min(CALLS_OF_A_LAYER[kernels.name] * small_ns, SPEED_PAST - 1)
    return DeviceSpeed(layer_ns, min(kib_ns, SPEED_PAST - 1), min(kib_ns, SPEED_PAST - 1))


def span_speed(
    kernels: Kernels, loaded: LoadedSpan, model: ModelFacts, speed: DeviceSpeed
) -> DeviceSpeed:
    """Return ``speed`` corrected by what loaded layers take, and at home the head.

    The first pass reads the weights from the disk, if they are not in memory: then that need not
    be done while somebody waits. Weights that lead to no finite numbers leave the speed as it is.
    """
    config = loaded.config
    ones = HiddenRows(np.full((1, config.width), 0x3C00, np.uint16), np.zeros(1, np.uint8))
    try:
        if loaded.span.layers:
            context = min(POSITIONS, config.context_max)
            stage = Stage(kernels, config, loaded.span, loaded.layers, context, 1)
            stage.open(0)
            position = iter(range(context))
            spent_ns = _usual_ns(lambda: stage.forward(0, ones, next(position)))
            layer_bytes = model.layer_bytes[slice(*loaded.span)]
            speed = corrected(speed, layer_bytes, spent_ns)
        if loaded.home is not None:
            head = Head(kernels, config, loaded.home)
            spent_ns = _usual_ns(lambda: head.logits(ones))
            speed = with_head(speed, model.home_bytes, spent_ns)
    except EdgellamaError:
        return speed
    return speed


def link_facts(
    me: NodeId,
    peers: Mapping[NodeId, PeerInfo],
    counters: Callable[[NodeId], LinkCounters],
) -> list[LinkFacts]:
    """Return what the links to connected members have measured."""
    facts = []
    for node, peer in peers.items():
        if peer.round_trip_s is None or peer.identity.guest:
            continue
        carried = counters(node)
        lost = carried.packets_retransmitted * PERMILLE // max(1, carried.packets_sent)
        round_trip_us = min(round(peer.round_trip_s * 1e6), ROUND_TRIP_PAST_US - 1)
        rate = min(peer.bytes_per_s, RATE_PAST - 1)
        facts.append(LinkFacts(me, node, round_trip_us, rate, min(lost, PERMILLE)))
    return facts


def _made_up_matrix(rows: int, columns: int) -> PackedMatrix:
    # Memory of its own, not of the heap, which would keep it. Not zeros: memory that was never
    # written is one page, which every cache holds.
    memory = mmap.mmap(-1, packed_bytes(WeightKind.Q4_0, rows, columns))
    buffer = np.frombuffer(memory, np.uint8)
    buffer.fill(0x11)
    return PackedMatrix(WeightKind.Q4_0, rows, columns, buffer)


def _multiply(kernels: Kernels, matrix: PackedMatrix) -> None:
    x = np.full((1, matrix.columns), 0.5, np.float32)
    kernels.matmul(matrix, kernels.prepare(x))


def _usual_ns(call: Callable[[], object]) -> int:
    """Return the median time of a few calls after the first."""
    call()
    times: list[int] = []
    while len(times) < TIMES and sum(times) < LONG_ENOUGH_NS:
        started_ns = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - started_ns)
    return median_low(times)
