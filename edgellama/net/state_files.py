"""The small files of a device's state: replaced whole, readable by their owner alone.

A device that loses its power while one is written keeps the old or the new one.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from edgellama.errors import EdgellamaError, MisuseError
from edgellama.net.atomic_file import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

STATE_FILE_BYTES_MAX: Final = 1 << 16
_FAULTS_OF_THE_PERSON: Final = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ELOOP}
)


def state_error(path: Path, error: OSError) -> EdgellamaError:
    """Return the one line for a folder or file of ours that the system refuses."""
    why = error.strerror or type(error).__name__
    if error.errno in _FAULTS_OF_THE_PERSON:
        return MisuseError(
            f"cannot use {path}: {why}; set EDGELLAMA_HOME to a folder that you may write to"
        )
    return EdgellamaError(f"cannot use {path}: {why}")


def read_state(path: Path) -> str | None:
    """Return a small file's text, None when there is none; what is not UTF-8 shows as damage."""
    try:
        with path.open("rb") as file:
            return file.read(STATE_FILE_BYTES_MAX).decode("utf-8", "replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise state_error(path, error) from None


def replace_state(path: Path, text: str) -> None:
    """Write a small file whole or not at all, with mode 0600; EdgellamaError when refused."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(path, [text.encode()])
    except OSError as error:
        raise state_error(path, error) from None


def set_aside(path: Path) -> None:
    """Rename a damaged file to ``NAME.damaged``, for whoever wants to look at it."""
    with suppress(OSError):
        path.replace(path.with_name(path.name + ".damaged"))
