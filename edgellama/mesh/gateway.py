"""The gateway's part: it owns the requests asked of it, whoever is home.

It keeps each request with the tokens that its asker has, hands it to home, and hands it to the
next home when the plan changes. Until there is a plan it says what the asker waits for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

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

REQUESTS_MAX = 256


@dataclass
class _Request:
    ask: Ask
    asker: NodeId
    answer: AnswerOrder
    home: NodeId = ""  # to whom it has been handed under the plan in force


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

    def ask(self, asker: NodeId, ask: Ask, trouble: str) -> None:
        """Take a request; ``trouble`` says why no answer is possible, if so."""
        if trouble:
            self._answer(asker, Failure(ask.request, EXIT_NO_MESH, trouble))
            return
        if ask.request in self._requests or len(self._requests) >= REQUESTS_MAX:
            text = f"this node has {len(self._requests)} requests already; ask again later"
            self._answer(asker, Failure(ask.request, EXIT_NO_MESH, text))
            return
        request = _Request(ask, asker, AnswerOrder(ask.tokens))
        self._requests[ask.request] = request
        if self._plan is None:
            self._answer(asker, Notice(ask.request, "waiting for the devices to load their layers"))
        else:
            self._submit(request)

    def give_up(self, trouble: str) -> None:
        """Tell every asker that the mesh cannot answer any more."""
        for request in list(self._requests.values()):
            self._end(request, Failure(request.ask.request, EXIT_NO_MESH, trouble))

    def cancel(self, asker: NodeId, request_id: int) -> None:
        """Stop a request of this asker."""
        request = self._requests.get(request_id)
        if request is not None and request.asker == asker:
            self._forget(request)

    def cancel_of(self, asker: NodeId) -> None:
        """Stop every request of an asker that is gone."""
        for request in list(self._requests.values()):
            if request.asker == asker:
                self._forget(request)

    def home_connected(self, home: NodeId) -> None:
        """Hand requests to home again after the link to it was away."""
        for request in list(self._requests.values()):
            if request.home == home:
                self._submit(request)

    def home_says(self, message: Piece | Finished | Failure) -> bool:
        """Pass on what home has made, each token once; return whether anybody wants it."""
        request = self._requests.get(message.request)
        if request is None:
            return False
        if isinstance(message, Failure):
            self._end(request, message)
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
