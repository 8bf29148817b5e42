"""Files that are there whole or not at all, whatever interrupts the writing."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_UNFINISHED_PREFIX: Final = ".unfinished-"
_UNFINISHED_AGE_MAX_S: Final = 3600  # no writer of ours needs longer for one file


def write_atomically(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write ``parts`` one after the other to the disk, then give them their name.

    Other processes that write the same file at the same time each have their own unfinished one;
    the last to finish wins. Raises OSError and then leaves nothing behind.
    """
    descriptor, unfinished = tempfile.mkstemp(prefix=_UNFINISHED_PREFIX, dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        Path(unfinished).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(unfinished).unlink()
        raise


def remove_unfinished(directory: Path) -> None:
    """Remove what writers that were killed have left behind; raises OSError."""
    for path in directory.glob(f"{_UNFINISHED_PREFIX}*"):
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            if time.time() - path.stat().st_mtime > _UNFINISHED_AGE_MAX_S:
                path.unlink()
