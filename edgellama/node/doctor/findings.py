"""What ``edgellama doctor`` says: one line a check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

OK, WARN, FAIL = LEVELS = ("ok", "warn", "fail")
"""All is well; it works but not as it could, or may not work for others; it does not work."""

DAY_S: Final = 86_400


@dataclass(frozen=True)
class Finding:
    """The outcome of one check: what was seen, and what to do about it where anything is."""

    check: str
    level: str
    text: str
    advice: str = ""


def fine(check: str, text: str) -> Finding:
    """Return a finding with which all is well."""
    return Finding(check, OK, text)


def worst(findings: list[Finding]) -> str:
    """Return the worst level of all."""
    return max((finding.level for finding in findings), key=LEVELS.index, default=OK)
