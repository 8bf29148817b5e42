"""Packed weights on the disk: the same bytes, made once, whole or not used, one copy in memory."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import gguf_writing
import numpy as np
import pytest
from edgellama_kernels import LAYOUT_VERSION
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_running import SmallShape, llama_keys, llama_tensors, packed_model, write_llama

from edgellama.errors import ModelFileError
from edgellama.model.config import ModelConfig
from edgellama.model.gguf import GgufFile
from edgellama.model.weights import home_bytes, layer_bytes, pack_home, pack_layer
from edgellama.net import packed
from edgellama.net.packed import PackedCache
from edgellama.values import Span

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

ROOT = "0123456789abcdef" * 4
SHAPE = SmallShape(layers=3)
ALL = Span(0, SHAPE.layers)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "model.gguf"
    return write_llama(path, llama_keys(SHAPE), llama_tensors(SHAPE))  # type: ignore[arg-type]


@pytest.fixture
def gguf(model: Path) -> Iterator[GgufFile]:
    with GgufFile.open(model) as opened:
        yield opened


@pytest.fixture
def config(gguf: GgufFile) -> ModelConfig:
    return ModelConfig.from_gguf(gguf)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "packed"


def expected_layer(gguf: GgufFile, config: ModelConfig, layer: int) -> NDArray[np.uint8]:
    buffer = np.zeros(layer_bytes(gguf, config, layer), np.uint8)
    pack_layer(gguf, config, layer, buffer)
    return buffer


def expected_home(gguf: GgufFile, config: ModelConfig) -> NDArray[np.uint8]:
    buffer = np.zeros(home_bytes(gguf, config), np.uint8)
    pack_home(gguf, config, buffer)
    return buffer


def is_mapped_file(buffer: NDArray[np.uint8], path: Path) -> bool:
    """Tell whether the buffer's address lies in a mapping of the file (Linux)."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, past = (int(number, 16) for number in line.split()[0].split("-"))
        if first <= buffer.ctypes.data < past:
            return line.endswith(str(path))
    return False


def forbid_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError("packed again")

    monkeypatch.setattr(packed, "pack_layer", fail)
    monkeypatch.setattr(packed, "pack_home", fail)


def test_a_span_is_packed_mapped_and_read_only(
    folder: Path, gguf: GgufFile, config: ModelConfig
) -> None:
    cache = PackedCache(folder)
    shown: list[tuple[int, int]] = []
    buffers = cache.layer_buffers(
        gguf, config, ROOT, Span(1, 3), lambda done, total: shown.append((done, total))
    )
    assert len(buffers) == 2
    for layer, buffer in zip((1, 2), buffers, strict=True):
        assert np.array_equal(buffer, expected_layer(gguf, config, layer))
        assert not buffer.flags.writeable
        assert buffer.ctypes.data % 64 == 0
    sizes = [buffer.nbytes for buffer in buffers]
    assert shown == [(sizes[0], sum(sizes)), (sum(sizes), sum(sizes))]
    home = cache.home_buffer(gguf, config, ROOT)
    assert np.array_equal(home, expected_home(gguf, config))
    assert cache.note is None
    model_folder = folder / f"{ROOT[:16]}-{LAYOUT_VERSION}"
    names = ["home.bin", "layer-0001.bin", "layer-0002.bin"]
    assert sorted(path.name for path in model_folder.iterdir()) == names
    if sys.platform == "linux":
        for name, buffer in zip(names, [home, *buffers], strict=True):
            assert is_mapped_file(buffer, model_folder / name)


