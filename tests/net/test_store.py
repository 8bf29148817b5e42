"""The store: what it keeps is verified, survives any interruption and is used again."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from model_running import SmallShape, llama_keys, llama_tensors, write_llama
from weights_serving import write_model

from edgellama.errors import EdgellamaError, MisuseError, TransferError
from edgellama.model.gguf import GgufFile
from edgellama.net import atomic_file
from edgellama.net.chunk_bitmap import ChunkBitmap
from edgellama.net.manifest import Manifest
from edgellama.net.store import Store
from edgellama.net.stored_model import StoredModel, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("store") / "model.gguf")


@pytest.fixture(scope="module")
def manifest(model: Path) -> Manifest:
    with GgufFile.open(model) as gguf, model.open("rb") as file:
        return Manifest.build(gguf, file)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[[], Store]]:
    """Open the store as another start or another process would."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(contextlib.closing(Store(folder)))


@pytest.fixture
def store(start: Callable[[], Store]) -> Store:
    return start()


def content(model: Path, manifest: Manifest, index: int) -> bytes:
    chunk = manifest.chunk(index)
    with model.open("rb") as file:
        file.seek(chunk.offset)
        return file.read(chunk.size)


def fill(stored: StoredModel, model: Path, indexes: list[int]) -> None:
    for index in indexes:
        assert stored.write_chunk(index, content(model, stored.manifest, index))


def found(store: Store, root: str) -> StoredModel:
    stored = store.find(root)
    assert stored is not None
    return stored


# --- chunks ---------------------------------------------------------------------------------


def test_only_the_right_chunk_is_written(store: Store, model: Path, manifest: Manifest) -> None:
    stored = store.create(manifest)
    right = content(model, manifest, 3)
    for wrong in (right[:-1], right + b"\0", b"", bytes([right[0] ^ 1]) + right[1:]):
        assert not stored.write_chunk(3, wrong)
    assert stored.missing([3]) == [3]
    with pytest.raises(TransferError, match="chunk 3 of the model is not in the store"):
        stored.read_chunk(3)
    assert stored.path.read_bytes() == bytes(manifest.file_bytes)
    assert stored.write_chunk(3, right)
    assert stored.write_chunk(3, right)
    assert stored.read_chunk(3) == right
    assert stored.missing([4, 3, 4, 2]) == [2, 4]


def test_what_was_flushed_is_there_at_the_next_start(
    start: Callable[[], Store], store: Store, folder: Path, model: Path, manifest: Manifest
) -> None:
    stored = store.create(manifest)
    fill(stored, model, [0, 5])
    stored.flush()
    fill(stored, model, [7])  # and now the process is killed
    again = found(start(), manifest.root)
    assert again.missing(range(9)) == [1, 2, 3, 4, 6, 7, 8]
    assert again.read_chunk(5) == content(model, manifest, 5)
    assert len(again.available()) == 2


def test_a_complete_copy_takes_its_name_and_equals_the_file(
    start: Callable[[], Store], store: Store, folder: Path, model: Path, manifest: Manifest
) -> None:
    stored = store.create(manifest)
    fill(stored, model, list(range(manifest.chunks)))
    stored.flush()
    assert stored.complete
    assert stored.path == folder / f"{manifest.root}.gguf"
    assert sorted(path.name for path in folder.iterdir()) == [
        f"{manifest.root}.gguf",
        f"{manifest.root}.manifest",
    ]
    assert stored.path.read_bytes() == model.read_bytes()
    stored.flush()
    again = found(start(), manifest.root)
    assert again.complete
    assert again.read_chunk(0) == content(model, manifest, 0)
    again.flush()


def test_header_and_own_tensors_are_read_in_place(
    store: Store, model: Path, manifest: Manifest
) -> None:
    stored = store.create(manifest)
    with pytest.raises(TransferError, match="is not here yet"):
        stored.open_gguf()
    name = "blk.1.ffn_up.weight"
    fill(stored, model, manifest.chunks_of_header() + manifest.chunks_of_tensors([name]))
    with stored.open_gguf() as sparse, GgufFile.open(model) as whole:
        assert sparse.metadata.keys() == whole.metadata.keys()
        assert sparse.tensors == whole.tensors
        assert sparse.tensor_bytes(name) == whole.tensor_bytes(name)


