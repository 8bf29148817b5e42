"""Messages: every kind there and back, growth, and whatever else comes in their place."""

from __future__ import annotations

import struct
from dataclasses import fields, replace
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from message_strategies import ANY_MESSAGE, KINDS

from edgellama.errors import EXIT_NO_MESH, WireError
from edgellama.values import (
    ModelFacts,
    Plan,
    SamplingSettings,
    Span,
    StagePlacement,
)
from edgellama.wire import messages as wire
from edgellama.wire.activations import PAYLOAD_BYTES_MAX, ROWS_MAX
from edgellama.wire.messages import decode, encode

RECORD = wire.MemberRecord(
    *("0a" * 16, 5, 1, wire.ALIVE, "pi", "10.0.0.1", 7711, 7712, 1 << 30, 0, "numpy", "ab"),
    *("", True, "0.1.0"),
)
MODEL = ModelFacts("0b" * 32, "tiny", 1000, 64, 512, (100, 100, 100), 50, 4, 10, 3)
PLAN = Plan(
    9,
    "0a" * 16,
    MODEL.root,
    256,
    2,
    (StagePlacement("0a" * 16, Span(0, 2)), StagePlacement("0c" * 16, Span(2, 3))),
)
ANNOUNCEMENT = wire.PlanAnnouncement(PLAN, MODEL, False, (5, 6))
ASK = wire.Ask(7, SamplingSettings(), 10, False, False, (1, 2), "", 0, (), *(0, 0, 0), "once")
STEP = wire.Step(9, 1, 0, 2, 1, 1, 2, 0, b"payload")


def header_of(message: wire.Message) -> tuple[list[Any], bytes]:
    """Return the msgpack list of a message, to be spoiled, and what follows it."""
    data = encode(message)
    (length,) = struct.unpack_from("<I", data)
    return msgpack.unpackb(data[4 : 4 + length]), data[4 + length :]


def with_header(header: Any, body: bytes = b"") -> bytes:
    packed = msgpack.packb(header)
    return struct.pack("<I", len(packed)) + packed + body


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_there_and_back(kind: type) -> None:
    @settings(deadline=None, max_examples=40)
    @given(KINDS[kind])
    def there_and_back(message: Any) -> None:
        data = encode(message)
        assert type(data) is bytes
        assert decode(data) == message

    there_and_back()


def test_every_kind_is_tested_and_has_a_number_of_its_own() -> None:
    numbers = {kind.build: number for number, kind in wire._KINDS.items()}
    assert numbers.keys() == KINDS.keys()
    assert set(KINDS) == set(wire.Message.__args__)  # type: ignore[attr-defined]
    # As published: a number is never given to another message.
    names = [
        *("Heartbeat", "Gossip", "PlanAnnouncement", "StageReady", "StageFailed", "Step"),
        *("StepNeeded", "StepStale", "StepFailed", "CloseSession", "SessionClosed", "Ask"),
        *("Piece", "Finished", "Failure", "Notice", "Cancel", "StatusQuery", "StatusReply"),
        *("InviteQuery", "InviteReply", "Forget", "Forgotten", "NewKey"),
    ]
    later = {
        25: ["OpenSession", "Doubt", "Heard", "Relayed", "NotRelayed", "Trials"],
        35: ["Measured", "FactsQuery", "FactsReply", "MeterQuery", "MeterReply"],
        45: ["TokenTook", "AskInSession", "KeepSession", "SessionQuery", "SessionReply"],
        50: ["ForgetSession", "SessionForgotten"],
        60: ["RateProbe"],
    }
    assert {number: kind.build.__name__ for number, kind in wire._KINDS.items()} == {
        first + place: name
        for first, those in {1: names, **later}.items()
        for place, name in enumerate(those)
    }


@settings(deadline=None, max_examples=60)
@given(ANY_MESSAGE, st.lists(st.one_of(st.none(), st.integers(0, 9), st.text(max_size=3))))
def test_fields_of_later_versions_are_passed_over(message: wire.Message, more: list[Any]) -> None:
    header, body = header_of(message)
    assert decode(with_header([*header, *more], body)) == message


