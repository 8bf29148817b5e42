"""What the mesh asks of a member about its key, carried out on its link and its weight server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellama.errors import EdgellamaError, MisuseError
from edgellama.link.endpoint import Disconnected, Priority
from edgellama.wire.key_messages import Forgotten, InviteQuery, InviteReply, NewKey
from edgellama.wire.messages import Failure, Message, encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgellama.link.links import Links
    from edgellama.mesh.core import MeshNode
    from edgellama.mesh.effects import Administer
    from edgellama.node.key_holder import Invitation, KeyHolder
    from edgellama.values import NodeId


class KeyRequests:
    """Answers what is asked about the key; on the I/O thread."""

    def __init__(
        self,
        keys: KeyHolder,
        links: Links,
        core: MeshNode,
        invite: Callable[[], Invitation],
    ) -> None:
        self._keys = keys
        self._links = links
        self._core = core
        self._invite = invite

    def administer(self, asked: Administer, now: float) -> None:
        """Do what somebody asks about the mesh's key."""
        message = asked.message
        if isinstance(message, NewKey):
            self._keys.adopt(bytes.fromhex(message.key))
            self._shut_out(message.forgotten, now)
            return
        try:
            reply: Message
            if isinstance(message, InviteQuery):
                code, address, seconds = self._invite()
                reply = InviteReply(message.request, str(code), *address, seconds)
            else:
                reply = Forgotten(message.request, self._forget(message.node, now))
        except EdgellamaError as error:
            reply = Failure(message.request, error.exit_code, str(error))
        self._send(asked.asker, reply, now)

    def _forget(self, node: NodeId, now: float) -> tuple[NodeId, ...]:
        """Change the key among the members that are here, but for one; return who was told."""
        if node == self._core.membership.me.node:
            raise MisuseError("that is this very device: run edgellama forget on another one")
        told = [each for each in self._core.membership.connected() if each != node]
        key = self._keys.renew()
        for each in told:
            self._send(each, NewKey(key.hex(), node), now)
        self._shut_out(node, now)
        return tuple(told)

    def _shut_out(self, node: NodeId, now: float) -> None:
        if node in self._links.peers():
            self._links.disconnect(node, now)
            self._core.handle_event(Disconnected(node, "it was forgotten", left=True), now)

    def _send(self, node: NodeId, message: Message, now: float) -> None:
        if node in self._links.peers():
            self._links.send(node, encode(message), Priority.CONTROL, now)