def test_a_manifest_that_contradicts_the_header_is_noticed(
    store: Store, tmp_path: Path, model: Path, manifest: Manifest
) -> None:
    # As a hostile member would make it: all hashes true, one tensor's name another.
    regions = tuple(
        region._replace(name="blk.0.lie.weight") if region.name == "output.weight" else region
        for region in manifest.regions
    )
    lie = Manifest(manifest.file_bytes, regions, manifest.digests)
    stored = store.create(lie)
    fill(stored, model, lie.chunks_of_header())
    with pytest.raises(TransferError, match="contradicts itself"):
        stored.open_gguf()


# --- what may lie on the disk ---------------------------------------------------------------


@pytest.mark.parametrize("bits", [b"", b"\xff", b"\xff" * 100, None])
def test_a_damaged_bitmap_claims_nothing(
    start: Callable[[], Store],
    store: Store,
    folder: Path,
    model: Path,
    manifest: Manifest,
    bits: bytes | None,
) -> None:
    stored = store.create(manifest)
    fill(stored, model, [1])
    stored.flush()
    bitmap = folder / f"{manifest.root}.chunks"
    if bits is None:  # right length, but a chunk beyond the last
        assert manifest.chunks % 8
        bits = bitmap.read_bytes()[:-1] + b"\x80"
    bitmap.write_bytes(bits)
    again = found(start(), manifest.root)
    assert len(again.available()) == 0


@pytest.mark.parametrize("size", [None, 0, 100])
def test_a_bitmap_without_its_data_claims_nothing(
    start: Callable[[], Store],
    store: Store,
    folder: Path,
    model: Path,
    manifest: Manifest,
    size: int | None,
) -> None:
    stored = store.create(manifest)
    fill(stored, model, [1])
    stored.flush()
    if size is None:
        stored.path.unlink()
    else:
        os.truncate(stored.path, size)
    again = start()
    assert len(again.create(manifest).available()) == 0
    assert again.create(manifest).path.stat().st_size == manifest.file_bytes


def test_a_complete_copy_of_the_wrong_size_is_started_anew(
    store: Store, folder: Path, model: Path, manifest: Manifest
) -> None:
    folder.mkdir()
    (folder / f"{manifest.root}.gguf").write_bytes(b"cut off")
    stored = store.create(manifest)
    assert len(stored.available()) == 0
    fill(stored, model, [2])


def test_a_damaged_manifest_is_as_none(
    start: Callable[[], Store], store: Store, folder: Path, manifest: Manifest
) -> None:
    store.create(manifest)
    (folder / f"{manifest.root}.manifest").write_bytes(manifest.encoded[:-1])
    other = start()
    assert other.find(manifest.root) is None
    other.create(manifest)
    assert found(start(), manifest.root).manifest == manifest


def test_finding_makes_nothing_and_leaves_the_folder(store: Store, folder: Path) -> None:
    (folder.parent / "secret.gguf").write_bytes(b"x")
    (folder.parent / "secret.manifest").write_bytes(b"x")
    for root in ("0" * 64, "../secret", "", "a" * 65, "0" * 63 + "/"):
        assert store.find(root) is None
        assert store.source(root) is None
    assert not folder.exists()


def test_one_model_is_one_object(store: Store, manifest: Manifest) -> None:
    stored = store.create(manifest)
    assert store.create(manifest) is stored
    assert store.find(manifest.root) is stored
    assert store.source(manifest.root) is stored


