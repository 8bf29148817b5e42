"""Who answers a person: a mesh, the model that was named, or the demo model."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from edgellama.cli.options import model_file, note, peer_addresses
from edgellama.errors import NoMeshError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgellama.node.admission import KeyChoice
    from edgellama.node.asking import Asker, LocalSettings


@contextmanager
def open_asker(
    model: str | None, peers: tuple[str, ...], choice: KeyChoice, local: LocalSettings
) -> Iterator[Asker]:
    """Open the way to answers.

    ``model`` is answered from on this device alone. Without one a mesh is looked for; where there
    is none, and nothing was said of one, the demo model answers.
    """
    from edgellama.net.paths import StatePaths
    from edgellama.node.admission import access_to_ask
    from edgellama.node.asking import device_asker, mesh_asker

    paths = StatePaths.locate()
    with ExitStack() as stack:
        if model is not None:
            yield stack.enter_context(device_asker(model_file(model), local, paths, note))
            return
        named = peer_addresses(peers)
        access = access_to_ask(choice, paths, named)
        asker: Asker
        try:
            asker = stack.enter_context(mesh_asker((*access.friends, *named), access.key, paths))
        except NoMeshError as error:
            if peers or access.key:
                raise
            note(str(error))
            from edgellama.demo import demo_model_path

            note("the small demo model inside edgellama answers, on this device alone")
            asker = stack.enter_context(device_asker(demo_model_path(), local, paths, note))
        yield asker
