"""``edgellama tokenize``: the token ids that a model sees for a text."""

from __future__ import annotations

import json as json_module
import sys

import click

from edgellama.cli.options import as_json, model_file
from edgellama.errors import MisuseError

TEXT_BYTES_MAX = 64 << 20


@click.command(name="tokenize", short_help="Print the token ids of a text.")
@click.argument("text")
@click.option("--model", required=True, metavar="FILE", help="The GGUF file of the model.")
@click.option("--no-special", is_flag=True, help="No BOS before and no EOS after the text.")
@click.option("--parse-special", is_flag=True, help="Names such as </s> mean the control tokens.")
@as_json
def command(text: str, model: str, no_special: bool, parse_special: bool, as_json: bool) -> None:
    """Print the token ids of TEXT (- reads it from stdin) with spaces between, on one line."""
    from edgellama.model.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_gguf(model_file(model))
    tokens = tokenizer.encode(_read(text), not no_special, parse_special)
    if as_json:
        pieces = [tokenizer.piece(token) for token in tokens]
        click.echo(json_module.dumps({"tokens": tokens, "pieces": pieces}))
    else:
        click.echo(" ".join(map(str, tokens)))


def _read(text: str) -> str:
    try:
        data = sys.stdin.buffer.read(TEXT_BYTES_MAX + 1) if text == "-" else text.encode()
        if len(data) > TEXT_BYTES_MAX:
            raise MisuseError(f"the text is longer than {TEXT_BYTES_MAX} bytes")
        return data.decode()
    except (UnicodeDecodeError, UnicodeEncodeError):
        raise MisuseError("the text is not UTF-8") from None
