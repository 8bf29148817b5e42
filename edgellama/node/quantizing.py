"""A quantized GGUF written slice by slice: some rows of each thread are in memory, no more."""

from __future__ import annotations

import os
import shutil
from collections import Counter, deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from edgellama.errors import EdgellamaError, ModelFileError
from edgellama.model.file_types import FILE_TYPE_NUMBERS
from edgellama.model.gguf_writer import OutputTensor, encoded, file_bytes, file_parts
from edgellama.model.quantization import quantize_rows
from edgellama.model.type_choice import (
    CHOICE_KINDS,
    WIDE,
    is_matrix,
    kind_for,
    tensor_bytes,
)
from edgellama.model.weight_source import SourceTensor, WeightSource, wide_rows
from edgellama.net.atomic_file import write_atomically
from edgellama.plan.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    Progress = Callable[[int, int], None]
    Importance = Mapping[str, NDArray[np.float32]]

SLICE_WEIGHTS: Final = 1 << 17  # half a megabyte of float32: what a core's cache holds
SLICES_A_THREAD: Final = 2  # done and under way, so that no thread waits for the disk
QUANTIZATION_VERSION: Final = 2  # of the blocks' layout, as in llama.cpp


def same_kind(source: WeightSource, wanted: str) -> dict[str, str]:
    """Return each tensor's type where all matrices shall be ``wanted``, as far as rows allow."""
    return {tensor.name: kind_for(tensor, wanted) for tensor in source.tensors}


def stored_kinds(source: WeightSource) -> dict[str, str]:
    """Return each tensor's type where matrices stay as they are."""
    return {
        tensor.name: tensor.kind_name if is_matrix(tensor) else WIDE for tensor in source.tensors
    }


def write_quantized(
    source: WeightSource,
    kinds: Mapping[str, str],
    target: Path,
    importance: Importance,
    threads: int,
    progress: Progress,
) -> int:
    """Write ``source`` to ``target`` with the types that ``kinds`` names; return its bytes.

    The file gets its name when it is whole. ``progress`` is told the bytes done and in all.
    Raises ModelFileError for weights that a type cannot hold, EdgellamaError where the disk
    refuses or is full.
    """
    outputs = outputs_of(source, kinds)
    metadata = metadata_of(source, kinds)
    total = file_bytes(metadata, outputs)
    try:
        free = shutil.disk_usage(target.parent).free
        if total > free:
            raise EdgellamaError(
                f"{target} will take {format_size(total)}, and {format_size(free)} are free there"
            )
        with ThreadPoolExecutor(threads) as pool:
            data = _data(source, outputs, importance, pool, threads)
            parts = file_parts(metadata, outputs, data)
            write_atomically(target, _counted(parts, total, progress))
        _make_readable(target)
    except OSError as error:
        raise EdgellamaError(f"cannot write {target}: {error.strerror or error}") from None
    return total


def _make_readable(target: Path) -> None:
    """Give the file the mode that any new file gets; an unfinished one is for its owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    target.chmod(0o666 & ~mask)


def _counted(parts: Iterator[bytes], total: int, progress: Progress) -> Iterator[bytes]:
    done = 0
    for part in parts:
        yield part
        done += len(part)
        progress(done, total)


def outputs_of(source: WeightSource, kinds: Mapping[str, str]) -> list[OutputTensor]:
    """Return the tensors of the file in their order, each in the type that ``kinds`` names."""
    return [OutputTensor(each.name, kinds[each.name], each.shape) for each in source.tensors]


def metadata_of(source: WeightSource, kinds: Mapping[str, str]) -> dict[str, bytes]:
    """Return the source's keys, with those on quantization as they will be."""
    sizes: Counter[str] = Counter({CHOICE_KINDS[0]: 0})
    for tensor in source.tensors:
        if is_matrix(tensor) and tensor.name in kinds:
            sizes[kinds[tensor.name]] += tensor_bytes(tensor, kinds[tensor.name])
    most = sizes.most_common(1)[0][0]
    return {
        **source.metadata(),
        "general.file_type": encoded(FILE_TYPE_NUMBERS[most]),
        "general.quantization_version": encoded(QUANTIZATION_VERSION),
    }


def _data(
    source: WeightSource,
    outputs: list[OutputTensor],
    importance: Importance,
    pool: ThreadPoolExecutor,
    threads: int,
) -> Iterator[tuple[OutputTensor, bytes]]:
    """Yield the rows of all tensors in order; some slices ahead are computed meanwhile."""
    waiting: deque[tuple[OutputTensor, Future[bytes]]] = deque()
    try:
        for tensor, output in zip(source.tensors, outputs, strict=True):
            source.release()
            step = max(1, SLICE_WEIGHTS // tensor.columns)
            for first in range(0, tensor.rows, step):
                past = min(first + step, tensor.rows)
                counts = importance.get(tensor.name)
                task = pool.submit(_slice, source, tensor, output.kind_name, first, past, counts)
                waiting.append((output, task))
                if len(waiting) >= SLICES_A_THREAD * threads:
                    done, future = waiting.popleft()
                    yield done, future.result()
        for done, future in waiting:
            yield done, future.result()
    finally:
        for _, future in waiting:
            future.cancel()


def _slice(
    source: WeightSource,
    tensor: SourceTensor,
    kind_name: str,
    first: int,
    past: int,
    importance: NDArray[np.float32] | None,
) -> bytes:
    raw = source.raw_rows(tensor, first, past)
    if kind_name == tensor.kind_name:
        return raw.tobytes()
    rows = wide_rows(tensor.kind_name, raw, tensor.columns)
    return quantized_rows(source, tensor, kind_name, rows, importance).tobytes()


def quantized_rows(
    source: WeightSource,
    tensor: SourceTensor,
    kind_name: str,
    rows: NDArray[np.float32],
    importance: NDArray[np.float32] | None,
) -> NDArray[np.uint8]:
    """Quantize rows of a tensor; raises ModelFileError for weights that the type cannot hold."""
    try:
        return quantize_rows(kind_name, rows, importance)
    except ValueError as error:
        raise ModelFileError(f"{source.name}: tensor {tensor.name} {error}") from None
