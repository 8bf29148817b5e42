"""The manifest: what it covers, that its root names it, and what it refuses."""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING, Any

import gguf_writing
import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weights_serving import write_model

from edgellama.errors import ModelFileError, TransferError, UnsupportedModelError
from edgellama.model.gguf import GgufFile
from edgellama.net.manifest import (
    CHUNK_BYTES_MAX,
    FILE_BYTES_MAX,
    MANIFEST_BYTES_MAX,
    TENSORS_MAX,
    Manifest,
    Region,
    is_root,
)

if TYPE_CHECKING:
    from pathlib import Path


def blake2b(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=32).digest()


def small_file() -> bytes:
    """Return two tensors, the second in the table the first in the file, padding between."""
    tensors = [
        gguf_writing.tensor("late.weight", (8,), 0, 64),
        gguf_writing.tensor("early.weight", (3,), 0, 0),
    ]
    data = bytes(range(12)) + b"\xee" * 52 + bytes(range(100, 132))
    return gguf_writing.whole_file([], tensors, data)


def manifest_of(data: bytes) -> Manifest:
    return Manifest.build(GgufFile.parse(data, "small.gguf"), io.BytesIO(data))


def decoded(fields: Any) -> Manifest:
    data = msgpack.packb(fields)
    return Manifest.decode(data, blake2b(data).hex())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("manifest") / "model.gguf")


def test_encoding_is_the_one_of_the_specification() -> None:
    data = small_file()
    past = len(data) - 96
    expected = [
        1,
        len(data),
        past,
        [["early.weight", past, 12], ["late.weight", past + 64, 32]],
        blake2b(data[:past]) + blake2b(data[past : past + 12]) + blake2b(data[past + 64 :]),
    ]
    manifest = manifest_of(data)
    assert msgpack.unpackb(manifest.encoded) == expected
    assert manifest.root == blake2b(manifest.encoded).hex()
    # An edit that changes this number gives every model another identity: raise the version.
    assert manifest.root == "37238b4bca259c3cac2ba8c299807ea930d78abd1c61737e9784514a6545fd4e"


def test_padding_is_not_part_of_the_identity_but_every_other_byte_is() -> None:
    data = bytearray(small_file())
    root = manifest_of(bytes(data)).root
    data[-40] ^= 1
    assert manifest_of(bytes(data)).root == root
    data[-1] ^= 1
    assert manifest_of(bytes(data)).root != root


def test_chunks_of_a_model_cover_each_region_once(model: Path) -> None:
    calls = []
    with GgufFile.open(model) as gguf, model.open("rb") as file:
        manifest = Manifest.build(gguf, file, lambda done, total: calls.append((done, total)))
        names = list(gguf.tensors)
    content = model.read_bytes()
    covered = 0
    for region in manifest.regions:
        numbers = manifest.chunks_of_tensors([region.name])
        past = region.offset
        for number in numbers:
            chunk = manifest.chunk(number)
            assert chunk.offset == past
            assert 1 <= chunk.size <= CHUNK_BYTES_MAX
            assert chunk.is_made_of(content[chunk.offset : chunk.offset + chunk.size])
            past += chunk.size
        assert past == region.offset + region.size
        covered += region.size
    assert manifest.chunks_of_header() == manifest.chunks_of_tensors([""])
    everything = manifest.chunks_of_header() + manifest.chunks_of_tensors(names)
    assert everything == list(range(manifest.chunks))
    assert manifest.bytes_of(everything) == covered
    assert calls[-1] == (covered, covered)
    assert len(manifest.chunks_of_tensors(["blk.1.ffn_gate.weight"])) == 2
    assert Manifest.decode(manifest.encoded, manifest.root) == manifest


def test_chunks_and_names_that_are_not_there() -> None:
    manifest = manifest_of(small_file())
    for index in (-1, manifest.chunks):
        with pytest.raises(IndexError):
            manifest.chunk(index)
    with pytest.raises(KeyError):
        manifest.chunks_of_tensors(["blk.0.nothing"])


def test_agrees_only_with_the_file_that_it_describes() -> None:
    data = small_file()
    manifest = manifest_of(data)
    assert manifest.agrees_with(GgufFile.parse(data, "same"))
    assert not manifest.agrees_with(GgufFile.parse(data + bytes(32), "longer"))
    renamed = data.replace(b"late.weight", b"lute.weight")
    assert not manifest.agrees_with(GgufFile.parse(renamed, "renamed"))


def test_a_file_that_shrinks_while_it_is_read_is_an_error() -> None:
    data = small_file()
    with pytest.raises(ModelFileError, match=r"small\.gguf: was cut short"):
        Manifest.build(GgufFile.parse(data, "small.gguf"), io.BytesIO(data[:-1]))


def test_a_file_that_the_format_cannot_hold_is_not_supported() -> None:
    # Without tensors, the header's padding need not be there.
    data = gguf_writing.whole_file([], [])[:24]
    with pytest.raises(UnsupportedModelError, match="cannot be shared"):
        manifest_of(data)


