"""Malformed GGUF files: each fault is named in one line, and no bytes raise anything else."""

from __future__ import annotations

import struct

import pytest
from gguf_writing import array, key, string, strings, tensor, whole_file
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellama.errors import EdgellamaError, ModelFileError, UnsupportedModelError
from edgellama.model import gguf_header
from edgellama.model.gguf import GgufFile
from edgellama.model.gguf_layout import ARRAY_ITEMS_MAX, STRING_BYTES_MAX
from edgellama.model.tokenizer import Tokenizer

NAME = "hostile.gguf"
X = tensor("x", (32,), 0, 0)
DATA = bytes(128)
UINT8, UINT32, BOOL, STRING, ARRAY = 0, 4, 7, 8, 9


def number(value: int) -> bytes:
    return struct.pack("<I", value)


MALFORMED = {
    "another format": (b"PK\x03\x04" + bytes(60), "not a GGUF file: it begins with b'PK"),
    "three bytes": (b"GGU", "not a GGUF file"),
    "nothing after the magic": (b"GGUF", "the version is cut off"),
    "too many tensors": (whole_file(tensor_count=65_537), "number of tensors is 65537"),
    "tensors that are not there": (
        whole_file(tensor_count=9, alignment=1),
        "name of tensor 0 is cut off",
    ),
    "too many keys": (whole_file(key_count=2**63), "number of metadata keys is 9223"),
    "keys that are not there": (
        whole_file(key_count=9, alignment=1),
        "name of metadata key 0 is cut off",
    ),
    "a key twice": (whole_file([key("k", UINT8, b"\1")] * 2), "metadata key 'k' appears twice"),
    "a long key": (whole_file([key("k" * 65_536, UINT8, b"\1")]), "is 65536, and at most 65535"),
    "a key that is no UTF-8": (whole_file([key(b"\xff", UINT8, b"\1")]), "key 0 at byte 32 is not"),
    "an unknown value type": (whole_file([key("k", 13, b"\1")]), "unknown value type 13"),
    "a boolean of 2": (whole_file([key("k", BOOL, b"\2")]), "'k' holds 2 where a boolean"),
    "a boolean of 2 in an array": (
        whole_file([key("k", ARRAY, array(BOOL, 3, b"\0\1\2"))]),
        "'k' holds 2 where a boolean",
    ),
    "a string past the end": (
        whole_file([key("k", STRING, struct.pack("<Q", 100))]),
        "metadata key 'k' is cut off: it needs 100 bytes",
    ),
    "a string of 2^64 bytes": (
        whole_file([key("k", STRING, b"\xff" * 8)]),
        f"length of metadata key 'k' is {2**64 - 1}, and at most {STRING_BYTES_MAX}",
    ),
    "an array past the end": (
        whole_file([key("k", ARRAY, array(6, 1000, b""))]),
        "metadata key 'k' is cut off: it needs 4000 bytes",
    ),
    "too long an array": (
        whole_file([key("k", ARRAY, array(UINT8, ARRAY_ITEMS_MAX + 1, b""))]),
        f"items of metadata key 'k' is {ARRAY_ITEMS_MAX + 1}",
    ),
    "an array of strings past the end": (
        whole_file([key("k", ARRAY, array(STRING, 3, string("a") + string("b")))], alignment=1),
        "length of item 2 of metadata key 'k' is cut off",
    ),
    "an item longer than a string may be": (
        whole_file([key("k", ARRAY, array(STRING, 2, string("a") + b"\xff" * 8))]),
        "length of item 1 of metadata key 'k' is 18446744073709551615",
    ),
    "an item that is no UTF-8": (
        whole_file([key("k", ARRAY, array(STRING, 2, string("a") + string(b"\xc3")))]),
        "has an item 1 that is not UTF-8",
    ),
    "arrays three deep": (
        whole_file([key("k", ARRAY, array(ARRAY, 1, array(ARRAY, 1, array(UINT8, 1, b"\1"))))]),
        "nests arrays more than 2 deep",
    ),
    "an alignment of 0": (whole_file([key("general.alignment", UINT32, number(0))]), "is 0, not"),
    "an alignment of 24": (whole_file([key("general.alignment", UINT32, number(24))]), "is 24,"),
    "an alignment of 2^31": (
        whole_file([key("general.alignment", UINT32, number(2**31))]),
        "'general.alignment' is 2147483648, not a power of two from 8 to 65536",
    ),
    "an alignment in words": (
        whole_file([key("general.alignment", STRING, string("32"))]),
        "'general.alignment' is a value of type str",
    ),
    "a tensor twice": (whole_file([], [X, X], DATA), "tensor 'x' appears twice"),
    "a long tensor name": (whole_file([], [tensor("x" * 65, (1,), 0, 0)], DATA), "is 65, and at"),
    "no dimensions": (whole_file([], [tensor("x", (), 0, 0)], DATA), "has 0 dimensions"),
    "five dimensions": (whole_file([], [tensor("x", (1,) * 5, 0, 0)], DATA), "has 5 dimensions"),
    "2^32 dimensions": (
        whole_file([], [tensor("x", (1,), 0, 0, dimensions=2**32 - 1)], DATA),
        "has 4294967295 dimensions",
    ),
    "an empty dimension": (whole_file([], [tensor("x", (4, 0), 0, 0)], DATA), "shape [4, 0]"),
    "no whole block": (whole_file([], [tensor("x", (33,), 8, 0)], DATA), "rows of 33 weights"),
    "an unknown tensor type": (whole_file([], [tensor("x", (1,), 99, 0)], DATA), "unknown type 99"),
    "an offset that is not aligned": (
        whole_file([], [tensor("x", (1,), 0, 4)], DATA),
        "tensor 'x' starts at offset 4, no multiple of 32",
    ),
    "an offset past the end": (
        whole_file([], [tensor("x", (1,), 0, 128)], DATA),
        "the file is cut off: tensor 'x' takes bytes 192 to 196, and the file has 192",
    ),
    "an offset near 2^64": (
        whole_file([], [tensor("x", (32,), 0, 2**64 - 32)], DATA),
        "the file is cut off: tensor 'x'",
    ),
    "a size that wraps around 2^64": (
        whole_file([], [tensor("x", (2**32, 2**30, 4), 0, 0)], DATA),
        "the file is cut off: tensor 'x'",
    ),
    "rows that are no whole super-blocks": (
        whole_file([], [tensor("x", (288,), 14, 0)], DATA),
        "rows of 288 weights, no multiple of the 256 in a block of Q6_K",
    ),
    "tensors that overlap": (
        whole_file([], [tensor("y", (8,), 0, 32), tensor("x", (9,), 0, 0)], DATA),
        "tensor 'y' overlaps tensor 'x'",
    ),
}

