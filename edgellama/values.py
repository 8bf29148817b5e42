"""The nouns that every floor shares: frozen, small, without behaviour that needs a library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

NodeId = str
"""32 lower-case hexadecimal digits (128 bits), made once for a device and kept on its disk."""

NODE_ID_DIGITS = 32


class Address(NamedTuple):
    """Where a peer's datagrams go: an IPv4 address in dotted form and a UDP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Span(NamedTuple):
    """The layers ``first`` up to, and without, ``past``."""

    first: int
    past: int

    @property
    def layers(self) -> int:
        """How many layers the span holds."""
        return self.past - self.first


@dataclass(frozen=True)
class ModelFacts:
    """What a planner and a person need to know of a model; every node derives the same.

    ``layer_bytes[l]`` counts layer ``l``'s weights in packed form, ``home_bytes`` the embedding,
    the output norm and the head (tied ones once), and the tokenizer. ``kv_bytes_per_token`` is
    one layer's keys and values for one position as f16, ``kv_q8_bytes_per_token`` as q8;
    ``scratch_bytes`` a stage's working memory at its largest step.
    """

    root: str  # hexadecimal root hash of the manifest: the model's identity
    name: str
    file_bytes: int
    width: int
    context_max: int
    layer_bytes: tuple[int, ...]
    home_bytes: int
    kv_bytes_per_token: int
    scratch_bytes: int
    kv_q8_bytes_per_token: int

    @property
    def layers(self) -> int:
        """The number of decoder layers."""
        return len(self.layer_bytes)


KV_F16, KV_Q8 = KV_KINDS = ("f16", "q8")
"""How keys and values are kept: as fp16, or as int8 in about half the memory."""


WIRE_F16, WIRE_Q8 = WIRES = ("f16", "q8")
"""How hidden states travel over a link: exactly, or in about half the bytes and not exactly."""


class DeviceSpeed(NamedTuple):
    """How long a device computes for one token of an answer, as it has measured itself.

    A layer takes ``layer_ns``, and ``kib_ns`` more for each KiB of its packed weights; at home
    embedding, head and sampling take ``head_kib_ns`` for each KiB of the model's ``home_bytes``.
    """

    layer_ns: int
    kib_ns: int
    head_kib_ns: int


class StageTimes(NamedTuple):
    """What a stage takes for one token: its own computing, and the hop to the next stage.

    ``bytes_per_s`` is what the link of that hop carries. 0 stands for what is not known, and for
    the hop of a device that does it all.
    """

    compute_ns: int = 0
    hop_ns: int = 0
    bytes_per_s: int = 0


class LinkFacts(NamedTuple):
    """What ``node`` has measured of its link to ``peer``."""

    node: NodeId
    peer: NodeId
    round_trip_us: int
    bytes_per_s: int = 0  # 0: it has never carried so much at once that this could be seen
    loss_permille: int = 0  # of the packets that ``node`` has sent


@dataclass(frozen=True)
class DeviceFacts:
    """What the planner knows of one device."""

    node: NodeId
    name: str
    ram_bytes: int  # offered to the model: weights, KV cache and scratch
    speed: DeviceSpeed | None = None  # None: not measured yet
    wire: str = ""  # what its person wants its links to carry; empty: whatever the other end wants


@dataclass(frozen=True)
class StagePlacement:
    """A device and the span of layers that it computes."""

    node: NodeId
    span: Span


@dataclass(frozen=True)
class Plan:
    """Which device holds which span, in the order of the ring; the first stage is home.

    Home also holds the embedding, the head and the sampler. ``context`` positions of KV cache
    are kept for each of ``sessions_max`` sessions, on every stage as ``kv_kind`` says. ``wires``
    says of each stage how it sends its rows on; where it is empty, all do so exactly.
    """

    epoch: int
    leader: NodeId
    model_root: str
    context: int
    sessions_max: int
    stages: tuple[StagePlacement, ...]
    kv_kind: str = KV_F16
    wires: tuple[str, ...] = ()

    def wire_from(self, stage: int) -> str:
        """Return how a stage, counted from home's or from the last one's end, sends its rows on."""
        return self.wires[stage] if self.wires else WIRE_F16

    @property
    def is_exact(self) -> bool:
        """Whether the answer is the same under every plan that is exact."""
        return WIRE_Q8 not in self.wires

    @property
    def home(self) -> NodeId:
        """The node with the embedding, the head and the sampler."""
        return self.stages[0].node

    def stage_of(self, node: NodeId) -> int | None:
        """Return the index of the node's stage, or None when it holds no layers."""
        for index, placement in enumerate(self.stages):
            if placement.node == node:
                return index
        return None


RAM, CHAT, BATCH = SPLITS = ("ram", "chat", "batch")
"""What a mesh splits its layers by: memory alone, the least time of a token, the most tokens."""


@dataclass(frozen=True)
class SamplingSettings:
    """How the next token is chosen from the logits; temperature 0 is greedy.

    The draw for a position depends on ``seed`` and the position alone.
    """

    temperature: float = 0.0
    top_k: int = 0  # 0: no limit
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    repeat_window: int = 64  # how many of the last tokens the penalty looks at
    seed: int = 0


SYSTEM: Final = "system"
USER: Final = "user"
ASSISTANT: Final = "assistant"


class Turn(NamedTuple):
    """What one side of a conversation has said; ``role`` is SYSTEM, USER or ASSISTANT."""

    role: str
    content: str


@dataclass(frozen=True)
class LinkCounters:
    """What has gone over one link, or over several added up."""

    bytes_sent: int = 0
    bytes_received: int = 0
    packets_sent: int = 0
    packets_received: int = 0
    packets_retransmitted: int = 0

    def __add__(self, other: LinkCounters) -> LinkCounters:
        return LinkCounters(
            self.bytes_sent + other.bytes_sent,
            self.bytes_received + other.bytes_received,
            self.packets_sent + other.packets_sent,
            self.packets_received + other.packets_received,
            self.packets_retransmitted + other.packets_retransmitted,
        )

    def __sub__(self, other: LinkCounters) -> LinkCounters:
        return LinkCounters(
            self.bytes_sent - other.bytes_sent,
            self.bytes_received - other.bytes_received,
            self.packets_sent - other.packets_sent,
            self.packets_received - other.packets_received,
            self.packets_retransmitted - other.packets_retransmitted,
        )


@dataclass(frozen=True)
class Route:
    """Which node computed which layers of an answer."""

    node: NodeId
    name: str
    span: Span
