"""Links over TCP: where UDP is blocked, by a tunnel, and beside links over UDP."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
from hosts import GREEDY, PROMPT, Host, Mesh, Status
from network import Bridge, Loopback, free_port, no_bridge_because

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

needs_namespaces = pytest.mark.skipif(
    bool(no_bridge_because()), reason=f"blocking UDP needs namespaces: {no_bridge_because()}"
)


@pytest.fixture
def bridge(tmp_path: Path) -> Iterator[tuple[Bridge, Mesh]]:
    network = Bridge()
    with Mesh(network, tmp_path) as mesh:
        yield network, mesh


def transports(status: Status) -> dict[str, str]:
    return {node["name"]: node["transport"] for node in status["nodes"]}


@needs_namespaces
def test_a_device_without_udp_finds_the_mesh_and_links_to_it_by_tcp(
    bridge: tuple[Bridge, Mesh], model: Path, expected: Callable[..., dict[str, Any]]
) -> None:
    network, mesh = bridge
    laptop, pi, phone = (mesh.host() for _ in range(3))
    network.drop_datagrams(phone.place, multicast=True)
    laptop.join("--model", model, "--ram", "600M", "--name", "laptop")
    pi.join("--ram", "500M", "--name", "pi")
    phone.join("--ram", "400M", "--name", "phone")
    status = mesh.wait_ready(laptop, 3)
    assert transports(status) == {"laptop": "", "pi": "udp", "phone": "tcp"}
    assert transports(mesh.status(phone).json)["pi"] == "tcp"
    for host in (laptop, phone):
        assert mesh.ask(host, PROMPT, *GREEDY).stdout == expected(*GREEDY)["text"] + "\n"
    assert phone.leave().code == 0
    mesh.wait_ready(laptop, 2)


@needs_namespaces
def test_where_udp_is_lost_on_the_way_the_mesh_goes_on_by_tcp(
    bridge: tuple[Bridge, Mesh], model: Path, expected: Callable[..., dict[str, Any]]
) -> None:
    network, mesh = bridge
    laptop, pi = mesh.host(), mesh.host()
    laptop.join("--model", model, "--ram", "600M", "--name", "laptop")
    pi.join("--ram", "500M", "--name", "pi")
    assert transports(mesh.wait_ready(laptop, 2))["pi"] == "udp"
    network.drop_datagrams(pi.place, multicast=False)
    mesh.wait(laptop, lambda status: transports(status)["pi"] == "tcp" and status["ready"])
    asked = mesh.ask(laptop, PROMPT, *GREEDY)
    assert asked.stdout == expected(*GREEDY)["text"] + "\n"
    # By a name that is no device's multicast finds: an address alone.
    there = ["--peer", laptop.place.address]
    assert pi.run("ask", *there, *GREEDY, PROMPT).stdout == asked.stdout
    network.pass_all(pi.place)


class Tunnel:
    """Forwards TCP from a port of its own, as ``ssh -L`` does."""

    def __init__(self, port: int) -> None:
        self._to = "127.0.0.1", port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(self._to)
                except OSError:
                    near.close()
                    continue
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=pair, daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, to: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                to.sendall(data)
        for end in (source, to):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()  # the other direction closes the other end


def test_a_device_behind_a_tunnel_takes_its_part_and_its_weights(
    tmp_path: Path, model: Path, expected: Callable[..., dict[str, Any]]
) -> None:
    """``--peer 127.0.0.1:PORT --transport tcp``: nothing but that port leads to the mesh."""
    network = Loopback()
    with Mesh(network, tmp_path) as mesh:
        laptop = mesh.join("--model", model, "--ram", "600M", "--name", "laptop")
        assert laptop.place.port is not None
        tunnel = Tunnel(laptop.place.port)
        try:
            far = mesh.host()
            by_tunnel = ["--peer", f"127.0.0.1:{tunnel.port}", "--transport", "tcp"]
            own = ["--listen", "127.0.0.1", "--port", free_port(), "--no-mdns"]
            far.join(*own, *by_tunnel, "--ram", "500M", "--name", "far")
            status = mesh.wait_ready(laptop, 2)
            assert transports(status) == {"laptop": "", "far": "tcp"}
            asked = far.run("ask", *by_tunnel, *GREEDY, PROMPT)
            assert asked.stdout == expected(*GREEDY)["text"] + "\n"
            assert f"(127.0.0.1:{tunnel.port})" in far.said()  # from there its weights came
            guest = Host(network.add_host(), tmp_path / "guest")
            assert guest.run("status", *by_tunnel, "--json").json["ready"]
            plan = guest.run("plan", *by_tunnel, "--json").json
            assert [stage["name"] for stage in plan["stages"]] == ["laptop", "far"]
            text = tmp_path / "text"
            text.write_text("Once upon a time there was a little girl. " * 20)
            scored = guest.run("perplexity", *by_tunnel, text, "--context", 64, "--json").json
            assert scored["ppl"] > 1
            refused = guest.run("plan", *by_tunnel[:2], "--transport", "udp")
            refused.refuses(3, "no device of a mesh answered")
            refused = guest.run("ask", *by_tunnel[:2], "--transport", "udp", "x")
            refused.refuses(3, "no device of a mesh answered")
        finally:
            tunnel.close()


def test_a_device_that_speaks_one_transport_alone(tmp_path: Path, model: Path) -> None:
    with Mesh(Loopback(), tmp_path) as mesh:
        laptop = mesh.join("--model", model, "--ram", "600M", "--transport", "udp")
        mesh.wait_ready(laptop, 1)
        refused = laptop.run("status", *mesh.towards(), "--transport", "tcp")
        refused.refuses(3, "no device of a mesh answered")
        measured = ("bench", "--mesh", "--tokens", 2, *mesh.towards(), "--transport")
        laptop.run(*measured, "tcp").refuses(3, "no device of a mesh answered")
        assert "tokens" in laptop.run(*measured, "udp").stdout
