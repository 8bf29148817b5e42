"""Runs Python for ARM on this machine, emulated: a Debian userland, aarch64 wheels, qemu-user.

    python tools/aarch64.py set-up                          once; a minute or two, needs root
    python tools/aarch64.py run --cpu cortex-a76 -- -m pytest tests/kernels
    python tools/aarch64.py run --cpu cortex-a53 -- -m edgellama ask "Once upon a time"

Needs qemu-user-static and debootstrap, which root has installed from Debian's archive. A run
needs neither root, chroot nor binfmt: what Python starts by ``sys.executable`` is emulated too.
The emulated CPU's features are told to the compiler, because /proc/cpuinfo is this machine's.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
VARIABLE = "EDGELLAMA_AARCH64"  # a folder for the userland, else one in the user's cache
EMULATOR = "qemu-aarch64-static"
DEBIAN_SUITE, PYTHON = "bookworm", "3.11"  # the suite's own Python
GLIBC_MINORS = (36, 35, 34, 31, 28, 27, 24, 17)  # of manylinux wheels that run there
TEST_PACKAGES = ("gguf", "hypothesis", "pytest")
READY = "ready"  # a file that holds the key of a finished set-up
CPUS = {  # qemu's name -> what edgellama tells the compiler on such a device
    "cortex-a53": "+neon",  # Raspberry Pi 3
    "cortex-a72": "+neon",  # Raspberry Pi 4
    "cortex-a76": "+neon,+dotprod",  # Raspberry Pi 5
}
# What a child process starts is this script, which the kernel of any machine can run.
LAUNCHER = '#!/bin/sh\nexec {emulator} -cpu "$EDGELLAMA_AARCH64_CPU" -L {root} {python} "$@"\n'
SITE = (
    "import os, sys\nsys.executable = os.environ.get('EDGELLAMA_AARCH64_PYTHON', sys.executable)\n"
)


def folder() -> Path:
    """Return where the userland is kept."""
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return Path(chosen).absolute() / "edgellama-aarch64"  # what a set-up removes is its own
    import platformdirs

    return platformdirs.user_cache_path("edgellama", appauthor=False) / "aarch64"


def requirements() -> list[str]:
    """Return what edgellama and its kernels' tests need, as pip understands it."""
    with (CHECKOUT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    return sorted([*project["dependencies"], *TEST_PACKAGES])


def keys() -> dict[str, str]:
    """Return what each part of a set-up is made from, hashed, by the part's folder."""
    made_from = {
        "root": [DEBIAN_SUITE, PYTHON],
        "site": [PYTHON, *requirements(), LAUNCHER, SITE],
    }
    return {
        name: hashlib.sha256("\n".join(parts).encode()).hexdigest()
        for name, parts in made_from.items()
    }


def _is_ready(part: str) -> bool:
    note = folder() / part / READY
    return note.is_file() and note.read_text() == keys()[part]


def missing() -> str | None:
    """Return why nothing can be emulated here, in one line, or None."""
    if shutil.which(EMULATOR) is None:
        return f"{EMULATOR} is not installed"
    if not all(map(_is_ready, keys())):
        return "there is no aarch64 userland of today: run tools/aarch64.py set-up as root"
    return None


def set_up() -> None:
    """Make the userland and its packages, each unless it is there."""
    if shutil.which(EMULATOR) is None:
        _install("qemu-user-static")
    for part, make in (("root", _make_root), ("site", _make_site)):
        if not _is_ready(part):
            for old in (part, "kernels"):
                shutil.rmtree(folder() / old, ignore_errors=True)
            make(folder() / part)
            (folder() / part / READY).write_text(keys()[part])


def _make_root(root: Path) -> None:
    """Unpack Debian's packages; what their scripts would set up is not needed."""
    if shutil.which("debootstrap") is None:
        _install("debootstrap")
    stage = folder() / "debs"
    stage.mkdir(parents=True, exist_ok=True)
    _run(
        "debootstrap", "--arch=arm64", "--foreign", "--variant=minbase",
        f"--include=python{PYTHON},python3-distutils", DEBIAN_SUITE, str(stage),
    )  # fmt: skip
    for archive in sorted(stage.glob("var/cache/apt/archives/*.deb")):
        _run("dpkg-deb", "-x", str(archive), str(root))
    shutil.rmtree(stage)


def _make_site(site: Path) -> None:
    """Install wheels for the other machine, and what lets its Python start itself."""
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in GLIBC_MINORS]
    _run(
        sys.executable, "-m", "pip", "install", "--quiet", "--target", str(site),
        "--only-binary=:all:", "--implementation=cp", f"--python-version={PYTHON}",
        *platforms, "--platform=manylinux2014_aarch64", *requirements(),
    )  # fmt: skip
    root = folder() / "root"
    python = root / "usr" / "bin" / f"python{PYTHON}"
    launcher = folder() / "python"
    launcher.write_text(LAUNCHER.format(emulator=shutil.which(EMULATOR), root=root, python=python))
    launcher.chmod(0o755)
    (site / "sitecustomize.py").write_text(SITE)


def _install(package: str) -> None:
    if os.geteuid() != 0:
        sys.exit(f"install the package {package} first, or run this as root")
    _run("apt-get", "update", "-qq")
    _run("apt-get", "install", "-y", "-qq", "--no-install-recommends", package)


def _run(*command: str) -> None:
    """Run a step of the set-up; say what failed and end."""
    done = subprocess.run(
        command, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stdout}\nfailed with exit code {done.returncode}")


def command() -> list[str]:
    """Return the command that starts the emulated Python; its environment is ``environment``."""
    return [str(folder() / "python")]


def environment(cpu: str) -> dict[str, str]:
    """Return the environment of an emulated Python on such a CPU: a key of ``CPUS``."""
    root = folder()
    places = [root / "site", CHECKOUT, CHECKOUT / "kernels"]
    return os.environ | {
        "EDGELLAMA_AARCH64_CPU": cpu,
        "EDGELLAMA_AARCH64_PYTHON": str(root / "python"),
        "NUMBA_CPU_NAME": "generic",
        "NUMBA_CPU_FEATURES": CPUS[cpu],
        "NUMBA_CACHE_DIR": str(root / "kernels"),  # numba's own key holds the features
        "PYTHONPATH": os.pathsep.join(map(str, places)),
        "PYTHONDONTWRITEBYTECODE": "1",  # the checkout's belong to another Python
        "OPENBLAS_NUM_THREADS": "1",
    }


def main() -> int:
    """Set up or run; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("set-up", help="make the userland")
    run = commands.add_parser("run", help="run Python with the arguments that follow")
    run.add_argument("--cpu", choices=CPUS, default="cortex-a76")
    run.add_argument("arguments", nargs="*", help="after --, what Python is to run")
    options = parser.parse_args()
    if options.command == "set-up":
        set_up()
        return 0
    reason = missing()
    if reason is not None:
        sys.exit(reason)
    return subprocess.run(
        [*command(), *options.arguments], env=environment(options.cpu), check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
