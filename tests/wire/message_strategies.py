"""Every kind of message with any values that fit, for tests of the wire.

Any test of this folder may `import message_strategies`.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from measurement_strategies import measurement_kinds

from edgellama.values import (
    KV_KINDS,
    SPLITS,
    WIRES,
    LinkCounters,
    ModelFacts,
    Plan,
    Route,
    SamplingSettings,
    Span,
    StagePlacement,
    StageTimes,
    Turn,
)
from edgellama.wire import key_messages as keys
from edgellama.wire import messages as wire
from edgellama.wire.activations import ROWS_MAX

u8, u16, u32, u48, u64 = (st.integers(0, (1 << bits) - 1) for bits in (8, 16, 32, 48, 64))
nodes = st.binary(min_size=16, max_size=16).map(bytes.hex)
roots = st.binary(min_size=32, max_size=32).map(bytes.hex)
epochs = st.integers(0, wire.EPOCH_PAST - 1)


def texts(size: int) -> st.SearchStrategy[str]:
    return st.text(st.characters(exclude_categories=["Cs"]), max_size=size)


def reals(lowest: float, highest: float) -> st.SearchStrategy[float]:
    return st.floats(lowest, highest)


tokens = st.lists(u32, max_size=20).map(tuple)
counters = st.builds(LinkCounters, u64, u64, u64, u64, u64)
spans = st.tuples(u16, u16).map(lambda pair: Span(min(pair), max(pair)))
hosts = st.one_of(st.just(""), st.ip_addresses(v=4).map(str))
members = st.builds(
    wire.MemberRecord,
    node=nodes,
    incarnation=u64,
    version=st.integers(0, wire.VERSION_PAST - 1),
    state=st.sampled_from(wire.MEMBER_STATES),
    name=texts(64),
    host=hosts,
    port=u16,
    transfer_port=u16,
    ram_bytes=u48,
    context=u32,
    backend=texts(16),
    kernel_digest=texts(64),
    model_root=st.one_of(st.just(""), roots),
    reads_lz4=st.booleans(),
    release=texts(32),
    kv_kind=st.sampled_from(["", *KV_KINDS]),
    split=st.sampled_from(("", *SPLITS)),
    wire=st.sampled_from(("", *WIRES)),
    sessions=st.integers(0, wire.PLAN_SESSIONS_MAX),
    intent=st.sampled_from((wire.STAYS, wire.RESTS, wire.LEAVES)),
)
models = st.builds(
    ModelFacts,
    root=roots,
    name=texts(128),
    file_bytes=u48,
    width=st.integers(1, 65_536),
    context_max=st.integers(1, (1 << 32) - 1),
    layer_bytes=st.lists(u48, min_size=1, max_size=8).map(tuple),
    home_bytes=u48,
    kv_bytes_per_token=u32,
    scratch_bytes=u48,
    kv_q8_bytes_per_token=u32,
)
sampling = st.builds(
    SamplingSettings,
    reals(0.0, 1000.0),
    u32,
    reals(0.0, 1.0),
    reals(0.0, 1.0),
    reals(0.01, 100.0),
    u32,
    u64,
)
routes = st.lists(st.builds(Route, nodes, texts(64), spans), max_size=3).map(tuple)
turns = st.builds(Turn, st.sampled_from(["user", "assistant"]), texts(50))


times = st.builds(StageTimes, u64, u64, u48)


@st.composite
def announcements(draw: st.DrawFn) -> wire.PlanAnnouncement:
    model = draw(models)
    cuts = sorted(draw(st.sets(st.integers(1, model.layers), max_size=3)) | {model.layers})
    firsts = [0, *cuts[:-1]]
    placed = draw(st.lists(nodes, min_size=len(cuts), max_size=len(cuts), unique=True))
    stages = tuple(
        StagePlacement(node, Span(first, past))
        for node, first, past in zip(placed, firsts, cuts, strict=True)
    )
    plan = Plan(
        draw(epochs),
        draw(nodes),
        model.root,
        draw(st.integers(1, model.context_max)),
        draw(st.integers(1, wire.PLAN_SESSIONS_MAX)),
        stages,
        draw(st.sampled_from(KV_KINDS)),
        tuple(draw(st.sampled_from(WIRES)) for _ in stages) if draw(st.booleans()) else (),
    )
    lives = tuple(draw(u64) for _ in stages)
    split = draw(st.sampled_from(SPLITS))
    predicted = tuple(draw(times) for _ in stages) if draw(st.booleans()) else ()
    return wire.PlanAnnouncement(plan, model, draw(st.booleans()), lives, split, predicted)


@st.composite
def steps(draw: st.DrawFn) -> wire.Step:
    count = draw(st.integers(1, ROWS_MAX))
    up_to = st.integers(0, count)
    return wire.Step(
        *(draw(u64), draw(u64), draw(u32), count, draw(u16), draw(up_to), draw(up_to), draw(u8)),
        draw(st.binary(max_size=100)),
    )


asks = st.builds(
    wire.Ask,
    *(u64, sampling, u32, st.booleans(), st.booleans(), tokens, texts(50), u32),
    *(st.lists(turns, max_size=3).map(tuple), st.just(0), u16, u16, texts(50)),
)
session_names = st.text("aä9 -/.", min_size=1, max_size=64).map(str.strip).filter(bool)
states = st.sampled_from(["open", "stop", "length"])
identities = st.binary(min_size=16, max_size=16).map(bytes.hex)
conversations = st.builds(
    wire.Conversation,
    *(session_names, identities, u32, u64, st.one_of(st.just(""), roots), texts(128)),
    *(st.sampled_from(["", *KV_KINDS]), states, texts(100), asks),
)
summaries = st.builds(wire.Summary, session_names, identities, u32, u64, texts(128), states, u32)

KINDS: dict[type, st.SearchStrategy[Any]] = {
    wire.Heartbeat: st.builds(
        wire.Heartbeat, st.binary(min_size=8, max_size=8).map(bytes.hex), u64, u64
    ),
    wire.Gossip: st.builds(
        wire.Gossip,
        st.lists(members, max_size=3).map(tuple),
        st.lists(models, max_size=2).map(tuple),
    ),
    wire.PlanAnnouncement: announcements(),
    wire.StageReady: st.builds(wire.StageReady, u64),
    wire.StageFailed: st.builds(wire.StageFailed, u64, texts(500)),
    wire.Step: steps(),
    wire.StepNeeded: st.builds(wire.StepNeeded, u64, u64, u32, u32),
    wire.OpenSession: st.builds(wire.OpenSession, u64, u64, u64, u32),
    wire.Doubt: st.builds(wire.Doubt, nodes),
    wire.Trials: st.builds(
        wire.Trials, st.lists(st.builds(wire.Trial, nodes, u32), max_size=3).map(tuple)
    ),
    wire.Heard: st.builds(wire.Heard, nodes, u32),
    wire.Relayed: st.builds(wire.Relayed, nodes, nodes, st.binary(max_size=100)),
    wire.NotRelayed: st.builds(wire.NotRelayed, nodes),
    wire.StepStale: st.builds(wire.StepStale, u64),
    wire.StepFailed: st.builds(wire.StepFailed, u64, u64, texts(500)),
    wire.CloseSession: st.builds(wire.CloseSession, u64, u64),
    wire.SessionClosed: st.builds(wire.SessionClosed, u64, u64, counters),
    wire.Ask: asks,
    wire.Piece: st.builds(wire.Piece, u64, u32, tokens, texts(100), u32, st.booleans()),
    wire.Finished: st.builds(
        wire.Finished,
        *(u64, st.sampled_from(wire.FINISH_REASONS), u32, texts(50), tokens, u64, u64),
        *(routes, counters, st.lists(st.floats(0), max_size=3).map(tuple)),
    ),
    wire.Failure: st.builds(wire.Failure, u64, u8, texts(500)),
    wire.Notice: st.builds(wire.Notice, u64, texts(500)),
    wire.Cancel: st.builds(wire.Cancel, u64),
    wire.StatusQuery: st.builds(wire.StatusQuery, u64),
    wire.StatusReply: st.builds(
        wire.StatusReply,
        *(u64, nodes, st.booleans(), u64, st.lists(models, max_size=1).map(tuple), u32),
        st.lists(
            st.builds(
                wire.MemberStatus,
                *(members, spans, st.booleans(), counters, st.sampled_from(WIRES), times, times),
                *(st.sampled_from(["", "udp", "tcp"]), u32),
            ),
            max_size=2,
        ).map(tuple),
        *(texts(500), st.booleans(), st.sampled_from(KV_KINDS), st.sampled_from(SPLITS)),
    ),
    **measurement_kinds(nodes, models, counters),
    keys.InviteQuery: st.builds(keys.InviteQuery, u64),
    keys.InviteReply: st.builds(keys.InviteReply, u64, texts(64), texts(64), u16, u16),
    keys.Forget: st.builds(keys.Forget, u64, nodes),
    keys.Forgotten: st.builds(keys.Forgotten, u64, st.lists(nodes, max_size=3).map(tuple)),
    keys.NewKey: st.builds(keys.NewKey, roots, nodes),
    wire.TokenTook: st.builds(wire.TokenTook, u32, u32),
    wire.AskInSession: st.builds(wire.AskInSession, conversations),
    wire.KeepSession: st.builds(wire.KeepSession, conversations),
    wire.SessionQuery: st.builds(wire.SessionQuery, u64, texts(64)),
    wire.SessionReply: st.builds(
        wire.SessionReply,
        u64,
        st.lists(conversations, max_size=1).map(tuple),
        st.lists(summaries, max_size=3).map(tuple),
    ),
    wire.ForgetSession: st.builds(wire.ForgetSession, u64, texts(64)),
    wire.SessionForgotten: st.builds(
        wire.SessionForgotten, u64, st.lists(nodes, max_size=3).map(tuple)
    ),
}
ANY_MESSAGE = st.one_of(*KINDS.values())