def test_records_grow_as_well() -> None:
    header, _ = header_of(wire.Gossip((RECORD,), (MODEL,)))
    header[1][0].append("later")
    header[2][0].extend([1, 2])
    assert decode(with_header(header)) == wire.Gossip((RECORD,), (MODEL,))


@settings(deadline=None, max_examples=60)
@given(ANY_MESSAGE, st.data())
def test_too_few_fields_are_refused(message: wire.Message, data: st.DataObject) -> None:
    header, body = header_of(message)
    kept = data.draw(st.integers(0, len(header) - 1))
    with pytest.raises(WireError):
        decode(with_header(header[:kept], body))


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200))
def test_bytes_by_chance(data: bytes) -> None:
    only_wire_errors(data)


ANY_VALUE = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(1 << 63), (1 << 64) - 1),
        st.floats(),
        st.text(max_size=8),
        st.binary(max_size=40),
        st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=4)),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=16), st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=30,
)


@settings(deadline=None, max_examples=300)
@given(st.one_of(st.integers(0, 30), ANY_VALUE), st.lists(ANY_VALUE, max_size=10), st.binary())
def test_any_msgpack_in_the_header(kind: Any, values: list[Any], body: bytes) -> None:
    only_wire_errors(with_header([kind, *values], body))


@settings(deadline=None, max_examples=300)
@given(ANY_MESSAGE, st.data())
def test_any_value_in_the_place_of_a_field(message: wire.Message, data: st.DataObject) -> None:
    header, body = header_of(message)
    spoil(header, data)
    only_wire_errors(with_header(header, body))


def spoil(values: list[Any], data: st.DataObject) -> None:
    """Replace one value somewhere in nested lists."""
    index = data.draw(st.integers(0, len(values) - 1))
    if type(values[index]) is list and values[index] and data.draw(st.booleans()):
        spoil(values[index], data)
    else:
        values[index] = data.draw(ANY_VALUE)


@settings(deadline=None, max_examples=300)
@given(ANY_MESSAGE, st.data())
def test_damaged_bytes(message: wire.Message, data: st.DataObject) -> None:
    damaged = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    only_wire_errors(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))
    only_wire_errors(bytes(damaged))


def only_wire_errors(data: bytes) -> None:
    """Decode; what is accepted can be said again, and anything else is a WireError of one line."""
    refusal = ""
    try:
        message = decode(data)
    except WireError as error:
        refusal = str(error)
    else:
        assert decode(encode(message)) == message
    assert "\n" not in refusal


def deep(depth: int) -> bytes:
    return b"\x91" * depth + b"\x90"


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\xc1",
        b"\x90",
        b"\x80",
        msgpack.packb(1),
        msgpack.packb("text"),
        msgpack.packb({"kind": 1}),
        msgpack.packb([True, "00" * 8, 0, 0]),
        msgpack.packb([-1]),
        msgpack.packb([20]),
        msgpack.packb([msgpack.ExtType(1, b"x")]),
        msgpack.packb([17, 5]) + b"\x00",  # something behind the list
        msgpack.packb([17, 1.0]),
        msgpack.packb([17, True]),
        deep(400),
        deep(100_000),
        b"\xdd\xff\xff\xff\xff",
        b"\xdd\x00\x01\xff\xff" * 2000,  # arrays in arrays that promise more than there is
        b"\xdb\x7f\xff\xff\xff",
        b"\xc6\x7f\xff\xff\xff",
        b"\xdf\x00\xff\xff\xff",
        b"\xd6\xff\x00\x00\x00\x00",  # a timestamp
        b"\x92\x11\xd6\xff\x00\x00\x00\x00",
        b"\x92\x11\xc7\x00\xff",
        b"\x93\x10\x00\xa1\xff",  # a text that is not UTF-8
    ],
    ids=lambda header: repr(header[:12]),
)
def test_headers_that_mean_nothing(header: bytes) -> None:
    with pytest.raises(WireError):
        decode(struct.pack("<I", len(header)) + header)


