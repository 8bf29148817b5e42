"""The ``edgellama`` command: one verb a file, each thin, nothing heavy imported before it runs."""

from __future__ import annotations

import importlib
import os
import sys
import traceback

import click

from edgellama import __version__
from edgellama.errors import EXIT_FAILED, EXIT_MISUSE, EdgellamaError

VERBS = (
    "join",
    "ask",
    "chat",
    "sessions",
    "status",
    "invite",
    "devices",
    "forget",
    "plan",
    "doctor",
    "tokenize",
    "pull",
    "models",
    "perplexity",
    "bench",
    "quantize",
)
EXIT_INTERRUPTED = 130  # as shells say it of Ctrl-C


class _Verbs(click.Group):
    """Imports a verb's module when it is named, so that ``--help`` stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"edgellama.cli.{cmd_name}").command
        return command


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgellama")
def cli() -> None:
    """Devices on a home network answer together from one language model."""


def main() -> None:
    """Run the command line and end the process with the documented exit code."""
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Exit as end:
        code = end.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = EXIT_INTERRUPTED
    except click.ClickException as error:
        _say(error.format_message())
        code = EXIT_MISUSE
    except EdgellamaError as error:
        _say(str(error))
        code = error.exit_code
    except BrokenPipeError:
        # Whoever read the answer has gone; there is nothing left to flush to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_FAILED
    except MemoryError:
        _say("this device has run out of memory; offer less with --ram")
        code = EXIT_FAILED
    except Exception:
        _say(f"a fault of edgellama itself; please report {_write_report()}")
        code = EXIT_FAILED
    sys.exit(code if isinstance(code, int) else 0)


def _say(text: str) -> None:
    click.echo(f"edgellama: {' '.join(text.split())}", err=True)


def _write_report() -> str:
    """Keep the traceback where a person can find it; return where."""
    from edgellama.net.paths import StatePaths

    try:
        path = StatePaths.locate().state / "fault.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"edgellama {__version__}\n{traceback.format_exc()}", encoding="utf-8")
    except OSError:
        return traceback.format_exc().strip().splitlines()[-1]
    return str(path)
