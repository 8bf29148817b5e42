"""Options that several verbs share, and how their texts become values."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from edgellama.errors import MisuseError
from edgellama.values import BATCH, CHAT, RAM

if TYPE_CHECKING:
    from edgellama.node.admission import KeyChoice
    from edgellama.values import Address

Function = TypeVar("Function", bound=Callable[..., Any])

SPEED: Final = "speed"
KEY_VARIABLE: Final = "EDGELLAMA_KEY"


def size_in_bytes(text: str) -> int:
    """Return the bytes of a size as people write it, ``300M`` or ``2G``; the type of an option."""
    from edgellama.plan.sizes import parse_size

    try:
        return parse_size(text)
    except MisuseError as error:
        raise click.BadParameter(str(error)) from None


def peers(function: Function) -> Function:
    """Add ``--peer``, which may be given several times."""
    return click.option(
        "--peer",
        "peers",
        multiple=True,
        metavar="HOST[:PORT]",
        help="A device of the mesh, where mDNS does not find it. May be repeated.",
    )(function)


def transport(function: Function) -> Function:
    """Add ``--transport``."""
    return click.option(
        "--transport",
        type=click.Choice(["auto", "udp", "tcp"]),
        default="auto",
        help="What carries links. Default: auto, which is UDP, and TCP where UDP gets no answer.",
    )(function)


def backend(function: Function) -> Function:
    """Add ``--backend``."""
    return click.option(
        "--backend",
        type=click.Choice(["auto", "numba", "numpy"]),
        default="auto",
        help="Which kernels compute; they give the same tokens. Default: numba where it is there.",
    )(function)


def threads(function: Function) -> Function:
    """Add ``--threads``."""
    return click.option(
        "--threads",
        type=click.IntRange(1, 64),
        help="Threads that compute. Default: the fast cores, at most 4.",
    )(function)


def kv(function: Function) -> Function:
    """Add ``--kv``; None where it is not given."""
    return click.option(
        "--kv",
        "kv_kind",
        type=click.Choice(["f16", "q8"]),
        help="How keys and values are kept: f16 (the default), or q8 in about half the memory.",
    )(function)


def wire(function: Function) -> Function:
    """Add ``--wire``; None where it is not given."""
    return click.option(
        "--wire",
        type=click.Choice(["f16", "q8"]),
        help="How links carry hidden states: f16 (the default) exactly, q8 in about half the "
        "bytes; then answers depend on how the layers are split.",
    )(function)


def as_json(function: Function) -> Function:
    """Add ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(function)


def split(function: Function) -> Function:
    """Add ``--split`` and ``--for``, which ``split_choice`` makes one value of."""
    function = click.option(
        "--for",
        "purpose",
        type=click.Choice([CHAT, BATCH]),
        help="With --split speed: the least time of a token, or the most tokens of many answers. "
        "Default: chat.",
    )(function)
    return click.option(
        "--split",
        type=click.Choice([RAM, SPEED]),
        help="Share the layers by memory, or by what devices and links have measured. "
        "Default: ram.",
    )(function)


def split_choice(split: str | None, purpose: str | None) -> str:
    """Return what to split by, empty where nothing was said; MisuseError for a contradiction."""
    if purpose is not None and split != SPEED:
        raise MisuseError("--for goes with --split speed")
    return (purpose or CHAT) if split == SPEED else (split or "")


def note(text: str) -> None:
    """Say something to the person beside the answer: on stderr."""
    click.echo(f"edgellama: {text}", err=True)


def peer_addresses(texts: tuple[str, ...]) -> tuple[Address, ...]:
    """Return the addresses of ``--peer`` options; MisuseError names the one that is none."""
    from edgellama.net.peers import parse_peer

    return tuple(parse_peer(text) for text in texts)


def key(function: Function) -> Function:
    """Add ``--key``."""
    return click.option(
        "--key",
        metavar="FILE|TEXT",
        help="The mesh's secret, in a file or as it is. Default: EDGELLAMA_KEY, else what this "
        "device remembers.",
    )(function)


def code(function: Function) -> Function:
    """Add ``--code``."""
    return click.option("--code", help="Join with this code, as edgellama invite shows it.")(
        function
    )


def open_mesh(function: Function) -> Function:
    """Add ``--open``."""
    return click.option(
        "--open", "open_mesh", is_flag=True, help="A mesh without a key: any device can join it."
    )(function)


def key_choice(key: str | None, code: str | None = None, *, open_mesh: bool = False) -> KeyChoice:
    """Return what was said about the mesh; EDGELLAMA_KEY counts where no option speaks of it."""
    from edgellama.net.mesh_key import given_key
    from edgellama.node.admission import KeyChoice

    if key == "":
        raise MisuseError("--key is empty: give a file or a secret")
    if key is None and code is None and not open_mesh:
        key = os.environ.get(KEY_VARIABLE) or None
    return KeyChoice(given_key(key) if key else None, open_mesh, code)


def model_file(text: str, option: str = "--model") -> Path:
    """Return the path of a model file that is there; MisuseError where it is not.

    ``text`` is a path, the name of a pulled model, or the ``hf:`` reference it was pulled by;
    ``option`` is where it was given.
    """
    path = Path(text).expanduser()
    if not path.exists():
        return _pulled_model_file(text, option)
    if not path.is_file():
        raise MisuseError(f"{option} {text}: is not a file")
    return path


def _pulled_model_file(text: str, option: str) -> Path:
    from edgellama.net.model_store import ModelStore
    from edgellama.net.paths import StatePaths

    model = ModelStore(StatePaths.locate().models).find(text)
    if model is not None:
        return model.path
    if text.startswith("hf:"):
        raise MisuseError(f"{option} {text}: not pulled yet; run edgellama pull {text}")
    raise MisuseError(f"{option} {text}: there is no such file, and no pulled model of that name")
