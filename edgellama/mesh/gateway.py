"""The gateway's part: it owns the requests asked of it, whoever is home.

It keeps each request with the tokens that its asker has, hands it to home, and hands it to the
next home when the plan changes. While there is no plan it says what the asker waits for, and an
answer that has begun waits for a while that devices come back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from edgellama.errors import EXIT_NO_MESH
from edgellama.mesh.ordering import AnswerOrder
from edgellama.wire.messages import (
    Ask,
    Cancel,
    Failure,
    Finished,
    Notice,
    Piece,
    with_turns_kept,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgellama.values import NodeId, Plan

REQUESTS_MAX: Final = 256

DEVICES_WAIT_S: Final = 120.0
"""How long an answer that has begun waits for devices: a phone restarts within a minute."""

GATEWAY_SILENT_S: Final = 1.5
"""An asker that waits leaves a gateway that is silent for so long; asking another costs little."""

ASKER_WAIT_S: Final = 20.0
"""How long an answer goes on for an asker whose link is lost: it may ask by another device."""


@dataclass
class _Request:
    ask: Ask
    asker: NodeId
    answer: AnswerOrder
    home: NodeId = ""  # to whom it has been handed under the plan in force
    trouble: str = ""  # why it waits for devices, as the asker was told
    give_up_at: float = 0.0  # while it waits
    asker_lost_at: float | None = None

    @property
    def wait_s(self) -> float:
        """How long it may wait for devices; what home, or a gateway before, has taken has begun.

        A device that has just started knows nobody yet: it may be asked at once by one whose
        gateway was lost.
        """
        has_begun = bool(self.home or self.ask.tokens or self.ask.attempt)
        return max(self.ask.wait_s, DEVICES_WAIT_S if has_begun else 0.0)


class Gateway:
    """The requests asked of one node."""

    def __init__(
        self,
        answer: Callable[[NodeId, Piece | Finished | Failure | Notice], None],
        hand_over: Callable[[NodeId, Ask | Cancel], None],
    ) -> None:
        self._answer = answer
        self._hand_over = hand_over
        self._requests: dict[int, _Request] = {}
        self._plan: Plan | None = None

    def follow(self, plan: Plan) -> None:
        """Hand every request to the home of the new plan, with the tokens known."""
        self._plan = plan
        # Also to the same home: it takes requests only while it knows that it is home.
        for request in list(self._requests.values()):
            self._submit(request)

    def ask(self, asker: NodeId, ask: Ask, trouble: str, now: float) -> None:
        """Take a request, or a later attempt of one; ``trouble`` says why no answer is possible."""
        known = self._requests.get(ask.request)
        if (known and ask.attempt <= known.ask.attempt) or len(self._requests) >= REQUESTS_MAX:
            text = f"this node has {len(self._requests)} requests already; ask again later"
            self._answer(asker, Failure(ask.request, EXIT_NO_MESH, text))
            return
        request = _Request(ask, asker, AnswerOrder(ask.tokens))
        self._requests[ask.request] = request
        if trouble:
            self._wait(request, trouble, now)
        elif self._plan is None:
            self._answer(asker, Notice(ask.request, "waiting for the devices to load their layers"))
        else:
            self._submit(request)

    def set_trouble(self, trouble: str, now: float) -> None:
        """Take note of why the mesh cannot answer; with no trouble, it can."""
        for request in list(self._requests.values()):
            if trouble and trouble != request.trouble:
                self._wait(request, trouble, now)
            elif request.trouble and not trouble:
                request.trouble = ""
                self._answer(request.asker, Notice(request.ask.request, "the devices are back"))
                if self._plan is not None:
                    self._submit(request)

    def notice(self, text: str) -> None:
        """Tell every asker what its answer waits for."""
        for request in self._requests.values():
            self._answer(request.asker, Notice(request.ask.request, text))

    def cancel(self, asker: NodeId, request_id: int) -> None:
        """Stop a request of this asker."""
        request = self._requests.get(request_id)
        if request is not None and request.asker == asker:
            self._forget(request)

    def asker_gone(self, asker: NodeId, *, left: bool, now: float) -> None:
        """Stop every request of an asker that has left, and in a while of one that is lost."""
        for request in list(self._requests.values()):
            if request.asker == asker and left:
                self._forget(request)
            elif request.asker == asker:
                request.asker_lost_at = now

    def home_connected(self, home: NodeId) -> None:
        """Hand requests to home again after the link to it was away."""
        for request in list(self._requests.values()):
            if request.home == home:
                self._submit(request)

    def home_says(self, node: NodeId, message: Piece | Finished | Failure | Notice) -> bool:
        """Pass on what a home has made, each token once; return whether anybody wants it.

        A home that slept may finish an answer still, as its tokens are those of any home; but that
        it cannot go on is of interest only of the home in force.
        """
        request = self._requests.get(message.request)
        if request is None:
            return False
        if isinstance(message, Failure):
            if node == request.home:
                self._end(request, message)
            return True
        if isinstance(message, Notice):
            if node == request.home:
                self._answer(request.asker, message)
            return True
        if isinstance(message, Piece):
            # The next home shall leave out the same turns, whatever its context.
            request.ask = with_turns_kept(request.ask, message.turns_kept)
        for due in request.answer.accept(message):
            if isinstance(due, Finished):
                self._end(request, due)
            else:
                self._answer(request.asker, due)
        return True

    @property
    def requests(self) -> frozenset[int]:
        """The requests that are not ended."""
        return frozenset(self._requests)

    @property
    def askers(self) -> set[NodeId]:
        """Whoever waits for an answer of this node."""
        return {request.asker for request in self._requests.values()}

    @property
    def homes(self) -> set[NodeId]:
        """The homes that requests of this node wait for."""
        return {request.home for request in self._requests.values() if request.home}

    def next_timer(self) -> float | None:
        """Return when ``handle_timer`` wants to be called."""
        due = min(map(_due, self._requests.values()), default=math.inf)
        return None if due == math.inf else due

    def handle_timer(self, now: float) -> None:
        """End what has waited too long, for devices or for its asker."""
        for request in list(self._requests.values()):
            if _due(request) > now:
                continue
            if request.trouble:
                self._end(request, Failure(request.ask.request, EXIT_NO_MESH, request.trouble))
            else:
                self._forget(request)

    def _wait(self, request: _Request, trouble: str, now: float) -> None:
        """Let a request wait for devices, or end it where it must not."""
        if not request.trouble:
            request.give_up_at = now + request.wait_s
        request.trouble = trouble
        wait_s = request.give_up_at - now
        if wait_s <= 0:
            self._end(request, Failure(request.ask.request, EXIT_NO_MESH, trouble))
            return
        text = f"{trouble}; waiting up to {wait_s:.0f} s for devices to come back"
        self._answer(request.asker, Notice(request.ask.request, text))

    def _submit(self, request: _Request) -> None:
        assert self._plan is not None
        request.home = self._plan.home
        self._hand_over(request.home, replace(request.ask, tokens=tuple(request.answer.tokens)))

    def _end(self, request: _Request, message: Finished | Failure) -> None:
        del self._requests[request.ask.request]
        self._answer(request.asker, message)

    def _forget(self, request: _Request) -> None:
        del self._requests[request.ask.request]
        if request.home:
            self._hand_over(request.home, Cancel(request.ask.request))


def _due(request: _Request) -> float:
    due = request.give_up_at if request.trouble else math.inf
    if request.asker_lost_at is not None:
        due = min(due, request.asker_lost_at + ASKER_WAIT_S)
    return due
