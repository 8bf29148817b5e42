"""A node as a whole: who may say what, and how messages find the part that they are for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mesh_building import (
    MODEL,
    A,
    B,
    C,
    NothingMeasured,
    ask_of,
    of_kind,
    plan_of,
    record,
    sent,
    step_of,
)
from session_building import answered, conversation_of

from edgellama.errors import DuplicateIdentityError
from edgellama.link.connection import CLOSE_REASONS
from edgellama.link.endpoint import Connected, DialFailed, Disconnected, Identity, MessageReceived
from edgellama.mesh.core import MeshNode
from edgellama.mesh.effects import (
    Effect,
    GiveUp,
    LoadPlan,
    PromptTokens,
    Run,
    StoreConversation,
    ToAsker,
    TokenizeJob,
)
from edgellama.mesh.home import GATEWAY_WAIT_S
from edgellama.mesh.membership import HEARTBEAT_S
from edgellama.mesh.planning import SETTLE_S
from edgellama.mesh.session_keeping import SAVE_S
from edgellama.testing.fake_model import CONTEXT_MAX, FakeTokenizer, ram_bytes
from edgellama.values import Address, LinkCounters, NodeId, Span
from edgellama.wire import messages as wire
from edgellama.wire.frames import CloseCode

GUEST = "f" * 32
ADDRESS = Address("10.0.0.9", 7711)


class Surroundings(NothingMeasured):
    """A node without a shell."""

    def counters(self, node: NodeId | None) -> LinkCounters:
        return LinkCounters(bytes_sent=1000 if node is None else int(node, 16))

    def vocabulary(self) -> FakeTokenizer | None:
        return FakeTokenizer()


class Desk:
    def __init__(self, *members: wire.MemberRecord) -> None:
        me = record(A, model_root=MODEL.facts.root, ram_bytes=ram_bytes(12))
        self.core = MeshNode(me, MODEL.facts, 2, Surroundings(), open_mesh=False)
        self.now = 0.0
        for member in members:
            identity = Identity(member.node, member.incarnation)
            self.core.handle_event(Connected(identity, ADDRESS), self.now)
            self.hear(member.node, wire.Gossip((member,), ()))
        self.core.effects()

    def hear(self, node: NodeId, message: wire.Message) -> list[Effect]:
        return self.hear_bytes(node, wire.encode(message))

    def hear_bytes(self, node: NodeId, data: bytes) -> list[Effect]:
        self.core.handle_event(MessageReceived(node, data), self.now)
        return self.core.effects()

    def welcome_guest(self, node: NodeId = GUEST) -> None:
        self.core.handle_event(Connected(Identity(node, 1, guest=True), ADDRESS), self.now)

    def settle(self) -> list[Effect]:
        self.now += SETTLE_S
        self.core.handle_timer(self.now)
        return self.core.effects()

    def plan(self) -> None:
        """Let this node plan alone, and load."""
        (load,) = of_kind(self.settle(), LoadPlan)
        self.core.plan_loaded(load.plan.epoch, self.now)
        self.core.effects()


def test_a_guest_is_no_member() -> None:
    desk = Desk()
    desk.welcome_guest()
    assert desk.core.effects() == []
    assert [each.node for each in desk.core.membership.records()] == [A]
    assert desk.core.membership.connected() == []


def test_a_node_whose_identity_another_has_taken_gives_up() -> None:
    desk = Desk(record(B))
    desk.core.handle_event(Disconnected(B, CLOSE_REASONS[CloseCode.UNHEARD]), desk.now)
    assert of_kind(desk.core.effects(), GiveUp) == []
    desk.core.handle_event(Disconnected(B, CLOSE_REASONS[CloseCode.REPLACED]), desk.now)
    (give_up,) = of_kind(desk.core.effects(), GiveUp)
    assert isinstance(give_up.error, DuplicateIdentityError)
    assert "one home folder is a copy" in str(give_up.error)


def test_a_guest_asks_and_cancels() -> None:
    desk = Desk()
    desk.plan()
    desk.welcome_guest()
    effects = desk.hear(GUEST, ask_of())
    assert [each.job for each in of_kind(effects, Run)] == [TokenizeJob(1, ask_of(), CONTEXT_MAX)]
    assert desk.core.home.sessions_open == 1
    desk.hear(GUEST, wire.Cancel(7))
    assert desk.core.home.sessions_open == 0


def test_a_guest_that_is_gone_is_forgotten() -> None:
    desk = Desk()
    desk.plan()
    desk.welcome_guest()
    desk.hear(GUEST, ask_of())
    desk.core.handle_event(Disconnected(GUEST, "it left", left=True), desk.now)
    assert desk.core.home.sessions_open == 0
    assert [each.node for each in desk.core.membership.records()] == [A]


FOR_MEMBERS_ALONE = [
    wire.Heartbeat("00" * 8, 9, 9),
    wire.Gossip((record(A, state=wire.DEAD, version=5), record(C)), ()),
    wire.PlanAnnouncement(
        replace(plan_of(B), model_root=MODEL.facts.root, stages=plan_of(B).stages),
        replace(MODEL.facts, layer_bytes=(1, 1)),
        True,
        (1,),
    ),
    wire.StageReady(1),
    wire.StageFailed(1, "no"),
    step_of(0),
    wire.CloseSession(1, 1),
    wire.SessionClosed(1, 1, LinkCounters()),
    wire.Piece(7, 0, (1,), "x"),
    wire.Failure(7, 1, "no"),
]


@pytest.mark.parametrize("message", FOR_MEMBERS_ALONE, ids=lambda each: type(each).__name__)
def test_what_a_guest_may_not_say_has_no_effect(message: wire.Message) -> None:
    desk = Desk()
    desk.plan()
    plan = desk.core.planning.active
    desk.welcome_guest()
    assert desk.hear(GUEST, message) == []
    assert desk.core.planning.active == plan
    assert desk.core.membership.records() == [desk.core.membership.me]


@pytest.mark.parametrize(
    "message", [wire.StatusQuery(1), wire.Notice(1, "x")], ids=lambda each: type(each).__name__
)
def test_what_a_member_may_not_say_has_no_effect(message: wire.Message) -> None:
    desk = Desk(record(B, ram_bytes=0))
    assert desk.hear(B, message) == []


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=60), st.sampled_from([B, GUEST]))
def test_nonsense_has_no_effect(data: bytes, node: NodeId) -> None:
    desk = Desk(record(B))
    desk.welcome_guest()
    assert desk.hear_bytes(node, data) == []


def test_status_is_told_to_a_guest() -> None:
    desk = Desk()
    desk.welcome_guest()
    before = desk.core.status()
    assert (before.ready, before.epoch, before.model) == (False, 0, (MODEL.facts,))
    desk.plan()
    ((node, status),) = sent(desk.hear(GUEST, wire.StatusQuery(5)))
    assert node == GUEST
    assert isinstance(status, wire.StatusReply)
    assert (status.request, status.node, status.ready, status.epoch) == (5, A, True, 1)
    assert (status.trouble, status.open_mesh) == ("", False)
    (member,) = status.members
    assert (member.span, member.home) == (Span(0, 12), True)
    assert member.counters == LinkCounters(bytes_sent=1000)


def test_status_shows_each_links_counters_and_members_without_layers() -> None:
    desk = Desk(record(B, ram_bytes=0))
    desk.plan()
    assert [
        (each.span, each.home, each.counters.bytes_sent) for each in desk.core.status().members
    ] == [
        (Span(0, 12), True, 1000),
        (Span(0, 0), False, 2),
    ]


def test_status_shows_who_is_on_trial() -> None:
    desk = Desk(record(B, ram_bytes=ram_bytes(6)))
    assert [each.trial_s for each in desk.core.status().members] == [0, 0]
    told = wire.Trials((wire.Trial(B, 12_001), wire.Trial(A, 400)))
    assert desk.hear(B, told)  # this device is told as well, and says so
    assert [each.trial_s for each in desk.core.status().members] == [1, 13]


def test_a_mesh_whose_stage_has_left_is_not_ready() -> None:
    desk = Desk(record(B, ram_bytes=ram_bytes(6)))
    desk.settle()
    desk.core.planning._active, desk.core.planning._active_facts = plan_of(A, B), MODEL.facts
    assert desk.core.status().ready
    desk.core.membership.declare(B, 1, wire.LEFT, desk.now)
    assert not desk.core.status().ready


def test_heartbeats_go_to_members_every_second() -> None:
    desk = Desk(record(B, ram_bytes=0))
    desk.welcome_guest()
    times = []
    while desk.now < 3 * HEARTBEAT_S:
        timer = desk.core.next_timer()
        assert timer is not None
        desk.now = timer
        desk.core.handle_timer(desk.now)
        for node, message in sent(desk.core.effects()):
            if isinstance(message, wire.Heartbeat):
                assert node == B
                times.append(desk.now)
    assert times == [0.0, HEARTBEAT_S, 2 * HEARTBEAT_S, 3 * HEARTBEAT_S]


def test_every_part_with_a_timer_is_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    core = Desk(record(B)).core
    parts = [part for part in vars(core).values() if hasattr(part, "next_timer")]
    assert len(parts) >= 8
    called: list[object] = []
    for part in parts:
        with monkeypatch.context() as patch:
            patch.setattr(part, "next_timer", lambda: -1.0)
            patch.setattr(part, "handle_timer", lambda *given, **named: called.append(given))
            assert core.next_timer() == -1.0, part
            core.handle_timer(0.0)
            assert len(called) == 1, part
            called.clear()


def test_an_answer_in_a_session_is_recorded_while_it_is_made() -> None:
    desk = Desk(record(B, ram_bytes=0))
    desk.plan()
    desk.welcome_guest()
    asked = conversation_of()
    desk.hear(GUEST, wire.AskInSession(asked))
    desk.hear(A, wire.Piece(asked.ask.request, 0, (41,), "<41>"))
    desk.core.handle_timer(desk.now + SAVE_S)
    effects = desk.core.effects()
    record_now = answered(asked, 41)
    assert [each.conversation for each in of_kind(effects, StoreConversation)] == [record_now]
    assert (B, wire.KeepSession(record_now)) in sent(effects)


def test_this_very_process_asks() -> None:
    desk = Desk()
    desk.core.ask(ask_of(), desk.now)
    (notice,) = of_kind(desk.core.effects(), ToAsker)
    assert isinstance(notice.message, wire.Notice)
    desk.plan()
    assert desk.core.home.sessions_open == 1
    desk.core.cancel(7, desk.now)
    assert desk.core.home.sessions_open == 0


def test_a_piece_that_nobody_wants_is_cancelled_where_it_comes_from() -> None:
    desk = Desk(record(B))
    assert sent(desk.hear(B, wire.Piece(99, 0, (1,), "x"))) == [(B, wire.Cancel(99))]
    assert sent(desk.hear(B, wire.Failure(99, 1, "no"))) == []


def test_a_request_for_another_home_is_not_kept() -> None:
    desk = Desk(record(B))
    desk.hear(B, ask_of())
    assert desk.core.home.sessions_open == 0
    desk.plan()
    desk.hear(B, ask_of())
    assert desk.core.home.sessions_open == 1


def test_a_gateway_that_is_gone_frees_what_it_asked() -> None:
    desk = Desk(record(B, ram_bytes=0))
    desk.plan()
    desk.hear(B, ask_of())
    desk.core.handle_event(Disconnected(B, "it is silent"), desk.now)
    desk.core.home.handle_timer(desk.now + GATEWAY_WAIT_S)
    assert desk.core.home.sessions_open == 0


def test_a_dial_that_failed_says_nothing() -> None:
    desk = Desk(record(B))
    desk.core.handle_event(DialFailed(ADDRESS, "silence"), desk.now)
    assert desk.core.effects() == []


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from(range(40)), max_size=30))
def test_steps_of_a_broken_or_hostile_member_stop_nothing(numbers: list[int]) -> None:
    """Sessions, positions, stages and epochs by chance: no error leaves the node."""
    desk = Desk(record(B, ram_bytes=ram_bytes(12)))
    (load,) = of_kind(desk.settle(), LoadPlan)
    desk.core.plan_loaded(load.plan.epoch, desk.now)
    desk.hear(B, wire.StageReady(load.plan.epoch))
    plan = desk.core.planning.active
    assert plan is not None
    for number in numbers:
        step = step_of(number % 5, 1 + number % 2, stage=number % 4, session=number % 3)
        desk.hear(B, replace(step, epoch=plan.epoch + number % 3 - 1))
        desk.hear(B, wire.CloseSession(plan.epoch, number % 3))
        desk.hear(B, wire.StepFailed(plan.epoch, number % 3, "no"))
        desk.hear(B, wire.SessionClosed(plan.epoch, number % 3, LinkCounters()))
    desk.core.ask(ask_of(), desk.now)
    (run,) = of_kind(desk.core.effects(), Run)
    desk.core.job_done(run.job, PromptTokens((1, 2, 3), 0, is_templated=True), desk.now)
