"""What this device offers to the model, measured again as memory comes and goes."""

from __future__ import annotations

from typing import Final

from edgellama.net.facts import ram_offer_bytes
from edgellama.net.memory import own_memory

CHANGE_SHARE: Final = 8  # an offer that differs by less than an eighth is not worth a plan
CHECK_S: Final = 10.0  # how often a device looks whether it still has what it holds


class MemoryOffer:
    """The offer: what the person said, or a careful share of what there is.

    ``overhead_bytes`` is what the process itself will take besides.
    """

    def __init__(self, said_bytes: int | None, overhead_bytes: int) -> None:
        self._overhead_bytes = overhead_bytes
        self._at_start = own_memory() if said_bytes is None else None
        self.told_bytes = ram_offer_bytes(overhead_bytes) if said_bytes is None else said_bytes

    def changed(self) -> int | None:
        """Return what is to be offered from now on; None when it is about what was told.

        Measured anew when a plan may be made: devices have come or gone.
        """
        now_bytes = self._measured()
        if now_bytes is None or abs(now_bytes - self.told_bytes) * CHANGE_SHARE <= self.told_bytes:
            return None
        self.told_bytes = now_bytes
        return now_bytes

    def shrunk_below(self, held_bytes: int) -> int | None:
        """Return what is to be offered from now on where that is less than what is held."""
        now_bytes = self._measured()
        if now_bytes is None or now_bytes >= held_bytes:
            return None
        return self.changed()

    def _measured(self) -> int | None:
        if self._at_start is None:
            return None  # the person has said it, or the system does not tell what is held
        held = own_memory()
        if held is None:
            return None
        return ram_offer_bytes(self._overhead_bytes, held.grown_since(self._at_start))
