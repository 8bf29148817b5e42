"""Every error that a person may meet: whose fault it is and what to do, in one line.

The command line prints the message and ends with the class's exit code; nothing else ever
reaches a person. An ``AssertionError`` is our own bug and is never raised for bytes from outside.
"""

from __future__ import annotations

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_MISUSE = 2
EXIT_NO_MESH = 3


class EdgellamaError(Exception):
    """The base of every error with a message made for a person."""

    exit_code = EXIT_FAILED


class MisuseError(EdgellamaError):
    """The command as given cannot be carried out: a wrong option, a path that is not there."""

    exit_code = EXIT_MISUSE


class PromptTooLongError(MisuseError):
    """The prompt leaves no room for an answer in the context."""


class ModelFileError(EdgellamaError):
    """A model file is truncated or malformed: names the file, the field and the fault."""


class UnsupportedModelError(EdgellamaError):
    """A sound model file of an architecture, tensor type or tokenizer that is not supported."""


class NonFiniteError(EdgellamaError):
    """A computation met infinity or NaN: the weights or the input are damaged."""


class NetworkError(EdgellamaError):
    """A port is taken, no interface is up, or the system refused to send."""


class TransferError(EdgellamaError):
    """Weights could not be fetched, or what came was not what was asked for."""


class ModelConflictError(EdgellamaError):
    """Two devices offer different models in one mesh."""


class KernelConflictError(EdgellamaError):
    """Two devices do not compute the same numbers, so one answer could not be theirs both."""


class DuplicateIdentityError(EdgellamaError):
    """Another device has this one's identity: a home folder was copied."""

    @classmethod
    def of(cls, where: str = "") -> DuplicateIdentityError:
        """Return the error with what to do; ``where`` says where the other one is, if known."""
        at = f", at {where}," if where else ""
        return cls(
            f"another device{at} has this device's identity: one home folder is a copy; delete "
            "identity and incarnation in one of them (edgellama doctor says more)"
        )


class NoMeshError(EdgellamaError):
    """No device of the mesh answered."""

    exit_code = EXIT_NO_MESH


class UnplaceableError(EdgellamaError):
    """The devices together do not offer enough memory for the model."""

    exit_code = EXIT_NO_MESH


class WireError(EdgellamaError):
    """Bytes from a peer are not what the specification allows; the peer is at fault."""
