"""Asking in a session: what comes next in it, and what is kept of it on this device.

The record that goes on is the newest one, be it this device's own or one that the mesh has.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from edgellama.errors import EdgellamaError, MisuseError
from edgellama.wire.messages import (
    Conversation,
    Finished,
    Piece,
    bounded_history,
    with_turns_kept,
)
from edgellama.wire.session_messages import IDENTITY_DIGITS, LENGTH, OPEN, grown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edgellama.node.alone import AnswerMessage
    from edgellama.node.asking import Asker
    from edgellama.node.session_shelf import SessionShelf
    from edgellama.wire.messages import Ask, StatusReply

SAVE_S: Final = 0.5  # an answer under way is kept so often


class SessionAsking:
    """Questions in sessions, to ``asker``. ``tell`` is for what a person should know."""

    def __init__(self, asker: Asker, shelf: SessionShelf, tell: Callable[[str], None]) -> None:
        self._asker = asker
        self._shelf = shelf
        self._tell = tell

    def question(self, name: str, ask: Ask) -> Conversation:
        """Return the session with its next question; a new one where there is none yet.

        What was said before comes into the question's history, and where it says nothing of the
        system's text, that of the session counts.
        """
        before = self._shelf.find(name)
        status = self._asker.status()
        now_ms = time.time_ns() // 1_000_000
        if before is None:
            identity = secrets.token_hex(IDENTITY_DIGITS // 2)
            return _made(status, name, identity, 1, now_ms, ask)
        if not before.is_complete:
            count = len(before.ask.tokens)
            self._tell(f"the last answer in {name} was cut off after {count} tokens, and stays so")
        ask = replace(
            ask,
            history=bounded_history(before.turns()),
            system=ask.system or before.ask.system,
            raw=ask.raw or before.ask.raw,
        )
        number, asked_ms = before.question + 1, max(now_ms, before.asked_ms + 1)
        return _made(status, name, before.identity, number, asked_ms, ask)

    def resumed(self, name: str, tokens_max: int | None) -> Conversation:
        """Return the session whose last answer shall go on; without a name, the one cut off last.

        ``tokens_max`` lets an answer become longer than it was asked for. Raises MisuseError where
        there is nothing to resume, or the tokens of this model would not be those that belong.
        """
        name = name or self._cut_off_last()
        found = self._shelf.find(name)
        if found is None:
            raise MisuseError(f"no session {name} is known; edgellama sessions lists them")
        _check_same_tokens(found, self._asker.status())
        ask = replace(found.ask, request=secrets.randbits(64), attempt=0)
        state = found.state
        if tokens_max is not None and state in (OPEN, LENGTH):
            ask = replace(ask, tokens_max=tokens_max)
            state = OPEN if len(ask.tokens) < tokens_max else state
        return replace(found, ask=ask, state=state)

    def answer(self, conversation: Conversation) -> Iterator[AnswerMessage]:
        """Yield the rest of the answer, and keep the record on this device as it grows."""
        self._shelf.keep(conversation)
        ask, state, texts = conversation.ask, OPEN, [conversation.text]
        tokens = list(ask.tokens)
        saved_at = time.monotonic()
        try:
            for message in self._asker.answer(ask, session=conversation):
                if isinstance(message, Piece):
                    ask = with_turns_kept(ask, message.turns_kept)
                    tokens.extend(message.tokens)
                    texts.append(message.text)
                elif isinstance(message, Finished):
                    texts.append(message.text)
                    state = message.reason
                yield message
                if time.monotonic() >= saved_at + SAVE_S:
                    saved_at = time.monotonic()
                    self._keep(conversation, ask, tokens, texts, state)
        finally:
            self._keep(conversation, ask, tokens, texts, state)

    def _keep(
        self, asked: Conversation, ask: Ask, tokens: list[int], texts: list[str], state: str
    ) -> None:
        record = grown(asked, replace(ask, tokens=tuple(tokens)), "".join(texts))
        try:
            self._shelf.keep(replace(record, state=state))
        except EdgellamaError as error:
            self._tell(str(error))  # the answer goes on: it is worth more than its record

    def _cut_off_last(self) -> str:
        for summary in self._shelf.known().values():
            if summary.state == OPEN:
                return summary.name
        raise MisuseError("no interrupted answer is known; edgellama sessions lists what there is")


def _made(
    status: StatusReply, name: str, identity: str, number: int, asked_ms: int, ask: Ask
) -> Conversation:
    model = status.model[0] if status.model else None
    return Conversation(
        *(name, identity, number, asked_ms),
        *((model.root, model.name, status.kv_kind) if model else ("", "", "")),
        *(OPEN, "", ask),
    )


def _check_same_tokens(found: Conversation, status: StatusReply) -> None:
    """Refuse to go on with what another model, or another kind of KV cache, has begun."""
    model = status.model[0] if status.model else None
    if model is None or not found.model_root:
        return
    if model.root != found.model_root:
        raise MisuseError(
            f"the answer in {found.name} was begun by {found.model_name} and {model.name} would "
            "go on with something else: ask with that model, or ask in the session anew"
        )
    if found.kv_kind != status.kv_kind:
        raise MisuseError(
            f"the answer in {found.name} was begun with --kv {found.kv_kind}, and would go on "
            f"with other tokens under --kv {status.kv_kind}"
        )
