"""Which mesh a device belongs to: by a key that was given, one remembered, a code, or a new one."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from edgellama.errors import MisuseError, NoMeshError, TransferError
from edgellama.net.discovery import Discovery
from edgellama.net.facts import device_name
from edgellama.net.mesh_key import MeshKeyFile
from edgellama.net.pairing import WrongCodeError, ask_to_join
from edgellama.net.peers import RememberedPeers
from edgellama.values import Address
from edgellama.wire.join_code import parse_code

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgellama.net.pairing import Welcome
    from edgellama.net.paths import StatePaths
    from edgellama.wire.join_code import JoinCode

LOOK_S: Final = 1.5  # mDNS answers within 0.2 s, at 20 % loss within 0.7 s
LOOK_WITH_CODE_S: Final = 10.0  # an invitation opened a moment ago takes some seconds to be seen
_POLL_S: Final = 0.05
JOIN_CODE_QUESTION: Final = (
    "Join code of the mesh here (edgellama invite shows one; Enter makes a new mesh)"
)
PROMPTS_MAX: Final = 3


@dataclass(frozen=True)
class KeyChoice:
    """What a person said about the mesh; nothing of it is the rule."""

    given: bytes | None = None  # by --key or EDGELLAMA_KEY
    open_mesh: bool = False
    code: str | None = None
    name: str = ""  # of this device, for the person who lets it in

    def __post_init__(self) -> None:
        """Refuse what contradicts itself."""
        if self.open_mesh and (self.given or self.code):
            raise MisuseError("--open is a mesh without a key: leave --key, --code and the key out")
        if self.given and self.code:
            raise MisuseError("a key and a join code are given: one of them is enough")


@dataclass(frozen=True)
class Access:
    """The key to use; empty for the open mesh."""

    key: bytes
    is_kept: bool = False  # in this device's key file
    is_new: bool = False  # this device has just made the mesh
    friends: tuple[Address, ...] = ()  # members to dial


def access_to_join(
    choice: KeyChoice,
    paths: StatePaths,
    named: Sequence[Address],
    ask_person: Callable[[str], str] | None,
    *,
    mdns: bool,
) -> Access:
    """Return the key that ``join`` shall use; makes a mesh where there is none.

    ``ask_person`` is None without a terminal: nobody could type a code there, so a script without
    a key gets the open mesh, which every status calls OPEN. Raises NoMeshError and WrongCodeError
    where a code that was given leads nowhere.
    """
    known = known_access(choice, paths)
    if known is not None:
        return known
    if choice.code is not None:
        return _joined_with(parse_code(choice.code), choice.name, paths, named, mdns=mdns)
    if ask_person is None:
        return Access(b"")
    with contextlib.closing(_Surroundings(named, mdns=mdns)) as around:
        is_alone = not around.wait_for_mesh(LOOK_S)
    if is_alone and not named:
        return _made(paths)
    question = JOIN_CODE_QUESTION
    for _ in range(PROMPTS_MAX):
        typed = ask_person(question).strip()
        if not typed:
            return _made(paths)
        try:
            return _joined_with(parse_code(typed), choice.name, paths, named, mdns=mdns)
        except (MisuseError, NoMeshError) as error:
            last = error
            question = f"{error}\n{JOIN_CODE_QUESTION}"
    raise last


def known_access(choice: KeyChoice, paths: StatePaths) -> Access | None:
    """Return the key as far as it is given or remembered; None when there is none yet."""
    if choice.open_mesh:
        return Access(b"")
    if choice.given is not None:
        return Access(choice.given)
    if choice.code is None and (key := MeshKeyFile(paths.mesh_key).read()) is not None:
        return Access(key, is_kept=True)
    return None


def access_to_ask(choice: KeyChoice, paths: StatePaths, named: Sequence[Address]) -> Access:
    """Return the key that ``ask`` and ``status`` shall use; without any, the open mesh's."""
    known = known_access(choice, paths)
    if known is not None:
        return known
    if choice.code is not None:
        return _joined_with(parse_code(choice.code), choice.name, paths, named, mdns=True)
    return Access(b"")


def _made(paths: StatePaths) -> Access:
    return Access(MeshKeyFile(paths.mesh_key).make(), is_kept=True, is_new=True)


def _joined_with(
    code: JoinCode, name: str, paths: StatePaths, named: Sequence[Address], *, mdns: bool
) -> Access:
    """Join by a code at the named devices, or at those that announce an invitation."""
    faults: list[str] = []
    was_wrong = False
    with contextlib.closing(_Surroundings(named, mdns=mdns)) as around:
        for address in around.doors(LOOK_WITH_CODE_S):
            try:
                welcome = ask_to_join(address, code, device_name(name))
            except WrongCodeError:
                was_wrong = True  # by chance another device's invitation has the same slot
            except TransferError as error:
                faults.append(f"{address} {error}")
            else:
                return _welcomed(welcome, address, paths)
    if was_wrong:
        raise WrongCodeError(
            f"{code} is not the code: it is good for one device, three tries and five minutes; "
            "edgellama invite gives another"
        )
    reason = "; ".join(faults) or "no device here has an open invitation"
    raise NoMeshError(f"the code {code} opens nothing ({reason}): run edgellama invite there")


def _welcomed(welcome: Welcome, address: Address, paths: StatePaths) -> Access:
    """Remember the mesh: later joins need nothing."""
    MeshKeyFile(paths.mesh_key).write(welcome.mesh_key)
    friend = Address(address.host, welcome.port)
    peers = RememberedPeers(paths.peers)
    peers.remember(welcome.node, friend, time.time_ns() // 1_000_000)
    peers.save()
    return Access(welcome.mesh_key, is_kept=True, friends=(friend,))


class _Surroundings:
    """What a device without a key can see of meshes."""

    def __init__(self, named: Sequence[Address], *, mdns: bool) -> None:
        self._named = tuple(named)
        self._discovery = None
        if mdns and not named:
            self._discovery = Discovery(b"", lambda _: None)
            self._discovery.browse()

    def close(self) -> None:
        if self._discovery is not None:
            self._discovery.close()

    def wait_for_mesh(self, seconds: float) -> bool:
        """Return whether a mesh with a key is seen, as soon as one is."""
        return self._wait(seconds, lambda found: bool(found.strangers()))

    def doors(self, seconds: float) -> Sequence[Address]:
        """Return where a code can be used: the named addresses, or what comes to be announced."""
        if self._discovery is None:
            return self._named
        self._wait(seconds, lambda found: any(each.doors for each in found.strangers()))
        return [door for stranger in self._discovery.strangers() for door in stranger.doors]

    def _wait(self, seconds: float, holds: Callable[[Discovery], bool]) -> bool:
        until_s = time.monotonic() + seconds
        while self._discovery is not None and time.monotonic() < until_s:
            if holds(self._discovery):
                return True
            time.sleep(_POLL_S)
        return False