@pytest.mark.parametrize("data", [b"", b"\x01\x00\x00", b"\x05\x00\x00\x00abcd"])
def test_shorter_than_its_header(data: bytes) -> None:
    with pytest.raises(WireError):
        decode(data)


SPOILED_FIELDS: list[tuple[str, wire.Message, tuple[int, ...], Any]] = [
    ("a negative number", wire.Cancel(1), (1,), -1),
    ("a digest of 7 bytes", wire.Heartbeat("00" * 8, 1, 1), (1,), bytes(7)),
    ("a node id of 15 bytes", wire.Gossip((RECORD,), ()), (1, 0, 0), bytes(15)),
    ("a version without a next", wire.Gossip((RECORD,), ()), (1, 0, 2), wire.VERSION_PAST),
    ("an unknown state", wire.Gossip((RECORD,), ()), (1, 0, 3), 3),
    ("a name of 65 characters", wire.Gossip((RECORD,), ()), (1, 0, 4), "x" * 65),
    ("a host that is a name", wire.Gossip((RECORD,), ()), (1, 0, 5), "example.org"),
    ("a host of three numbers", wire.Gossip((RECORD,), ()), (1, 0, 5), "10.0.1"),
    ("a port above 65535", wire.Gossip((RECORD,), ()), (1, 0, 6), 65_536),
    ("half a model root", wire.Gossip((RECORD,), ()), (1, 0, 12), bytes(16)),
    ("members beyond the limit", wire.Gossip((RECORD,), ()), (1,), [[]] * 1025),
    ("models beyond the limit", wire.Gossip((), (MODEL,)), (2,), [[]] * 17),
    ("a model without width", wire.Gossip((), (MODEL,)), (2, 0, 3), 0),
    ("a model too wide", wire.Gossip((), (MODEL,)), (2, 0, 3), 65_537),
    ("a model without context", wire.Gossip((), (MODEL,)), (2, 0, 4), 0),
    ("a model without layers", wire.Gossip((), (MODEL,)), (2, 0, 5), []),
    ("layers beyond the limit", wire.Gossip((), (MODEL,)), (2, 0, 5), [1] * 1025),
    ("no stages", ANNOUNCEMENT, (1, 5), []),
    ("an epoch without a next", ANNOUNCEMENT, (1, 0), wire.EPOCH_PAST),
    ("a plan of another model", ANNOUNCEMENT, (1, 2), bytes(32)),
    ("no context", ANNOUNCEMENT, (1, 3), 0),
    ("more context than the model has", ANNOUNCEMENT, (1, 3), 513),
    ("no sessions", ANNOUNCEMENT, (1, 4), 0),
    ("sessions beyond the limit", ANNOUNCEMENT, (1, 4), wire.PLAN_SESSIONS_MAX + 1),
    ("the same node twice", ANNOUNCEMENT, (1, 5, 1, 0), bytes.fromhex("0a" * 16)),
    ("a gap between spans", ANNOUNCEMENT, (1, 5, 0, 1), [0, 1]),
    ("spans that overlap", ANNOUNCEMENT, (1, 5, 1, 1), [1, 3]),
    ("spans that end too soon", ANNOUNCEMENT, (1, 5, 1, 1), [2, 2]),
    ("spans that end too late", ANNOUNCEMENT, (1, 5, 1, 1), [2, 4]),
    ("a span backwards", ANNOUNCEMENT, (1, 5, 0, 1), [2, 0]),
    ("a split that nobody knows", ANNOUNCEMENT, (5,), 9),
    ("foretold for other stages", ANNOUNCEMENT, (6,), [[1, 1]]),
    ("a life too few", ANNOUNCEMENT, (4,), [5]),
    ("a life too many", ANNOUNCEMENT, (4,), [5, 6, 7]),
    ("a temperature below 0", ASK, (2, 0), -0.5),
    ("a temperature that is not finite", ASK, (2, 0), float("inf")),
    ("a top-p that is no number", ASK, (2, 2), float("nan")),
    ("a flag that is a number", ASK, (4,), 1),
    ("tokens that are no list", ASK, (6,), "tokens"),
    ("a step of nothing", STEP, (4,), 0),
    ("a step of too many rows", STEP, (4,), ROWS_MAX + 1),
    ("more rows than positions", STEP, (7,), 3),
    ("more wanted than computed", STEP, (6,), 3),
]


