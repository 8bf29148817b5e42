"""Does the built wheel work by itself? It gets nothing but what it says it needs.

    python tools/check_wheel.py

Builds the wheel, installs it into a fresh virtual environment outside the checkout, and asks the
demo model there. So a missing dependency, module or data file shows, which an editable install
and the extras for tests would hide.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMPORTS = (
    "import edgellama.cli, edgellama.node, edgellama_kernels as k; print(k.load('numpy').name)"
)
FOREIGN = ("tests/", "tools/", "docs/", "kernels/", "edgellama/testing/test_")


def run(folder: Path, *command: object) -> str:
    """Run a command in a folder with a state of its own; show it when it fails."""
    environment = {**os.environ, "EDGELLAMA_HOME": str(folder / "home")}
    environment.pop("PYTHONPATH", None)
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"{' '.join(words)}\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    """Build, install, run; end with exit code 1 and the reason when something is amiss."""
    with tempfile.TemporaryDirectory(prefix="edgellama-wheel-") as name:
        folder = Path(name)
        run(folder, sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT)
        (wheel,) = folder.glob("edgellama-*.whl")
        content = zipfile.ZipFile(wheel).namelist()
        for path in content:
            if path.startswith(FOREIGN):
                sys.exit(f"{wheel.name} holds {path}")
        if not any(path.endswith(".gguf") for path in content):
            sys.exit(f"{wheel.name} holds no demo model")
        venv.create(folder / "venv", with_pip=True)
        scripts = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
        run(folder, scripts / "python", "-m", "pip", "install", "-q", wheel)
        run(folder, scripts / "python", "-c", IMPORTS)
        run(folder, scripts / "edgellama", "--help")
        answer = run(folder, scripts / "edgellama", "ask", "-n", 8, "Once upon a time")
        if not answer.strip():
            sys.exit("the installed wheel answered nothing")
        print(f"{wheel.name}: {wheel.stat().st_size} bytes, {len(content)} files, answers")


if __name__ == "__main__":
    main()
