"""Runs a table of operations: one call for each thread of a team, however long the table.

The table has ``COLUMNS`` int64 for each operation: its code, whether the threads must meet before
it, its units, and its operands. Each operation's units are shared among the threads; what one
operation needs of another's results is there when all have met.

``sync`` is the team's memory for meeting, eight int64 a cache line. ``claims`` is 0, and each
thread takes an equal part of the units in order; or one zero for each operation, and threads take
small parts until none is left, which suits cores of unlike speed.
"""

from __future__ import annotations

import numpy as np

from edgellama_kernels.atomics import add_atomic, give_way, load_atomic, pause, store_atomic
from edgellama_kernels.attention import attend, round_queries
from edgellama_kernels.elementwise import (
    add,
    expand,
    gelu_multiply,
    quantize,
    rms_norm,
    rope,
    shrink,
    silu_multiply,
    store_cache,
)
from edgellama_kernels.expert_kernels import mix, multiply_experts, route
from edgellama_kernels.jit import inlined, kernel, part
from edgellama_kernels.matmul import multiply
from edgellama_kernels.operations import (
    ADD,
    ATTEND,
    CODE,
    COLUMNS,
    EXPAND,
    EXPERTS,
    GELU,
    MEETS,
    MIX,
    MULTIPLY,
    NORM,
    OPERANDS,
    QUANTIZE,
    ROPE,
    ROUND,
    ROUTE,
    ROWS_AT_ONCE,
    SHRINK,
    SILU,
    STALLED,
    STORE,
    UNITS,
    UNITS_PER_TOKEN,
)
from edgellama_kernels.vec import bits_f32, load_i64

ROW_BYTES = 8 * COLUMNS

ARRIVED, ROUNDS, STOP, LEFT = 0, 8, 16, 24  # each in a cache line of its own
PAUSES = 2000  # some 30 us: longer than the parts of one operation usually differ
PARTS_PER_THREAD = 8  # that threads of unlike speed take: the last one is this much too late


@part
def meet(sync: int, threads: int, patience: int) -> bool:
    """Wait for all threads; return whether to go on.

    A thread that waits spins for a while, then lets others run ``patience`` times before it stops
    them all: one that died cannot hold up the others for ever.
    """
    if threads > 1:
        now = load_atomic(sync, ROUNDS)
        if add_atomic(sync, ARRIVED, 1) == threads - 1:
            store_atomic(sync, ARRIVED, 0)
            store_atomic(sync, ROUNDS, now + 1)
        waits = 0
        while load_atomic(sync, ROUNDS) == now and load_atomic(sync, STOP) == 0:
            waits = wait(sync, waits, patience)
    return bool(load_atomic(sync, STOP) == 0)


@inlined
def wait(sync: int, waits: int, patience: int) -> int:
    """Wait a little, the ``waits``-th time; return the next number."""
    if waits < PAUSES:
        pause()
    elif waits < PAUSES + patience:
        give_way()
    else:
        store_atomic(sync, STOP, STALLED)
    return waits + 1


@part
def leave(sync: int, thread: int, threads: int, patience: int) -> int:
    """End the run; the first thread waits until all have left and returns why they stopped, or 0.

    Then nobody but the first touches the run's memory, and ``sync`` is as before the run.
    """
    if thread > 0:
        add_atomic(sync, LEFT, 1)
        return 0
    waits = 0
    while load_atomic(sync, LEFT) < threads - 1 and load_atomic(sync, STOP) != STALLED:
        waits = wait(sync, waits, patience)
    status = int(load_atomic(sync, STOP))
    if status != STALLED:
        store_atomic(sync, ARRIVED, 0)
        store_atomic(sync, LEFT, 0)
        store_atomic(sync, STOP, 0)
    return status


