"""The hidden state between layers: fp16 rows with an exponent each, checked where they come in."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from edgellama_kernels import HiddenRows, NonFinite

from edgellama.errors import NonFiniteError, WireError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def check_hidden(hidden: HiddenRows, width: int) -> None:
    """Raise WireError unless ``hidden`` is uint16 [T, width] and uint8 [T] with T at least 1."""
    halves, exponents = hidden
    sound = (
        halves.dtype == np.uint16
        and exponents.dtype == np.uint8
        and exponents.ndim == 1
        and exponents.size >= 1
        and halves.shape == (exponents.size, width)
    )
    if not sound:
        raise WireError(
            f"a hidden state of shape {list(halves.shape)} with {exponents.size} exponents "
            f"came where rows of {width} belong"
        )


def take_rows(hidden: HiddenRows, first: int, past: int) -> HiddenRows:
    """Return the rows ``first`` up to ``past``, without a copy."""
    return HiddenRows(hidden.halves[first:past], hidden.exponents[first:past])


def join_rows(pieces: Sequence[HiddenRows]) -> HiddenRows:
    """Return the rows of all pieces, in order; one piece is returned as it is."""
    if len(pieces) == 1:
        return pieces[0]
    return HiddenRows(
        np.concatenate([piece.halves for piece in pieces]),
        np.concatenate([piece.exponents for piece in pieces]),
    )


@contextmanager
def finite(where: str) -> Iterator[None]:
    """Turn a kernel's NonFinite into NonFiniteError that names the part of the model."""
    try:
        yield
    except NonFinite as error:
        raise NonFiniteError(
            f"{where} met a number that is not finite: the weights or the input are damaged"
        ) from error
