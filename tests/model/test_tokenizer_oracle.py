"""The tokenizer against the sentencepiece library, on trained and on random vocabularies."""

from __future__ import annotations

import functools
import io
import struct
import warnings
from typing import TYPE_CHECKING, Any

import gguf_writing
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellama.model.gguf import GgufFile
from edgellama.model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pathlib import Path

with warnings.catch_warnings():  # its bindings warn of themselves on newer Pythons
    warnings.simplefilter("ignore")
    import sentencepiece

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
Row = tuple[str, float, int]  # piece, score, kind

SPECIAL: list[Row] = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
BYTES: list[Row] = [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]

CORPUS = [
    "Once upon a time, there was a little girl named Lily. She loved to play outside.",
    "The quick brown fox jumps over the lazy dog; THE QUICK BROWN FOX? 1234567890.",
    "Der Zwölfboxkämpfer jagt Eva quer über den großen Sylter Deich.",
    "Voix ambiguë d'un cœur qui au zéphyr préfère les jattes de kiwis.",
    "Съешь ещё этих мягких французских булок, да выпей же чаю.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر.",
    "דג סקרן שט בים מאוכזב ולפתע מצא חברה.",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश।",
    "いろはにほへと ちりぬるを 色は匂へど散りぬるを。",
    "我能吞下玻璃而不伤身体。天地玄黃 宇宙洪荒。",
    "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다.",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า",
    "def f(x):\n\treturn [x ** 2 for x in range(10)]  # spaces:    four\r\n",
    "🙂🙃👩‍👩‍👧‍👦🏳️‍🌈 flags 🇩🇪🇯🇵 keycap 1️⃣",
    "combining: e\u0301 a\u030a n\u0303, zero-width: a\u200bb\u200dc, nbsp:\u00a0x\u2003y",
]
AWKWARD = [
    "",
    " ",
    "  ",
    " " * 1000,
    "\n",
    "\n\n\n\t\t \r\n",
    "a",
    " a",
    "a ",
    "a" * 1000,
    "ab" * 333 + " " + "ba" * 333,
    "▁",
    "▁a ▁ b▁",
    "<s>",
    "a <s> b</s><unk><0x41>",
    "\0",
    "".join(map(chr, range(1, 32))) + "\x7f",
    "\U0010ffff\ue000\ufffe\ufeff",
    "\ud7ff\ue000",
    "word" * 300 + "🙂" * 100,
]


def varint(value: int) -> bytes:
    raw = bytearray()
    value &= 2**64 - 1
    while value > 127:
        raw.append(value & 127 | 128)
        value >>= 7
    return bytes([*raw, value])


