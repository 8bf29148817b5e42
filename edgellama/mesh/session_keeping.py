"""A member's part in keeping conversations: it records what it answers, and what others copy to it.

The member that is asked records the answer as it grows, and copies the record to one other member.
So it is on two disks beside the asker's own, and whoever asks for it later is given the newest
that any member has.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from edgellama.mesh.effects import Outbox, RemoveConversation, StoreConversation
from edgellama.wire.messages import (
    Conversation,
    Failure,
    Finished,
    ForgetSession,
    KeepSession,
    Notice,
    Piece,
    SessionForgotten,
    SessionQuery,
    SessionReply,
    Summary,
    with_turns_kept,
)
from edgellama.wire.session_messages import SUMMARIES_MAX, SessionMessage, latest

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Sequence

    from edgellama.values import NodeId
    from edgellama.wire.messages import Ask

KEPT_MAX: Final = 64  # sessions; the ones asked longest ago go first
KEPT_CHARACTERS_MAX: Final = 8 << 20  # of all of them together: a phone holds them in memory
SAVE_S: Final = 1.0  # an answer under way is recorded so often
SAVE_CHARACTERS_PER_S: Final = 64 << 10  # a long record is copied to another device less often
GATHER_S: Final = 1.0  # members that have not answered by then are not waited for
GATHERS_MAX: Final = 64


@dataclass
class _Watched:
    """An answer that is recorded while it is made."""

    conversation: Conversation  # as it was asked
    asker: NodeId
    ask: Ask
    tokens: list[int]
    texts: list[str]
    saved_at: float = 0.0
    save_at: float | None = None  # when what came since then is recorded

    def record(self, state: str, rest: str = "") -> Conversation:
        text = "".join([*self.texts, rest])
        ask = replace(self.ask, tokens=tuple(self.tokens))
        return replace(self.conversation, state=state, text=text, ask=ask)


@dataclass
class _Gather:
    """A question to all members on behalf of somebody."""

    asker: NodeId
    asked: SessionQuery | ForgetSession
    waiting: set[NodeId]
    deadline: float
    found: Conversation | None = None
    known: list[Summary] = field(default_factory=list)
    nodes: list[NodeId] = field(default_factory=list)


def size_of(conversation: Conversation) -> int:
    """Return about how many characters a record takes."""
    ask = conversation.ask
    turns = sum(len(turn.content) for turn in ask.history)
    return turns + len(ask.prompt) + len(ask.system) + len(conversation.text) + 4 * len(ask.tokens)


class SessionKeeping:
    """The conversations that one member keeps; ``kept`` are those of its earlier lives."""

    def __init__(
        self,
        me: NodeId,
        outbox: Outbox,
        connected: Callable[[], Sequence[NodeId]],
        kept: Iterable[Conversation],
    ) -> None:
        self._me = me
        self._outbox = outbox
        self._connected = connected
        self._kept: dict[str, Conversation] = {}
        for each in kept:
            if each.is_newer_than(self._kept.get(each.name)):
                self._kept[each.name] = each
        self._watched: dict[int, _Watched] = {}  # by request
        self._gathers: dict[int, _Gather] = {}
        self._ids = itertools.count(1)

    def begin(self, asker: NodeId, conversation: Conversation, now: float) -> None:
        """Record the answer to the conversation's question from now on."""
        ask = conversation.ask
        watched = _Watched(conversation, asker, ask, list(ask.tokens), [conversation.text])
        self._watched[ask.request] = watched
        self._save(watched, conversation.state, now)

    def said(self, message: Piece | Finished | Failure | Notice, now: float) -> None:
        """Take note of what the asker is told."""
        watched = self._watched.get(message.request)
        if watched is None:
            return
        if isinstance(message, Piece):
            watched.ask = with_turns_kept(watched.ask, message.turns_kept)
            watched.tokens.extend(message.tokens)
            watched.texts.append(message.text)
            if watched.save_at is None:
                pause_s = size_of(watched.conversation) / SAVE_CHARACTERS_PER_S
                watched.save_at = max(now, watched.saved_at + max(SAVE_S, pause_s))
        elif isinstance(message, Finished):
            del self._watched[message.request]
            self._save(watched, message.reason, now, message.text)
        elif isinstance(message, Failure):
            self._end(message.request, now)

    def stopped(self, asker: NodeId, request: int, now: float) -> None:
        """Take note that the asker does not want the rest of an answer."""
        watched = self._watched.get(request)
        if watched is not None and watched.asker == asker:
            self._end(request, now)

    def asker_gone(self, asker: NodeId, *, left: bool, now: float) -> None:
        """Take note that an asker is gone; the answers of one that did not leave go on a while."""
        for request, watched in list(self._watched.items()):
            if watched.asker == asker and left:
                self._end(request, now)
            elif watched.asker == asker:
                self._save(watched, watched.conversation.state, now)

    def leave(self, now: float) -> None:
        """Record every answer under way: this member goes."""
        for request in list(self._watched):
            self._end(request, now)

    def keep(self, conversation: Conversation) -> None:
        """Keep another member's record, unless there is a newer one here."""
        if conversation.is_newer_than(self._kept.get(conversation.name)):
            self._kept[conversation.name] = conversation
            self._outbox.put(StoreConversation(conversation))
            self._bound()

    def member_says(self, node: NodeId, message: SessionMessage, now: float) -> None:
        """Keep what a member copies to here, answer it from what is here, hear its answers."""
        match message:
            case KeepSession():
                self.keep(message.conversation)
            case SessionQuery():
                self._outbox.send(node, self._reply(message))
            case ForgetSession():
                nodes = (self._me,) if self._drop(message.name) else ()
                self._outbox.send(node, SessionForgotten(message.request, nodes))
            case SessionReply() | SessionForgotten():
                self._replied(node, message, now)

    def guest_asks(self, node: NodeId, message: SessionQuery | ForgetSession, now: float) -> None:
        """Answer a guest from what all members have, or have all of them forget a session."""
        waiting = set(self._connected())
        gather = _Gather(node, message, waiting, now + GATHER_S)
        if isinstance(message, ForgetSession):
            gather.nodes += [self._me] if self._drop(message.name) else []
        else:
            own = self._reply(message)
            gather.found = own.found[0] if own.found else None
            gather.known += own.known
        while len(self._gathers) >= GATHERS_MAX:
            self._answer(next(iter(self._gathers)))
        number = next(self._ids)
        self._gathers[number] = gather
        for member in sorted(waiting):
            self._outbox.send(member, replace(message, request=number))
        self._finish_if_complete(now)

    def _replied(self, node: NodeId, message: SessionReply | SessionForgotten, now: float) -> None:
        """Add what a member answers."""
        gather = self._gathers.get(message.request)
        if gather is None or node not in gather.waiting:
            return
        gather.waiting.discard(node)
        if isinstance(message, SessionForgotten):
            gather.nodes.extend(message.nodes[:1])
        else:
            gather.known.extend(message.known)
            for each in message.found:
                if each.name == gather.asked.name and each.is_newer_than(gather.found):
                    gather.found = each
        self._finish_if_complete(now)

    def member_gone(self, node: NodeId, now: float) -> None:
        """Wait no longer for a member."""
        for gather in self._gathers.values():
            gather.waiting.discard(node)
        self._finish_if_complete(now)

    def next_timer(self) -> float | None:
        """Return when ``handle_timer`` wants to be called."""
        due = [each.save_at for each in self._watched.values() if each.save_at is not None]
        return min([*due, *(each.deadline for each in self._gathers.values())], default=None)

    def handle_timer(self, now: float, requests: Container[int]) -> None:
        """Record answers under way, and answer for those members that have answered.

        ``requests`` are those of which the gateway has not told the end.
        """
        for request, watched in list(self._watched.items()):
            if request not in requests:
                self._end(request, now)
            elif watched.save_at is not None and now >= watched.save_at:
                self._save(watched, watched.conversation.state, now)
        self._finish_if_complete(now)

    def _end(self, request: int, now: float) -> None:
        watched = self._watched.pop(request)
        self._save(watched, watched.conversation.state, now)

    def _save(self, watched: _Watched, state: str, now: float, rest: str = "") -> None:
        watched.saved_at, watched.save_at = now, None
        record = watched.record(state, rest)
        self.keep(record)
        others = self._connected()
        if others:
            keeper = min(others, key=lambda node: _distance(record.name, node))
            self._outbox.send(keeper, KeepSession(record))

    def _drop(self, name: str) -> bool:
        for request in [r for r, w in self._watched.items() if w.conversation.name == name]:
            del self._watched[request]
        self._outbox.put(RemoveConversation(name))  # the disk may hold what was not read
        return self._kept.pop(name, None) is not None

    def _bound(self) -> None:
        by_age = sorted(self._kept.values(), key=lambda each: each.summary().rank)
        characters = sum(map(size_of, by_age))
        while len(by_age) > KEPT_MAX or (characters > KEPT_CHARACTERS_MAX and len(by_age) > 1):
            oldest = by_age.pop(0)
            characters -= size_of(oldest)
            del self._kept[oldest.name]
            self._outbox.put(RemoveConversation(oldest.name))

    def _newest(self, name: str) -> Conversation | None:
        """Return the newest record of a session here, that of an answer under way included."""
        newest = self._kept.get(name)
        for watched in self._watched.values():
            if watched.conversation.name == name:
                record = watched.record(watched.conversation.state)
                newest = record if record.is_newer_than(newest) else newest
        return newest

    def _reply(self, query: SessionQuery) -> SessionReply:
        if query.name:
            newest = self._newest(query.name)
            return SessionReply(query.request, (newest,) if newest else (), ())
        known = tuple(each.summary() for each in self._kept.values())
        return SessionReply(query.request, (), known[:SUMMARIES_MAX])

    def _finish_if_complete(self, now: float) -> None:
        for number, gather in list(self._gathers.items()):
            if not gather.waiting or now >= gather.deadline:
                self._answer(number)

    def _answer(self, number: int) -> None:
        gather = self._gathers.pop(number)
        request = gather.asked.request
        if isinstance(gather.asked, ForgetSession):
            self._outbox.send(gather.asker, SessionForgotten(request, tuple(gather.nodes)))
            return
        known = tuple(latest(gather.known).values())[:SUMMARIES_MAX]
        found = (gather.found,) if gather.found else ()
        self._outbox.send(gather.asker, SessionReply(request, found, known))


def _distance(name: str, node: NodeId) -> bytes:
    """Return what chooses the member that gets the copies of a session: always the same one."""
    return hashlib.blake2b(f"{name} {node}".encode(), digest_size=8).digest()
