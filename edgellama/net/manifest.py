"""The manifest of a model file: what is where, and the hash of every chunk.

The header region ``[0, data_offset)`` and the data of each tensor are cut into chunks of at most
1 MiB; no chunk spans two regions, so a node fetches the tensors of its own layers and nothing
else. The BLAKE2b-256 of the manifest's one encoding is the root: the model's identity. The
format is drawn in docs/spec/weights.md.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple

import msgpack

from edgellama.errors import ModelFileError, TransferError, UnsupportedModelError

if TYPE_CHECKING:
    from edgellama.model.gguf import GgufFile

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""

MANIFEST_VERSION: Final = 1
CHUNK_BYTES_MAX: Final = 1 << 20  # verified as a whole before it is written: a phone can hold it
DIGEST_BYTES: Final = 32
ROOT_DIGITS: Final = 2 * DIGEST_BYTES

# A 256 GiB model is far beyond what a home network serves, and its manifest still fits a phone.
FILE_BYTES_MAX: Final = 1 << 38
TENSORS_MAX: Final = 65_536
NAME_BYTES_MAX: Final = 64  # as the GGUF reader, and so with the number of tensors
CHUNKS_MAX: Final = FILE_BYTES_MAX // CHUNK_BYTES_MAX + TENSORS_MAX + 1
MANIFEST_BYTES_MAX: Final = 16 << 20  # a 4 GB model takes about 150 KB

_ROOT_PATTERN: Final = re.compile(f"[0-9a-f]{{{ROOT_DIGITS}}}")


class Region(NamedTuple):
    """Bytes of the model file that belong together: the header (name ``""``) or one tensor."""

    name: str
    offset: int
    size: int  # bytes


class Chunk(NamedTuple):
    """At most 1 MiB of one region: where it lies in the file, and its BLAKE2b-256."""

    offset: int
    size: int  # bytes
    digest: bytes

    def is_made_of(self, data: bytes | memoryview) -> bool:
        """Tell whether ``data`` is this chunk's content."""
        return len(data) == self.size and _digest(data) == self.digest


@dataclass(frozen=True)
class Manifest:
    """The regions of a model file in the order of their offsets, and the digests of their chunks.

    ``regions[0]`` is the header; regions do not overlap and lie within ``file_bytes``. Chunks
    are numbered through all regions; ``digests`` holds 32 bytes for each. What lies between
    regions is padding: it is not covered and counts as zeros.
    """

    file_bytes: int
    regions: tuple[Region, ...]
    digests: bytes

    @classmethod
    def build(cls, gguf: GgufFile, file: BinaryIO, progress: Progress | None = None) -> Manifest:
        """Hash the whole file that ``gguf`` describes (about 330 MB a second on a laptop).

        It is read through ``file`` and not through the mapping: so no page of it stays in this
        process, and a file that someone cuts short meanwhile is an error and not a bus error.
        Raises ModelFileError for that, UnsupportedModelError for a file beyond the limits here.
        """
        header = Region("", 0, gguf.data_offset)
        tensors = [Region(t.name, t.offset, t.bytes) for t in gguf.tensors.values()]
        regions = (header, *sorted(tensors, key=lambda region: region.offset))
        fault = _fault(gguf.file_bytes, regions)
        if fault:
            raise UnsupportedModelError(f"{gguf.path_name}: cannot be shared: {fault}")
        total = sum(region.size for region in regions)
        digests = bytearray()
        done = 0
        for region in regions:
            for skipped in range(0, region.size, CHUNK_BYTES_MAX):
                wanted = min(CHUNK_BYTES_MAX, region.size - skipped)
                file.seek(region.offset + skipped)
                data = file.read(wanted)
                if len(data) != wanted:
                    raise ModelFileError(f"{gguf.path_name}: was cut short while it was read")
                digests += _digest(data)
                done += wanted
                if progress is not None:
                    progress(done, total)
        return cls(gguf.file_bytes, regions, bytes(digests))

    @classmethod
    def decode(cls, data: bytes, root: str) -> Manifest:
        """Read a manifest that came from a peer or from the disk; only the root's own passes.

        Raises TransferError, in words that can follow the name of whoever sent it.
        """
        if len(data) > MANIFEST_BYTES_MAX:
            raise TransferError(f"a manifest of {len(data)} bytes, over {MANIFEST_BYTES_MAX}")
        if _digest(data).hex() != root:
            raise TransferError("a manifest that does not hash to the model's root")
        manifest = _parse(data)
        if manifest.encoded != data:
            raise TransferError("a manifest that is not in canonical form")
        return manifest

    @cached_property
    def encoded(self) -> bytes:
        """The canonical encoding, whose hash is the root."""
        tensors = [list(region) for region in self.regions[1:]]
        fields = [MANIFEST_VERSION, self.file_bytes, self.regions[0].size, tensors, self.digests]
        encoded: bytes = msgpack.packb(fields)
        return encoded

    @cached_property
    def root(self) -> str:
        """The model's identity: 64 lower-case hexadecimal digits."""
        return _digest(self.encoded).hex()

    @cached_property
    def _first_chunks(self) -> tuple[int, ...]:
        """Each region's first chunk, and at the end the number of all chunks."""
        counts = (chunk_count(region.size) for region in self.regions)
        return tuple(itertools.accumulate(counts, initial=0))

    @cached_property
    def _region_numbers(self) -> dict[str, int]:
        return {region.name: number for number, region in enumerate(self.regions)}

    @property
    def chunks(self) -> int:
        """The number of chunks."""
        return self._first_chunks[-1]

    @property
    def header_bytes(self) -> int:
        """The length of the header region: the offset of the first tensor's data."""
        return self.regions[0].size

    def chunk(self, index: int) -> Chunk:
        """Return where chunk ``index`` lies and what it hashes to."""
        if not 0 <= index < self.chunks:
            raise IndexError(index)
        number = bisect_right(self._first_chunks, index) - 1
        region = self.regions[number]
        skipped = (index - self._first_chunks[number]) * CHUNK_BYTES_MAX
        digest = self.digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]
        return Chunk(region.offset + skipped, min(CHUNK_BYTES_MAX, region.size - skipped), digest)

    def chunks_of_header(self) -> list[int]:
        """Return the chunks of the header: the metadata, the tokenizer and the tensor table."""
        return list(range(self._first_chunks[1]))

    def chunks_of_tensors(self, names: Iterable[str]) -> list[int]:
        """Return the chunks of the named tensors, ascending; KeyError for one it has not."""
        numbers = sorted({self._region_numbers[name] for name in names})
        firsts = self._first_chunks
        return [chunk for n in numbers for chunk in range(firsts[n], firsts[n + 1])]

    def bytes_of(self, chunks: Iterable[int]) -> int:
        """Return how many bytes these chunks have together."""
        return sum(self.chunk(index).size for index in chunks)

    def agrees_with(self, gguf: GgufFile) -> bool:
        """Tell whether the file's own header describes the same tensors at the same places."""
        told = {t.name: (t.offset, t.bytes) for t in gguf.tensors.values()}
        mine = {region.name: (region.offset, region.size) for region in self.regions[1:]}
        same_size = (gguf.file_bytes, gguf.data_offset) == (self.file_bytes, self.header_bytes)
        return same_size and told == mine


