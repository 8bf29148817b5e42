"""The processes in which kernels are compiled: one attempt, and where it dies the next."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Final

from edgellama_kernels import target_choice, warming

if TYPE_CHECKING:
    from pathlib import Path

COMPILE_WAIT_S: Final = 600.0  # a slow device needs a minute


class Compiler:
    """Compiles in the background from the moment it is made; ``report`` takes what it says."""

    def __init__(self, report: Path) -> None:
        self._report = report
        self._attempts = target_choice.attempts()
        report.write_bytes(b"")
        self.is_stopped = False
        self._process = self._start(self._attempts[0])

    def wait(self, or_not_kept: bool = False) -> bool:
        """Return whether the kernels are compiled and proven; this process may then load them.

        With ``or_not_kept`` also when they could not be kept, and have to be compiled again. A
        compiler that takes too long is left alone: its work is there at the next start.
        """
        for changes in self._attempts:
            if changes is not self._attempts[0]:
                self._process = self._start(changes)
            try:
                code = self._process.wait(COMPILE_WAIT_S)
            except subprocess.TimeoutExpired:
                return False
            if code == 0 or (code == warming.NOT_KEPT and or_not_kept):
                os.environ.update(changes)  # numba here must look for what was compiled there
                return True
            if code == warming.NOT_KEPT or self.is_stopped:
                return False
            with self._report.open("ab") as report:
                report.write(f"the compiler ended with code {code}\n".encode())
        return False

    def stop(self) -> None:
        """End it: nobody will load what it compiles."""
        self.is_stopped = True
        self._process.kill()
        self._process.wait()

    def _start(self, changes: dict[str, str]) -> subprocess.Popen[bytes]:
        """Start it apart from this process, so that Ctrl-C here does not waste its work."""
        with self._report.open("ab") as report:
            return subprocess.Popen(  # noqa: S603 (our own module, no shell)
                warming.command(),
                env=os.environ | changes,
                stdin=subprocess.DEVNULL,
                stdout=report,
                stderr=report,
                start_new_session=True,
            )
