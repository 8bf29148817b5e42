"""``edgellama ask``: one prompt, its continuation on stdout and nothing else there."""

from __future__ import annotations

import json as json_module
import sys
from typing import TYPE_CHECKING, Any

import click

from edgellama.cli.answering import Answering, answering, open_asker
from edgellama.cli.options import as_json, note
from edgellama.cli.status import wire_object
from edgellama.errors import MisuseError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgellama.node.alone import AnswerMessage
    from edgellama.wire.messages import Finished

TOKENS_DEFAULT = 256


@click.command(name="ask", short_help="Continue a prompt.")
@click.argument("prompt")
@answering(TOKENS_DEFAULT)
@click.option("--raw", is_flag=True, help="Give the prompt as it is, without a chat template.")
@as_json
def command(prompt: str, answering: Answering, raw: bool, as_json: bool) -> None:
    """Continue PROMPT (- reads it from stdin) and stream the answer to stdout.

    A mesh is found by mDNS or --peer. With --model this device answers alone; without a mesh
    and a model, the little demo model inside the package does.
    """
    if answering.system and raw:
        raise MisuseError("--system is for the chat template, which --raw leaves out")
    question = answering.question(_text(prompt), raw=raw, system=answering.system)
    with open_asker(answering) as asker:
        _show(asker.answer(question), as_json=as_json)


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


def _show(messages: Iterator[AnswerMessage], *, as_json: bool) -> None:
    """Stream the answer to stdout, or print one object when it is complete."""
    from edgellama.wire.messages import Notice, Piece

    text: list[str] = []
    tokens: list[int] = []
    for message in messages:
        if isinstance(message, Notice):
            note(message.text)
            continue
        if isinstance(message, Piece):
            tokens.extend(message.tokens)
        text.append(message.text)
        if not as_json:
            sys.stdout.write(message.text)
            sys.stdout.flush()
        if not isinstance(message, Piece):
            end = message
    if as_json:
        sys.stdout.write(json_module.dumps(_answer_object("".join(text), tokens, end)))
    sys.stdout.write("\n")
    sys.stdout.flush()


def _answer_object(text: str, tokens: list[int], end: Finished) -> dict[str, Any]:
    """Return the object that ``ask --json`` prints."""
    seconds = end.predicted_us / 1e6
    return {
        "text": text,
        "tokens": tokens,
        "prompt_tokens": list(end.prompt_tokens),
        "finish_reason": end.reason,
        "timings": {
            "prompt_ms": end.prompt_us / 1e3,
            "predicted_ms": end.predicted_us / 1e3,
            # The first token comes out of the prompt's own pass.
            "predicted_per_second": (len(tokens) - 1) / seconds if seconds > 0 else 0.0,
        },
        "route": [
            {"node": each.node, "name": each.name, "layers": list(each.span)} for each in end.route
        ],
        "wire": wire_object(end.counters),
    }