def message(number: int, raw: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def integer(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def oracle_of(rows: list[Row], adds_space: bool = True) -> Any:
    """Give sentencepiece the vocabulary, as the ModelProto of sentencepiece_model.proto."""
    pieces = b"".join(
        message(
            1, message(1, piece.encode()) + b"\x15" + struct.pack("<f", score) + integer(3, kind)
        )
        for piece, score, kind in rows
    )
    spells_bytes = any(kind == BYTE for _, _, kind in rows)
    trainer = integer(3, 2) + integer(35, spells_bytes)  # model_type BPE, byte_fallback
    trainer += integer(40, 0) + integer(41, 1) + integer(42, 2) + integer(43, -1)
    normalizer = message(1, b"identity") + integer(3, adds_space) + integer(4, 0) + integer(5, 1)
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(pieces + message(2, trainer) + message(3, normalizer))
    return processor


def tokenizer_of(rows: list[Row], adds_space: bool = True) -> Tokenizer:
    pieces, scores, kinds = zip(*rows, strict=True)
    count = len(rows)
    keys = [
        gguf_writing.key("tokenizer.ggml.model", 8, gguf_writing.string("llama")),
        gguf_writing.key("tokenizer.ggml.tokens", 9, gguf_writing.strings(list(pieces))),
        gguf_writing.key(
            "tokenizer.ggml.scores",
            9,
            gguf_writing.array(6, count, struct.pack(f"<{count}f", *scores)),
        ),
        gguf_writing.key(
            "tokenizer.ggml.token_type",
            9,
            gguf_writing.array(5, count, struct.pack(f"<{count}i", *kinds)),
        ),
        gguf_writing.key("tokenizer.ggml.add_space_prefix", 7, bytes([adds_space])),
    ]
    return Tokenizer.from_gguf(GgufFile.parse(gguf_writing.whole_file(keys), "x.gguf"))


@functools.cache
def trained_rows(spells_bytes: bool) -> tuple[Row, ...]:
    """Train a vocabulary on the corpus, as a model's author would."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS[:12] * 3),
        model_writer=model,
        model_type="bpe",
        vocab_size=1000,
        byte_fallback=spells_bytes,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    trained = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    kind_of = {True: CONTROL, False: NORMAL}
    return tuple(
        (
            trained.id_to_piece(token),
            trained.get_score(token),
            UNKNOWN
            if trained.is_unknown(token)
            else BYTE
            if trained.is_byte(token)
            else kind_of[trained.is_control(token)],
        )
        for token in range(trained.vocab_size())
    )


@functools.cache
def trained_pair() -> tuple[Tokenizer, Any]:
    rows = list(trained_rows(True))
    return tokenizer_of(rows), oracle_of(rows)


def assert_same(tokenizer: Tokenizer, oracle: Any, text: str) -> None:
    ids = tokenizer.encode(text, add_special=False)
    assert ids == oracle.encode(text)
    assert tokenizer.decode(ids) == oracle.decode(ids).replace(" \u2047 ", "\ufffd")


@pytest.mark.parametrize("adds_space", [True, False])
@pytest.mark.parametrize("spells_bytes", [True, False])
def test_a_trained_vocabulary_on_many_scripts(adds_space: bool, spells_bytes: bool) -> None:
    rows = list(trained_rows(spells_bytes))
    tokenizer, oracle = tokenizer_of(rows, adds_space), oracle_of(rows, adds_space)
    for text in [*CORPUS, *AWKWARD, "\n".join(CORPUS * 3)]:
        assert_same(tokenizer, oracle, text)
        if spells_bytes and "▁" not in text:
            assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(deadline=None, max_examples=150)
@given(text=st.text(max_size=80))
def test_a_trained_vocabulary_on_any_text(text: str) -> None:
    assert_same(*trained_pair(), text)


@pytest.mark.shared_model
def test_the_trained_model_on_many_scripts(shared_model: Path) -> None:
    metadata = GgufFile.open(shared_model).metadata
    names = ("tokens", "scores", "token_type")
    rows = list(zip(*(metadata[f"tokenizer.ggml.{name}"] for name in names), strict=True))
    oracle, tokenizer = oracle_of(rows), Tokenizer.from_gguf(shared_model)
    for text in [*CORPUS, *AWKWARD]:
        assert_same(tokenizer, oracle, text)
        if "▁" not in text:
            assert tokenizer.decode(tokenizer.encode(text)) == text


PIECES = st.text(alphabet="ab▁é", min_size=1, max_size=5)
# Few different scores, so that equal ones meet and the leftmost must win.
SCORES = st.sampled_from([0.0, -1.0, -2.5, 3.0])


@settings(deadline=None, max_examples=400)
@given(
    normal=st.dictionaries(PIECES, SCORES, min_size=1, max_size=25),
    text=st.text(alphabet="ab é▁🙂", max_size=40),
    spells_bytes=st.booleans(),
    adds_space=st.booleans(),
)
def test_random_vocabularies_with_equal_scores(
    normal: dict[str, float], text: str, spells_bytes: bool, adds_space: bool
) -> None:
    rows = SPECIAL + (BYTES if spells_bytes else [])
    rows = rows + [(piece, score, NORMAL) for piece, score in normal.items()]
    assert_same(tokenizer_of(rows, adds_space), oracle_of(rows, adds_space), text)


@settings(deadline=None, max_examples=200)
@given(
    normal=st.dictionaries(PIECES, SCORES, min_size=1, max_size=15),
    defined=st.sets(PIECES, min_size=1, max_size=4),
    text=st.text(alphabet="ab é▁", max_size=40),
)
def test_user_defined_pieces_are_found_first(
    normal: dict[str, float], defined: set[str], text: str
) -> None:
    rows = SPECIAL + BYTES
    rows = rows + [
        (piece, score, NORMAL) for piece, score in normal.items() if piece not in defined
    ]
    rows = rows + [(piece, 0.0, USER_DEFINED) for piece in sorted(defined)]
    assert_same(tokenizer_of(rows, False), oracle_of(rows, False), text)


@settings(deadline=None, max_examples=200)
@given(numbers=st.lists(st.integers(0, 10**6), max_size=30))
def test_any_ids_without_broken_characters_decode_alike(numbers: list[int]) -> None:
    rows = list(trained_rows(True))
    ids = [number % len(rows) for number in numbers]
    whole = [token for token in ids if rows[token][2] != BYTE]
    tokenizer, oracle = trained_pair()
    assert tokenizer.decode(whole) == oracle.decode(whole).replace(" \u2047 ", "\ufffd")
