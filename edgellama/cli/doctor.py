"""``edgellama doctor``: why devices do not see each other, and what to do."""

from __future__ import annotations

import json as json_module
from typing import TYPE_CHECKING, Final

import click

from edgellama.cli.options import as_json, key, key_choice, note, peer_addresses, peers

if TYPE_CHECKING:
    from edgellama.node.doctor.findings import Finding

EXIT_FOUND: Final = 1  # a check has failed
COLOURS: Final = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command(name="doctor", short_help="Say why devices do not see each other.")
@peers
@key
@as_json
@click.pass_context
def command(context: click.Context, peers: tuple[str, ...], key: str | None, as_json: bool) -> None:
    """Look at this device and its network, and say what is wrong and what to do about it.

    It changes nothing, and may run beside join or without any mesh. The exit code is 1 when a
    check fails, and 0 when all are well or only warn.
    """
    from edgellama.net.paths import StatePaths
    from edgellama.node.doctor.visit import visit

    if not as_json:
        note("looking at this device and its network, for some ten seconds")
    findings = visit(StatePaths.locate(), key_choice(key), peer_addresses(peers))
    failed = any(finding.level == "fail" for finding in findings)
    if as_json:
        checks = [finding.__dict__ for finding in findings]
        click.echo(json_module.dumps({"ok": not failed, "checks": checks}))
    else:
        for finding in findings:
            click.echo(line(finding))
    context.exit(EXIT_FOUND if failed else 0)


def line(finding: Finding) -> str:
    """Return a finding as one line."""
    level = click.style(f"{finding.level:4}", fg=COLOURS[finding.level])
    advice = f" -> {finding.advice}" if finding.advice else ""
    return f"{level}  {finding.check}: {finding.text}{advice}"
