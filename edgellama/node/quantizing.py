"""A quantized GGUF written slice by slice: some rows of each thread are in memory, no more."""

from __future__ import annotations

import os
import shutil
from collections import Counter, deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from edgellama.errors import EdgellamaError, ModelFileError
from edgellama.model.file_types import FILE_TYPE_NUMBERS
from edgellama.model.gguf_writer import OutputTensor, encoded, file_bytes, file_parts
from edgellama.model.quantization import quantize_rows
from edgellama.model.type_choice import (
    CHOICE_KINDS,
    WIDE,
    Option,
    choose,
    is_matrix,
    kind_for,
    kinds_offered,
    tensor_bytes,
)
from edgellama.model.weight_source import SourceTensor, WeightSource, wide_rows
from edgellama.net.atomic_file import write_atomically
from edgellama.plan.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    Progress = Callable[[int, int], None]
    Importance = Mapping[str, NDArray[np.float32]]

SLICE_WEIGHTS: Final = 1 << 17  # half a megabyte of float32: what a core's cache holds
SLICES_A_THREAD: Final = 2  # done and under way, so that no thread waits for the disk
SAMPLE_ROWS_MAX: Final = 64  # of a tensor, to estimate its error as another type
QUANTIZATION_VERSION: Final = 2  # of the blocks' layout, as in llama.cpp


@dataclass(frozen=True)
class Choice:
    """What a tensor becomes, and the error that this brings, relative to its own size."""

    tensor: SourceTensor
    kind_name: str
    bytes: int
    error: float


def same_kind(source: WeightSource, wanted: str) -> dict[str, str]:
    """Return each tensor's type where all matrices shall be ``wanted``, as far as rows allow."""
    return {tensor.name: kind_for(tensor, wanted) for tensor in source.tensors}


def stored_kinds(source: WeightSource) -> dict[str, str]:
    """Return each tensor's type where matrices stay as they are."""
    return {
        tensor.name: tensor.kind_name if is_matrix(tensor) else WIDE for tensor in source.tensors
    }


def fitting_kinds(
    source: WeightSource,
    target_bytes: int,
    importance: Importance,
    threads: int,
    progress: Progress,
) -> list[Choice]:
    """Choose each tensor's type so that the file takes at most ``target_bytes``, losing least.

    The error of a tensor is that of some of its rows: the mean of their squared errors weighted by
    ``importance`` (float32 [columns] by tensor, 1 where there is none), over the mean of their
    squares weighted likewise: so errors of tensors of all sizes can be compared. That of the
    output counts as often as there are parts that add up to what it sees (`_reach`). Raises
    EdgellamaError where even the narrowest types do not fit.
    """
    matrices = [tensor for tensor in source.tensors if is_matrix(tensor)]
    with ThreadPoolExecutor(threads) as pool:
        measured = pool.map(
            lambda tensor: _options(source, tensor, importance.get(tensor.name)), matrices
        )
        options = {}
        for done, (tensor, offered) in enumerate(zip(matrices, measured, strict=True)):
            progress(done, len(matrices))
            options[tensor.name] = offered
    narrowest = {name: min(offered, key=_bytes_of) for name, offered in options.items()}
    least = file_bytes(_metadata(source, {}), _outputs(source, _kinds(source, narrowest)))
    padding = 32 * len(matrices)  # sizes of types differ by no whole number of alignments
    spare = target_bytes - least - padding
    budget = spare + sum(option.bytes for option in narrowest.values())
    chosen = choose(options, budget) if spare >= 0 else None
    if chosen is None:
        raise EdgellamaError(
            f"{source.name} takes at least {format_size(least + padding)}, "
            f"more than the {format_size(target_bytes)} of --fit"
        )
    return [_choice(source, tensor, chosen.get(tensor.name)) for tensor in source.tensors]


def _choice(source: WeightSource, tensor: SourceTensor, option: Option | None) -> Choice:
    if option is None:
        return Choice(tensor, WIDE, tensor_bytes(tensor, WIDE), 0.0)
    error = option.error / _reach(source, tensor)
    return Choice(tensor, option.kind_name, option.bytes, error)


def _reach(source: WeightSource, tensor: SourceTensor) -> int:
    """Return how much an error of this matrix counts at the logits, beside that of a layer's.

    The last hidden state is the sum of the embedding and of each layer's two parts, and an error
    of one of these is one of many. The output's own error meets the logits undivided. Measured by
    quantizing one tensor at a time, the output counts 5 to 25 times as much at four and five
    layers (docs/measurements/quantization.md).
    """
    names = {each.name for each in source.tensors}
    if tensor.name != ("output.weight" if "output.weight" in names else "token_embd.weight"):
        return 1
    return 1 + 2 * len({name.split(".")[1] for name in names if name.startswith("blk.")})


def _bytes_of(option: Option) -> int:
    return option.bytes


def _kinds(source: WeightSource, options: Mapping[str, Option]) -> dict[str, str]:
    return {
        tensor.name: options[tensor.name].kind_name if tensor.name in options else WIDE
        for tensor in source.tensors
    }


def _options(
    source: WeightSource, tensor: SourceTensor, importance: NDArray[np.float32] | None
) -> list[Option]:
    """Measure what a matrix loses as each of the types that it could have."""
    picked = np.unique(np.linspace(0, tensor.rows - 1, SAMPLE_ROWS_MAX).astype(int))
    raw = np.concatenate([source.raw_rows(tensor, row, row + 1) for row in picked])
    rows = wide_rows(tensor.kind_name, raw, tensor.columns)
    counts = np.float64(1) if importance is None else importance.astype(np.float64)
    power = float((counts * np.square(rows, dtype=np.float64)).sum())
    power /= _reach(source, tensor)
    options = []
    for kind in kinds_offered(tensor):
        if kind == tensor.kind_name:
            options.append(Option(kind, tensor_bytes(tensor, kind), 0.0))
            continue
        blocks = _quantized(source, tensor, kind, rows, importance)
        difference = wide_rows(kind, blocks, tensor.columns).astype(np.float64) - rows
        error = float((counts * np.square(difference)).sum())
        options.append(Option(kind, tensor_bytes(tensor, kind), error / power if power else 0.0))
    return options


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
    outputs = _outputs(source, kinds)
    metadata = _metadata(source, kinds)
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


def _outputs(source: WeightSource, kinds: Mapping[str, str]) -> list[OutputTensor]:
    return [OutputTensor(each.name, kinds[each.name], each.shape) for each in source.tensors]


def _metadata(source: WeightSource, kinds: Mapping[str, str]) -> dict[str, bytes]:
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
    return _quantized(source, tensor, kind_name, rows, importance).tobytes()


def _quantized(
    source: WeightSource,
    tensor: SourceTensor,
    kind_name: str,
    rows: NDArray[np.float32],
    importance: NDArray[np.float32] | None,
) -> NDArray[np.uint8]:
    try:
        return quantize_rows(kind_name, rows, importance)
    except ValueError as error:
        raise ModelFileError(f"{source.name}: tensor {tensor.name} {error}") from None
