"""Where compiled kernels are kept: a folder named after the sources that they were made from.

numba looks only at a function's own file when it decides whether a kept binary is still good, so
after an edit in another file it would go on with an old one, silently wrong. With the hash of the
package's sources in the folder's name, no edit and no upgrade can meet an old binary.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import tempfile
from pathlib import Path

VARIABLE = "NUMBA_CACHE_DIR"
PREFIX = "edgellama-kernels-"
HASH_DIGITS = 16


def sources_hash() -> str:
    """Return a hash of this package's sources, names and contents."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        text = path.read_bytes()
        digest.update(f"{path.name} {len(text)}\n".encode() + text)
    return digest.hexdigest()[:HASH_DIGITS]


@functools.cache
def running_hash() -> str:
    """Return the hash of the sources that this process runs: as they were when it first asked."""
    return sources_hash()


def parent_folder() -> Path:
    """Return ``NUMBA_CACHE_DIR`` as the user set it, else the user's own cache folder."""
    chosen = os.environ.get(VARIABLE)
    if chosen:
        folder = Path(chosen)
        return folder.parent if folder.name.startswith(PREFIX) else folder  # set by a parent
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or tempfile.gettempdir())
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def prepare() -> str | None:
    """Point numba at this version's folder, before it is imported.

    Returns None, or one line for a person when the folder cannot be written: numba would then
    quietly keep binaries elsewhere, so the kernels must be compiled without a cache.
    """
    folder = parent_folder() / (PREFIX + running_hash())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return f"compiled kernels cannot be kept in {folder} ({error.strerror}): starts are slow"
    os.environ[VARIABLE] = str(folder)
    numba = sys.modules.get("numba")
    if numba is not None:  # it read the variable when it was imported
        numba.config.reload_config()
    return None
