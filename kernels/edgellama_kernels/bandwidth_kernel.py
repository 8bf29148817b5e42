"""Reading memory as fast as it goes, for ``bandwidth``."""

from __future__ import annotations

from edgellama_kernels.jit import kernel
from edgellama_kernels.vec import load_i32x8, prefetch, sum_i32, zeros_i32x8

STEP_NUMBERS = 64  # eight vectors at a time: more loads in flight than any core can have


@kernel
def read_memory(start: int, numbers: int, ahead: int) -> int:
    """Add up int32, so that the loads cannot be left out; prefetch ``ahead`` bytes unless 0."""
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = zeros_i32x8()
    for i in range(0, numbers - STEP_NUMBERS + 1, STEP_NUMBERS):
        if ahead != 0:
            for line in range(0, STEP_NUMBERS * 4, 64):
                prefetch(start, i * 4 + line + ahead)
        s0, s1 = s0 + load_i32x8(start, i), s1 + load_i32x8(start, i + 8)
        s2, s3 = s2 + load_i32x8(start, i + 16), s3 + load_i32x8(start, i + 24)
        s4, s5 = s4 + load_i32x8(start, i + 32), s5 + load_i32x8(start, i + 40)
        s6, s7 = s6 + load_i32x8(start, i + 48), s7 + load_i32x8(start, i + 56)
    return int(sum_i32(((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))))
