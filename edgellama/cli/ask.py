"""``edgellama ask``: one prompt, its continuation on stdout and nothing else there."""

from __future__ import annotations

import json as json_module
import sys
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from edgellama.cli.answering import Answering, answering, open_asker
from edgellama.cli.options import as_json, note
from edgellama.cli.status import wire_object
from edgellama.errors import MisuseError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgellama.node.alone import AnswerMessage
    from edgellama.node.asking import Asker
    from edgellama.node.session_asking import SessionAsking
    from edgellama.wire.messages import Conversation, Finished

TOKENS_DEFAULT = 256
SETTLED = (
    *("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed", "ignore_eos", "system"),
    "raw",
)


@click.command(name="ask", short_help="Continue a prompt.")
@click.argument("prompt", required=False)
@answering(TOKENS_DEFAULT)
@click.option("--raw", is_flag=True, help="Give the prompt as it is, without a chat template.")
@click.option("--session", metavar="NAME", help="Go on with this conversation, and keep it.")
@click.option(
    "--resume",
    metavar="[NAME]",
    is_flag=False,
    flag_value="",
    help="Go on with the answer in this session that was cut off; with the last such one.",
)
@as_json
def command(
    prompt: str | None,
    answering: Answering,
    raw: bool,
    session: str | None,
    resume: str | None,
    as_json: bool,
) -> None:
    """Continue PROMPT (- reads it from stdin) and stream the answer to stdout.

    A mesh is found by mDNS or --peer. With --model this device answers alone; without a mesh
    and a model, the little demo model inside the package does.

    In a session each question brings along what was said before. It is kept on this device and
    on two of the mesh, and goes on from any.
    """
    if resume is not None:
        _check_resumed_alone(prompt, session)
        with open_asker(answering) as asker:
            _resume(asker, resume, answering.tokens_max, as_json=as_json)
        return
    if prompt is None:
        raise MisuseError("give a PROMPT, or --resume to go on with an answer that was cut off")
    if answering.system and raw:
        raise MisuseError("--system is for the chat template, which --raw leaves out")
    question = answering.question(_text(prompt), raw=raw, system=answering.system)
    if session is not None:
        from edgellama.node.session_shelf import checked_name

        checked_name(session)
    with open_asker(answering) as asker:
        if session is None:
            _show(asker.answer(question), as_json=as_json)
        else:
            sessions = _sessions(asker)
            asked = sessions.question(session, question)
            _show(sessions.answer(asked), as_json=as_json, asked=asked)


def _sessions(asker: Asker) -> SessionAsking:
    from edgellama.net.paths import StatePaths
    from edgellama.net.session_files import SessionFiles
    from edgellama.node.session_asking import SessionAsking
    from edgellama.node.session_shelf import SessionShelf

    shelf = SessionShelf(SessionFiles(StatePaths.locate().sessions), asker)
    return SessionAsking(asker, shelf, note)


def _check_resumed_alone(prompt: str | None, session: str | None) -> None:
    """Refuse what --resume takes from the session: MisuseError names it."""
    if prompt is not None:
        raise MisuseError("--resume goes on with an answer: it takes no PROMPT")
    if session is not None:
        raise MisuseError("--resume takes the session's name itself: leave --session out")
    context = click.get_current_context()
    for name in SETTLED:
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise MisuseError(
                f"--{name.replace('_', '-')} was settled when the answer began: --resume leaves it "
                "as it was"
            )


def _resume(asker: Asker, name: str, tokens_max: int, *, as_json: bool) -> None:
    """Show what there is of an answer, and the rest as it comes."""
    source = click.get_current_context().get_parameter_source("max_tokens")
    longer = tokens_max if source is not ParameterSource.DEFAULT else None
    sessions = _sessions(asker)
    asked = sessions.resumed(name, longer)
    known = len(asked.ask.tokens)
    if asked.is_complete:
        note(f"the answer in {asked.name} is complete")
        _show(iter(()), as_json=as_json, asked=asked)
        return
    note(f"going on in {asked.name} after {known} tokens")
    _show(sessions.answer(asked), as_json=as_json, asked=asked)


def _text(prompt: str) -> str:
    """Return the prompt, read from stdin where it is ``-``; MisuseError where it cannot be."""
    from edgellama.wire.messages import PROMPT_BYTES_MAX

    try:
        data = sys.stdin.buffer.read(PROMPT_BYTES_MAX + 1) if prompt == "-" else prompt.encode()
        if len(data) > PROMPT_BYTES_MAX:
            raise MisuseError(f"the prompt is longer than {PROMPT_BYTES_MAX} bytes")
        return data.decode()
    except (UnicodeDecodeError, UnicodeEncodeError):
        raise MisuseError("the prompt is not UTF-8 text") from None


def _show(
    messages: Iterator[AnswerMessage], *, as_json: bool, asked: Conversation | None = None
) -> None:
    """Stream the answer to stdout, or print one object when it is complete.

    What there is of it in the session comes first.
    """
    from edgellama.wire.messages import Notice, Piece

    text = [asked.text] if asked else []
    tokens = list(asked.ask.tokens) if asked else []
    end: Finished | None = None
    if asked and not as_json:
        sys.stdout.write(asked.text)
        sys.stdout.flush()
    for message in messages:
        if isinstance(message, Notice):
            note(message.text)
            continue
        if isinstance(message, Piece):
            tokens.extend(message.tokens)
        else:
            end = message
        text.append(message.text)
        if not as_json:
            sys.stdout.write(message.text)
            sys.stdout.flush()
    if as_json:
        answer = {"text": "".join(text), "tokens": tokens, **_end_object(asked, tokens, end)}
        sys.stdout.write(json_module.dumps(answer))
    sys.stdout.write("\n")
    sys.stdout.flush()


def _end_object(
    asked: Conversation | None, tokens: list[int], end: Finished | None
) -> dict[str, Any]:
    """Return what ``ask --json`` prints beside text and tokens; little where nothing was asked."""
    known = len(asked.ask.tokens) if asked else 0
    session: dict[str, Any] = {}
    if asked:
        about = {"name": asked.name, "question": asked.question, "tokens_known": known}
        session = {"session": about}
    if end is None:
        return {"finish_reason": asked.state if asked else "", **session}
    seconds = end.predicted_us / 1e6
    # The first token comes out of the prompt's own pass.
    made = len(tokens) - known - 1
    return {
        "prompt_tokens": list(end.prompt_tokens),
        "finish_reason": end.reason,
        "timings": {
            "prompt_ms": end.prompt_us / 1e3,
            "predicted_ms": end.predicted_us / 1e3,
            "predicted_per_second": made / seconds if seconds > 0 else 0.0,
        },
        "route": [
            {"node": each.node, "name": each.name, "layers": list(each.span)} for each in end.route
        ],
        "wire": wire_object(end.counters),
        **session,
    }
