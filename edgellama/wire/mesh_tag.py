"""The public tag of a mesh: tells meshes apart in announcements without showing the key."""

from __future__ import annotations

import hashlib
from typing import Final

MESH_TAG_DIGITS: Final = 8
_PURPOSE: Final = b"edgellama mesh tag v1"


def mesh_tag(mesh_key: bytes) -> str:
    """Return 8 hexadecimal digits: keyed BLAKE2b (RFC 7693) of a constant; key at most 64 bytes.

    Thirty-two bits only sort out strangers; the handshake is what proves the key.
    """
    return hashlib.blake2b(_PURPOSE, key=mesh_key, digest_size=MESH_TAG_DIGITS // 2).hexdigest()
