"""Sizes as people write and read them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellama.errors import MisuseError
from edgellama.plan.sizes import SIZE_BYTES_MAX, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("1", 1),
        ("4096", 4096),
        ("4096B", 4096),
        ("300M", 300 << 20),
        ("300m", 300 << 20),
        ("300MB", 300 << 20),
        ("300MiB", 300 << 20),
        (" 2 G ", 2 << 30),
        ("1.5G", 3 << 29),
        ("0.5K", 512),
        ("0.1K", 102),
        ("1T", 1 << 40),
        ("1024T", SIZE_BYTES_MAX),
    ],
)
def test_reads_what_people_write(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "G",
        "M300",
        "-1",
        "+1",
        "1e9",
        "1,5G",
        ".5G",
        "2.G",
        "2GG",
        "2 P",
        "nan",
        "inf",
        "0",
        "0G",
        "0.0001",
        "1025T",
        "9" * 20,
        "9" * 5000,
        "٣G",
        "2G\n3G",
        "0x10",
        "1_000",
        "2Ki B",
    ],
)
def test_refuses_what_is_not_a_size_in_one_line(text: str) -> None:
    with pytest.raises(MisuseError) as caught:
        parse_size(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (300 << 20, "300 MiB"),
        (3 << 29, "1.5 GiB"),
        (1 << 30, "1 GiB"),
        ((1 << 30) - 1, "1 GiB"),
        (100 << 30, "100 GiB"),
        (1000 << 20, "0.98 GiB"),
        (999 << 20, "999 MiB"),
        (12_345_678, "11.8 MiB"),
        (5000 << 40, "5000 TiB"),
    ],
)
def test_prints_three_digits(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


@settings(deadline=None, max_examples=200)
@given(st.integers(1, SIZE_BYTES_MAX - (SIZE_BYTES_MAX >> 8)))
def test_what_is_printed_can_be_read_back_to_half_a_percent(size_bytes: int) -> None:
    again = parse_size(format_size(size_bytes))
    assert abs(again - size_bytes) * 200 <= size_bytes * 1.2 + 200
