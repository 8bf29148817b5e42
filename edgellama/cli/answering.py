"""The options of whatever answers: how tokens are chosen, what the model shall be, who computes."""

from __future__ import annotations

import functools
import secrets
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from edgellama.cli.options import (
    Function,
    backend,
    code,
    key,
    key_choice,
    kv,
    model_file,
    note,
    peers,
    threads,
    transport,
)
from edgellama.cli.reaching import way_to_mesh
from edgellama.errors import MisuseError, NoMeshError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edgellama.node.admission import KeyChoice
    from edgellama.node.asking import Asker, LocalSettings
    from edgellama.values import SamplingSettings, Turn
    from edgellama.wire.messages import Ask


@dataclass(frozen=True)
class Answering:
    """What a person said about answers. ``model`` None means a mesh."""

    sampling: SamplingSettings
    tokens_max: int
    ignore_end: bool
    system: str
    model: str | None
    peers: tuple[str, ...]
    choice: KeyChoice
    local: LocalSettings
    wait_s: int = 0
    transport: str = "auto"

    def question(
        self, prompt: str, *, raw: bool = False, system: str = "", history: tuple[Turn, ...] = ()
    ) -> Ask:
        """Return what is asked, of today, under a number of its own."""
        from edgellama.wire.messages import Ask

        return Ask(
            *(secrets.randbits(64), self.sampling, self.tokens_max, self.ignore_end, raw, ()),
            *(system, datetime.now().astimezone().toordinal(), history, 0),
            *(0, self.wait_s, prompt),
        )


def answering(tokens_default: int | None) -> Callable[[Function], Function]:
    """Add the options; the function is given them as ``answering``.

    ``tokens_default`` None lets an answer be as long as the context allows.
    """

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def given(**options: Any) -> Any:
            said, rest = _taken(options)
            return function(answering=said, **rest)

        for option in reversed(_options(tokens_default)):
            given = option(given)
        return given  # type: ignore[return-value]

    return decorate


def _options(tokens_default: int | None) -> list[Callable[[Any], Any]]:
    return [
        click.option(
            "-n",
            "--max-tokens",
            type=click.IntRange(1, 1 << 17),
            default=tokens_default,
            show_default=tokens_default is not None,
            help="End the answer after this many tokens.",
        ),
        click.option("--temperature", type=float, default=0.0, help="0 (the default) is greedy."),
        click.option("--top-k", type=int, default=0, help="Only the k likeliest tokens; 0 is all."),
        click.option(
            "--top-p", type=float, default=1.0, help="Only the likeliest up to this share."
        ),
        click.option(
            "--min-p", type=float, default=0.0, help="Only those this near to the likeliest."
        ),
        click.option("--repeat-penalty", type=float, default=1.0, help="Above 1: repeats less."),
        click.option(
            "--seed", type=int, help="Makes a sampled answer repeatable. Default: by chance."
        ),
        click.option("--ignore-eos", is_flag=True, help="Go on after the model's end of text."),
        click.option("--system", metavar="TEXT", default="", help="What the model shall be or do."),
        click.option(
            "--model", metavar="FILE", help="Answer on this device alone from this GGUF file."
        ),
        click.option("--context", type=click.IntRange(16), help="With --model: positions to keep."),
        click.option(
            "--wait",
            metavar="SECONDS",
            type=click.IntRange(0, 65535),
            default=0,
            help="How long to wait for devices that are missing; an answer that has begun waits "
            "2 minutes at least.",
        ),
        *(kv, peers, transport, key, code, threads, backend),
    ]


def _taken(options: dict[str, Any]) -> tuple[Answering, dict[str, Any]]:
    """Return what the options above say, checked, and the other options."""
    from edgellama.model.sampling import validate
    from edgellama.node.asking import LocalSettings
    from edgellama.values import KV_F16, SamplingSettings
    from edgellama.wire.messages import TOKENS_MAX

    take = options.pop
    seed = take("seed")
    sampling = SamplingSettings(
        temperature=take("temperature"),
        top_k=take("top_k"),
        top_p=take("top_p"),
        min_p=take("min_p"),
        repeat_penalty=take("repeat_penalty"),
        seed=secrets.randbits(63) if seed is None else seed,
    )
    validate(sampling)
    said = Answering(
        sampling,
        take("max_tokens") or TOKENS_MAX,
        take("ignore_eos"),
        checked_system(take("system"), "--system"),
        take("model"),
        take("peers"),
        key_choice(take("key"), take("code")),
        LocalSettings(take("threads"), take("backend"), take("context"), take("kv_kind") or KV_F16),
        take("wait"),
        take("transport"),
    )
    return said, options


def checked_system(text: str, name: str) -> str:
    """Return the text; MisuseError where it is too long or not UTF-8."""
    from edgellama.wire.messages import SYSTEM_CHARACTERS_MAX

    if len(text) > SYSTEM_CHARACTERS_MAX:
        raise MisuseError(f"{name} is longer than {SYSTEM_CHARACTERS_MAX} characters")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise MisuseError(f"{name} is not UTF-8 text") from None
    return text


@contextmanager
def open_asker(said: Answering) -> Iterator[Asker]:
    """Open the way to answers.

    With a model it is this device alone. Without one a mesh is looked for; where there is none,
    and nothing was said of one, the demo model answers.
    """
    from edgellama.net.paths import StatePaths
    from edgellama.node.asking import device_asker, mesh_asker

    paths = StatePaths.locate()
    with ExitStack() as stack:
        if said.model is not None:
            model = model_file(said.model)
            yield stack.enter_context(device_asker(model, said.local, paths, note))
            return
        way = way_to_mesh(said.peers, said.choice)
        asker: Asker
        try:
            asker = stack.enter_context(mesh_asker(*way, said.transport))
        except NoMeshError as error:
            if said.peers or way.key:
                raise
            note(str(error))
            from edgellama.demo import demo_model_path

            note("the small demo model inside edgellama answers, on this device alone")
            asker = stack.enter_context(device_asker(demo_model_path(), said.local, paths, note))
        yield asker
