"""The mesh's key: kept in a file for its owner alone, or stretched from a secret of a person's."""

from __future__ import annotations

import functools
import hashlib
import re
import secrets
from pathlib import Path
from typing import Final

from edgellama.errors import EdgellamaError, MisuseError
from edgellama.net.state_files import read_state, replace_state

KEY_BYTES: Final = 32
SECRET_BYTES_MAX: Final = 4096

# 32 MiB and about a tenth of a second on a laptop, a second on a small board: once a command, but
# for each single guess of somebody who has recorded a handshake or an announcement.
_SCRYPT: Final = {"n": 1 << 15, "r": 8, "p": 1, "maxmem": 64 << 20}
_SALT: Final = b"edgellama mesh key, version 1"


@functools.lru_cache(maxsize=1)
def stretched(secret: str) -> bytes:
    """Return the mesh key that a secret of a person's stands for: scrypt (RFC 7914).

    The salt is the same everywhere, as devices that share nothing but the secret must agree.
    """
    return hashlib.scrypt(secret.encode(), salt=_SALT, dklen=KEY_BYTES, **_SCRYPT)


def given_key(text: str) -> bytes:
    """Return the key that ``--key`` or EDGELLAMA_KEY names: a file's content, or the text itself.

    MisuseError for an empty or unreadable file.
    """
    path = Path(text)
    try:
        is_file = path.is_file()
    except (OSError, ValueError):  # too long for a path, or with a zero byte
        is_file = False
    if is_file:
        try:
            with path.open("rb") as file:
                text = file.read(SECRET_BYTES_MAX).decode().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise MisuseError(f"the key file {path} cannot be read as text") from error
        if not text:
            raise MisuseError(f"the key file {path} is empty")
    return stretched(text)


class MeshKeyFile:
    """The key that this device remembers: 64 hexadecimal digits, readable by its owner alone."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> bytes | None:
        """Return the key, None when this device belongs to no mesh.

        A damaged file is an error and stays: a new mesh must not take its place unasked.
        """
        text = read_state(self.path)
        if text is None:
            return None
        if not re.fullmatch(rf"[0-9a-f]{{{2 * KEY_BYTES}}}", text.strip()):
            raise EdgellamaError(
                f"{self.path} is damaged: remove it, and join again with a code from another device"
            )
        return bytes.fromhex(text.strip())

    def write(self, key: bytes) -> None:
        """Remember a key in place of the one before."""
        assert len(key) == KEY_BYTES
        replace_state(self.path, key.hex() + "\n")

    def make(self) -> bytes:
        """Make a mesh: return a new key, which the file then holds."""
        key = secrets.token_bytes(KEY_BYTES)
        self.write(key)
        return key