def test_two_processes_may_fill_one_store(
    start: Callable[[], Store], store: Store, folder: Path, model: Path, manifest: Manifest
) -> None:
    other_store = start()
    mine, others = store.create(manifest), other_store.create(manifest)
    fill(mine, model, list(range(0, manifest.chunks, 2)))
    fill(others, model, list(range(1, manifest.chunks, 2)))
    mine.flush()
    others.flush()
    again = found(start(), manifest.root)
    # The later bitmap stands; whatever it claims is there.
    assert again.missing(range(manifest.chunks)) == list(range(0, manifest.chunks, 2))
    for index in range(1, manifest.chunks, 2):
        assert again.read_chunk(index) == content(model, manifest, index)
    fill(mine, model, list(range(manifest.chunks)))
    fill(others, model, list(range(manifest.chunks)))
    mine.flush()
    others.flush()
    assert mine.path.read_bytes() == model.read_bytes()


# --- a disk that fails ----------------------------------------------------------------------


class FullFile:
    """An open file on a disk that takes so many bytes more."""

    def __init__(self, file: Any, room_bytes: int) -> None:
        self._file = file
        self._room_bytes = room_bytes

    def write(self, data: memoryview) -> int:
        if not self._room_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written: int = self._file.write(data[: self._room_bytes])
        self._room_bytes -= written
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def test_a_disk_that_fills_up_is_one_line(
    start: Callable[[], Store], store: Store, folder: Path, model: Path, manifest: Manifest
) -> None:
    stored = store.create(manifest)
    fill(stored, model, [0])
    stored._file = FullFile(stored._file, 1000)  # type: ignore[assignment]
    with pytest.raises(StoreError, match=f"the disk that holds {folder} is full: free some"):
        fill(stored, model, [1])
    assert stored.missing([0, 1]) == [1]
    stored.flush()
    assert found(start(), manifest.root).missing([0, 1]) == [1]


