"""Several devices that need overlapping parts of one model, with real stores and servers.

Only the first one has the file. Every chunk is to leave it once, whoever wants what and when.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from weights_serving import HOST, KEY, CountingSource, served

from edgellama.errors import TransferError
from edgellama.net.store import Store
from edgellama.net.supply import Supply, WeightSource
from edgellama.net.transfer import Fetched, fetch_chunks, fetch_manifest
from edgellama.net.transfer_server import WeightServer
from edgellama.values import Address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from edgellama.net.own_model import OwnModel
    from edgellama.net.stored_model import StoredModel


class Device:
    """A device that fetches and serves what it has, as a member of a mesh does."""

    def __init__(self, name: str, folder: Path, mesh: dict[str, WeightSource]) -> None:
        self.name = name
        self.told: list[str] = []
        self.fetched: Fetched = {}
        self._mesh = mesh
        self._store = Store(folder / name)
        self._server = WeightServer(HOST, 0, KEY, self._store.source)
        mesh[name] = WeightSource(Address(HOST, self._server.port), name)
        self._distrusted: set[WeightSource] = set()

    def fetch(self, root: str, chunks: Iterable[int]) -> None:
        supply = Supply(self._sources, KEY, tell=self.told.append, distrusted=self._distrusted)
        stored = self._store.find(root) or self._store.create(fetch_manifest(root, supply))
        for source, count in fetch_chunks(stored, chunks, supply).items():
            self.fetched[source] = self.fetched.get(source, 0) + count

    def holds(self, root: str) -> StoredModel:
        stored = self._store.find(root)
        assert stored is not None
        return stored

    def close(self) -> None:
        self._server.close()
        self._store.close()

    def _sources(self) -> list[WeightSource]:
        return [source for name, source in self._mesh.items() if name != self.name]


@pytest.fixture
def mesh() -> dict[str, WeightSource]:
    return {}


@pytest.fixture
def device(tmp_path: Path, mesh: dict[str, WeightSource]) -> Iterator[Callable[[str], Device]]:
    with contextlib.ExitStack() as stack:
        yield lambda name: stack.enter_context(contextlib.closing(Device(name, tmp_path, mesh)))


def at_once(*calls: Callable[[], None]) -> None:
    """Run all calls at the same time; raise what one of them raises."""
    errors: list[BaseException] = []

    def run(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_each_byte_leaves_the_device_with_the_file_once(
    own: OwnModel,
    every: list[int],
    mesh: dict[str, WeightSource],
    device: Callable[[str], Device],
) -> None:
    """Three devices fetch at once, and again after two plans that shift what they hold."""
    laptop = CountingSource(own, before=lambda index: threading.Event().wait(0.002) and None)
    root = own.manifest.root
    with served(laptop) as address:
        mesh["laptop"] = WeightSource(address, "laptop", original=True)
        pi, phone, tablet = device("pi"), device("phone"), device("tablet")
        third = len(every) // 3
        plans = [
            (every[: 2 * third], every[third:], every),  # all of it overlaps
            (every[third:], every[: 2 * third], every),
            (every, every, every),
        ]
        for one, two, three in plans:
            at_once(
                lambda one=one: pi.fetch(root, one),  # type: ignore[misc]
                lambda two=two: phone.fetch(root, two),  # type: ignore[misc]
                lambda three=three: tablet.fetch(root, three),  # type: ignore[misc]
            )
        # And one that comes when the laptop's own word on what it gave is all there is to go by.
        late = device("late")
        late.fetch(root, every)
    assert sorted(laptop.read) == every
    for each in (pi, phone, tablet, late):
        assert each.holds(root).path.read_bytes() == own.path.read_bytes()
        assert not each.told
    whole = own.manifest.bytes_of(every)
    assert sum(each.fetched.get(mesh["laptop"], 0) for each in (pi, phone, tablet)) == whole
    assert mesh["laptop"] not in late.fetched
    assert 2 <= len(late.fetched) <= 3  # at once, as far as they answer at once
    assert sum(late.fetched.values()) == whole


def test_a_device_that_lost_its_store_gets_everything_again(
    own: OwnModel,
    every: list[int],
    mesh: dict[str, WeightSource],
    device: Callable[[str], Device],
) -> None:
    """Nobody else has it, so the laptop gives it a second time, after a moment."""
    laptop = CountingSource(own)
    with served(laptop) as address:
        mesh["laptop"] = WeightSource(address, "laptop", original=True)
        first = device("pi")
        first.fetch(own.manifest.root, every)
        del mesh["pi"]
        second = device("pi again")
        second.fetch(own.manifest.root, every)
    assert Counter(laptop.read) == dict.fromkeys(every, 2)
    assert second.holds(own.manifest.root).complete


def test_the_file_may_be_gone_when_the_others_have_it(
    own: OwnModel,
    every: list[int],
    mesh: dict[str, WeightSource],
    device: Callable[[str], Device],
) -> None:
    root = own.manifest.root
    half = len(every) // 2
    with served(CountingSource(own)) as address:
        mesh["laptop"] = WeightSource(address, "laptop", original=True)
        pi, phone = device("pi"), device("phone")
        pi.fetch(root, every[:half])
        phone.fetch(root, every[half:])
    late = device("late")
    late.fetch(root, every)  # the laptop is still in the list, and does not answer
    assert late.holds(root).complete
    assert set(late.fetched) == {mesh["pi"], mesh["phone"]}


def test_a_liar_is_named_while_the_others_make_good(
    own: OwnModel,
    every: list[int],
    mesh: dict[str, WeightSource],
    device: Callable[[str], Device],
    tmp_path: Path,
) -> None:
    root = own.manifest.root
    with contextlib.closing(Store(tmp_path / "liar")) as store, contextlib.ExitStack() as stack:
        copy = store.create(own.manifest)
        for index in every:
            assert copy.write_chunk(index, own.read_chunk(index))
        liar = CountingSource(copy, lie=5)
        mesh["tv"] = WeightSource(stack.enter_context(served(liar)), "tv")
        laptop = stack.enter_context(served(own))
        mesh["laptop"] = WeightSource(laptop, "laptop", original=True)
        pi = device("pi")
        pi.fetch(root, every[:20])
        fault = f"tv ({mesh['tv'].address}) sent a wrong chunk 5: it is asked for no more weights"
        assert pi.told == [fault]
        asked = len(liar.read)
        pi.fetch(root, every)  # and it is not asked in the next fetch either
        assert len(liar.read) == asked
        assert pi.told == [fault]
        assert pi.holds(root).path.read_bytes() == own.path.read_bytes()
        # Its next life may be an honest one.
        mesh["tv"] = mesh["tv"]._replace(life="another")
        phone = device("phone")
        del mesh["laptop"], mesh["pi"]
        with pytest.raises(TransferError, match=r"tv \(.*\) sent a wrong chunk 5"):
            phone.fetch(root, every)


FETCHER = """
import sys
from pathlib import Path
from edgellama.net.store import Store
from edgellama.net.supply import Supply, WeightSource
from edgellama.net.transfer import fetch_chunks, fetch_manifest
from edgellama.values import Address
folder, root, port, key = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4].encode()
supply = Supply(lambda: [WeightSource(Address("127.0.0.1", port), original=True)], key)
store = Store(folder)
stored = store.find(root) or store.create(fetch_manifest(root, supply))
fetch_chunks(stored, range(stored.manifest.chunks), supply)
"""


@pytest.mark.parametrize("killed_at", [1, 9, 20, 33])
def test_a_fetcher_that_is_killed_fetches_nothing_twice(
    own: OwnModel, every: list[int], tmp_path: Path, killed_at: int
) -> None:
    """What was written when it died counts, also what its bitmap does not tell of."""
    script = tmp_path / "fetch.py"
    script.write_text(FETCHER)
    folder, root = tmp_path / "store", own.manifest.root
    reached = threading.Event()

    def slowly(index: int) -> None:
        if len(laptop.read) >= killed_at:
            reached.set()
            threading.Event().wait(0.2)

    laptop = CountingSource(own, before=slowly)
    with served(laptop) as address:
        words = [sys.executable, script, folder, root, address.port, KEY.decode()]
        with subprocess.Popen(list(map(str, words))) as fetching:
            assert reached.wait(60)
            fetching.kill()
    content = (folder / f"{root}.gguf.partial").read_bytes()
    whole = {index for index in every if is_whole(own, index, content)}
    assert len(whole) >= len(laptop.read) - 3 * 4  # no connection has more than a batch on its way
    second = CountingSource(own)
    with contextlib.closing(Store(folder)) as store, served(second) as address:
        stored = store.find(root)
        assert stored is not None
        supply = Supply(lambda: [WeightSource(address, original=True)], KEY)
        fetch_chunks(stored, every, supply)
        assert stored.path.read_bytes() == own.path.read_bytes()
    assert sorted(second.read) == sorted(set(every) - whole)


def is_whole(own: OwnModel, index: int, content: bytes) -> bool:
    chunk = own.manifest.chunk(index)
    return chunk.is_made_of(content[chunk.offset : chunk.offset + chunk.size])
