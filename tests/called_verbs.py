"""Which verbs of the kernels a function calls, so that what claims to try them all has to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgellama_kernels.interface import Verbs

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgellama_kernels import Kernels

VERBS = {name for name, member in vars(Verbs).items() if callable(member) and name[0] != "_"}


class _Watched:
    """Kernels that keep the names of what they are asked for."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self.called: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.called.add(name)
        return getattr(self._kernels, name)


def called(kernels: Kernels, function: Callable[[Any], object]) -> set[str]:
    """Return the names of all that ``function(kernels)`` asks the kernels for."""
    watched = _Watched(kernels)
    function(watched)
    return watched.called
