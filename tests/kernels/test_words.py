"""Every word of vectors against NumPy, by each variant that this CPU can run."""

from __future__ import annotations

import ast
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("numba")

import edgellama_kernels
import other_targets
from edgellama_kernels.layout import PLANE_BITS
from edgellama_kernels.lowering import target_features
from kernel_cases import assert_same_bits
from other_targets import Target, Words

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

X86 = {"sse4.1", "avx2", "fma", "f16c"}
VARIANTS = {
    "plain": set(),
    "sse4.1": {"sse4.1"},
    "avx2": X86,
    "avx-vnni": X86 | {"avxvnni"},
    "avx512-vnni": X86 | {"avx512f", "avx512bw", "avx512vl", "avx512vnni"},
    "neon": {"neon"},
    "dotprod": {"neon", "dotprod"},
}
ROUNDS = 60
MEMORY_BYTES = 1024
f32 = np.float32

# ---- arguments, by a letter

Dice = np.random.Generator


def memory(dice: Dice) -> NDArray[np.uint8]:
    """Bytes that are finite as numbers of any format."""
    return dice.integers(0, 256, MEMORY_BYTES, dtype=np.uint8) & np.uint8(0xBF)


def any_floats(dice: Dice) -> NDArray[np.float32]:
    """Finite numbers of every magnitude, some of them zeros and subnormal."""
    x = dice.integers(0, 1 << 32, 8, dtype=np.uint32)
    x[x & 0x7F800000 == 0x7F800000] &= np.uint32(0xFF7FFFFF)
    x[dice.integers(0, 8, 2)] &= np.uint32(0x807FFFFF)
    x[dice.integers(0, 8)] &= np.uint32(0x80000000)
    return x.view(np.float32)


def scaled_floats(low: int, high: int) -> Callable[[Dice], NDArray[np.float32]]:
    """Numbers of magnitudes up to 2^low..2^high, half of them multiples of a half."""

    def make(dice: Dice) -> NDArray[np.float32]:
        x = np.ldexp(dice.uniform(-1, 1, 8), dice.integers(low, high + 1, 8)).astype(np.float32)
        return np.where(dice.integers(0, 2, 8) == 1, np.rint(x * 2) / f32(2), x).astype(f32)

    return make


def integers(low: int, high: int) -> Callable[[Dice], NDArray[np.int32]]:
    return lambda dice: dice.integers(low, high, 8, dtype=np.int32, endpoint=True)


def significant(bits: int, low: int = -40, high: int = 40) -> Callable[[Dice], Any]:
    """Numbers of so many significant bits, that is ties of a rounding to one less."""
    return lambda dice: np.ldexp(
        dice.integers(-(1 << bits) + 1, 1 << bits, 8), dice.integers(low, high, 8)
    ).astype(np.float32)


def near_halves(dice: Dice) -> NDArray[np.float32]:
    """Numbers that fp16 holds or rounds, ties, and where its range begins and ends."""
    x = np.where(
        dice.integers(0, 2, 8), significant(12, -37, 4)(dice), scaled_floats(-30, 15)(dice)
    )
    ends = np.array([65504, 65519.99, 2**-14, 2**-24, 2**-25, 1.5 * 2**-25, 1e-30, 0.0], f32)
    x[dice.integers(0, 8)] = dice.choice(ends) * dice.choice([f32(1), f32(-1)])
    return x.astype(f32)


LETTERS: dict[str, Callable[[Dice], Any]] = {
    "M": memory,  # and an index, of up to 8 bytes each
    "F": any_floats,
    "S": scaled_floats(-140, 21),  # within what can be rounded to an integer
    "H": near_halves,
    "P": lambda dice: np.abs(any_floats(dice)),
    "T": significant(14, -84, 100),
    "A": significant(13),
    "B": significant(11),
    "I": integers(-(1 << 31), (1 << 31) - 1),
    "N": integers(0, 255),
    "E": integers(-126, 127),
    "f": lambda dice: any_floats(dice)[0],
    "i": lambda dice: integers(-(1 << 31), (1 << 31) - 1)(dice)[0],
    "b": lambda dice: any_floats(dice)[:1].view(np.int32)[0],  # the bits of a number
    "u": lambda dice: np.uint16(dice.integers(0, 1 << 16)),
    "c": lambda dice: np.uint8(dice.integers(0, 256)),
    "l": lambda dice: int(dice.integers(0, 8)),
}

