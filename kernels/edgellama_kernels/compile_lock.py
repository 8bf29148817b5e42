"""One process at a time compiles into a folder: the others wait for it and find its work done.

Several programs that start on a fresh device would each take a core and some 300 MB for the same.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: there each compiles for itself
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def one_at_a_time(path: Path, waiting: Callable[[], None]) -> Iterator[bool]:
    """Hold the lock on a file; gives whether another process held it until now.

    ``waiting`` is called before a wait. The lock goes with the process, however that ends. Where
    the folder or its file system takes no locks nobody is waited for.
    """
    descriptor, has_waited = None, False
    try:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    waiting()
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                    has_waited = True
        yield has_waited
    finally:
        if descriptor is not None:
            os.close(descriptor)
