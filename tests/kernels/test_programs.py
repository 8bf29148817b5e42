"""Recorded layers give the verbs' own bits; threads meet, stop each other, and never hang."""

from __future__ import annotations

import os
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pytest
from edgellama_kernels import (
    CacheKind,
    CacheLayer,
    HiddenRows,
    Kernels,
    NonFinite,
    PackedMatrix,
    Unrecordable,
    WeightKind,
    allocate_cache_layer,
    load,
)
from kernel_cases import assert_same_bits, packed, random_rows

pytest.importorskip("numba")

from edgellama_kernels import operations, program, team
from edgellama_kernels.team import Table, Team, TeamStalled

TOKENS_MAX = 40
CAPACITY = 192
TABLES = 2  # of RoPE, by turns
SHORT_PATIENCE = 20_000  # some milliseconds


class Layer(NamedTuple):
    """Awkward on purpose: three query heads share a key head, and no row count divides by 8."""

    norm: np.ndarray
    head_norm: np.ndarray
    bias: np.ndarray
    query: PackedMatrix
    key: PackedMatrix
    value: PackedMatrix
    output: PackedMatrix
    up: PackedMatrix
    down: PackedMatrix


WIDTH, HEADS, KV_HEADS, HEAD_WIDTH, INNER = 32, 6, 2, 16, 96


def some_layer(kind: WeightKind, seed: int) -> Layer:
    shapes = [(96, 32), (32, 32), (32, 32), (32, 96), (INNER, 32), (32, INNER)]
    matrices = [PackedMatrix.zeros(kind, rows, columns) for rows, columns in shapes]
    for number, matrix in enumerate(matrices):
        raw = packed(kind, matrix.rows, matrix.columns, seed + number)
        matrix.buffer[:] = raw.buffer
        if kind.quantized:  # the extremes of the formats would leave every range at once
            scales = matrix.scales
            scales[:] = np.full(scales.shape, 0.01, np.float16).view(np.uint16)
        else:
            matrix.store_rows(0, (random_rows(seed, *shapes[number]) * 0.2).view(np.uint8))
    norms = (np.abs(random_rows(seed, width)) + np.float32(0.5) for width in (WIDTH, HEAD_WIDTH))
    return Layer(*norms, random_rows(seed, HEADS * HEAD_WIDTH), *matrices)


def run_layer(kernels, layer: Layer, cache, hidden, turns, position: int):
    """A decoder layer without the model's own code."""
    x = kernels.expand(hidden)
    rows = kernels.prepare(kernels.rms_norm(x, layer.norm, 1e-5))
    queries = kernels.add(kernels.matmul(layer.query, rows), layer.bias)
    queries = queries.reshape(-1, HEADS, HEAD_WIDTH)
    keys = kernels.matmul(layer.key, rows).reshape(-1, KV_HEADS, HEAD_WIDTH)
    values = kernels.matmul(layer.value, rows).reshape(-1, KV_HEADS, HEAD_WIDTH)
    queries = kernels.rms_norm(queries, layer.head_norm, 1e-6)
    kernels.rope(queries, turns)
    kernels.rope(keys, turns)
    kernels.store(cache, keys, values, position)
    mixed = kernels.attention(queries, cache, position)
    x = kernels.add(x, kernels.matmul(layer.output, kernels.prepare(mixed)))
    rows = kernels.prepare(kernels.rms_norm(x, layer.norm, 1e-5))
    up = kernels.matmul(layer.up, rows)
    activated = kernels.prepare(kernels.silu_multiply(up, up))
    return kernels.shrink(kernels.matmul(layer.down, activated, x))


def recorded(kernels: Kernels, layers: list[Layer], cache_kind: CacheKind = CacheKind.F16):
    recording = kernels.record(TOKENS_MAX, WIDTH, HEAD_WIDTH, cache_kind)
    assert recording is not None
    hidden = recording.hidden
    tables = [recording.turns(number) for number in range(TABLES)]
    for number, layer in enumerate(layers):
        turns = tables[number % TABLES]
        hidden = run_layer(recording, layer, recording.cache(number), hidden, turns, 0)
    return recording.finish(hidden)


