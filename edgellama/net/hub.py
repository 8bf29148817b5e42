"""Model files on a hub of models: which file a reference means, and fetching it.

``huggingface_hub`` makes every request; HF_ENDPOINT names another hub. What is fetched goes on
where an interrupted fetch has ended, also in another process, and counts only when it has the
SHA-256 that the hub publishes for it. (The library's own ``hf_hub_download`` begins again in a
new process, in its newer versions, so its lower half ``http_get`` is used.)
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from edgellama import __version__
from edgellama.errors import EdgellamaError, MisuseError, NetworkError, TransferError
from edgellama.net.hub_reference import HubReference, chosen_path

if TYPE_CHECKING:
    from pathlib import Path

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""

HASHED_BYTES: Final = 1 << 20  # hashed at a time
FILE_BYTES_MAX: Final = 1 << 38  # as for files that a mesh serves
ANSWER_TIMEOUT_S: Final = 30.0  # for the list of a repository's files

_SHA256: Final = re.compile("[0-9a-f]{64}")
_REASON_CHARACTERS_MAX: Final = 200


@dataclass(frozen=True)
class HubFile:
    """One file of a repository as the hub describes it; ``path`` is within the repository."""

    repository: str
    commit: str
    path: str
    size_bytes: int
    sha256: str  # 64 lower-case hexadecimal digits


def find_file(reference: HubReference) -> HubFile:
    """Ask the hub which file ``reference`` means.

    Raises MisuseError where the repository is unknown or holds no such file or several, and
    NetworkError where the hub cannot be reached.
    """
    _keep_quiet()
    from huggingface_hub import HfApi

    with _hub_errors(reference.repository):
        # One request that names the commit, and of every file its size and its published hash.
        info = HfApi(endpoint=_endpoint(), **_us()).model_info(
            reference.repository, files_metadata=True, timeout=ANSWER_TIMEOUT_S
        )
    files = {file.rfilename: file for file in info.siblings or []}
    path = chosen_path(reference, {name: file.size or 0 for name, file in files.items()})
    size, lfs = files[path].size, files[path].lfs
    sha256 = lfs["sha256"] if lfs else ""
    if not size or not 0 < size <= FILE_BYTES_MAX or not _SHA256.fullmatch(sha256) or not info.sha:
        raise TransferError(
            f"the hub publishes no size and SHA-256 of {reference.repository}: {path}, "
            "so that a fetched copy could not be checked"
        )
    return HubFile(reference.repository, info.sha, path, size, sha256)


def fetch(file: HubFile, unfinished: Path) -> None:
    """Bring ``unfinished`` to the full size of ``file``, going on from what it holds already.

    The content is not checked here. A progress bar goes to stderr where that is a terminal.
    Raises NetworkError where the hub cannot be reached; what came stays for the next time.
    """
    _keep_quiet()
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    # The commit is pinned, so that what is there already and what comes are of one file.
    url = hf_hub_url(file.repository, file.path, revision=file.commit, endpoint=_endpoint())
    with unfinished.open("ab") as output, _hub_errors(file.repository):
        if output.tell() > file.size_bytes:  # a hub that did not heed where to go on
            output.truncate(0)
        have = output.seek(0, os.SEEK_END)
        if have == file.size_bytes:
            return
        http_get(
            url,
            output,
            resume_size=have,
            headers={**build_hf_headers(**_us()), "Accept-Encoding": "identity"},
            expected_size=file.size_bytes,
            displayed_filename=file.path.rpartition("/")[2],
        )


def sha256_of(path: Path, progress: Progress) -> str:
    """Return the SHA-256 of a file's content as 64 hexadecimal digits. Raises OSError."""
    digest = hashlib.sha256()
    total, done = path.stat().st_size, 0
    with path.open("rb") as file:
        while data := file.read(HASHED_BYTES):
            digest.update(data)
            done += len(data)
            progress(done, total)
    return digest.hexdigest()


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _us() -> dict[str, str]:
    return {"library_name": "edgellama", "library_version": __version__}


def _keep_quiet() -> None:
    """Let the library ask the hub for the file and for nothing else, and log no retries.

    Without this it looks up, on the network, what kind of program uses it.
    """
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        from huggingface_hub import constants
        from huggingface_hub.utils import logging
    except ImportError:
        raise EdgellamaError(
            "the package huggingface_hub is not installed; install it, or copy the model file here"
        ) from None
    constants.HF_HUB_DISABLE_TELEMETRY = True  # where it was imported before
    logging.set_verbosity_error()


@contextlib.contextmanager
def _hub_errors(repository: str) -> Iterator[None]:
    """Turn what the library raises into one line that says what to do."""
    from huggingface_hub import errors

    # Which HTTP library is beneath changes with the version; its base class is always here.
    http_error: type[Exception] = vars(errors)["HTTPError"]
    hub = _endpoint() or "huggingface.co"
    try:
        yield
    except errors.GatedRepoError:
        raise MisuseError(
            f"{repository} asks for its licence to be accepted: do so at {hub}, "
            "and set HF_TOKEN to a token of yours"
        ) from None
    except errors.RepositoryNotFoundError:
        raise MisuseError(
            f"{hub} has no repository {repository}, or it is private and HF_TOKEN does not open it"
        ) from None
    except errors.OfflineModeIsEnabled:
        raise NetworkError("HF_HUB_OFFLINE is set, so nothing is fetched from the hub") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "an error"
        raise NetworkError(f"{hub} answers {status} for {repository}; try again later") from None
    except (http_error, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:_REASON_CHARACTERS_MAX] or type(error).__name__
        raise NetworkError(
            f"fetching {repository} from {hub} failed: {reason}; the same command goes on from here"
        ) from None
