"""What a running member does with the mesh's key: let devices in with a code, and change it."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, NamedTuple

from edgellama.errors import EdgellamaError, MisuseError, TransferError
from edgellama.net.invitations import OPEN_S, Invitations
from edgellama.net.mesh_key import KEY_BYTES
from edgellama.net.pairing import Welcome, admit_device

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgellama.net.mesh_key import MeshKeyFile
    from edgellama.net.record_stream import RecordStream
    from edgellama.values import Address, NodeId
    from edgellama.wire.join_code import JoinCode


class Invitation(NamedTuple):
    """A code that lets one device in, where it asks by TCP, and for how many seconds."""

    code: JoinCode
    address: Address
    seconds: int


class KeyHolder:
    """The key and the invitations of one member.

    ``key_file`` is None when the key is not this device's to change: a person gave it, or there
    is none. ``changed`` puts a new key to use; ``announce`` is called when an invitation comes or
    goes, from any thread.
    """

    def __init__(
        self,
        key: bytes,
        key_file: MeshKeyFile | None,
        changed: Callable[[bytes], None],
        announce: Callable[[], None],
        tell: Callable[[str], None],
    ) -> None:
        self.key = key
        self._file = key_file
        self._changed = changed
        self._announce = announce
        self._tell = tell
        self._invitations = Invitations()

    def is_inviting(self) -> bool:
        """Return whether a device with the code would be let in now."""
        return self._invitations.is_open()

    def invite(self, address: Address) -> Invitation:
        """Open an invitation in place of the one before; MisuseError in an open mesh."""
        if not self.key:
            raise MisuseError("this mesh is OPEN: edgellama join --open needs no code")
        invitation = Invitation(self._invitations.open(), address, int(OPEN_S))
        self._announce()
        return invitation

    def admit(self, stream: RecordStream, node: NodeId, name: str, port: int) -> None:
        """Talk with a device that wants to join, on a thread of the weight server."""
        was_open = self.is_inviting()
        try:
            newcomer = admit_device(stream, self._invitations, Welcome(self.key, node, name, port))
        except TransferError:
            if was_open and not self.is_inviting():
                self._tell(
                    "the join code was tried wrongly too often and is void; "
                    "edgellama invite gives another"
                )
                self._announce()
            raise
        self._tell(f"{newcomer} has joined with the code; edgellama invite gives another")
        self._announce()

    def renew(self) -> bytes:
        """Give the mesh another key; MisuseError when it is not this device's to give."""
        if not self.key:
            raise MisuseError("this mesh is OPEN: any device can join it again at once")
        if self._file is None:
            raise MisuseError(
                "the key of this mesh comes from EDGELLAMA_KEY or --key: "
                "give every device but that one another key"
            )
        key = secrets.token_bytes(KEY_BYTES)
        self.adopt(key)
        return key

    def adopt(self, key: bytes) -> None:
        """Use another key from now on, and remember it; what cannot be written is told."""
        if self._file is None:
            self._tell(
                "the mesh has another key now, and this device keeps the one that it was given: "
                "join again with a code"
            )
            return
        try:
            self._file.write(key)
        except EdgellamaError as error:
            self._tell(str(error))
        self.key = key
        self._changed(key)
