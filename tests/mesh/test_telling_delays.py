"""Home tells how long tokens take, to those who load weights meanwhile."""

from __future__ import annotations

from mesh_building import MODEL, A, B, C, NothingMeasured, record, sent

from edgellama.link.endpoint import Connected, Identity, MessageReceived
from edgellama.mesh.core import MeshNode
from edgellama.mesh.effects import Effect, LoadPlan, TokenCame
from edgellama.mesh.planning import SETTLE_S
from edgellama.mesh.token_trips import TELL_S
from edgellama.mesh.transfer_pace import DecodeDelay
from edgellama.testing.fake_model import FakeTokenizer, ram_bytes
from edgellama.values import Address, LinkCounters, NodeId
from edgellama.wire import messages as wire


class Surroundings(NothingMeasured):
    def counters(self, node: NodeId | None) -> LinkCounters:
        return LinkCounters()

    def vocabulary(self) -> FakeTokenizer:
        return FakeTokenizer()


class Desk:
    """A device that has the model and is home of its own plan."""

    def __init__(self) -> None:
        me = record(A, model_root=MODEL.facts.root, ram_bytes=ram_bytes(12))
        self.core = MeshNode(me, MODEL.facts, 2, Surroundings(), open_mesh=False)
        self.now = 0.0
        self.settle()

    def settle(self) -> list[Effect]:
        self.now += SETTLE_S
        self.core.handle_timer(self.now)
        effects = self.core.effects()
        for effect in effects:
            if isinstance(effect, LoadPlan):
                self.core.plan_loaded(effect.plan.epoch, self.now)
        return [*effects, *self.core.effects()]

    def meet(self, node: NodeId) -> None:
        member = record(node, ram_bytes=ram_bytes(12))
        self.core.handle_event(Connected(Identity(node, 1), Address("10.0.0.9", 1)), self.now)
        self.hear(node, wire.Gossip((member,), ()))

    def hear(self, node: NodeId, message: wire.Message) -> list[Effect]:
        self.core.handle_event(MessageReceived(node, wire.encode(message)), self.now)
        return self.core.effects()

    def token_took(self, seconds: float) -> list[Effect]:
        self.now += seconds
        self.core.trips.took(seconds, self.now)
        return self.core.effects()


def test_while_nobody_loads_nobody_is_told() -> None:
    desk = Desk()
    assert desk.token_took(0.25) == [TokenCame(DecodeDelay(0.25, 0.25))]
    assert desk.token_took(0.5) == [TokenCame(DecodeDelay(0.5, 0.25))]


def test_while_a_plan_is_loaded_every_member_is_told_now_and_then() -> None:
    desk = Desk()
    desk.meet(B)
    desk.meet(C)
    desk.settle()
    assert desk.core.planning.is_changing
    told = sent(desk.token_took(0.25))
    assert told == [(node, wire.TokenTook(250_000, 250_000)) for node in (B, C)]
    assert not sent(desk.token_took(TELL_S / 2))
    assert sent(desk.token_took(TELL_S / 2))
    assert sent(desk.token_took(1e9))[0][1] == wire.TokenTook(*[(1 << 32) - 1] * 2)


def test_what_home_says_reaches_the_shell() -> None:
    desk = Desk()
    desk.meet(B)
    effects = desk.hear(B, wire.TokenTook(30_000, 10_000))
    assert effects == [TokenCame(DecodeDelay(0.03, 0.01))]
