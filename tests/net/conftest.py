"""A model to fetch, and the store of the device that fetches it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
from weights_serving import write_model

from edgellama.net.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edgellama.net.own_model import OwnModel
    from edgellama.net.stored_model import StoredModel


@pytest.fixture(scope="session")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnModel]:
    """Give the user's file of the device that others fetch from."""
    folder = tmp_path_factory.mktemp("source")
    with contextlib.closing(Store(folder / "store")) as store:
        yield store.adopt(write_model(folder / "model.gguf"))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Store]]:
    """Open the fetching device's store, as each of its starts would."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(contextlib.closing(Store(tmp_path / "store")))


@pytest.fixture
def stored(start: Callable[[], Store], own: OwnModel) -> StoredModel:
    """Give the fetching device's copy of it, with no chunk yet."""
    return start().create(own.manifest)


@pytest.fixture
def every(own: OwnModel) -> list[int]:
    """Give the numbers of all its chunks."""
    return list(range(own.manifest.chunks))