def chunk_count(region_bytes: int) -> int:
    """Return how many chunks a region of this size is cut into."""
    return -(-region_bytes // CHUNK_BYTES_MAX)


def is_root(text: object) -> bool:
    """Tell whether ``text`` has the form of a root, and so may become part of a file's name."""
    return isinstance(text, str) and _ROOT_PATTERN.fullmatch(text) is not None


def _digest(data: bytes | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def _parse(data: bytes) -> Manifest:
    # Every list's length is read before its items, and an item is never a list or a map itself:
    # so a hostile manifest makes no more objects than an honest one.
    unpacker = msgpack.Unpacker(
        raw=False,
        max_buffer_size=len(data),
        max_str_len=NAME_BYTES_MAX,
        max_bin_len=CHUNKS_MAX * DIGEST_BYTES,
        max_array_len=0,
        max_map_len=0,
        max_ext_len=0,
    )
    unpacker.feed(data)
    try:
        manifest = _read(unpacker)
    # Both kinds, and all of their subclasses: msgpack raises nothing else for what it cannot read.
    except (ValueError, msgpack.UnpackException) as error:
        raise TransferError("a manifest that is not msgpack within its bounds") from error
    fault = _fault(manifest.file_bytes, manifest.regions)
    if fault:
        raise TransferError(f"a manifest in which {fault}")
    if len(manifest.digests) != DIGEST_BYTES * manifest.chunks:
        raise TransferError("a manifest with the wrong number of hashes")
    return manifest


def _read(unpacker: msgpack.Unpacker) -> Manifest:
    """Read the fields with their types; ValueError and UnpackException are the caller's."""
    _expect(unpacker.read_array_header() == 5)
    version = _integer(unpacker)
    if version != MANIFEST_VERSION:
        raise TransferError(
            f"a manifest of version {version}; this edgellama reads version {MANIFEST_VERSION}"
        )
    file_bytes = _integer(unpacker)
    regions = [Region("", 0, _integer(unpacker))]
    tensors = unpacker.read_array_header()
    _expect(tensors <= TENSORS_MAX)
    for _ in range(tensors):
        _expect(unpacker.read_array_header() == 3)
        name = unpacker.unpack()
        _expect(isinstance(name, str))
        regions.append(Region(name, _integer(unpacker), _integer(unpacker)))
    digests = unpacker.unpack()
    _expect(isinstance(digests, bytes))
    return Manifest(file_bytes, tuple(regions), digests)


def _integer(unpacker: msgpack.Unpacker) -> int:
    value = unpacker.unpack()
    _expect(type(value) is int)  # a bool is no integer here
    number: int = value
    return number


def _expect(truth: bool) -> None:
    if not truth:
        raise ValueError


def _fault(file_bytes: int, regions: Sequence[Region]) -> str:
    """Say what breaks the limits of the format, or return the empty string."""
    if not 0 < file_bytes <= FILE_BYTES_MAX:
        return f"the file has {file_bytes} bytes, not 1 to {FILE_BYTES_MAX}"
    if len(regions) - 1 > TENSORS_MAX:
        return f"there are {len(regions) - 1} tensors, over {TENSORS_MAX}"
    names = {region.name for region in regions}
    if len(names) < len(regions):
        return "two tensors have the same name, or one has none"
    past = 0
    for name, offset, size in regions:
        if len(name.encode()) > NAME_BYTES_MAX:
            return f"a tensor's name has more than {NAME_BYTES_MAX} bytes"
        if size < 1 or offset < past:
            return f"{name[:64]!r} is empty, overlaps another region or is out of order"
        past = offset + size
    if past > file_bytes:
        return f"the regions reach to byte {past} of {file_bytes}"
    return ""
