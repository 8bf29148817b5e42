"""The kernels of this device: NumPy's at once, numba's as soon as they are compiled.

Both give the same bits, so nobody notices when one takes over from the other in the middle of an
answer. The compiler runs in a process of its own: it holds the GIL for seconds, keeps tens of
megabytes, and where LLVM does not know the machine it aborts.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import weakref
from typing import TYPE_CHECKING, Final

from edgellama_kernels import BackendUnavailable, Kernels, cache_folder, load, row_codec, warming
from edgellama_kernels.digest import EXPECTED_DIGEST, digest

from edgellama.errors import EdgellamaError, MisuseError
from edgellama.net.facts import OVERHEAD_NUMBA_BYTES, OVERHEAD_NUMPY_BYTES, compute_cores
from edgellama.net.memory import release_code_of, release_freed
from edgellama.node.compiling import Compiler

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgellama.net.paths import StatePaths

COMPILER: Final = "libllvmlite"


class DeviceKernels:
    """The kernels to begin with, and those that come when they are compiled.

    ``backend`` is "auto", "numba" (waits for the compiler) or "numpy"; ``threads`` None leaves
    the number to the device. Raises MisuseError for a backend that is not installed.
    """

    def __init__(
        self, backend: str, threads: int | None, paths: StatePaths, tell: Callable[[str], None]
    ) -> None:
        os.environ.setdefault(cache_folder.VARIABLE, str(paths.kernels))
        self._cores = compute_cores(threads)
        self._tell = tell
        self._report = paths.state / "compiler.txt"
        self._compiler: Compiler | None = None
        self._lock = threading.Lock()
        wanted = backend != "numpy" and (backend == "numba" or warming.is_installed())
        passing = _passing_folder(tell) if wanted else None
        self._is_coming = False
        if wanted and not warming.is_warm() and warming.is_installed():
            self._is_coming = backend == "auto"
            meanwhile = "this takes a while"
            if self._is_coming:
                meanwhile = "NumPy computes the same until they are there"
            tell(f"compiling kernels, once; {meanwhile}")
            self._compiler = Compiler(self._report)
            if passing is not None:
                weakref.finalize(self, _discard, passing, self._compiler)
            if backend == "numba" and not self._compiler.wait(or_not_kept=True):
                raise MisuseError(
                    f"kernels cannot be compiled here (see {self._report}); try --backend numpy"
                )
        try:
            self.now = self._load("numpy" if self._is_coming or not wanted else "numba")
        except BackendUnavailable as error:
            raise MisuseError(str(error)) from error
        if self.now.cache_note:
            tell(self.now.cache_note)

    @property
    def overhead_bytes(self) -> int:
        """What a node's process takes besides weights, KV cache and scratch, in the end."""
        compiled = self._is_coming or self.now.name == "numba"
        return OVERHEAD_NUMBA_BYTES if compiled else OVERHEAD_NUMPY_BYTES

    def _load(self, backend: str) -> Kernels:
        cores = self._cores
        return load(backend, cores.threads, equal_cores=cores.equal, cpus=cores.cpus)

    def watch(
        self, ready: Callable[[Kernels], None], none_come: Callable[[], None] = lambda: None
    ) -> None:
        """Have ``ready`` called with better kernels when there are any, else ``none_come``.

        Better kernels come on another thread; where none are on their way it is said at once.
        """
        if not self._is_coming:
            none_come()
            return
        thread = threading.Thread(
            target=self._watch, args=(ready, none_come), name="edgellama-kernels", daemon=True
        )
        thread.start()

    def _watch(self, ready: Callable[[Kernels], None], none_come: Callable[[], None]) -> None:
        assert self._compiler is not None
        if not self._compiler.wait():
            if not self._compiler.is_stopped:
                self._tell(f"kernels cannot be compiled here, NumPy goes on (see {self._report})")
                none_come()
            return
        try:
            kernels = self._load("numba")
        except BackendUnavailable as error:
            self._tell(str(error))
            none_come()
            return
        self._tell("the kernels are compiled")
        ready(kernels)


def _passing_folder(tell: Callable[[str], None]) -> str | None:
    """Return a folder for compiled kernels, for this process alone, where they cannot be kept."""
    note = cache_folder.prepare()
    if note is None:
        return None
    tell(note)
    try:
        folder = tempfile.mkdtemp(prefix="edgellama-compiled-")
    except OSError:
        return None  # then NumPy goes on
    os.environ[cache_folder.VARIABLE] = folder
    return folder


def _discard(folder: str, compiler: Compiler) -> None:
    compiler.stop()
    shutil.rmtree(folder, ignore_errors=True)


def prove(kernels: Kernels) -> str:
    """Return the digest of what the kernels compute in this thread; EdgellamaError if it is wrong.

    Flushing of subnormals is a setting of each thread, so this runs where they will be used.
    """
    found = digest(kernels)
    packs_alike = row_codec.agrees(kernels.row_codec)
    release_code_of(COMPILER)  # these have called every kernel, so all are loaded
    release_freed()
    if found != EXPECTED_DIGEST or not packs_alike:
        raise EdgellamaError(
            f"the {kernels.name} kernels of this device do not compute what all others do "
            f"(digest {found[:12]}); try --backend numpy"
        )
    return found