def test_a_bitmap_that_cannot_be_written_is_one_line(
    start: Callable[[], Store],
    store: Store,
    folder: Path,
    model: Path,
    manifest: Manifest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored = store.create(manifest)
    fill(stored, model, [0])
    stored.flush()
    fill(stored, model, [1])

    def refuse(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(StoreError, match="cannot be written: Input/output error; set EDGE"):
            stored.flush()
    with monkeypatch.context() as patch:
        patch.setattr(atomic_file.Path, "replace", lambda *paths: refuse(0))
        with pytest.raises(StoreError, match="Input/output error"):
            stored.flush()
    assert not list(folder.glob(".unfinished*"))
    assert found(start(), manifest.root).missing([0, 1]) == [1]


def test_room_is_checked_before(
    store: Store, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = store.create(manifest)
    stored.check_room(1)
    usage = shutil.disk_usage(stored.path.parent)._replace(free=5 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    stored.check_room(5 << 20)
    with pytest.raises(StoreError, match="has room for 5 MiB and this model's part takes 6 MiB"):
        stored.check_room((5 << 20) + 1)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = Store(tmp_path / "file" / "store")
    with pytest.raises(StoreError, match="Not a directory; set EDGELLAMA_HOME to a folder"):
        store.create(manifest)
    assert store.find(manifest.root) is None


def test_a_store_removed_meanwhile_is_noticed(
    start: Callable[[], Store], store: Store, folder: Path, model: Path, manifest: Manifest
) -> None:
    stored = store.create(manifest)
    fill(stored, model, [0])
    shutil.rmtree(folder)
    with pytest.raises(StoreError, match="was removed or replaced meanwhile"):
        stored.flush()
    other = start()
    other.create(manifest)
    with pytest.raises(StoreError, match="was removed or replaced meanwhile"):
        stored.flush()
    assert len(found(start(), manifest.root).available()) == 0


# --- files of the user's own ----------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path) -> Path:
    shape = SmallShape()
    return write_llama(tmp_path / "own.gguf", llama_keys(shape), llama_tensors(shape))  # type: ignore[arg-type]


def times_hashed(store: Store, path: Path) -> int:
    calls: list[int] = []
    store.adopt(path, lambda done, total: calls.append(done))
    return calls.count(calls[-1]) if calls else 0


def test_an_own_file_is_hashed_once(
    start: Callable[[], Store], store: Store, folder: Path, own: Path
) -> None:
    assert times_hashed(store, own) == 1
    assert times_hashed(store, own) == 0
    later = start()
    assert times_hashed(later, own) == 0
    model = later.adopt(own)
    assert model.path == own
    assert later.source(model.manifest.root) is model
    assert later.find(model.manifest.root) is None  # no copy is made of it
    chunks = range(model.manifest.chunks)
    assert [content(own, model.manifest, n) for n in chunks] == [
        model.read_chunk(n) for n in chunks
    ]
    with model.open_gguf() as gguf:
        assert gguf.path_name == str(own)


def test_a_changed_own_file_is_hashed_again(store: Store, own: Path) -> None:
    before = store.adopt(own)
    data = bytearray(own.read_bytes())
    data[-1] ^= 1
    own.write_bytes(data)
    os.utime(own, ns=(1, 1))  # whatever the clock's step, the time is another
    assert len(before.available()) == 0
    with pytest.raises(TransferError, match=r"own.gguf has been changed since"):
        before.read_chunk(0)
    with pytest.raises(TransferError, match=r"own.gguf has been changed since"):
        before.open_gguf()
    after = store.adopt(own)
    assert after.manifest.root != before.manifest.root
    assert len(after.available()) == after.manifest.chunks


def test_a_moved_own_file_is_noticed(store: Store, own: Path, tmp_path: Path) -> None:
    root = store.adopt(own).manifest.root
    moved = own.rename(tmp_path / "moved.gguf")
    with pytest.raises(MisuseError, match="there is no model file"):
        store.adopt(own)
    assert times_hashed(store, moved) == 1
    assert store.adopt(moved).manifest.root == root


def test_a_file_that_changes_while_it_is_hashed(store: Store, own: Path) -> None:
    def touch(done: int, total: int) -> None:
        os.utime(own, ns=(7, 7))

    with pytest.raises(EdgellamaError, match="was changed while it was read"):
        store.adopt(own, touch)
    assert times_hashed(store, own) == 1


@pytest.mark.parametrize("damage", [b"", b"\x93\x01\x02\x03", b"\xc1", b"\xff" * 9])
def test_damaged_records_cost_a_hashing_only(
    store: Store, folder: Path, own: Path, damage: bytes
) -> None:
    root = store.adopt(own).manifest.root
    (record,) = (folder / "own").iterdir()
    good = record.read_bytes()
    record.write_bytes(damage)
    assert times_hashed(store, own) == 1
    assert record.read_bytes() == good
    (folder / f"{root}.manifest").unlink()
    assert times_hashed(store, own) == 1


def test_an_own_file_needs_no_store(
    tmp_path: Path, own: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = Store(tmp_path / "file" / "store")
    model = store.adopt(own)
    assert store.source(model.manifest.root) is model
    assert "next time it is made anew" in caplog.text
    store.close()


def test_what_is_no_model_is_not_adopted(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "text.gguf"
    path.write_text("no model")
    with pytest.raises(EdgellamaError, match=r"text\.gguf"):
        store.adopt(path)
    with pytest.raises(MisuseError):
        store.adopt(tmp_path)


def test_unfinished_files_of_the_killed_go_and_of_the_living_stay(folder: Path) -> None:
    folder.mkdir()
    old, new = folder / ".unfinished-old", folder / ".unfinished-new"
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (1, 1))
    atomic_file.remove_unfinished(folder)
    assert [path.name for path in folder.iterdir()] == [new.name]


def test_a_bitmap_of_every_length() -> None:
    for chunks in (0, 1, 7, 8, 9, 64, 100):
        full = ChunkBitmap.full(chunks)
        assert len(full) == chunks
        assert ChunkBitmap.from_bytes(chunks, full.to_bytes()) is not None
        empty = ChunkBitmap(chunks)
        for chunk in range(chunks):
            assert chunk not in empty
            empty.add(chunk)
            assert chunk in empty
        assert empty.to_bytes() == full.to_bytes()
        assert chunks not in full
        assert -1 not in full