UNSUPPORTED = {
    "version 1": (whole_file(version=1), "GGUF version 1 is not supported; supported: 2, 3"),
    "version 4": (whole_file(version=4), "GGUF version 4 is not supported"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "the file is big-endian"),
    "IQ4_XS": (
        whole_file([], [tensor("x", (256,), 23, 0)], DATA),
        "has type IQ4_XS, which is not supported yet; supported: F32, F16, Q4_0, Q4_1, Q5_0, Q5_1,",
    ),
    "TQ1_0": (whole_file([], [tensor("x", (256,), 34, 0)], DATA), "has type TQ1_0, which"),
    "MXFP4": (whole_file([], [tensor("x", (256,), 39, 0)], DATA), "has type MXFP4, which"),
    "one part of two": (
        whole_file([key("split.count", 2, b"\2\0")], [X], DATA),
        "one of 2 parts of a model",
    ),
}


def checked_message(raw: bytes, kind: type[EdgellamaError], name: str = NAME) -> str:
    with pytest.raises(EdgellamaError) as caught:
        GgufFile.parse(raw, name)
    assert type(caught.value) is kind
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize("case", MALFORMED)
def test_each_fault_is_named(case: str) -> None:
    raw, fault = MALFORMED[case]
    message = checked_message(raw, ModelFileError)
    assert message.startswith(f"{NAME}: ")
    assert fault in message


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_is_sound_and_not_supported_is_named(case: str) -> None:
    raw, reason = UNSUPPORTED[case]
    message = checked_message(raw, UnsupportedModelError)
    assert message.startswith(f"{NAME}: ")
    assert reason in message