def caches_for(
    layers: list[Layer], cache_kind: CacheKind = CacheKind.F16
) -> tuple[CacheLayer, ...]:
    return tuple(allocate_cache_layer(KV_HEADS, HEAD_WIDTH, CAPACITY, cache_kind) for _ in layers)


def some_hidden(kernels: Kernels, tokens: int, seed: int = 1) -> HiddenRows:
    return kernels.shrink(random_rows(seed, tokens, WIDTH))


def some_turns(tokens: int) -> list[np.ndarray]:
    return [random_rows(table, tokens, 2, HEAD_WIDTH // 2) for table in range(TABLES)]


@pytest.mark.parametrize("equal_cores", [True, False])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(
    ("kind", "cache_kind"),
    [
        (WeightKind.F32, CacheKind.F16),
        (WeightKind.Q8_0, CacheKind.F16),
        (WeightKind.Q4_0, CacheKind.F16),
        (WeightKind.Q4_0, CacheKind.Q8),
    ],
)
def test_a_program_gives_the_bits_of_the_verbs(
    reference, kind, cache_kind, threads, equal_cores
) -> None:
    layers = [some_layer(kind, seed) for seed in (10, 20, 30)]
    kernels = load("numba", threads, equal_cores=equal_cores)
    prepared = recorded(kernels, layers, cache_kind)
    ours, theirs = caches_for(layers, cache_kind), caches_for(layers, cache_kind)
    position = 0
    for tokens in (40, 1, 1, 7, 1, 33, 1, 1, 40, 1, 1, 1):
        hidden, turns = some_hidden(reference, tokens, position), some_turns(tokens)
        found = prepared.run(hidden, turns, ours, position)
        for number, (layer, cache) in enumerate(zip(layers, theirs, strict=True)):
            own_turns = turns[number % TABLES]
            hidden = run_layer(reference, layer, cache, hidden, own_turns, position)
        assert_same_bits(found.halves, hidden.halves)
        assert_same_bits(found.exponents, hidden.exponents)
        position += tokens
    for one, other in zip(ours, theirs, strict=True):
        assert_same_bits(one.keys, other.keys)
        assert_same_bits(one.values, other.values)
        if one.scales is not None:
            assert_same_bits(one.scales, other.scales)
    kernels.close()


def test_sessions_take_turns(reference, compiled) -> None:
    layers = [some_layer(WeightKind.Q8_0, 10)]
    prepared = recorded(compiled, layers)
    sessions = [caches_for(layers) for _ in range(3)]
    outputs = []
    for position in range(5):
        for caches in sessions:
            hidden = some_hidden(reference, 1, position)
            outputs.append(prepared.run(hidden, some_turns(1), caches, position).halves)
    for position in range(5):
        for other in outputs[3 * position + 1 : 3 * position + 3]:
            assert_same_bits(other, outputs[3 * position])


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("tokens", [1, 9])
def test_numbers_that_are_not_finite_stop_every_thread(threads, tokens) -> None:
    layers = [some_layer(WeightKind.Q8_0, seed) for seed in (1, 2)]
    kernels = load("numba", threads)
    prepared, caches = recorded(kernels, layers), caches_for(layers)
    good, turns = some_hidden(kernels, tokens), some_turns(tokens)
    expected = prepared.run(good, turns, caches, 0)
    for half, exponent in ((0x7C00, 0), (0x7E00, 0), (0x7BFF, 113), (0, 255)):
        bad = HiddenRows(good.halves.copy(), good.exponents.copy())
        bad.halves[-1, 3], bad.exponents[-1] = half, exponent
        for _ in range(10):
            with pytest.raises(NonFinite):
                prepared.run(bad, turns, caches, 0)
        assert_same_bits(prepared.run(good, turns, caches, 0).halves, expected.halves)
    layers[1].key.scales[0, 0, 0] = 0x7C00  # damaged in memory: every second layer stops
    with pytest.raises(NonFinite):
        prepared.run(good, turns, caches, 0)
    kernels.close()


def test_what_does_not_fit_is_refused(compiled) -> None:
    layers = [some_layer(WeightKind.Q8_0, 1), some_layer(WeightKind.Q8_0, 2)]
    prepared, caches = recorded(compiled, layers), caches_for(layers)
    hidden, turns = some_hidden(compiled, 2), some_turns(2)
    other = tuple(allocate_cache_layer(KV_HEADS, HEAD_WIDTH, 64) for _ in layers)
    wide = tuple(allocate_cache_layer(KV_HEADS, 32, CAPACITY) for _ in layers)
    prepared.run(hidden, turns, caches, 0)
    quantized = caches_for(layers, CacheKind.Q8)
    for wrong in (caches[:1], (caches[0], other[1]), wide, quantized, ()):
        with pytest.raises(ValueError, match="caches"):
            prepared.run(hidden, turns, wrong, 0)
    for position in (-1, CAPACITY - 1):
        with pytest.raises(ValueError, match="positions"):
            prepared.run(hidden, turns, caches, position)
    for count in (0, TOKENS_MAX + 1):
        with pytest.raises(ValueError, match="tokens"):
            prepared.run(some_hidden(compiled, count), some_turns(count), caches, 0)
    one, other = turns
    for bad_turns in ([one, other[:1]], [one[:, :, 1:], other], [one], [one, other, one]):
        with pytest.raises(ValueError, match="fit"):
            prepared.run(hidden, bad_turns, caches, 0)
    recording = compiled.record(TOKENS_MAX, WIDTH, HEAD_WIDTH)
    x = recording.expand(recording.hidden)
    for refused in (
        lambda: recording.matmul(layers[0].down, recording.prepare(x)),
        lambda: recording.rms_norm(x.reshape(-1, 2, 16), layers[0].norm, 1e-5),
        lambda: recording.add(x, layers[0].bias),
        lambda: recording.add(x, layers[0].norm.astype(np.float64)),
        lambda: recording.add(x, x.reshape(-1, 2, 16)),
    ):
        with pytest.raises(ValueError, match="fit"):
            refused()


def test_a_program_keeps_no_session(compiled) -> None:
    layers = [some_layer(WeightKind.Q8_0, 1)]
    prepared, caches = recorded(compiled, layers), caches_for(layers)
    prepared.run(some_hidden(compiled, 2), some_turns(2), caches, 0)
    keys = weakref.ref(caches[0].keys)
    del caches
    assert keys() is None


def test_heads_narrower_than_a_vector_are_not_recorded(compiled) -> None:
    recording = compiled.record(4, 32, 4)
    x = recording.expand(recording.hidden)
    keys = x.reshape(-1, 8, 4)
    recording.store(recording.cache(0), keys, keys, 0)
    with pytest.raises(Unrecordable):
        recording.attention(keys, recording.cache(0), 0)


# ---- threads that die or come late


def norms(count: int) -> tuple[Table, list[np.ndarray]]:
    """A table of ``count`` norms, each of the one before: threads must meet before each."""
    arrays = [random_rows(1, 64, 32), *(np.zeros((64, 32), np.float32) for _ in range(count))]
    weight = np.ones(32, np.float32)
    rows = np.zeros((count, operations.COLUMNS), np.int64)
    for number in range(count):
        addresses = (team.address(x) for x in (arrays[number], weight, arrays[number + 1]))
        operation = operations.norm(*addresses, 32, 1e-5)
        rows[number, : operations.OPERANDS] = operation.code, 1, 0, 1
        rows[number, operations.OPERANDS :][: len(operation.operands)] = operation.operands
    return Table(rows), [weight, *arrays]


@pytest.mark.parametrize("claims", [False, True])
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_threads_meet_before_each_operation(threads, claims) -> None:
    crew = Team(threads)
    table, memory = norms(300)
    last = memory[-1]
    assert crew.run(table, memory, 64, 0, 0, 1, False) == 0
    expected = last.copy()
    for _ in range(5):
        last[:] = 0
        assert crew.run(table, memory, 64, 0, 0, threads, claims) == 0
        assert_same_bits(last, expected)
    crew.close()


class Dead:
    """A worker whose thread has ended, as after an error that nobody foresaw."""

    def __init__(self) -> None:
        self.thread = threading.Thread(target=int)

    def begin(self, task: object) -> None:
        pass

    def end(self) -> None:
        pass


class Late(Dead):
    """A worker that comes when the others have given up."""

    def begin(self, task: team._Task) -> None:
        def work() -> None:
            time.sleep(0.5)
            program.run(*task.arguments)

        self.thread = threading.Thread(target=work)
        self.thread.start()


@pytest.mark.parametrize("absent", [Dead, Late])
def test_a_thread_that_does_not_come_hangs_nobody(monkeypatch, absent) -> None:
    monkeypatch.setattr(team, "PATIENCE", SHORT_PATIENCE)
    crew = Team(3)
    table, memory = norms(20)
    last = memory[-1]
    assert crew.run(table, memory, 64, 0, 0, 3, False) == 0
    expected = last.copy()
    lost = crew._workers[1] = absent()
    with pytest.raises(TeamStalled):
        crew.run(table, memory, 64, 0, 0, 3, False)
    assert crew.threads == 1
    if absent is Late:
        lost.thread.join(30)
        assert not lost.thread.is_alive()
    assert crew.run(table, memory, 64, 0, 0, 3, False) == 0
    assert_same_bits(last, expected)
    crew.close()


def test_a_program_goes_on_alone_when_a_thread_is_lost(monkeypatch) -> None:
    monkeypatch.setattr(team, "PATIENCE", SHORT_PATIENCE)
    layers = [some_layer(WeightKind.Q4_0, 3)]
    kernels = load("numba", 2)
    prepared, caches = recorded(kernels, layers), caches_for(layers)
    hidden, turns = some_hidden(kernels, 9), some_turns(9)
    expected = prepared.run(hidden, turns, caches, 0)
    lost = kernels._team._workers[0] = Late()
    assert_same_bits(prepared.run(hidden, turns, caches, 0).halves, expected.halves)
    lost.thread.join(30)
    assert_same_bits(prepared.run(hidden, turns, caches, 0).halves, expected.halves)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_threads_stay_on_their_cpus() -> None:
    """The caller's from its first run on; a CPU that is not there changes nothing."""
    here = os.sched_getaffinity(0)
    cpus = {max(here)}

    def seen(cpus: set[int]) -> list[set[int]]:
        crew = Team(2, cpus=cpus)
        table, memory = norms(3)
        assert crew.run(table, memory, 64, 0, 0, 2, True) == 0
        workers = [worker.thread.native_id for worker in crew._workers]
        found = [os.sched_getaffinity(thread) for thread in (*workers, 0)]
        crew.close()
        return found

    with ThreadPoolExecutor(1) as caller:
        assert caller.submit(seen, set()).result() == [here, here]
        assert caller.submit(seen, {1 << 12}).result() == [here, here]
        assert caller.submit(seen, cpus).result() == [cpus, cpus]
    assert os.sched_getaffinity(0) == here


def test_a_closed_team_works_on_alone() -> None:
    crew = Team(3)
    threads = [worker.thread for worker in crew._workers]
    crew.close()
    assert not any(thread.is_alive() for thread in threads)
    table, memory = norms(3)
    assert crew.run(table, memory, 64, 0, 0, 3, True) == 0
