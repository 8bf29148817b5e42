"""Why a device cannot be in a mesh: it does not fit those that were there before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellama.errors import KernelConflictError, ModelConflictError

if TYPE_CHECKING:
    from edgellama.wire.messages import MemberRecord


def other_kernels(me: MemberRecord, first: MemberRecord) -> KernelConflictError:
    """Return the error of a device that does not compute what the eldest member computes."""
    return KernelConflictError(
        f"this device (edgellama {me.release}, {me.backend}) and {first.name} "
        f"(edgellama {first.release}, {first.backend}) do not compute the same "
        "numbers; run the same release on both, or try --backend numpy"
    )


def other_model(name: str, host: str) -> ModelConflictError:
    """Return the error of a device whose file is of another model than the mesh's."""
    return ModelConflictError(
        f"this mesh already hosts the model {name!r} offered by {host}; join without "
        "--model to help with it, or start a mesh of its own with another EDGELLAMA_KEY"
    )