def test_a_name_from_the_file_cannot_write_lines_or_fill_the_screen() -> None:
    long_name = "\x1b[2J\n" + "k" * 60_000
    message = checked_message(whole_file([key(long_name, 99, b"")]), ModelFileError)
    assert "\x1b" not in message
    assert len(message) < 200
    assert "'a\\nb'" in checked_message(b"", ModelFileError, name="a\nb")


def test_a_header_may_take_no_more_than_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    long_string = [key("k", STRING, string("s" * 200))]
    long_array = [key("k", ARRAY, strings(["s" * 90] * 3))]
    for keys in (long_string, long_array):
        GgufFile.parse(whole_file(keys), NAME)
        with monkeypatch.context() as patch:
            patch.setattr(gguf_header, "HEADER_BYTES_MAX", 128)
            assert "that a header may take" in checked_message(whole_file(keys), ModelFileError)


def test_neighbours_and_gaps_are_no_overlap() -> None:
    raw = whole_file([], [tensor("y", (8,), 0, 96), tensor("x", (8,), 0, 0)], DATA)
    assert [tensor.offset for tensor in GgufFile.parse(raw, NAME).tensors.values()] == [192, 96]


SOUND = whole_file(
    [
        key("general.architecture", STRING, string("llama")),
        key("general.alignment", UINT32, number(32)),
        key("tokenizer.ggml.model", STRING, string("llama")),
        key("tokenizer.ggml.tokens", ARRAY, strings(["<unk>", "<s>", "</s>", "▁", "a", "▁a"])),
        key("tokenizer.ggml.scores", ARRAY, array(6, 6, struct.pack("<6f", 0, 0, 0, -1, -2, -3))),
        key("tokenizer.ggml.token_type", ARRAY, array(5, 6, struct.pack("<6i", 2, 3, 3, 1, 1, 1))),
        key("tokenizer.ggml.add_bos_token", BOOL, b"\1"),
        key("nested", ARRAY, array(ARRAY, 1, array(UINT8, 2, b"\1\2"))),
    ],
    [tensor("x", (32, 2), 8, 0), tensor("y", (3,), 0, 96)],
    bytes(range(128)),
)


def use_everything(raw: bytes) -> None:
    """Read all that can be read; only an EdgellamaError of one line may stand in the way."""
    message = ""
    try:
        file = GgufFile.parse(raw, NAME)
        dict(file.metadata)
        for name, info in file.tensors.items():
            assert len(file.tensor_bytes(name)) == info.bytes
            assert file.tensor_rows(name, 0, info.rows).nbytes == info.bytes
        tokenizer = Tokenizer.from_gguf(file)
        tokenizer.decode(tokenizer.encode("a aa\n", parse_special=True))
    except EdgellamaError as error:
        message = str(error)
    assert len(message.splitlines()) <= 1


def test_the_sound_file_is_sound() -> None:
    file = GgufFile.parse(SOUND, NAME)
    assert Tokenizer.from_gguf(file).encode("a") == [1, 5]
    assert file.metadata["nested"] == ((1, 2),)


@settings(deadline=None, max_examples=300)
@given(
    changes=st.lists(
        st.tuples(
            st.integers(0, len(SOUND) - 1),
            st.one_of(st.binary(min_size=1, max_size=9), st.sampled_from([b"\xff" * 8, bytes(8)])),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_changed_bytes_raise_nothing_else(changes: list[tuple[int, bytes]]) -> None:
    raw = bytearray(SOUND)
    for position, replacement in changes:
        raw[position : position + len(replacement)] = replacement
    use_everything(bytes(raw))


@settings(deadline=None, max_examples=200)
@given(
    start=st.integers(0, len(SOUND)),
    past=st.integers(0, len(SOUND)),
    inserted=st.binary(max_size=9),
)
def test_cut_and_inserted_bytes_raise_nothing_else(start: int, past: int, inserted: bytes) -> None:
    use_everything(SOUND[:start] + inserted + SOUND[past:])


@settings(deadline=None, max_examples=100)
@given(tail=st.binary(max_size=200))
def test_random_bytes_after_the_magic_raise_nothing_else(tail: bytes) -> None:
    use_everything(b"GGUF\3\0\0\0" + tail)


def test_every_single_byte_set_to_its_extremes() -> None:
    for position in range(len(SOUND)):
        for value in (0x00, 0x7F, 0x80, 0xFF):
            use_everything(SOUND[:position] + bytes([value]) + SOUND[position + 1 :])
