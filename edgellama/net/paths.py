"""What a device keeps on its disk, and where: identity, peers, weights, caches, a lock.

Everything is under ``EDGELLAMA_HOME`` when it is set, else in the platform's own directories.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgellama.errors import EdgellamaError
from edgellama.net.atomic_file import remove_unfinished
from edgellama.net.home_lock import HomeLock, lock_is_held
from edgellama.net.state_files import read_state, replace_state, set_aside, state_error
from edgellama.values import NODE_ID_DIGITS, Address, NodeId

INCARNATION_MAX: Final = 1 << 62  # a greater one on disk is damage; milliseconds are near 2**41


def new_node_id() -> NodeId:
    """Return an identity that no other device has: 128 random bits."""
    return secrets.token_hex(NODE_ID_DIGITS // 2)


@dataclass(frozen=True)
class StatePaths:
    """Where this device keeps what it must not lose, what it can make again, and the weights."""

    state: Path
    cache: Path
    data: Path

    @classmethod
    def locate(cls) -> StatePaths:
        """Return the paths that EDGELLAMA_HOME or the platform names; nothing is made yet."""
        home = os.environ.get("EDGELLAMA_HOME")
        if home:
            folder = Path(home).expanduser().absolute()
            return cls(folder, folder / "cache", folder / "data")
        import platformdirs

        return cls(
            platformdirs.user_state_path("edgellama", appauthor=False),
            platformdirs.user_cache_path("edgellama", appauthor=False),
            platformdirs.user_data_path("edgellama", appauthor=False),
        )

    @property
    def store(self) -> Path:
        """Weights and headers fetched from peers, as they are in the model's file."""
        return self.data / "store"

    @property
    def models(self) -> Path:
        """Whole model files that a person has pulled."""
        return self.data / "models"

    @property
    def packed(self) -> Path:
        """Weights in the kernels' layout."""
        return self.cache / "packed"

    @property
    def kernels(self) -> Path:
        """Compiled kernels."""
        return self.cache / "kernels"

    @property
    def peers(self) -> Path:
        """The remembered peers."""
        return self.state / "peers.json"

    @property
    def mesh_key(self) -> Path:
        """The key of the mesh that this device belongs to."""
        return self.state / "mesh.key"

    @property
    def sessions(self) -> Path:
        """Conversations that a person has given a name."""
        return self.state / "sessions"

    @property
    def run_file(self) -> Path:
        """Where the node that runs on this device can be asked."""
        return self.state / "run.json"

    @property
    def typed(self) -> Path:
        """What was typed in conversations, for the arrow keys."""
        return self.state / "typed.jsonl"

    def make(self) -> None:
        """Make the folders and try that they can be written; EdgellamaError where not."""
        for folder in (self.state, self.cache, self.data):
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                remove_unfinished(folder)
                with tempfile.TemporaryFile(dir=folder):
                    pass
            except OSError as error:
                raise state_error(folder, error) from None

    def lock(self) -> HomeLock:
        """Take this home for the running process; MisuseError when another one has it."""
        return HomeLock(self.state / "lock")

    def node_id(self) -> NodeId:
        """Return this device's identity, made at the first call. Call it under the lock.

        A damaged file is set aside: the device then is a new one to its peers.
        """
        path = self.state / "identity"
        text = read_state(path)
        if text is not None:
            if re.fullmatch(rf"[0-9a-f]{{{NODE_ID_DIGITS}}}", text.strip()):
                return text.strip()
            set_aside(path)
        node = new_node_id()
        replace_state(path, node + "\n")
        return node

    def peek_identity(self) -> tuple[NodeId, int]:
        """Return identity and last start's number as they are, "" and 0 where there are none yet.

        Changes nothing, so that it may be called while a node runs.
        """
        try:
            node = (read_state(self.state / "identity") or "").strip()
            incarnation = (read_state(self.state / "incarnation") or "").strip()
        except EdgellamaError:
            return "", 0
        known = re.fullmatch(rf"[0-9a-f]{{{NODE_ID_DIGITS}}}", node) is not None
        counted = re.fullmatch("[0-9]{1,19}", incarnation) is not None
        return node if known else "", int(incarnation) if counted else 0

    def next_incarnation(self, now_ms: int) -> int:
        """Return the number of this start: its time, but always more than the last. Under lock.

        ``now_ms`` is milliseconds since 1970. A clock set back, or a device without one, thus
        never looks older to its peers than it did before.
        """
        path = self.state / "incarnation"
        text = (read_state(path) or "").strip()
        last = int(text) if re.fullmatch("[0-9]{1,19}", text) else 0
        incarnation = max(now_ms, last + 1 if last < INCARNATION_MAX else 1)
        replace_state(path, f"{incarnation}\n")
        return incarnation

    def write_run_file(self, address: Address) -> None:
        """Tell other commands on this device where the running node listens."""
        host = "127.0.0.1" if address.host == "0.0.0.0" else address.host
        replace_state(self.run_file, json.dumps({"host": host, "port": address.port}) + "\n")

    def remove_run_file(self) -> None:
        """Forget the running node, at its end."""
        with suppress(OSError):
            self.run_file.unlink()

    def running(self) -> Address | None:
        """Return where the node that runs with this home listens, None when there is none."""
        try:
            text = read_state(self.run_file)
        except EdgellamaError:
            return None
        if text is None or not lock_is_held(self.state / "lock"):
            return None
        try:
            value = json.loads(text)
            host, port = value["host"], value["port"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        if not isinstance(host, str) or type(port) is not int or not 1 <= port <= 65535:
            return None
        return Address(host, port)
