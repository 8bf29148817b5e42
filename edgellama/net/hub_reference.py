"""References to model files on a hub: ``hf:ORG/REPO``, with ``:FILE`` or ``:QUANT`` after it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from edgellama.errors import MisuseError, UnsupportedModelError
from edgellama.plan.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PREFIX: Final = "hf:"
SUFFIX: Final = ".gguf"
FILES_SHOWN_MAX: Final = 24  # in a message that offers a choice

# Also what a folder and a file of the local store may be called on every system.
_REPOSITORY: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_PART: Final = re.compile(r"[A-Za-z0-9_][\w.+ -]{0,199}", re.ASCII)
_SPLIT: Final = re.compile(r"-\d{5}-of-\d{5}$", re.ASCII)
_QUANT: Final = re.compile(r"(?:^|[-._/])((?:UD-)?(?:I?Q\d\w*|TQ\d\w*|MXFP4\w*|B?F16|F32))$", re.I)


@dataclass(frozen=True)
class HubReference:
    """``choice`` is a file's path, a type such as ``Q4_K_M``, or empty for the only file."""

    repository: str
    choice: str

    @classmethod
    def parse(cls, text: str) -> HubReference:
        """Read ``hf:ORG/REPO[:FILE or quant]``; MisuseError for anything else."""
        repository, _, choice = text.removeprefix(PREFIX).partition(":")
        parts = repository.split("/")
        dotted = any(part.endswith(".") or ".." in part for part in parts)
        if not text.startswith(PREFIX) or not _REPOSITORY.fullmatch(repository) or dotted:
            raise MisuseError(
                f"{text[:120]!r} names no model of a hub: write hf:ORG/REPO, hf:ORG/REPO:Q4_K_M "
                "or hf:ORG/REPO:FILE.gguf"
            )
        return cls(repository, choice)

    def __str__(self) -> str:
        return f"{PREFIX}{self.repository}" + (f":{self.choice}" if self.choice else "")


def is_safe_path(path: str) -> bool:
    """Tell whether a path from a hub stays, on any system, within the folder it is put into."""
    return all(_PART.fullmatch(part) and not part.endswith((".", " ")) for part in path.split("/"))


def chosen_path(reference: HubReference, sizes: Mapping[str, int]) -> str:
    """Return the path that ``reference`` means of a repository's files, given with their bytes.

    Raises MisuseError where none or several are meant, UnsupportedModelError for a model that is
    stored in parts.
    """
    choice = reference.choice
    models = {path: size for path, size in sizes.items() if _is_model(path)}
    if not models:
        raise MisuseError(f"{reference.repository} holds no GGUF model that could be pulled")
    if choice.lower().endswith(SUFFIX):
        found = [path for path in models if choice in (path, path.rpartition("/")[2])]
    elif choice:
        found = [path for path in models if _is_of_kind(path, choice)]
    else:
        found = list(models)
    if found and all(_SPLIT.search(_stem(path)) for path in found):
        raise UnsupportedModelError(
            f"{reference} is stored in {len(found)} parts, which is not supported; "
            "choose another file, or merge them with gguf-split"
        )
    if len(found) == 1:
        return found[0]
    fault = f"{len(found)} models match" if found else "no model matches"
    raise MisuseError(
        f"{reference}: {fault}; name one of hf:{reference.repository}:... "
        f"{_offer(found or models, models)}"
    )


def _is_model(path: str) -> bool:
    # A projector for images is a GGUF file too, but no model of its own.
    name = path.rpartition("/")[2].lower()
    return name.endswith(SUFFIX) and not name.startswith("mmproj") and is_safe_path(path)


def _stem(path: str) -> str:
    return path[: -len(SUFFIX)]


def _is_of_kind(path: str, kind: str) -> bool:
    stem = _SPLIT.sub("", _stem(path)).lower()
    return any(stem.endswith(mark + kind.lower()) for mark in "-._/") or stem == kind.lower()


def _offer(paths: Iterable[str], sizes: Mapping[str, int]) -> str:
    """Return what could be chosen, the small first: types where they tell files apart."""
    ordered = sorted(paths, key=lambda path: (sizes[path], path))
    kinds = [_QUANT.search(_SPLIT.sub("", _stem(path))) for path in ordered]
    labels = [kind[1] if kind else "" for kind in kinds]
    if "" in labels or len(set(labels)) < len(labels):
        labels = ordered
    shown = [
        f"{label} ({format_size(sizes[path])})" for label, path in zip(labels, ordered, strict=True)
    ]
    more = f" and {len(shown) - FILES_SHOWN_MAX} more" if len(shown) > FILES_SHOWN_MAX else ""
    return ", ".join(shown[:FILES_SHOWN_MAX]) + more