@inlined
def units_of(row: int, tokens: int) -> int:
    """Return how many units an operation has to share out."""
    if load_i64(row, CODE) == ATTEND:
        kv_heads = int(load_i64(row, OPERANDS + 7))
        rows = tokens * int(load_i64(row, OPERANDS + 6) // kv_heads)
        return kv_heads * -(-rows // ROWS_AT_ONCE)
    return int(load_i64(row, UNITS)) + tokens * int(load_i64(row, UNITS_PER_TOKEN))


@part
def perform_on_rows(row: int, tokens: int, position: int, first: int, past: int) -> int:
    """Do the units ``first`` up to ``past`` of an operation on single rows of numbers."""
    code = load_i64(row, CODE)
    o = row + 8 * OPERANDS
    a, b, c, d = load_i64(o, 0), load_i64(o, 1), load_i64(o, 2), load_i64(o, 3)
    if code == EXPAND:
        return expand(a, b, c, d, first, past)
    if code == SHRINK:
        return shrink(a, b, c, d, first, past)
    if code == ROPE:
        return rope(a, b, c, d, first, past)
    if code == SILU:
        return silu_multiply(a, b, c, d, first, past)
    if code == GELU:
        return gelu_multiply(a, b, c, d, first, past)
    e, f, g, h = load_i64(o, 4), load_i64(o, 5), load_i64(o, 6), load_i64(o, 7)
    if code == ADD:
        return add(a, b, c, d, e, first, past)
    if code == ROUND:
        return round_queries(a, b, c, d, bits_f32(np.int32(e)), first, past)
    if code == NORM:
        return rms_norm(a, b, c, d, bits_f32(np.int32(e)), first, past)
    if code == QUANTIZE:
        return quantize(a, b, c, d, e, tokens * f, first, past)
    if code == MIX:
        return mix(a, b, c, d, e, f, first, past)
    if code == STORE:
        return store_cache(a, b, c, d, e, f, g, h, position, first, past)
    return 1


@part
def perform(row: int, tokens: int, position: int, first: int, past: int, scratch: int) -> int:
    """Do the units ``first`` up to ``past`` of an operation; its operands are the arguments."""
    code = load_i64(row, CODE)
    o = row + 8 * OPERANDS
    a, b, c, d = load_i64(o, 0), load_i64(o, 1), load_i64(o, 2), load_i64(o, 3)
    e, f, g, h = load_i64(o, 4), load_i64(o, 5), load_i64(o, 6), load_i64(o, 7)
    i, j, k, r = load_i64(o, 8), load_i64(o, 9), load_i64(o, 10), load_i64(o, 11)
    if code == ATTEND:
        return attend(a, b, c, d, e, f, g, h, i, j, k, tokens, position, first, past, scratch)
    if code == MULTIPLY:
        return multiply(a, b, c, d, e, f, g, h, i, j, k, tokens, first, past, scratch)
    if code == EXPERTS:
        s, t, u = load_i64(o, 12), load_i64(o, 13), load_i64(o, 14)
        return multiply_experts(
            a, b, c, d, e, f, g, h, i, j, k, r, s, t, u, tokens, first, past, scratch
        )
    if code == ROUTE:
        return route(a, b, c, d, e, f, tokens, scratch) if first < past else 0
    return perform_on_rows(row, tokens, position, first, past)


@kernel
def run(
    table: int, operations: int, tokens: int, position: int, thread: int, threads: int,
    sync: int, claims: int, patience: int, scratch: int,
) -> int:  # fmt: skip
    """Run ``thread``'s part of the table on tokens that begin at ``position``.

    The first thread returns when all have ended: 0, the code of an operation that met a number it
    refuses, or STALLED.
    """
    for number in range(operations):
        row = table + number * ROW_BYTES
        if load_i64(row, MEETS) and not meet(sync, threads, patience):
            break
        units = units_of(row, tokens)
        status = 0
        if claims == 0:
            first, past = units * thread // threads, units * (thread + 1) // threads
            status = perform(row, tokens, position, first, past, scratch)
        else:
            step = max(1, units // (threads * PARTS_PER_THREAD))
            first = add_atomic(claims, number, step)
            while first < units and status == 0:
                past = min(first + step, units)
                status = perform(row, tokens, position, first, past, scratch)
                first = add_atomic(claims, number, step)
        if status:
            store_atomic(sync, STOP, load_i64(row, CODE))
            break
    return leave(sync, thread, threads, patience)
