"""Which type each matrix of a quantized file gets, so that it fits a size, or devices of a mesh."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from edgellama.errors import EdgellamaError, UnplaceableError
from edgellama.model.cost import model_facts
from edgellama.model.gguf import GgufFile
from edgellama.model.gguf_writer import file_bytes, header
from edgellama.model.type_choice import (
    WIDE,
    Option,
    choose,
    is_matrix,
    kinds_offered,
    tensor_bytes,
)
from edgellama.model.weight_source import wide_rows
from edgellama.node.quantizing import metadata_of, outputs_of, quantized_rows
from edgellama.plan.ram import Requirements, Unplaceable, place
from edgellama.plan.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgellama.model.weight_source import SourceTensor, WeightSource
    from edgellama.node.quantizing import Importance, Progress
    from edgellama.values import DeviceFacts, ModelFacts, StagePlacement

SAMPLE_ROWS_MAX: Final = 64  # of a tensor, to estimate its error as another type
NO_ROOT: Final = "00" * 32  # of a file that is not there yet; no split depends on it


@dataclass(frozen=True)
class Choice:
    """What a tensor becomes, and the error that this brings, relative to its own size."""

    tensor: SourceTensor
    kind_name: str
    bytes: int
    error: float


class Fitting:
    """What each matrix of a model loses as each type, and the choices that follow from it.

    The error of a tensor is that of some of its rows: the mean of their squared errors weighted by
    ``importance`` (float32 [columns] by tensor, 1 where there is none), over the mean of their
    squares weighted likewise: so errors of tensors of all sizes can be compared. That of the
    output counts as often as there are parts that add up to what it sees (`_reach`).
    """

    def __init__(
        self, source: WeightSource, importance: Importance, threads: int, progress: Progress
    ) -> None:
        self._source = source
        matrices = [tensor for tensor in source.tensors if is_matrix(tensor)]
        self._options: dict[str, list[Option]] = {}
        with ThreadPoolExecutor(threads) as pool:
            measured = pool.map(
                lambda tensor: _options(source, tensor, importance.get(tensor.name)), matrices
            )
            for done, (tensor, offered) in enumerate(zip(matrices, measured, strict=True)):
                progress(done, len(matrices))
                self._options[tensor.name] = offered
        narrowest = {name: min(offered, key=_bytes_of) for name, offered in self._options.items()}
        widest = {name: max(offered, key=_bytes_of) for name, offered in self._options.items()}
        padding = 32 * len(matrices)  # sizes of types differ by no whole number of alignments
        self._least = self._file_bytes(narrowest) + padding
        self._most = self._file_bytes(widest) + padding
        self._narrowest_bytes = sum(option.bytes for option in narrowest.values())

    def within(self, target_bytes: int) -> list[Choice]:
        """Choose so that the file takes at most ``target_bytes``, losing least.

        Raises EdgellamaError where even the narrowest types do not fit.
        """
        spare = target_bytes - self._least
        chosen = choose(self._options, spare + self._narrowest_bytes) if spare >= 0 else None
        if chosen is None:
            raise EdgellamaError(
                f"{self._source.name} takes at least {format_size(self._least)}, "
                f"more than the {format_size(target_bytes)} of --fit"
            )
        return [
            _choice(self._source, tensor, chosen.get(tensor.name))
            for tensor in self._source.tensors
        ]

    def on_devices(
        self, devices: Sequence[DeviceFacts], requirements: Requirements
    ) -> list[Choice]:
        """Choose so that the devices together can hold the model, losing least.

        The context is the model's own where that is less than what ``requirements`` say. Raises
        UnplaceableError where even the narrowest types do not fit.
        """
        self._placed(self._least, devices, requirements)
        least, past = self._least, self._most + 1
        middle = self._most
        while past - least > max(1, self._least >> 10):  # to a thousandth, everything first
            try:
                self._placed(middle, devices, requirements)
                least = middle
            except UnplaceableError:
                past = middle
            middle = (least + past) // 2
        return self.within(least)

    def _placed(
        self, target_bytes: int, devices: Sequence[DeviceFacts], requirements: Requirements
    ) -> tuple[StagePlacement, ...]:
        model = self._facts(self.within(target_bytes))
        context = min(requirements.context, model.context_max)
        wanted = Requirements(context, requirements.sessions_max, requirements.kv_kind)
        stages = place(model, devices, wanted)
        if isinstance(stages, Unplaceable):
            raise UnplaceableError(f"even in the narrowest types: {stages.reason}")
        return stages

    def _facts(self, choices: Sequence[Choice]) -> ModelFacts:
        """Return what a planner would know of the file, from its header alone."""
        kinds = {choice.tensor.name: choice.kind_name for choice in choices}
        metadata, outputs = metadata_of(self._source, kinds), outputs_of(self._source, kinds)
        size = file_bytes(metadata, outputs)
        gguf = GgufFile.parse_header(header(metadata, outputs), self._source.name, size)
        return model_facts(gguf, NO_ROOT, self._source.name)

    def _file_bytes(self, options: dict[str, Option]) -> int:
        kinds = {
            tensor.name: options[tensor.name].kind_name if tensor.name in options else WIDE
            for tensor in self._source.tensors
        }
        return file_bytes(metadata_of(self._source, {}), outputs_of(self._source, kinds))


def fitting_kinds(
    source: WeightSource,
    target_bytes: int,
    importance: Importance,
    threads: int,
    progress: Progress,
) -> list[Choice]:
    """Choose each tensor's type so that the file takes at most ``target_bytes``; see Fitting."""
    return Fitting(source, importance, threads, progress).within(target_bytes)


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
        blocks = quantized_rows(source, tensor, kind, rows, importance)
        difference = wide_rows(kind, blocks, tensor.columns).astype(np.float64) - rows
        error = float((counts * np.square(difference)).sum())
        options.append(Option(kind, tensor_bytes(tensor, kind), error / power if power else 0.0))
    return options
