"""How kernels are compiled and kept: always without the GIL, never with fast-math."""

from __future__ import annotations

import importlib
import os
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import edgellama_kernels
import numpy as np
import pytest
from edgellama_kernels import cache_folder, target_choice, warming
from edgellama_kernels.compile_lock import one_at_a_time


def dispatchers() -> dict[str, object]:
    numba = pytest.importorskip("numba")
    found = {}
    for module in pkgutil.iter_modules(edgellama_kernels.__path__):
        members = vars(importlib.import_module(f"edgellama_kernels.{module.name}"))
        for name, member in members.items():
            if isinstance(member, numba.core.dispatcher.Dispatcher):
                found[f"{module.name}.{name}"] = member
    return found


def test_every_kernel_releases_the_gil_and_none_has_fast_math(compiled) -> None:
    found = dispatchers()
    assert len(found) > 20
    for name, dispatcher in found.items():
        options = dispatcher.targetoptions
        assert options.get("nogil") is True, name
        assert not options.get("fastmath"), name
        assert not options.get("parallel"), name


def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | variables
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )


def test_numba_is_imported_only_where_it_is_needed() -> None:
    done = run("import sys, edgellama_kernels as e; e.load('numpy'); print('numba' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr


def test_without_numba_numpy_serves(tmp_path: Path) -> None:
    done = run(
        "import sys; sys.modules['numba'] = None\n"
        "import edgellama_kernels as e\n"
        "print(e.load().name)\n"
        "try: e.load('numba')\n"
        "except e.BackendUnavailable as error: print(error)",
        NUMBA_CACHE_DIR=str(tmp_path),  # without machine code, which needs no numba
    )
    name, message = done.stdout.splitlines()
    assert name == "numpy"
    assert message.startswith("the numba kernels cannot run here")


def test_any_edit_of_any_source_changes_the_folder(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "b.py").write_text("y = 1\n")
    monkeypatch.setattr(cache_folder, "__file__", str(tmp_path / "a.py"))
    before = cache_folder.sources_hash()
    assert cache_folder.sources_hash() == before
    (tmp_path / "b.py").write_text("y = 2\n")
    edited = cache_folder.sources_hash()
    assert edited != before
    (tmp_path / "b.py").rename(tmp_path / "c.py")
    assert cache_folder.sources_hash() not in (before, edited)


def test_a_child_uses_its_parents_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert cache_folder.prepare() is None
    chosen = os.environ["NUMBA_CACHE_DIR"]
    assert Path(chosen).parent == tmp_path
    assert cache_folder.prepare() is None
    assert os.environ["NUMBA_CACHE_DIR"] == chosen


def test_kernels_are_kept_for_the_next_start(tmp_path: Path, compiled) -> None:
    code = (
        "import numpy as np, edgellama_kernels as e\n"
        "from edgellama_kernels import program\n"
        "k = e.load('numba'); x = np.ones((1, 8), np.float32); k.shrink(x)\n"
        "print(k.cache_note, len(program.run.stats.cache_hits))"
    )
    first, second = (run(code, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2))
    assert first.stdout.split() == ["None", "0"], first.stderr
    assert second.stdout.split() == ["None", "1"], second.stderr


@pytest.fixture
def kept_code(tmp_path: Path, compiled) -> Path:
    """Return the file of machine code in a folder where the kernels have been compiled."""
    compiled.shrink(np.ones((1, 8), np.float32))  # compiles, where nothing is kept yet
    folder = cache_folder.parent_folder() / (cache_folder.PREFIX + cache_folder.sources_hash())
    if folder.exists():  # what is compiled already is loaded
        shutil.copytree(folder, tmp_path / folder.name)
    done = run("from edgellama_kernels import warming; print(warming.main())", **own(tmp_path))
    assert done.stdout.strip() == "0", done.stderr
    (code,) = tmp_path.glob("*/compiled-*.o")
    return code


def own(folder: Path) -> dict[str, str]:
    return {"NUMBA_CACHE_DIR": str(folder)}


DIGEST = (
    "import sys, edgellama_kernels as e\n"
    "from edgellama_kernels.digest import EXPECTED_DIGEST, digest\n"
    "k = e.load('numba', 2)\n"
    "print(digest(k) == EXPECTED_DIGEST, e.row_codec.agrees(k.row_codec), 'numba' in sys.modules)"
)


def test_kept_machine_code_needs_no_numba(kept_code: Path) -> None:
    done = run(DIGEST, **own(kept_code.parents[1]))
    assert done.stdout.split() == ["True", "True", "False"], done.stderr


@pytest.mark.parametrize("harm", ["a bit flipped", "cut", "gone", "for another CPU"])
def test_machine_code_that_was_not_proven_is_not_loaded(kept_code: Path, harm: str) -> None:
    """LLVM would end the process; numba loads what it has kept instead."""
    code, variables = bytearray(kept_code.read_bytes()), own(kept_code.parents[1])
    code[len(code) // 2] ^= 1
    if harm == "a bit flipped":
        kept_code.write_bytes(code)
    elif harm == "cut":
        kept_code.write_bytes(code[:1000])
    elif harm == "gone":
        kept_code.unlink()
    else:
        kept_code.write_bytes(code)
        variables |= {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
        done = run("from edgellama_kernels import entries; print(entries.kept())", **variables)
        assert done.stdout.strip() == "None", done.stderr
        return
    done = run(DIGEST, **variables)
    assert done.stdout.split() == ["True", "True", "True"], done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="there each process compiles for itself")
@pytest.mark.parametrize("has_compiled", [True, False])
def test_whoever_comes_while_another_compiles_waits_for_it(
    tmp_path: Path, monkeypatch, has_compiled: bool
) -> None:
    pytest.importorskip("numba")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    code_file, compile_itself = warming.code_file(), "warming._compile = lambda: 77"
    code = f"from edgellama_kernels import warming; {compile_itself}; print(warming.main())"
    with one_at_a_time(code_file.with_suffix(".lock"), lambda: pytest.fail("nobody else")):
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        assert process.stderr.readline().startswith("waiting for another process")
        if has_compiled:
            note = "".join(f"{k}={v}\n" for k, v in target_choice.variables().items())
            code_file.with_suffix("").write_text(note)
    said, _ = process.communicate(timeout=60)
    assert said.strip() == ("0" if has_compiled else "77")


def test_where_machine_code_cannot_be_had_numba_loads(kept_code: Path) -> None:
    """What numba does not document may change: then the note names no code."""
    kept_code.unlink()
    done = run(
        "from edgellama_kernels import machine_code, warming\n"
        "def emit(kernels): raise AttributeError('no such thing')\n"
        "machine_code.emit = emit\n"
        "print(warming.main(), warming.is_warm(), repr(warming.kept_code_hash()))",
        **own(kept_code.parents[1]),
    )
    assert done.stdout.split() == ["0", "True", "''"], done.stderr
    assert "no such thing" in done.stderr
    assert not list(kept_code.parent.glob("*.o"))


def test_a_folder_that_cannot_be_written_is_said_and_kernels_run(tmp_path: Path, compiled) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a folder")
    done = run(
        "import numpy as np, edgellama_kernels as e\n"
        "k = e.load('numba'); print(k.cache_note); print(k.shrink(np.ones((1, 8), np.float32)))",
        NUMBA_CACHE_DIR=str(in_the_way),
    )
    assert done.stdout.startswith("compiled kernels cannot be kept in"), done.stderr
    assert "15360" in done.stdout
