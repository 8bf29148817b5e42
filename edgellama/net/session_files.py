"""The sessions that this device keeps: a small file each, replaced whole, for its owner alone.

::

    sessions/<hash of the name>.session    "ELSESSIO" | version u16 | a KeepSession message

Processes of one home share the folder. None puts an older record in the place of a newer one.
"""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING, Final

from edgellama.errors import EdgellamaError, WireError
from edgellama.net.atomic_file import remove_unfinished, write_atomically
from edgellama.net.state_files import state_error
from edgellama.wire.messages import Conversation, KeepSession, decode, encode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SUFFIX: Final = ".session"
RECORD_VERSION: Final = 1
RECORD_BYTES_MAX: Final = 2 << 20  # a long context's worth of text several times
SESSIONS_MAX: Final = 64  # the ones asked longest ago go first
FOLDER_BYTES_MAX: Final = 16 << 20

_MAGIC: Final = b"ELSESSIO" + RECORD_VERSION.to_bytes(2, "little")


class SessionFiles:
    """The folder of all sessions; it need not exist yet."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def all(self) -> list[Conversation]:
        """Return every session that can be read; a damaged file counts as none."""
        found = (_read(path) for path in self._paths())
        return [conversation for conversation in found if conversation is not None]

    def find(self, name: str) -> Conversation | None:
        """Return the session of this name, None where there is none that can be read."""
        found = _read(self._path(name))
        return found if found is not None and found.name == name else None

    def keep(self, conversation: Conversation) -> None:
        """Bring a record to the disk, unless a newer one is there.

        Raises EdgellamaError where it is too long to be kept, or the disk takes nothing.
        """
        data = _MAGIC + encode(KeepSession(conversation))
        if len(data) > RECORD_BYTES_MAX:
            raise EdgellamaError(
                f"the session {conversation.name} has grown beyond {RECORD_BYTES_MAX >> 20} MiB "
                "and cannot be kept; begin another one"
            )
        if not conversation.is_newer_than(self.find(conversation.name)):
            return
        path = self._path(conversation.name)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(path, [data])
            self._bound(path)
        except OSError as error:
            raise state_error(self._folder, error) from None

    def remove(self, name: str) -> bool:
        """Remove a session; return whether there was one. Raises EdgellamaError where refused."""
        try:
            self._path(name).unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise state_error(self._folder, error) from None
        return True

    def _bound(self, newest: Path) -> None:
        """Remove the oldest files beyond the bounds; raises OSError."""
        remove_unfinished(self._folder)
        paths = sorted(self._paths(), key=lambda path: path.stat().st_mtime_ns)
        sizes = {path: path.stat().st_size for path in paths}
        while paths and (len(paths) > SESSIONS_MAX or sum(sizes.values()) > FOLDER_BYTES_MAX):
            oldest = paths.pop(0)
            del sizes[oldest]
            if oldest != newest:
                oldest.unlink(missing_ok=True)

    def _paths(self) -> Iterator[Path]:
        with contextlib.suppress(OSError):
            yield from self._folder.glob(f"*{SUFFIX}")

    def _path(self, name: str) -> Path:
        digest = hashlib.blake2b(name.encode(errors="replace"), digest_size=16)
        return self._folder / f"{digest.hexdigest()}{SUFFIX}"


def _read(path: Path) -> Conversation | None:
    try:
        with path.open("rb") as file:
            data = file.read(RECORD_BYTES_MAX + 1)
    except OSError:
        return None
    if len(data) > RECORD_BYTES_MAX or not data.startswith(_MAGIC):
        return None
    try:
        message = decode(data[len(_MAGIC) :])
    except WireError:
        return None
    return message.conversation if isinstance(message, KeepSession) else None
