"""Special tokens, streams, and vocabularies that are malformed or not supported."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import gguf_writing
import pytest
from gguf_writing import array, key, string, strings
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellama.errors import (
    EdgellamaError,
    MisuseError,
    ModelFileError,
    UnsupportedModelError,
)
from edgellama.model.gguf import GgufFile
from edgellama.model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pathlib import Path

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9

PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
KINDS = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256
WORDS = ["▁", "h", "i", "<", "/", "s", ">", "hi", "▁hi", "<s", "</", "</s", "▁▁"]
ROLES = ["<|im_end|>", "<|end|>", "<x y>", "spare", "<|eot_id|>"]
ROLE_KINDS = [CONTROL, CONTROL, USER_DEFINED, UNUSED, NORMAL]
ALL_PIECES = PIECES + WORDS + ROLES
ALL_KINDS = KINDS + [NORMAL] * len(WORDS) + ROLE_KINDS
ID = {piece: token for token, piece in enumerate(ALL_PIECES)}


def vocabulary_keys(
    pieces: list[str] = ALL_PIECES,
    scores: list[float] | None = None,
    kinds: list[int] | None = ALL_KINDS,
) -> dict[str, bytes]:
    scores = [-float(token) for token in range(len(pieces))] if scores is None else scores
    keys = {
        "model": key("tokenizer.ggml.model", STRING, string("llama")),
        "tokens": key("tokenizer.ggml.tokens", ARRAY, strings(pieces)),
        "scores": key(
            "tokenizer.ggml.scores",
            ARRAY,
            array(FLOAT32, len(scores), struct.pack(f"<{len(scores)}f", *scores)),
        ),
    }
    if kinds is not None:
        raw = array(INT32, len(kinds), struct.pack(f"<{len(kinds)}i", *kinds))
        keys["token_type"] = key("tokenizer.ggml.token_type", ARRAY, raw)
    return keys


def number(name: str, value: int) -> bytes:
    return key(f"tokenizer.ggml.{name}", UINT32, struct.pack("<I", value))


def flag(name: str, value: bool) -> bytes:
    return key(f"tokenizer.ggml.{name}", BOOL, bytes([value]))


def tokenizer_of(*more: bytes, **changed: object) -> Tokenizer:
    keys = [*vocabulary_keys(**changed).values(), *more]  # type: ignore[arg-type]
    return Tokenizer.from_gguf(GgufFile.parse(gguf_writing.whole_file(keys), "x.gguf"))


def test_a_vocabulary_of_its_own_defaults() -> None:
    tokenizer = tokenizer_of()
    assert (tokenizer.size, tokenizer.bos, tokenizer.eos) == (len(ALL_PIECES), 1, 2)
    assert tokenizer.encode("hi") == [1, ID["▁hi"]]
    assert tokenizer.encode("hi", add_special=False) == [ID["▁hi"]]
    assert tokenizer.encode("") == [1]
    assert tokenizer.encode("", add_special=False) == []


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([flag("add_bos_token", False)], [ID["▁hi"]]),
        ([flag("add_bos_token", True), flag("add_eos_token", True)], [1, ID["▁hi"], 2]),
        ([flag("add_space_prefix", False)], [1, ID["hi"]]),
        ([number("bos_token_id", 2), number("eos_token_id", 1)], [2, ID["▁hi"]]),
    ],
)
def test_what_the_file_says_of_encoding_is_done(flags: list[bytes], expected: list[int]) -> None:
    assert tokenizer_of(*flags).encode("hi") == expected


def test_names_of_control_tokens_are_text_unless_parsed() -> None:
    tokenizer = tokenizer_of()
    assert tokenizer.encode("</s>", add_special=False) == [ID["▁"], ID["</s"], ID[">"]]
    assert tokenizer.encode("</s>", add_special=False, parse_special=True) == [2]
    assert tokenizer.encode("<0x41>", parse_special=True)[1] != ID["<0x41>"]
    assert tokenizer.decode(tokenizer.encode("</s><s><unk>")) == "</s><s><unk>"


def test_text_after_a_special_token_begins_with_a_space_again() -> None:
    tokenizer = tokenizer_of()
    ids = tokenizer.encode("hi</s>hi<|im_end|> hi", parse_special=True)
    assert ids == [1, ID["▁hi"], 2, ID["▁hi"], ID["<|im_end|>"], ID["▁"], ID["▁hi"]]


def test_bos_in_the_text_is_not_doubled() -> None:
    tokenizer = tokenizer_of()
    assert tokenizer.encode("<s>hi", parse_special=True) == [1, ID["▁hi"]]
    assert tokenizer.encode("<s><s>", parse_special=True) == [1, 1]


def test_user_defined_tokens_are_found_in_every_text() -> None:
    tokenizer = tokenizer_of()
    assert tokenizer.encode("hi<x y>", add_special=False) == [ID["▁hi"], ID["<x y>"]]
    assert tokenizer.decode([ID["▁hi"], ID["<x y>"]]) == "hi<x y>"


def test_unused_tokens_never_come_from_text() -> None:
    assert ID["spare"] not in tokenizer_of().encode("spare", parse_special=True)


def test_end_tokens_are_those_named_and_those_known() -> None:
    ends = {2, ID["<|im_end|>"], ID["<|end|>"]}
    assert tokenizer_of().end_tokens == ends  # <|eot_id|> is NORMAL here: mere text
    named = tokenizer_of(number("eot_token_id", ID["<x y>"]), number("eom_token_id", ID["hi"]))
    assert named.end_tokens == ends | {ID["<x y>"], ID["hi"]}
    without_names = tokenizer_of(pieces=PIECES, kinds=KINDS)
    assert without_names.end_tokens == {2}


def test_without_kinds_they_follow_from_names_and_roles() -> None:
    tokenizer = tokenizer_of(kinds=None)
    assert tokenizer.encode("hié") == [1, ID["▁hi"], ID["<0xC3>"], ID["<0xA9>"]]
    assert tokenizer.decode([1, ID["<0xC3>"], ID["<0xA9>"], 2]) == "é"


def test_unknown_characters_without_bytes_become_one_unknown_token() -> None:
    pieces, kinds = ["<unk>", "<s>", "</s>", "▁", "a"], [UNKNOWN, CONTROL, CONTROL, NORMAL, NORMAL]
    tokenizer = tokenizer_of(pieces=pieces, kinds=kinds)
    assert tokenizer.encode("日本a語") == [1, 3, 0, 4, 0]
    assert tokenizer.decode([1, 3, 0, 4, 0]) == "\ufffda\ufffd"


def test_halves_of_surrogate_pairs_become_replacement_characters() -> None:
    tokenizer = tokenizer_of()
    assert tokenizer.decode(tokenizer.encode("a\udce9\ud800b")) == "a\ufffd\ufffdb"


def test_pieces_and_wrong_ids() -> None:
    tokenizer = tokenizer_of()
    assert tokenizer.piece(ID["▁hi"]) == "▁hi"
    for wrong in (-1, tokenizer.size):
        with pytest.raises(MisuseError, match=f"there is no token {wrong}"):
            tokenizer.decode([wrong])
        with pytest.raises(MisuseError):
            tokenizer.stream().push(wrong)
        with pytest.raises(MisuseError):
            tokenizer.piece(wrong)


def test_a_continuation_keeps_its_space_and_a_whole_sequence_loses_it() -> None:
    tokenizer = tokenizer_of()
    ids = [ID["▁hi"], ID["▁hi"]]
    assert tokenizer.decode([1, *ids]) == tokenizer.decode(ids) == "hi hi"
    stream = tokenizer.stream()
    assert [stream.push(token) for token in ids] == [" hi", " hi"]
    assert tokenizer.decode([1, ID["▁▁"], ID["hi"]]) == " hi"
    assert tokenizer_of(flag("add_space_prefix", False)).decode(ids) == " hi hi"


def test_a_stream_keeps_an_unfinished_character() -> None:
    tokenizer = tokenizer_of()
    stream = tokenizer.stream()
    tokens = [ID[f"<0x{byte:02X}>"] for byte in "🙂".encode()]
    assert [stream.push(token) for token in tokens] == ["", "", "", "🙂"]
    assert stream.finish() == ""
    assert [stream.push(token) for token in [*tokens[:2], ID["hi"]]] == ["", "", "\ufffdhi"]
    assert stream.push(tokens[0]) == ""
    assert stream.finish() == "\ufffd"


@settings(deadline=None)
@given(raw=st.binary(max_size=40))
def test_any_bytes_decode_as_python_decodes_them(raw: bytes) -> None:
    ids = [ID[f"<0x{byte:02X}>"] for byte in raw]
    stream = tokenizer_of().stream()
    text = "".join([stream.push(token) for token in ids]) + stream.finish()
    assert text == raw.decode("utf-8", "replace")


@settings(deadline=None)
@given(text=st.text(max_size=60), parse_special=st.booleans())
def test_a_stream_says_what_decoding_the_whole_says(text: str, parse_special: bool) -> None:
    tokenizer = tokenizer_of()
    ids = tokenizer.encode(text, parse_special=parse_special)
    stream = tokenizer.stream(continues=False)
    assert "".join([stream.push(token) for token in ids]) + stream.finish() == tokenizer.decode(ids)


def test_a_long_text_is_encoded_whole() -> None:
    tokenizer = tokenizer_of()
    text = "hi " * 50_000
    assert tokenizer.encode(text)[:3] == [1, ID["▁hi"], ID["▁hi"]]
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.shared_model
def test_the_trained_model_begins_a_story(shared_model: Path) -> None:
    tokenizer = Tokenizer.from_gguf(shared_model)
    assert tokenizer.encode("Once upon a time") == [1, 403, 407, 261, 378]
    assert tokenizer.decode([1, 403, 407, 261, 378]) == "Once upon a time"
    assert Tokenizer.from_gguf(str(shared_model)).end_tokens == {2}


def test_another_algorithm_is_named() -> None:
    keys = vocabulary_keys() | {"model": key("tokenizer.ggml.model", STRING, string("bert"))}
    file = GgufFile.parse(gguf_writing.whole_file(list(keys.values())), "x.gguf")
    with pytest.raises(UnsupportedModelError, match=r"x\.gguf: tokenizer 'bert' is not supported"):
        Tokenizer.from_gguf(file)


SIZE = len(ALL_PIECES)
NAN_SCORES = [float("nan"), *[0.0] * (SIZE - 1)]
FAULTS: dict[str, tuple[str, bytes | None, str]] = {
    "no algorithm": ("model", None, "model' is missing"),
    "an algorithm that is a number": (
        "model",
        number("model", 3),
        "model' is missing or not text",
    ),
    "no tokens": ("tokens", None, "tokens' is missing"),
    "empty tokens": ("tokens", vocabulary_keys([], [], [])["tokens"], "tokens' is missing, empty"),
    "tokens in numbers": (
        "tokens",
        key("tokenizer.ggml.tokens", ARRAY, array(UINT32, 1, bytes(4))),
        "tokens' is missing, empty or no array of strings",
    ),
    "tokens that are no array": ("tokens", number("tokens", 3), "tokens' is no array"),
    "no scores": ("scores", None, "scores' is missing"),
    "too few scores": (
        "scores",
        vocabulary_keys(PIECES)["scores"],
        f"scores' has 259 items for {SIZE} tokens",
    ),
    "a score that is no number": (
        "scores",
        vocabulary_keys(scores=NAN_SCORES)["scores"],
        "scores' has an item that is no finite number",
    ),
    "a kind of 7": (
        "token_type",
        vocabulary_keys(kinds=[*ALL_KINDS[:-1], 7])["token_type"],
        "token_type' has an item that is no type of token",
    ),
    "bos past the end": ("bos", number("bos_token_id", SIZE), f"names none of the {SIZE} tokens"),
    "eot in words": ("eot", key("tokenizer.ggml.eot_token_id", STRING, string("x")), "names none"),
    "a flag of 1": ("flag", number("add_bos_token", 1), "is neither true nor false"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_malformed_vocabulary_is_named(case: str) -> None:
    name, replacement, fault = FAULTS[case]
    keys = vocabulary_keys()
    keys.pop(name, None)
    more = [] if replacement is None else [replacement]
    file = GgufFile.parse(gguf_writing.whole_file([*keys.values(), *more]), "x.gguf")
    with pytest.raises(EdgellamaError) as caught:
        Tokenizer.from_gguf(file)
    assert type(caught.value) is ModelFileError
    assert str(caught.value).startswith("x.gguf: metadata key 'tokenizer.ggml.")
    assert fault in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<a><b>", ["<a><b>"]),
        ("<a><a><b>", ["<a>", "<a><b>"]),
        ("<b><a><b><b>", ["<b>", "<a><b>", "<b>"]),
        ("<a>b><c", ["<a>", "b><c"]),
        ("<b><c", ["<b>"]),
    ],
)
def test_special_tokens_are_the_first_from_the_left_and_the_longest(
    text: str, expected: list[str]
) -> None:
    pieces = [*PIECES, "▁", "<a>", "<a><b>", "<b>", "b><c"]
    tokenizer = tokenizer_of(pieces=pieces, kinds=[*KINDS, NORMAL] + [USER_DEFINED] * 4)
    ids = tokenizer.encode(text, add_special=False)
    assert [tokenizer.piece(token) for token in ids if token > len(PIECES)] == expected
    assert tokenizer.decode(ids).replace(" ", "") == text
