"""Each promise of docs/security.md names tests: they exist, and are called so."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))


def test_files_that_are_named_exist() -> None:
    named = re.findall(r"`((?:tests/[\w/]*)?test_\w+\.py)`", PAGE)
    assert len(named) > 5
    known = {path.relative_to(ROOT).as_posix() for path in TESTS} | {path.name for path in TESTS}
    assert [name for name in named if name not in known] == []


def test_tests_that_are_named_exist() -> None:
    named = re.findall(r"`(test_\w+)(…?)`", PAGE)
    assert len(named) > 5
    text = "\n".join(path.read_text(encoding="utf-8") for path in TESTS)
    functions = re.findall(r"^def (test_\w+)", text, re.MULTILINE)
    for name, shortened in named:
        found = [
            each for each in functions if each == name or (shortened and each.startswith(name))
        ]
        assert found, f"docs/security.md names {name}, and there is no such test"


def test_every_promise_says_how_it_is_tested() -> None:
    table = PAGE.split("## What is promised")[1].split("## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(rows) >= 10
    for row in rows:
        assert "test" in row.split("|")[3] or "simulated" in row.split("|")[3], row
