"""GGUF files for tests: quantized copies, random models, and files written field by field.

Any test may `import gguf_writing`: pytest puts the folder of `tests/conftest.py` on the path.
"""

from __future__ import annotations

import importlib.util
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

BLOCK_SIZE = 32
TOOLS = Path(__file__).resolve().parents[1] / "tools"
RANDOM_MODEL_TOOL = TOOLS / "make_random_model.py"
_WRITTEN_BY_THE_WRITER = ("GGUF.", "general.architecture", "general.file_type")


def quantized_copy(source: Path, target: Path, kind_name: str) -> Path:
    """Write ``source`` again with its matrices as ``kind_name``: F32, F16, BF16, Q8_0 or Q4_0.

    Vectors stay F32, and so do matrices whose width has no whole number of blocks. The gguf
    package reads, quantizes and writes; none of the project's code takes part. Returns target.
    """
    reader = gguf.GGUFReader(source)
    kind = gguf.GGMLQuantizationType[kind_name]
    block_size = gguf.GGML_QUANT_SIZES[kind][0]
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if key.startswith(_WRITTEN_BY_THE_WRITER):
            continue
        item_type = field.types[1] if len(field.types) > 1 else None
        writer.add_key_value(key, field.contents(), field.types[0], item_type)
    for tensor in reader.tensors:
        wide = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if wide.ndim == 1 or wide.shape[-1] % block_size or kind_name == "F32":
            writer.add_tensor(tensor.name, wide)
        elif kind_name == "F16":
            writer.add_tensor(tensor.name, wide.astype(np.float16))
        else:
            writer.add_tensor(tensor.name, gguf.quants.quantize(wide, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def random_model(target: Path, shape: str = "tiny", kind_name: str = "Q8_0", seed: int = 0) -> Path:
    """Write a random model of a shape of tools/make_random_model.py; returns target."""
    tool = random_model_tool()
    tool.write_model(target, tool.SHAPES[shape], kind_name, seed)
    return target


def random_model_tool() -> ModuleType:
    """Import tools/make_random_model.py."""
    return tool("make_random_model")


def tool(name: str) -> ModuleType:
    """Import a script of ``tools/``, which is no module of a package."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)  # where dataclasses look
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def with_template(source: Path, template: str, target: Path | None = None) -> Path:
    """Write a model again with a chat template, its length such that all offsets stay."""
    raw = source.read_bytes()
    name, keys = "tokenizer.chat_template", struct.unpack_from("<Q", raw, 16)[0]
    missing = -(len(key(name, 8, string(template))) + 4) % 32
    added = key(name, 8, string(template + "{#" + " " * missing + "#}"))
    assert len(added) % 32 == 0
    target = target or source.with_name("chat.gguf")
    target.write_bytes(raw[:16] + struct.pack("<Q", keys + 1) + added + raw[24:])
    return target


def string(text: str | bytes) -> bytes:
    """Encode a GGUF string; bytes are taken as they are, so they may be no UTF-8."""
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def key(name: str | bytes, value_type: int, value: bytes) -> bytes:
    """Encode one metadata entry with an already encoded value."""
    return string(name) + struct.pack("<I", value_type) + value


def array(item_type: int, count: int, items: bytes) -> bytes:
    """Encode the value of an array; ``count`` may lie about ``items``."""
    return struct.pack("<IQ", item_type, count) + items


def strings(texts: list[str]) -> bytes:
    """Encode the value of an array of strings."""
    return array(8, len(texts), b"".join(map(string, texts)))


def tensor(
    name: str | bytes, shape: tuple[int, ...], kind: int, offset: int, dimensions: int | None = None
) -> bytes:
    """Encode one row of the tensor table; ``dimensions`` may lie about ``shape``."""
    count = len(shape) if dimensions is None else dimensions
    return (
        string(name)
        + struct.pack("<I", count)
        + struct.pack(f"<{len(shape)}Q", *shape)
        + struct.pack("<IQ", kind, offset)
    )


def whole_file(
    keys: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    key_count: int | None = None,
    tensor_count: int | None = None,
    alignment: int = 32,
) -> bytes:
    """Put a file together; counts may lie."""
    header = magic + struct.pack(
        "<IQQ",
        version,
        len(tensors) if tensor_count is None else tensor_count,
        len(keys) if key_count is None else key_count,
    )
    header += b"".join(keys) + b"".join(tensors)
    return header + b"\0" * (-len(header) % alignment) + data