# ---- what NumPy makes of them


def at(kind: str, count: int = 8) -> Callable[[NDArray[np.uint8], int], NDArray[Any]]:
    """Return what reads ``count`` numbers at an index in numbers; one alone is no array."""
    dtype = np.dtype(kind)

    def read(memory: NDArray[np.uint8], index: int) -> NDArray[Any]:
        found = memory[index * dtype.itemsize :][: count * dtype.itemsize].view(dtype)
        return found if count > 1 else found[0]

    return read


def put(
    kind: str, convert: Callable[[Any], Any] = lambda x: x
) -> Callable[[NDArray[np.uint8], int, Any], None]:
    """Return what writes numbers at an index in numbers."""
    dtype = np.dtype(kind)

    def write(memory: NDArray[np.uint8], index: int, x: Any) -> None:
        raw = np.atleast_1d(convert(x)).astype(dtype, casting="no").view(np.uint8)
        memory[index * dtype.itemsize :][: raw.size] = raw

    return write


def tree(join: Callable[[Any, Any], Any]) -> Callable[[NDArray[Any]], Any]:
    def fold(v: NDArray[Any]) -> Any:
        while len(v) > 1:
            v = join(v[: len(v) // 2], v[len(v) // 2 :])
        return v[0]

    return fold


def rounded(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round to 13 significant bits, half to even; below 2^-64 it is 0."""
    significand, exponent = np.frexp(x.astype(np.float64))
    near = np.ldexp(np.rint(significand * 8192) / 8192, exponent)
    return np.where(np.abs(x) < 2.0**-64, f32(0), near.astype(np.float32))


def with_lane(v: NDArray[np.float32], lane: int, x: np.float32) -> NDArray[np.float32]:
    v = v.copy()
    v[lane] = x
    return v


def block_of(bits: int) -> Callable[[NDArray[np.uint8], int], NDArray[np.uint8]]:
    """Return what reads a block as README.md draws it: planes of bits, the lowest first."""

    def read(memory: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
        stored = memory[index:][: 32 * bits].reshape(bits, 32)
        block = np.zeros((8, 32), np.uint8)
        first = 0
        for width in PLANE_BITS[bits]:
            for vector in range(8):
                n, u = divmod(vector, width)
                digits = stored[first + u] >> np.uint8(width * n) & np.uint8((1 << width) - 1)
                block[vector] |= digits << np.uint8(first)
            first += width
        return block

    return read


def larger(x: Any, y: Any) -> Any:
    return np.where(x > y, x, y)


def smaller(x: Any, y: Any) -> Any:
    return np.where(x < y, x, y)


WORDS: dict[str, tuple[str, Callable[..., Any]]] = {
    "load_f32": ("M", at("f4", 1)),
    "load_f32x8": ("M", at("f4")),
    "load_u8": ("M", at("u1", 1)),
    "load_u16": ("M", at("u2", 1)),
    "load_i32x8": ("M", at("i4")),
    "load_i64": ("M", at("i8", 1)),
    "load_index": ("M", lambda m, i: np.int64(at("i4", 1)(m, i))),
    "load_half_x8": ("M", lambda m, i: at("f2")(m, i).astype(np.float32)),
    "load_bfloat_x8": ("M", lambda m, i: (at("u2")(m, i).astype(np.uint32) << 16).view(f32)),
    "load_u8x8": ("M", lambda m, i: at("u1")(m, i).astype(np.int32)),
    "load_i8x8": ("M", lambda m, i: at("i1")(m, i).astype(np.int32)),
    "broadcast_f32": ("M", lambda m, i: np.full(8, at("f4", 1)(m, i))),
    "broadcast_i32": ("M", lambda m, i: np.full(8, at("i4", 1)(m, i))),
    "first_sum": ("M", lambda m, i: np.full(8, at("i2", 1)(m, 2 * i), np.int32)),
    "whole_sum": ("M", lambda m, i: np.full(8, at("i2", 1)(m, 2 * i + 1), np.int32)),
    "prefetch": ("M", lambda m, i: None),
    "store_f32": ("Mf", put("f4")),
    "store_f32x8": ("MF", put("f4")),
    "store_i32": ("Mi", put("i4")),
    "store_i32x8": ("MI", put("i4")),
    "store_u8": ("Mc", put("u1")),
    "store_u16": ("Mu", put("u2")),
    "store_half_x8": ("MH", put("f2", lambda x: x.astype(np.float16))),
    "store_i32x8_as_i8": ("MI", put("i1", lambda x: x.astype(np.int8))),
    "zeros_f32x8": ("", lambda: np.zeros(8, np.float32)),
    "zeros_i32x8": ("", lambda: np.zeros(8, np.int32)),
    "splat_f32": ("f", lambda x: np.full(8, x)),
    "splat_i32": ("i", lambda x: np.full(8, x)),
    "lane_f32": ("Fl", lambda v, lane: v[lane]),
    "lane_i32": ("Il", lambda v, lane: v[lane]),
    "lane_half": ("Hl", lambda v, lane: v.astype(np.float16).view(np.uint16)[lane]),
    "with_lane_f32": ("Flf", with_lane),
    "tree_sum": ("S", tree(np.add)),
    "tree_max": ("F", tree(larger)),
    "sum_i32": ("I", tree(np.add)),
    "max_i32": ("I", tree(np.maximum)),
    "larger": ("FF", larger),
    "smaller": ("FF", smaller),
    "larger_i32": ("II", np.maximum),
    "square_root": ("P", np.sqrt),
    "float_from_i32": ("I", lambda x: x.astype(np.float32)),
    "i32_from_float": ("S", lambda x: x.astype(np.int32)),
    "magnitude_bits": ("F", lambda x: x.view(np.int32) & np.int32(0x7FFFFFFF)),
    "power_of_two": ("E", lambda k: np.ldexp(f32(1), k)),
    "bits_f32": ("b", lambda x: x.view(np.float32)),
    "nearest": ("S", np.rint),
    "multiply_add_exact": ("ABF", lambda x, y, z: z + x * y),
    "rounded_13_bits": ("T", rounded),
    "low_nibbles": ("N", lambda v: v & 15),
    "high_nibbles": ("N", lambda v: v >> 4),
    "load_twos": ("M", block_of(2)),
    "load_threes": ("M", block_of(3)),
    "load_nibbles": ("M", block_of(4)),
    "load_fives": ("M", block_of(5)),
    "load_sixes": ("M", block_of(6)),
    "load_block": ("M", block_of(8)),
}
DOTS = {  # the least and the greatest weight
    "dot_nibbles": (0, 15),
    "dot_fives": (0, 31),
    "dot_scaled_threes": (0, 7),
    "dot_scaled_sixes": (0, 63),
    "dot_bytes": (-128, 127),
    "dot_quads": (-128, 127),
}
OF_DOTS = {"bytes_start"}  # means something only together with them
OF_THREADS = {"add_atomic", "load_atomic", "store_atomic", "pause", "give_way"}


def test_every_word_has_its_row() -> None:
    assert set(WORDS) | set(DOTS) | OF_DOTS | OF_THREADS == set(other_targets.words())


@pytest.fixture(scope="module", params=VARIANTS)
def words(request: pytest.FixtureRequest) -> Words:
    """All words, compiled as a CPU with these features has them."""
    from numba.core.registry import cpu_target

    other_targets.initialize()
    here = Target(*cpu_target.target_context.codegen().magic_tuple())
    needed = VARIANTS[request.param]
    if not needed <= target_features(here):
        pytest.skip(f"this CPU has no {request.param}")
    off = "-neon" if "aarch64" in target_features(here) and not needed else ""
    features = ",".join(f"+{name}" for name in sorted(needed)) or off
    return Words(Target(here.triple, "generic", features))


def dice_of(name: str) -> Dice:
    return np.random.default_rng(zlib.crc32(name.encode()))


@pytest.mark.parametrize("name", WORDS)
def test_a_word_is_what_numpy_makes(words: Words, name: str) -> None:
    letters, function = WORDS[name]
    dice = dice_of(name)
    for _ in range(ROUNDS):
        values = [LETTERS[letter](dice) for letter in letters]
        given, kept = list(values), list(values)
        if letters[:1] == "M":
            index = int(dice.integers(0, 90))
            given[:1] = values[0].ctypes.data, index
            kept[:1] = values[0].copy(), index
        found = words.call(name, *given)
        with np.errstate(all="ignore"):
            expected = function(*kept)
        if letters[:1] == "M":  # written alike, and nowhere else
            assert_same_bits(values[0], kept[0])
        if expected is None:
            assert found is None
            continue
        if name == "nearest":  # a zero may lose its sign
            found, expected = found + f32(0), expected + f32(0)
        assert_same_bits(np.atleast_1d(found), np.atleast_1d(expected))


@pytest.mark.parametrize("name", DOTS)
def test_dot_products_are_exact(words: Words, name: str) -> None:
    dice = dice_of(name)
    for case in range(ROUNDS):
        weights, x = weights_and_activations(name, dice, case)
        block = weights.reshape(8, 8, 4).transpose(1, 0, 2).reshape(8, 32).astype(np.uint8)
        x_at, index = x.astype(np.int8), int(dice.integers(0, 50))
        place = x_at.ctypes.data - index, index
        if "scaled" in name:
            factors = [integers(-128, 127)(dice) for _ in range(2)]
            halves = [weights[:, part] @ x[part] for part in (slice(16), slice(16, 32))]
            expected = sum(half * factor for half, factor in zip(halves, factors, strict=True))
            found = words.call(name, block, *place, *factors)
        else:
            before = integers(-(1 << 20), 1 << 20)(dice)
            if name == "dot_quads":
                weights, x = weights[:, :4], x[:4]
            start = before
            if name in ("dot_quads", "dot_bytes"):
                start = before + words.call("bytes_start", np.full(8, x.sum()))
            expected = before + weights @ x
            given = (block.ctypes.data - index, index) if name == "dot_quads" else (block,)
            found = words.call(name, *given, *place, start)
        assert found.tolist() == expected.tolist(), case


def weights_and_activations(
    name: str, dice: Dice, case: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return weights [8, 32] and 32 activations; the first cases have the largest sums."""
    least, greatest = DOTS[name]
    weights = dice.integers(least, greatest, (8, 32), endpoint=True)
    x = dice.integers(-127, 127, 32, endpoint=True)
    if case < 6:
        weights[:] = (greatest, least, greatest, least, 0, greatest)[case]
        x[:] = (127, 127, -127, -127, 1, 1)[case]
    if case == 6:
        weights[:, ::2], weights[:, 1::2], x[:] = least, greatest, 127
    return weights, x


@pytest.mark.parametrize("module", ["vec", "block_words", "atomics"])
def test_every_word_says_what_it_does(module: str) -> None:
    path = Path(edgellama_kernels.__file__).with_name(f"{module}.py")
    body = ast.parse(path.read_text(encoding="utf-8")).body
    known, silent = other_targets.words(), []
    for statement, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(statement, ast.Assign):
            names = [
                node.id
                for target in statement.targets
                for node in ast.walk(target)
                if isinstance(node, ast.Name)
            ]
            said = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            silent += [name for name in names if name in known and not said]
    assert silent == []
