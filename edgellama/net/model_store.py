"""The models that a person has pulled: whole, checked files, and the names that mean them.

::

    models/ORG/REPO/FILE.gguf                        a model, complete and checked
    models/ORG/REPO/.FILE.gguf.<sha256>.partial      the beginning of one that is being pulled
    models/.lock                                     held while files come and go

A file gets its final name when its hash is the published one, so what has that name is whole.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from edgellama.errors import EdgellamaError, MisuseError, TransferError
from edgellama.net.home_lock import try_lock
from edgellama.net.hub import HubFile, Progress, fetch, find_file, sha256_of
from edgellama.net.hub_reference import PREFIX, SUFFIX, HubReference, chosen_path
from edgellama.net.state_files import state_error
from edgellama.plan.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PARTIAL_SUFFIX: Final = ".partial"
HASH_DIGITS_IN_NAME: Final = 16  # enough to tell two versions of one file apart
FREE_BYTES_LEFT: Final = 64 << 20  # a disk that is full to the last byte breaks other programs


@dataclass(frozen=True)
class PulledModel:
    """A complete file. ``name`` means it alone; ``reference`` is what to pull it by again."""

    name: str
    reference: str
    path: Path
    size_bytes: int


class ModelStore:
    """The folder of pulled models; it need not exist. Safe to use from several processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def models(self) -> list[PulledModel]:
        """Return what is there, by name. Raises EdgellamaError where it cannot be read."""
        try:
            files = [path for path in self._folder.glob(f"*/*/**/*{SUFFIX}") if path.is_file()]
            sizes = [path.stat().st_size for path in files]
        except OSError as error:
            raise state_error(self._folder, error) from None
        stems = [path.stem for path in files]
        models = []
        for path, size in zip(files, sizes, strict=True):
            organisation, repository, *rest = path.relative_to(self._folder).parts
            reference = f"{PREFIX}{organisation}/{repository}:{'/'.join(rest)}"
            name = path.stem if stems.count(path.stem) == 1 else reference
            models.append(PulledModel(name, reference, path, size))
        return sorted(models, key=lambda model: (model.name, model.reference))

    def find(self, text: str) -> PulledModel | None:
        """Return the model that a name or an ``hf:`` reference means, None where there is none.

        Raises MisuseError where it could be several.
        """
        models = self.models()
        if text.startswith(PREFIX):
            return _referred(HubReference.parse(text), models)
        found = [model for model in models if text in (model.path.stem, model.path.name)]
        if len(found) > 1:
            names = ", ".join(model.reference for model in found)
            raise MisuseError(f"{text} is the name of several models: {names}")
        return found[0] if found else None

    def pull(
        self, reference: HubReference, tell: Callable[[str], None], progress: Progress
    ) -> PulledModel:
        """Fetch a model unless it is here already, check it, and return it.

        Raises what ``find_file`` and ``fetch`` raise, TransferError for content that has not the
        published hash (it is removed), EdgellamaError where the disk is full or not writable.
        """
        file = find_file(reference)
        path = self._folder.joinpath(*file.repository.split("/"), *file.path.split("/"))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._locked():
                if _is_here(path, file, progress):
                    tell(f"{file.path} is here already, and is what the hub publishes")
                else:
                    tell(
                        f"pulling {file.path} of {file.repository}, {format_size(file.size_bytes)}"
                    )
                    _fetch_checked(file, path, progress)
        except OSError as error:
            raise state_error(self._folder, error) from None
        return next(model for model in self.models() if model.path == path)

    def remove(self, model: PulledModel) -> None:
        """Remove a model, what is left of unfinished pulls of it, and folders that it empties."""
        try:
            with self._locked():
                model.path.unlink(missing_ok=True)
                for partial in _partials(model.path):
                    partial.unlink(missing_ok=True)
                folder = model.path.parent
                while folder != self._folder and not any(folder.iterdir()):
                    folder.rmdir()
                    folder = folder.parent
        except OSError as error:
            raise state_error(self._folder, error) from None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                free = try_lock(descriptor)
            except OSError:
                free = True  # a file system without locks
            if not free:
                raise MisuseError("another edgellama is pulling or removing a model; try again")
            yield
        finally:
            os.close(descriptor)


def _referred(reference: HubReference, models: list[PulledModel]) -> PulledModel | None:
    prefix = f"{PREFIX}{reference.repository}:"
    mine = {m.reference.removeprefix(prefix): m for m in models if m.reference.startswith(prefix)}
    if not mine:
        return None
    sizes = {path: model.size_bytes for path, model in mine.items()}
    return mine[chosen_path(reference, sizes)]


def _is_here(path: Path, file: HubFile, progress: Progress) -> bool:
    if not path.is_file() or path.stat().st_size != file.size_bytes:
        return False
    return sha256_of(path, progress) == file.sha256


def _fetch_checked(file: HubFile, path: Path, progress: Progress) -> None:
    partial = path.with_name(f".{path.name}.{file.sha256[:HASH_DIGITS_IN_NAME]}{PARTIAL_SUFFIX}")
    have = partial.stat().st_size if partial.exists() else 0
    free = shutil.disk_usage(path.parent).free - FREE_BYTES_LEFT
    if file.size_bytes - have > free:
        raise EdgellamaError(
            f"{path.parent}: {format_size(file.size_bytes - have)} are to come, "
            f"and only {format_size(max(0, free))} of this disk are free"
        )
    fetch(file, partial)
    if sha256_of(partial, progress) != file.sha256:
        partial.unlink()
        raise TransferError(
            f"what came of {file.path} does not have the hash that the hub publishes "
            "and was removed; pull it again"
        )
    with partial.open("rb+") as finished:
        os.fsync(finished.fileno())
    partial.replace(path)
    for older in _partials(path):
        older.unlink(missing_ok=True)


def _partials(path: Path) -> list[Path]:
    """Return the unfinished pulls of a model's file, of any version."""
    mark = f".{path.name}."
    return [
        each
        for each in path.parent.iterdir()
        if each.name.startswith(mark) and each.name.endswith(PARTIAL_SUFFIX)
    ]
