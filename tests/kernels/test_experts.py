"""Mixtures of experts: who is chosen, each expert's own matmul, and the sum, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from edgellama_kernels import NonFinite, PackedExperts, Routing, WeightKind, load
from edgellama_kernels.operations import PAIRS_TILE
from kernel_cases import assert_same_bits, awkward_rows, random_rows, raw_matrix, whole_blocks

EXPERTS, USED, ROWS = 8, 3, 43
KINDS = list(WeightKind)


def some_experts(kind: WeightKind, count: int = EXPERTS, rows: int = ROWS) -> PackedExperts:
    experts = PackedExperts.zeros(kind, count, rows, whole_blocks(kind, 3))
    for number in range(count):
        raw = raw_matrix(kind, rows, experts.columns, number)
        experts.expert(number).store_rows(0, raw)
    return experts


def all_to(expert: int, tokens: int) -> Routing:
    """A routing whose every token meets one expert alone."""
    chosen = np.full((tokens, 1), expert, np.int32)
    return Routing(chosen, np.ones((tokens, 1), np.float32), np.arange(tokens, dtype=np.int32))


def test_the_greatest_logits_are_chosen_and_of_equals_the_first(kernels) -> None:
    rows = [
        [1, 5, 3, 5, 0, -0.0, 2, 4],
        [0, -0.0, 0, 0, -1, -1, -1, -1],
        [-3e38, 0, 1, 2, 3, 4, 5, 6],
    ]
    logits = np.array(rows, np.float32)
    chosen, shares, order = kernels.route(logits, 3)
    assert chosen.tolist() == [[1, 3, 7], [0, 1, 2], [5, 6, 7]]
    assert order.tolist() == [3, 0, 4, 5, 1, 6, 7, 2, 8]
    wide = logits.astype(np.float64)
    weights = np.exp(wide - wide.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)  # softmax over all, then renormalised
    picked = np.take_along_axis(weights, chosen.astype(np.int64), axis=1)
    np.testing.assert_allclose(shares, picked / picked.sum(axis=1, keepdims=True), rtol=1e-6)
    everyone = kernels.route(logits, EXPERTS)
    assert (everyone.chosen == np.arange(EXPERTS)).all()
    assert everyone.shares[2, 0] == 0
    np.testing.assert_allclose(kernels.route(logits, 1).shares, 1)


@pytest.mark.parametrize("used", [1, 2, 5, 128])
def test_routing(compiled, reference, used) -> None:
    logits = random_rows(used, 150, 128) * np.float32(30)
    logits[3] = logits[3].round()  # many equals
    logits[5] = 0
    for one, other in zip(compiled.route(logits, used), reference.route(logits, used), strict=True):
        assert_same_bits(one, other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [1, 2, 513])
def test_experts(compiled, reference, kind, tokens) -> None:
    experts = some_experts(kind)
    routing = reference.route(random_rows(tokens, tokens, EXPERTS), USED)
    width = experts.columns
    shared = awkward_rows(1, max(tokens, 2), width)[:tokens]
    own = awkward_rows(2, tokens * USED, width).reshape(tokens, USED, width)
    for x in (shared, own):
        one = compiled.expert_matmul(experts, compiled.prepare(x), routing)
        other = reference.expert_matmul(experts, reference.prepare(x), routing)
        assert_same_bits(one, other)
        residual = random_rows(3, tokens, ROWS)
        assert_same_bits(
            compiled.mix(one, routing, residual), reference.mix(other, routing, residual)
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_gets_its_experts_own_product(kernels, kind) -> None:
    """Neither the batch nor the other experts are felt, also beyond a tile of pairs."""
    experts = some_experts(kind)
    tokens = 2 * PAIRS_TILE + 6
    logits = random_rows(1, tokens, EXPERTS)
    logits[:, 5] += np.float32(9)  # one that everyone chooses
    routing = kernels.route(logits, USED)
    assert (routing.chosen == 5).any(axis=1).all()
    x = random_rows(2, tokens, experts.columns)
    every = kernels.expert_matmul(experts, kernels.prepare(x), routing)
    for token in (0, 1, PAIRS_TILE, tokens - 1):
        rows = kernels.prepare(x[token : token + 1])
        for slot, expert in enumerate(routing.chosen[token].tolist()):
            alone = kernels.matmul(experts.expert(expert), rows)
            assert_same_bits(every[token, slot], alone[0])
    for first, past in ((0, 1), (7, 9), (30, tokens)):
        part = kernels.route(logits[first:past], USED)
        rows = kernels.prepare(x[first:past])
        assert_same_bits(kernels.expert_matmul(experts, rows, part), every[first:past])


@pytest.mark.parametrize("kind", [WeightKind.F16, WeightKind.Q8_0, WeightKind.Q4_K])
def test_experts_that_nobody_chose_are_not_read(kernels, kind) -> None:
    experts = some_experts(kind)
    x = kernels.prepare(random_rows(1, 5, experts.columns))
    routing = all_to(6, 5)
    expected = kernels.expert_matmul(experts, x, routing)
    for number in range(EXPERTS):
        if number != 6:
            experts.expert(number).buffer[:] = 0x7C  # infinities and nonsense
    assert_same_bits(kernels.expert_matmul(experts, x, routing), expected)


def test_any_number_of_threads(crew, compiled) -> None:
    logits, x = random_rows(1, 11, EXPERTS), random_rows(2, 11, 768)
    for kernels in crew:
        for kind in KINDS:
            experts = some_experts(kind)
            for tokens in (1, 11):
                routing = kernels.route(logits[:tokens], USED)
                part = x[:tokens, : experts.columns]
                one = kernels.expert_matmul(experts, kernels.prepare(part), routing)
                other = compiled.expert_matmul(experts, compiled.prepare(part), routing)
                assert_same_bits(one, other)
                residual = random_rows(3, tokens, ROWS)
                assert_same_bits(
                    kernels.mix(one, routing, residual), compiled.mix(one, routing, residual)
                )


def test_the_sum_goes_upwards_and_the_residual_comes_last(kernels) -> None:
    outputs, residual = random_rows(1, 5, 4, 75), random_rows(2, 5, 75)
    routing = kernels.route(random_rows(3, 5, 9), 4)
    total = np.zeros((5, 75), np.float32)
    for slot in range(4):
        total = total + routing.shares[:, slot, None] * outputs[:, slot]
    assert_same_bits(kernels.mix(outputs, routing, residual), total + residual)


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite(kernels, value) -> None:
    logits = random_rows(1, 3, 9)
    logits[1, 4] = value
    with pytest.raises(NonFinite, match="router"):
        kernels.route(logits, 2)


def test_no_tokens_are_no_trouble(kernels) -> None:
    routing = kernels.route(np.zeros((0, EXPERTS), np.float32), USED)
    for kind in KINDS:
        experts = some_experts(kind)
        for shape in ((0, experts.columns), (0, USED, experts.columns)):
            rows = kernels.prepare(np.zeros(shape, np.float32))
            y = kernels.expert_matmul(experts, rows, routing)
            assert y.shape == (0, USED, ROWS)
            assert kernels.mix(y, routing, np.zeros((0, ROWS), np.float32)).shape == (0, ROWS)


def test_what_does_not_fit_is_refused(kernels) -> None:
    experts = some_experts(WeightKind.Q8_0)
    width = experts.columns
    logits, x = random_rows(1, 4, EXPERTS), random_rows(2, 4, width)
    routing = kernels.route(logits, USED)
    rows = kernels.prepare(x)
    chosen, _, order = routing
    wrong = [
        routing._replace(chosen=chosen + np.int32(EXPERTS)),
        routing._replace(chosen=chosen - np.int32(EXPERTS)),
        routing._replace(chosen=chosen.astype(np.int64)),
        routing._replace(chosen=chosen.reshape(-1)),
        routing._replace(order=order[:-1]),
        routing._replace(order=order + np.int32(1)),
        routing._replace(order=np.zeros_like(order)),
        routing._replace(order=order.astype(np.int64)),
    ]
    for bad in wrong:
        with pytest.raises(ValueError, match="routing"):
            kernels.expert_matmul(experts, rows, bad)
    y = kernels.expert_matmul(experts, rows, routing)
    residual = random_rows(3, 4, ROWS)
    refused = [
        lambda: kernels.route(logits, 0),
        lambda: kernels.route(logits, EXPERTS + 1),
        lambda: kernels.route(logits[0], 1),
        lambda: kernels.route(np.zeros((1, 1025), np.float32), 1),
        lambda: kernels.prepare(x[None, None]),
        lambda: kernels.expert_matmul(experts, kernels.prepare(x[:3]), routing),
        lambda: kernels.expert_matmul(experts, kernels.prepare(x[:, :32]), routing),
        lambda: kernels.expert_matmul(experts, kernels.prepare(x[:, None]), routing),
        lambda: kernels.mix(y[:, 1:], routing, residual),
        lambda: kernels.mix(y, routing, residual[:, 1:]),
        lambda: kernels.mix(y, routing._replace(shares=routing.shares[:, 1:]), residual),
        lambda: kernels.matmul(experts.expert(0), kernels.prepare(x[:, None])),
        lambda: PackedExperts(WeightKind.Q8_0, 0, ROWS, width, experts.buffer[:0]),
        lambda: PackedExperts(WeightKind.Q8_0, EXPERTS - 1, ROWS, width, experts.buffer),
    ]
    for call in refused:
        with pytest.raises(ValueError):
            call()


# ---- recorded


class Mixture:
    """A layer that is nothing but a mixture of experts."""

    def __init__(self, kind: WeightKind) -> None:
        width = whole_blocks(kind, 3)
        self.norm = np.ones(width, np.float32)
        self.router = PackedExperts.zeros(WeightKind.F32, 1, EXPERTS, width).expert(0)
        self.router.store_rows(0, random_rows(9, EXPERTS, width).view(np.uint8))
        self.up = some_experts(kind, rows=width)
        self.down = some_experts(kind, rows=width)
        for number in range(2 * EXPERTS):
            matrix = (self.up, self.down)[number % 2].expert(number // 2)
            if kind.quantized:  # the extremes of the formats would leave every range at once
                scale = 1e-3 if kind.block_size == 32 else 1e-5
                scales = np.full(matrix.scales.shape, scale, np.float16)
                matrix.scales[:] = scales.view(np.uint16)
            else:
                raw = random_rows(number, width, width) * np.float32(0.1)
                matrix.store_rows(0, raw.view(np.uint8))

    def run(self, kernels, hidden):
        x = kernels.expand(hidden)
        rows = kernels.prepare(kernels.rms_norm(x, self.norm, 1e-5))
        routing = kernels.route(kernels.matmul(self.router, rows), USED)
        up = kernels.expert_matmul(self.up, rows, routing)
        activated = kernels.prepare(kernels.silu_multiply(up, up))
        y = kernels.mix(kernels.expert_matmul(self.down, activated, routing), routing, x)
        return kernels.shrink(y)


@pytest.mark.parametrize("equal_cores", [True, False])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(
    "kind", [WeightKind.F32, WeightKind.Q8_0, WeightKind.Q4_0, WeightKind.Q6_K]
)
def test_a_program_gives_the_bits_of_the_verbs(reference, kind, threads, equal_cores) -> None:
    pytest.importorskip("numba")
    from edgellama_kernels import allocate_cache_layer

    layer = Mixture(kind)
    width = len(layer.norm)
    kernels = load("numba", threads, equal_cores=equal_cores)
    recording = kernels.record(40, width, 8)
    assert recording is not None
    hidden = layer.run(recording, layer.run(recording, recording.hidden))
    keys = recording.expand(hidden).reshape(-1, width // 8, 8)
    recording.store(recording.cache(0), keys, keys, 0)  # a program has caches
    prepared = recording.finish(hidden)
    cache = (allocate_cache_layer(width // 8, 8, 256),)
    position = 0
    for tokens in (40, 1, 1, 7, 1, 33, 1):
        given = reference.shrink(random_rows(position, tokens, width))
        expected = layer.run(reference, layer.run(reference, given))
        found = prepared.run(given, [], cache, position)
        assert_same_bits(found.halves, expected.halves)
        assert_same_bits(found.exponents, expected.exponents)
        position += tokens
    kernels.close()


def test_a_recording_refuses_what_does_not_fit(compiled) -> None:
    layer = Mixture(WeightKind.Q8_0)
    recording = compiled.record(4, 96, 8)
    x = recording.expand(recording.hidden)
    rows = recording.prepare(x)
    routing = recording.route(recording.matmul(layer.router, rows), USED)
    up = recording.expert_matmul(layer.up, rows, routing)
    more = some_experts(WeightKind.Q8_0, EXPERTS + 1)
    refused = [
        lambda: recording.route(x, 97),
        lambda: recording.route(up, 1),
        lambda: recording.expert_matmul(more, rows, routing),
        lambda: recording.expert_matmul(layer.up, recording.prepare(up.reshape(-1, 288)), routing),
        lambda: recording.matmul(layer.router, recording.prepare(up)),
        lambda: recording.mix(up, routing, up),
        lambda: recording.mix(up.reshape(-1, 2, 144), routing, x),
    ]
    for call in refused:
        with pytest.raises(ValueError, match="fit"):
            call()


def test_operands_fit_a_row_of_the_table() -> None:
    from edgellama_kernels import operations

    most = max(max(columns) for columns in operations.WRITES.values())
    assert most + 1 <= operations.COLUMNS - operations.OPERANDS
