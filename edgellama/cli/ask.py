"""``edgellama ask``: one prompt, its continuation on stdout and nothing else there."""

from __future__ import annotations

import json as json_module
import secrets
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from edgellama.cli.asker import open_asker
from edgellama.cli.options import as_json, backend, code, key, key_choice, kv, note, peers, threads
from edgellama.cli.status import wire_object
from edgellama.errors import MisuseError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgellama.node.alone import AnswerMessage
    from edgellama.wire.messages import Finished

TOKENS_DEFAULT = 256


@click.command(name="ask", short_help="Continue a prompt.")
@click.argument("prompt")
@click.option(
    "-n",
    "--max-tokens",
    type=click.IntRange(1, 1 << 17),
    default=TOKENS_DEFAULT,
    show_default=True,
    help="End the answer after this many tokens.",
)
@click.option("--temperature", type=float, default=0.0, help="0 (the default) is greedy.")
@click.option("--top-k", type=int, default=0, help="Only the k likeliest tokens; 0 is all.")
@click.option("--top-p", type=float, default=1.0, help="Only the likeliest up to this share.")
@click.option("--min-p", type=float, default=0.0, help="Only those this near to the likeliest.")
@click.option("--repeat-penalty", type=float, default=1.0, help="Above 1: repeats less.")
@click.option("--seed", type=int, help="Makes a sampled answer repeatable. Default: by chance.")
@click.option("--ignore-eos", is_flag=True, help="Go on after the model's end of text.")
@click.option("--system", metavar="TEXT", default="", help="What the model shall be or do.")
@click.option("--raw", is_flag=True, help="Give the prompt as it is, without a chat template.")
@click.option("--model", metavar="FILE", help="Answer on this device alone from this GGUF file.")
@click.option("--context", type=click.IntRange(16), help="With --model: positions to keep.")
@kv
@peers
@key
@code
@threads
@backend
@as_json
def command(
    prompt: str,
    max_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repeat_penalty: float,
    seed: int | None,
    ignore_eos: bool,
    system: str,
    raw: bool,
    model: str | None,
    context: int | None,
    kv_kind: str | None,
    peers: tuple[str, ...],
    key: str | None,
    code: str | None,
    threads: int | None,
    backend: str,
    as_json: bool,
) -> None:
    """Continue PROMPT (- reads it from stdin) and stream the answer to stdout.

    A mesh is found by mDNS or --peer. With --model this device answers alone; without a mesh
    and a model, the little demo model inside the package does.
    """
    from edgellama.model.sampling import validate
    from edgellama.node.asking import LocalSettings
    from edgellama.values import KV_F16, SamplingSettings
    from edgellama.wire.messages import Ask

    sampling = SamplingSettings(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repeat_penalty=repeat_penalty,
        seed=secrets.randbits(63) if seed is None else seed,
    )
    validate(sampling)
    _check_system(system, raw=raw)
    ask = Ask(
        *(secrets.randbits(64), sampling, max_tokens, ignore_eos, raw, ()),
        *(system, _today(), (), _text(prompt)),
    )
    local = LocalSettings(threads, backend, context, kv_kind or KV_F16)
    with open_asker(model, peers, key_choice(key, code), local) as asker:
        _show(asker.answer(ask), as_json=as_json)


def _check_system(system: str, *, raw: bool) -> None:
    from edgellama.wire.messages import SYSTEM_CHARACTERS_MAX

    if system and raw:
        raise MisuseError("--system is for the chat template, which --raw leaves out")
    if len(system) > SYSTEM_CHARACTERS_MAX:
        raise MisuseError(f"--system is longer than {SYSTEM_CHARACTERS_MAX} characters")
    try:
        system.encode()
    except UnicodeEncodeError:
        raise MisuseError("--system is not UTF-8 text") from None


def _today() -> int:
    return datetime.now().astimezone().toordinal()


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
