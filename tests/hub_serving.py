"""A hub of models on loopback, with the requests that huggingface_hub makes of the real one.

Any test may `import hub_serving`: pytest puts the folder of `tests/conftest.py` on the path.
"""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class HubFaults:
    """What goes wrong, until it is set back."""

    cut_after_bytes: int | None = None  # of a file's content, then the connection breaks
    refuse_content: int = 0  # answer so to requests for content, where it is not 0
    falsify: bool = False  # send content with one bit turned
    ignore_ranges: bool = False


@dataclass
class Hub:
    """Repositories by name, each its files by path; what was asked is counted."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    without_hash: set[str] = field(default_factory=set)
    gated: set[str] = field(default_factory=set)
    faults: HubFaults = field(default_factory=HubFaults)
    requests: list[tuple[str, str]] = field(default_factory=list)  # method and path
    ranges: list[str | None] = field(default_factory=list)  # of each request for content
    content_bytes_sent: int = 0
    url: str = ""

    def description(self, repository: str) -> dict[str, object]:
        """Return what the hub says of a repository when it is asked with ``blobs=true``."""
        files = self.repositories[repository]
        return {
            "id": repository,
            "modelId": repository,
            "sha": COMMIT,
            "private": False,
            "tags": [],
            "downloads": 1,
            "likes": 0,
            "siblings": [self._sibling(path, content) for path, content in files.items()],
        }

    def _sibling(self, path: str, content: bytes) -> dict[str, object]:
        entry: dict[str, object] = {"rfilename": path, "size": len(content), "blobId": "0" * 40}
        if path not in self.without_hash:
            digest = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
        return entry


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        if path.startswith("/api/models/"):
            self._describe(path.removeprefix("/api/models/"))
            return
        if path.startswith("/cdn/"):
            self._content(path.removeprefix("/cdn/"), with_body=with_body)
            return
        repository, _, rest = path.strip("/").partition("/resolve/")
        commit, _, name = rest.partition("/")
        if commit != COMMIT or name not in self.hub.repositories.get(repository, {}):
            self._refuse(404, "EntryNotFound")
            return
        # As the real one does for large files: the content lies elsewhere.
        content = self.hub.repositories[repository][name]
        self.send_response(302)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("X-Linked-Etag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Location", f"/cdn/{repository}/{name}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _describe(self, rest: str) -> None:
        repository = rest.partition("/revision/")[0]
        if repository in self.hub.gated:
            self._refuse(403, "GatedRepo")
        elif repository not in self.hub.repositories:
            self._refuse(404, "RepoNotFound")
        else:
            body = json.dumps(self.hub.description(repository)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def _content(self, rest: str, *, with_body: bool) -> None:
        faults = self.hub.faults
        organisation, repository, name = rest.split("/", 2)
        content = self.hub.repositories[f"{organisation}/{repository}"][name]
        wanted = self.headers.get("Range")
        if with_body:
            self.hub.ranges.append(wanted)
        if faults.refuse_content:
            self._refuse(faults.refuse_content, "")
            return
        first = 0
        if wanted is not None and not faults.ignore_ranges:
            first = int(wanted.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        if with_body:
            self._send(content, first)

    def _send(self, content: bytes, first: int) -> None:
        faults = self.hub.faults
        if faults.falsify:
            middle = len(content) // 2
            content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        past = len(content)
        if faults.cut_after_bytes is not None:
            past = min(past, faults.cut_after_bytes)
            self.close_connection = True
            # Whoever comes again finds a hub that is down, so that the fetch ends there.
            self.hub.faults = HubFaults(refuse_content=503)
        self.wfile.write(content[first:past])
        self.hub.content_bytes_sent += max(0, past - first)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve ``hub`` on loopback; its ``url`` says where."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