@pytest.mark.parametrize("position", [0, 1, 40, -1])
def test_any_other_bytes_than_the_root_s_own_are_refused(position: int) -> None:
    manifest = manifest_of(small_file())
    changed = bytearray(manifest.encoded)
    changed[position] ^= 1
    with pytest.raises(TransferError, match="does not hash to the model's root"):
        Manifest.decode(bytes(changed), manifest.root)


TENSORS = [["a", 64, 10], ["b", 96, 32]]
GOOD = [1, 128, 64, TENSORS, bytes(96)]


def test_the_good_example_is_good() -> None:
    assert decoded(GOOD).regions == (Region("", 0, 64), Region("a", 64, 10), Region("b", 96, 32))


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        (0, 2, "version 2"),
        (0, True, "not msgpack within"),
        (0, None, "not msgpack within"),
        (1, 0, "has 0 bytes"),
        (1, -1, "has -1 bytes"),
        (1, FILE_BYTES_MAX + 1, "not 1 to"),
        (1, 127, "reach to byte 128 of 127"),
        (1, 128.0, "not msgpack within"),
        (2, 0, "'' is empty"),
        (2, -5, "'' is empty"),
        (2, 65, "'a' is empty, overlaps"),
        (2, "64", "not msgpack within"),
        (3, [["a", 64, 33], ["b", 96, 32]], "'b' is empty, overlaps"),
        (3, [["b", 96, 32], ["a", 64, 10]], "out of order"),
        (3, [["a", 64, 10], ["a", 96, 32]], "same name"),
        (3, [["", 64, 10], ["b", 96, 32]], "has none"),
        (3, [["a", 64, 0], ["b", 96, 32]], "'a' is empty"),
        (3, [["a", 64, -10], ["b", 96, 32]], "'a' is empty"),
        (3, [["a", 2**64 - 1, 2**64 - 1]], "reach to byte"),
        (3, [["a" * 65, 64, 10], ["b", 96, 32]], "not msgpack within"),
        (3, [["ä" * 33, 64, 10], ["b", 96, 32]], "not msgpack within"),
        (3, [[b"a", 64, 10], ["b", 96, 32]], "not msgpack within"),
        (3, [["a", 64], ["b", 96, 32]], "not msgpack within"),
        (3, [[["a"], 64, 10], ["b", 96, 32]], "not msgpack within"),
        (3, {"a": 1}, "not msgpack within"),
        (3, [["a", 64, 10]] * (TENSORS_MAX + 1), "not msgpack within"),
        (3, [], "wrong number of hashes"),
        (4, bytes(95), "wrong number of hashes"),
        (4, bytes(128), "wrong number of hashes"),
        (4, "0" * 32, "not msgpack within"),
        (4, "0" * 96, "not msgpack within"),
    ],
)
def test_a_manifest_that_breaks_a_limit_is_refused(field: int, value: Any, fault: str) -> None:
    fields: list[Any] = list(GOOD)
    fields[field] = value
    with pytest.raises(TransferError, match=fault):
        decoded(fields)


def test_other_encodings_of_the_same_manifest_are_refused() -> None:
    good = msgpack.packb(GOOD)
    for other in (good + b"\0", good[:1] + b"\xcc\x01" + good[2:]):
        with pytest.raises(TransferError, match="canonical"):
            Manifest.decode(other, blake2b(other).hex())


def test_too_many_bytes_are_refused_before_they_are_hashed() -> None:
    with pytest.raises(TransferError, match="over 16777216"):
        Manifest.decode(bytes(MANIFEST_BYTES_MAX + 1), "0" * 64)


def test_a_million_nested_lists_are_refused() -> None:
    for data in (b"\x95\x01" + b"\x91" * 1000000, b"\x95\x01\x05\x05\xdd\x00\x00\xff\xff" * 9999):
        with pytest.raises(TransferError):
            Manifest.decode(data, blake2b(data).hex())


@settings(deadline=None, max_examples=200)
@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**64 - 1)
        | st.text(max_size=5)
        | st.binary(max_size=100)
        | st.floats(),
        lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=12,
    ).map(msgpack.packb)
)
def test_hostile_bytes_decode_to_nothing(data: bytes) -> None:
    with pytest.raises(TransferError):
        Manifest.decode(data, blake2b(data).hex())


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_a_changed_manifest_is_refused_or_sound(data: st.DataObject) -> None:
    changed = bytearray(msgpack.packb(GOOD))
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, 28))] = data.draw(st.integers(0, 255))
    try:
        manifest = Manifest.decode(bytes(changed), blake2b(changed).hex())
    except TransferError:
        return
    assert manifest.encoded == changed
    past = 0
    for region in manifest.regions:
        assert past <= region.offset
        assert region.size > 0
        past = region.offset + region.size
    assert past <= manifest.file_bytes
    assert len(manifest.digests) == 32 * manifest.chunks


def test_what_has_the_form_of_a_root() -> None:
    assert is_root("0123456789abcdef" * 4)
    for text in ("", "0" * 63, "0" * 65, "A" * 64, "../" + "0" * 61, "0" * 64 + "\n", None, b"0"):
        assert not is_root(text)
