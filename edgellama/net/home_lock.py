"""The lock by which one process alone runs a node with one home.

It is the system's own lock on a file: it goes with the process, however that ends, so that the
file of a dead one never has to be cleared away.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from edgellama.errors import MisuseError
from edgellama.net.state_files import state_error

if TYPE_CHECKING:
    from pathlib import Path

_ATTEMPTS: Final = 5  # whoever asks whether the lock is held takes it for an instant
_PAUSE_S: Final = 0.05
_OFFSET: Final = 1 << 30  # Windows locks bytes against reading: far from the process id
_PROCESS_ID_BYTES_MAX: Final = 20


class HomeLock:
    """Held from its making to ``release``; MisuseError when another process holds it."""

    def __init__(self, path: Path) -> None:
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise state_error(path, error) from None
        if not self._take():
            holder = os.read(self._descriptor, _PROCESS_ID_BYTES_MAX).decode("ascii", "replace")
            self.release()
            raise MisuseError(
                f"edgellama already runs here (process {holder.strip() or 'unknown'}, state in "
                f"{path.parent}): stop it, or set EDGELLAMA_HOME to another folder"
            )
        with suppress(OSError):  # a full disk: the number only serves the message above
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, f"{os.getpid()}\n".encode())

    def _take(self) -> bool:
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(_PAUSE_S)
            try:
                if try_lock(self._descriptor):
                    return True
            except OSError:
                return True  # a file system without locks (some phones' shared storage)
        return False

    def release(self) -> None:
        """Let go; a second call does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Take the exclusive lock on an open file; False when it is held, OSError without locks."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, _OFFSET, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock_is_held(path: Path) -> bool:
    """Say whether a living process holds the lock; yes where the file system has no locks."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        return not try_lock(descriptor)
    except OSError:
        return True
    finally:
        os.close(descriptor)
