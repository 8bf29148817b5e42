"""A home with one stage after it, driven by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mesh_building import WIDTH, A, B, C, ask_of, jobs, plan_of, returned_step

from edgellama.mesh.effects import (
    HeadJob,
    OpenJob,
    Outbox,
    PromptTokens,
    StageJob,
    TokenizeJob,
)
from edgellama.mesh.home import Home
from edgellama.mesh.stage_role import StageRole
from edgellama.testing.fake_model import FakeTokenizer
from edgellama.values import LinkCounters, NodeId, Plan

if TYPE_CHECKING:
    from edgellama.wire.messages import Ask, Message

PLAN = plan_of(A, B)
GATEWAY = C


def read(*tokens: int, turns_kept: int = 0) -> PromptTokens:
    return PromptTokens(tokens, turns_kept, is_templated=True)


class Desk:
    """A home with one stage after it, driven by hand."""

    def __init__(self, plan: Plan = PLAN) -> None:
        self.outbox = Outbox()
        self.said: list[tuple[NodeId, Message]] = []
        self.trips: list[float] = []
        role = StageRole(A, self.outbox, LinkCounters, lambda node: False)
        self.role = role
        self.home = Home(
            *(A, self.outbox, role, lambda node, message: self.said.append((node, message)), str),
            self.trips.append,
        )
        self.now = 10.0
        self.follow(plan)

    def follow(self, plan: Plan) -> None:
        self.plan = plan
        self.role.follow(plan, WIDTH, 0.0)
        self.home.follow(plan, FakeTokenizer(), self.now)

    def begin(self, ask: Ask, prompt: tuple[int, ...] = (1, 2, 3)) -> int:
        """Ask and tokenize; return the session, and forget what was wanted before."""
        self.outbox.drain()
        self.home.ask(GATEWAY, ask)
        (job,) = jobs(self.outbox)
        assert isinstance(job, TokenizeJob)
        self.home.tokenized(job.session, read(*prompt), self.now)
        return job.session

    def fed(self) -> list[tuple[int, tuple[int, ...]]]:
        """Return (position, tokens) of what was given to the ring since the last call."""
        return [
            (job.position, job.tokens) for job in jobs(self.outbox) if isinstance(job, StageJob)
        ]

    def resumed(self) -> tuple[int, int]:
        """Let stage 0 hold all that it shall; return the session and where it goes on."""
        (job,) = jobs(self.outbox)
        assert isinstance(job, OpenJob)
        layers = self.plan.stages[0].span.layers
        self.role.opened(job, (job.length,) * layers)
        return job.session, job.length

    def come_round(self, position: int, count: int = 1, session: int = 1) -> HeadJob:
        """Let the last known position's row come back; return what the head is to do."""
        step = returned_step(position, count, stages=len(self.plan.stages), session=session)
        self.home.row_returned(replace(step, epoch=self.plan.epoch), self.now)
        (job,) = [each for each in jobs(self.outbox) if isinstance(each, HeadJob)]
        return job

    def token(self, job: HeadJob, token: int) -> None:
        self.home.token_made(job, token, self.now)

    def messages(self) -> list[Message]:
        """Return what the gateway has been told since the last call."""
        said, self.said = self.said, []
        assert all(node == GATEWAY for node, _ in said)
        return [message for _, message in said]


def running(tokens_max: int = 4, **changes: object) -> tuple[Desk, HeadJob]:
    desk = Desk()
    desk.begin(ask_of(tokens_max=tokens_max, **changes))
    desk.fed()
    return desk, desk.come_round(0, 3)