@pytest.mark.parametrize(
    ("message", "place", "value"),
    [each[1:] for each in SPOILED_FIELDS],
    ids=[each[0] for each in SPOILED_FIELDS],
)
def test_bounds(message: wire.Message, place: tuple[int, ...], value: Any) -> None:
    header, body = header_of(message)
    at = header
    for index in place[:-1]:
        at = at[index]
    at[place[-1]] = value
    with pytest.raises(WireError):
        decode(with_header(header, body))
    assert decode(encode(message)) == message


def test_home_alone_may_hold_no_layers() -> None:
    home = StagePlacement("0a" * 16, Span(0, 0))
    rest = StagePlacement("0c" * 16, Span(0, 3))
    message = replace(ANNOUNCEMENT, plan=replace(PLAN, stages=(home, rest)))
    assert decode(encode(message)) == message


def test_a_prompt_is_utf8_and_bounded() -> None:
    header, _ = header_of(ASK)
    assert decode(with_header(header, "für".encode())) == replace(ASK, prompt="für")
    assert decode(with_header(header)) == replace(ASK, prompt="")
    with pytest.raises(WireError, match="UTF-8"):
        decode(with_header(header, b"\xff"))
    with pytest.raises(WireError, match="4194304"):
        decode(with_header(header, b"x" * ((4 << 20) + 1)))


def test_a_payload_is_bounded() -> None:
    header, _ = header_of(STEP)
    with pytest.raises(WireError):
        decode(with_header(header, bytes(PAYLOAD_BYTES_MAX + 1)))


def test_a_payload_is_not_copied() -> None:
    data = encode(STEP)
    step = decode(data)
    assert isinstance(step, wire.Step)
    assert isinstance(step.payload, memoryview)
    assert step.payload.obj is data


def test_long_reasons_are_cut() -> None:
    message = decode(encode(wire.Failure(1, 1, "x" * 600)))
    assert isinstance(message, wire.Failure)
    assert message.text == "x" * 500


def test_what_is_no_character_does_not_stop_a_message() -> None:
    """A path that is not UTF-8 may be part of a reason."""
    message = decode(encode(wire.StageFailed(1, "no file /models/\udcff")))
    assert message == wire.StageFailed(1, "no file /models/?")


def test_a_failure_is_the_error_that_it_stands_for() -> None:
    error = wire.Failure(1, EXIT_NO_MESH, "too little memory").error()
    assert (str(error), error.exit_code) == ("too little memory", EXIT_NO_MESH)


def test_a_full_mesh_and_a_long_answer_fit() -> None:
    """The limits of msgpack's reader are not below those of the fields."""
    records = tuple(RECORD._replace(node=f"{n:032x}") for n in range(wire.MEMBERS_MAX))
    models = tuple(
        replace(MODEL, root=f"{n:064x}", layer_bytes=(1 << 40,) * wire.LAYERS_MAX)
        for n in range(wire.MODELS_MAX)
    )
    gossip = wire.Gossip(records, models)
    assert decode(encode(gossip)) == gossip
    piece = wire.Piece(1, 0, tuple(range(wire.TOKENS_MAX)), "\U0001f999" * (1 << 16))
    assert decode(encode(piece)) == piece


def test_positions_of_fields_are_the_specifications() -> None:
    header, body = header_of(STEP)
    assert header == [6, 9, 1, 0, 2, 1, 1, 2, 0]
    assert body == b"payload"
    assert [field.name for field in fields(wire.Step)] == [
        *("epoch", "session", "position", "count", "stage", "wanted", "rows", "codec", "payload")
    ]
