"""The house rules that no other tool checks: sizes, names, words, imports at start, the README."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
SOURCE_FOLDERS = ("edgellama", "kernels", "tools", "tests")
SOURCES = sorted(path for folder in SOURCE_FOLDERS for path in (ROOT / folder).rglob("*.py"))
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("kernels/*.md")])

FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 500
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "manager", "common"}

# (path, function or "" for the whole file) -> why it may be longer.
LONGER_ALLOWED: dict[tuple[str, str], str] = {}

# Files speak of the project: not of one person's folders, a tracker's numbers or one registry.
FORBIDDEN_WORDS = re.compile(
    r"(?<![\w.~}])/(?:work|root|home/\w+)/|\bissue #?\d|pypi\.org|python(?:hosted)", re.IGNORECASE
)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_source_file(path: Path) -> None:
    name, text = name_of(path), path.read_text(encoding="utf-8")
    assert path.stem not in FORBIDDEN_NAMES, "name the idea that the file is about"
    lines = len(text.splitlines())
    assert lines <= FILE_LINES_MAX or (name, "") in LONGER_ALLOWED, f"{name} has {lines} lines"
    tree = ast.parse(text)
    for function in functions(tree):
        lines = (function.end_lineno or 0) - function.lineno + 1
        allowed = (name, function.name) in LONGER_ALLOWED
        assert lines <= FUNCTION_LINES_MAX or allowed, f"{function.name} has {lines} lines"
    if not name.startswith("tests/"):
        assert ast.get_docstring(tree), f"{name} does not say what it is for"


def test_no_two_tests_share_a_name() -> None:
    """pytest imports tests by their names alone, and collects none when two are the same."""
    names = [path.name for path in SOURCES if path.name.startswith("test_")]
    assert [name for name in names if names.count(name) > 1] == []


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_exceptions_are_still_needed() -> None:
    for (name, function), reason in LONGER_ALLOWED.items():
        assert reason
        tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
        if function:
            (node,) = (node for node in functions(tree) if node.name == function)
            assert (node.end_lineno or 0) - node.lineno + 1 > FUNCTION_LINES_MAX
        else:
            assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) > FILE_LINES_MAX


OTHER_TEXTS = [ROOT / "pyproject.toml", ROOT / ".ci" / "run"]


@pytest.mark.parametrize("path", [*SOURCES, *PAGES, *OTHER_TEXTS], ids=name_of)
def test_words(path: Path) -> None:
    found = FORBIDDEN_WORDS.search(path.read_text(encoding="utf-8"))
    assert found is None, found


@pytest.mark.parametrize("path", sorted((ROOT / "kernels").rglob("*.py")), ids=name_of)
def test_every_compiled_kernel_lets_go_of_the_interpreter(path: Path) -> None:
    """One kernel that keeps the lock for 100 ms delays every acknowledgement by as much."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            for decorator in node.decorator_list:
                called = decorator.func if isinstance(decorator, ast.Call) else decorator
                if ast.unparse(called).rpartition(".")[2] in {"njit", "jit"}:
                    check_compiled(decorator, f"{name_of(path)}: {node.name}")


def check_compiled(decorator: ast.expr, where: str) -> None:
    given = ast.unparse(decorator)
    assert isinstance(decorator, ast.Call), f"{where} says nothing of nogil"
    options = {keyword.arg: ast.unparse(keyword.value) for keyword in decorator.keywords}
    if None not in options:  # with **OPTIONS the kernels' own tests look at the compiled function
        assert options.get("nogil") == "True", f"{where}: {given}"
    assert "parallel" not in options, where
    assert "fastmath" not in options, where


HEAVY = ("numpy", "numba", "zeroconf", "lz4", "rich", "edgellama_kernels")


@pytest.mark.parametrize("arguments", [["--help"], ["ask", "--help"], ["--version"]], ids=" ".join)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys, edgellama.cli\n"
        f"sys.argv = ['edgellama', *{arguments!r}]\n"
        "try: edgellama.cli.main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def commands() -> dict[str, click.Command]:
    """Return every command that the command line knows, by name."""
    import edgellama.cli

    groups = [value for value in vars(edgellama.cli).values() if isinstance(value, click.Group)]
    assert groups, "edgellama.cli holds no click group"
    context = click.Context(groups[0])
    found = {
        name: groups[0].get_command(context, name) for name in groups[0].list_commands(context)
    }
    return {name: command for name, command in found.items() if command is not None}


def test_the_readme_names_every_command_and_option() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, command in commands().items():
        assert f"`edgellama {name}" in readme or f"edgellama {name} " in readme
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                longest = max(parameter.opts, key=len)
                assert re.search(rf"`[^`\n]*{longest}\b", readme), f"{name} {longest}"


LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_was_merged_to_its_end(page: Path) -> None:
    assert not re.search(r"^(<{7} |={7}$|>{7} )", page.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{name_of(page)} points to {target}"