def test_the_next_start_packs_nothing(
    folder: Path, gguf: GgufFile, config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = PackedCache(folder).layer_buffers(gguf, config, ROOT, ALL)
    home = PackedCache(folder).home_buffer(gguf, config, ROOT)
    forbid_packing(monkeypatch)
    again = PackedCache(folder).layer_buffers(gguf, config, ROOT, ALL)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert np.array_equal(PackedCache(folder).home_buffer(gguf, config, ROOT), home)


def test_what_is_held_needs_no_tensor(
    folder: Path, gguf: GgufFile, config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = PackedCache(folder)
    assert first.held(gguf, config, ROOT, ALL, home=True) == {}
    first.layer_buffers(gguf, config, ROOT, Span(1, 2))
    first.home_buffer(gguf, config, ROOT)
    cache = PackedCache(folder)
    assert set(cache.held(gguf, config, ROOT, ALL, home=False)) == {"layer-0001"}
    held = cache.held(gguf, config, ROOT, ALL, home=True)
    assert set(held) == {"layer-0001", "home"}
    forbid_packing(monkeypatch)
    (path,) = folder.rglob("layer-0001.bin")
    path.unlink()  # what is in use stays in use
    (buffer,) = cache.layer_buffers(gguf, config, ROOT, Span(1, 2))
    assert buffer is held["layer-0001"]
    assert cache.home_buffer(gguf, config, ROOT) is held["home"]
    assert PackedCache(folder).held(gguf, config, ROOT, ALL, home=False) == {}


def test_a_layer_in_plain_memory_is_there_once(
    tmp_path: Path, gguf: GgufFile, config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next plan's span shares it with the span before, which is still in use."""
    (tmp_path / "file").write_bytes(b"")
    cache = PackedCache(tmp_path / "file" / "packed")
    before = cache.layer_buffers(gguf, config, ROOT, ALL)
    forbid_packing(monkeypatch)
    after = cache.layer_buffers(gguf, config, ROOT, Span(1, 3))
    assert all(one is other for one, other in zip(before[1:], after, strict=True))


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_torn_or_changed_file_is_never_used(
    folder: Path, gguf: GgufFile, config: ModelConfig, data: st.DataObject
) -> None:
    cache = PackedCache(folder)
    cache.layer_buffers(gguf, config, ROOT, Span(0, 1))
    (path,) = folder.rglob("layer-0000.bin")
    content = bytearray(path.read_bytes())
    match data.draw(st.sampled_from(["flip", "cut", "grow", "zero"])):
        case "flip":
            content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        case "cut":
            del content[data.draw(st.integers(0, len(content) - 1)) :]
        case "grow":
            content += b"\0"
        case "zero":  # as after a power cut: the length is there, the data is not
            start = data.draw(st.integers(4096, len(content) - 64))
            content[start:] = bytes(len(content) - start)
    path.unlink()  # the old content stays mapped, as another process would have it
    path.write_bytes(content)
    (buffer,) = cache.layer_buffers(gguf, config, ROOT, Span(0, 1))
    assert np.array_equal(buffer, expected_layer(gguf, config, 0))
    assert np.array_equal(np.fromfile(path, np.uint8, offset=4096), buffer)
    assert cache.note is None


def test_files_of_others_are_not_taken_for_ours(
    folder: Path, gguf: GgufFile, config: ModelConfig
) -> None:
    cache = PackedCache(folder)
    cache.layer_buffers(gguf, config, ROOT, ALL)
    (path,) = folder.rglob("layer-0001.bin")
    path.replace(path.with_name("layer-0002.bin"))  # another layer of the same size
    twin = ROOT[:16] + "f" * 48  # another model under the same prefix
    for root in (ROOT, twin, ROOT):
        buffers = cache.layer_buffers(gguf, config, root, ALL)
        for layer, buffer in enumerate(buffers):
            assert np.array_equal(buffer, expected_layer(gguf, config, layer))


def test_without_a_disk_the_weights_stay_in_memory(
    tmp_path: Path, gguf: GgufFile, config: ModelConfig
) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = PackedCache(tmp_path / "file" / "packed")
    buffers = [*cache.layer_buffers(gguf, config, ROOT, ALL), cache.home_buffer(gguf, config, ROOT)]
    expected = [expected_layer(gguf, config, layer) for layer in range(SHAPE.layers)]
    expected.append(expected_home(gguf, config))
    for buffer, wanted in zip(buffers, expected, strict=True):
        assert np.array_equal(buffer, wanted)
        assert not buffer.flags.writeable
        assert buffer.ctypes.data % 64 == 0
    assert cache.note is not None
    assert cache.note.startswith("packed weights stay in plain memory: ")
    assert "(Not a directory)" in cache.note
    assert "\n" not in cache.note


def test_a_disk_that_fills_up_leaves_nothing_behind(
    folder: Path, gguf: GgufFile, config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = PackedCache(folder)
    cache.layer_buffers(gguf, config, ROOT, Span(0, 1))

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        buffers = cache.layer_buffers(gguf, config, ROOT, ALL)
    for layer, buffer in enumerate(buffers):
        assert np.array_equal(buffer, expected_layer(gguf, config, layer))
    assert cache.note is not None
    assert "No space left on device" in cache.note
    assert [path.name for path in folder.rglob("*.*")] == ["layer-0000.bin"]


def test_a_damaged_model_is_told_and_not_kept(tmp_path: Path, folder: Path) -> None:
    tensors = llama_tensors(SHAPE)
    tensors["blk.1.ffn_norm.weight"][3] = np.nan
    path = write_llama(tmp_path / "nan.gguf", llama_keys(SHAPE), tensors)  # type: ignore[arg-type]
    with GgufFile.open(path) as gguf:
        config = ModelConfig.from_gguf(gguf)
        with pytest.raises(ModelFileError, match=r"nan\.gguf: tensor blk\.1\.ffn_norm\.weight"):
            PackedCache(folder).layer_buffers(gguf, config, ROOT, ALL)
    assert [path.name for path in folder.rglob("*.*")] == ["layer-0000.bin"]


def test_the_views_of_the_model_fit(folder: Path, model: Path) -> None:
    """A model over mapped buffers computes; packed_model packs the same into memory."""
    from edgellama.model.weights import GatedUnit, HomeWeights, LayerWeights

    in_memory = packed_model(model)
    cache = PackedCache(folder)
    gguf, config = in_memory.gguf, in_memory.config
    buffers = cache.layer_buffers(gguf, config, ROOT, ALL)
    layer = LayerWeights.over(gguf, config, 2, buffers[2])
    assert np.array_equal(layer.attention_norm, in_memory.layers[2].attention_norm)
    assert isinstance(layer.unit, GatedUnit)
    assert np.array_equal(layer.unit.down.buffer, in_memory.layers[2].unit.down.buffer)
    home = HomeWeights.over(gguf, config, cache.home_buffer(gguf, config, ROOT))
    assert np.array_equal(home.output_norm, in_memory.home.output_norm)
    gguf.close()


MEASURE = """
import json, sys
from pathlib import Path
import numpy as np
from edgellama.model.config import ModelConfig
from edgellama.model.gguf import GgufFile
from edgellama.net.packed import PackedCache
from edgellama.values import Span

def resident(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024

gguf = GgufFile.open(sys.argv[1])
config = ModelConfig.from_gguf(gguf)
cache = PackedCache(Path(sys.argv[2]))
before = resident("VmRSS:")
span = Span(0, config.layers - 1)
buffers = cache.layer_buffers(gguf, config, "ab" * 32, span)
assert cache.note is None
packed = resident("VmRSS:")
touched = sum(int(buffer[::4096].sum()) for buffer in buffers)
print(json.dumps({
    "weights": sum(buffer.nbytes for buffer in buffers),
    "layer": buffers[0].nbytes,
    "after_packing": packed - before,
    "in_use": resident("VmRSS:") - before,
    "peak": resident("VmHWM:") - before,
}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from Linux's /proc")
def test_one_copy_of_the_weights_is_resident(tmp_path: Path) -> None:
    shape = SmallShape(
        layers=7, width=512, heads=8, kv_heads=8, head_width=64, feed_forward=2048, vocabulary=64
    )
    plain = write_llama(tmp_path / "plain.gguf", llama_keys(shape), llama_tensors(shape))  # type: ignore[arg-type]
    model = gguf_writing.quantized_copy(plain, tmp_path / "model.gguf", "Q8_0")
    for start in ("packing", "mapping"):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(model), str(tmp_path / "packed")],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        bytes_of = json.loads(done.stdout)
        slack = 4 << 20  # NumPy's scratch while it packs
        assert bytes_of["weights"] > 25e6, start
        assert bytes_of["after_packing"] < bytes_of["layer"] + slack, start
        assert bytes_of["in_use"] < bytes_of["weights"] + slack, start
        # While a layer is packed: its packed form, and its pages of the model's file.
        assert bytes_of["peak"] < bytes_of["weights"] + 2 * bytes_of["layer"] + slack, start
