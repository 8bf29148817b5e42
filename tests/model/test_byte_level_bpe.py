"""Special tokens, BOS, pieces and malformed vocabularies of byte-level tokenizers."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from byte_level_models import (
    CONTROL,
    NORMAL,
    USER_DEFINED,
    tokenizer_of,
    trained,
    trained_tokenizer,
    vocabulary_keys,
)
from gguf_writing import array, key, string, strings

from edgellama.errors import ModelFileError, UnsupportedModelError
from edgellama.model.byte_level_bpe import spelled
from edgellama.model.pre_tokenizers import pre_tokenizer

if TYPE_CHECKING:
    from edgellama.model.tokenizer import Tokenizer

BYTES = [spelled(bytes([byte])) for byte in range(256)]
PIECES = [*BYTES, "he", "ll", "hell", "hello", "<s>", "<|im_end|>", "<tag>", "\u0120", "[PAD 7]"]
ID = {piece: token for token, piece in enumerate(PIECES)}
KINDS = [NORMAL] * len(PIECES)
KINDS[ID["<s>"]] = KINDS[ID["<|im_end|>"]] = CONTROL
KINDS[ID["<tag>"]] = USER_DEFINED
KINDS[ID["[PAD 7]"]] = 5
MERGES = ["l l", "h e", "he ll", "hell o"]
UINT32, BOOL, STRING, ARRAY = 4, 7, 8, 9


def number(name: str, value: int) -> bytes:
    return key(f"tokenizer.ggml.{name}", UINT32, struct.pack("<I", value))


def flag(name: str, value: bool) -> bytes:
    return key(f"tokenizer.ggml.{name}", BOOL, bytes([value]))


def small(pre: str | None, *more: bytes, merges: list[str] = MERGES) -> Tokenizer:
    return tokenizer_of([*vocabulary_keys(pre, PIECES, KINDS, merges).values(), *more])


def test_bytes_are_spelled_as_gpt_2_spells_them() -> None:
    assert spelled(b" \n\x00A\xad\xff\x7f\x80") == "\u0120\u010a\u0100A\u0143\u00ff\u0121\u0122"
    assert len(set(BYTES)) == 256


def test_merges_go_by_rank_and_from_the_left() -> None:
    tokenizer = small("gpt-2")
    assert tokenizer.encode("hello") == [ID["hello"]]
    assert tokenizer.encode("hell") == [ID["hell"]]
    assert tokenizer.encode("lll") == [ID["ll"], ID["l"]]
    assert tokenizer.encode("hel") == [ID["he"], ID["l"]]
    assert tokenizer.encode("hello hello") == [ID["hello"], ID["\u0120"], ID["hello"]]


def test_a_merge_that_stands_twice_has_its_first_rank() -> None:
    merges = ["l l", "h e", "e l", "l l"]
    assert small("gpt-2", merges=merges).encode("ell") == [ID["e"], ID["ll"]]


def test_a_word_that_is_a_token_is_it_where_merges_are_ignored() -> None:
    merges = ["h e"]
    assert small("gpt-2", merges=merges).encode("hello") == [ID["he"], ID["l"], ID["l"], ID["o"]]
    assert small("llama-bpe", merges=merges).encode("hello") == [ID["hello"]]


@pytest.mark.parametrize(
    ("pre", "more", "expected"),
    [
        ("llama-bpe", [], True),
        ("llama3", [], True),
        ("tekken", [], True),
        ("qwen2", [], False),
        ("gpt-2", [], False),
        ("llama-bpe", [flag("add_bos_token", False)], False),
        ("qwen2", [flag("add_bos_token", True)], True),
    ],
)
def test_bos_is_the_files_choice_then_the_pre_tokenizers(
    pre: str, more: list[bytes], expected: bool
) -> None:
    tokenizer = small(pre, number("bos_token_id", ID["<s>"]), *more)
    assert tokenizer.encode("hello") == [ID["<s>"]] * expected + [ID["hello"]]
    assert tokenizer.encode("hello", add_special=False) == [ID["hello"]]
    assert tokenizer.encode("<s>hello", parse_special=True) == [ID["<s>"], ID["hello"]]


def test_without_a_bos_none_is_added() -> None:
    tokenizer = small("llama-bpe")
    assert tokenizer.bos is None
    assert tokenizer.encode("hello") == [ID["hello"]]


def test_an_end_is_added_where_the_file_says_so() -> None:
    end = number("eos_token_id", ID["<|im_end|>"])
    assert small("gpt-2", end, flag("add_eos_token", True)).encode("") == [ID["<|im_end|>"]]
    assert small("gpt-2", end).encode("") == []
    assert small("gpt-2", end).end_tokens == {ID["<|im_end|>"]}


def test_control_tokens_are_text_unless_parsed() -> None:
    tokenizer = small("gpt-2")
    assert ID["<s>"] not in tokenizer.encode("<s>")
    assert tokenizer.encode("<s>hello<|im_end|>", parse_special=True) == [
        *(ID["<s>"], ID["hello"], ID["<|im_end|>"])
    ]
    assert tokenizer.encode("hello<tag>hello") == [ID["hello"], ID["<tag>"], ID["hello"]]
    assert tokenizer.decode(tokenizer.encode("<s>hello<tag>")) == "<s>hello<tag>"


def test_a_word_that_names_a_control_token_stays_text() -> None:
    kinds = [*KINDS[: ID["hello"]], CONTROL, *KINDS[ID["hello"] + 1 :]]
    keys = vocabulary_keys("llama-bpe", PIECES, kinds, MERGES)
    tokenizer = tokenizer_of(list(keys.values()))
    assert ID["hello"] not in tokenizer.encode("hello")
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"


def test_what_tokens_add_to_a_text() -> None:
    tokenizer = small("gpt-2")
    assert tokenizer.piece_bytes(ID["\u0120"]) == b" "
    assert tokenizer.piece_bytes(ID["<s>"]) == b""
    assert tokenizer.piece_bytes(ID["<tag>"]) == b"<tag>"
    assert tokenizer.piece_bytes(ID["[PAD 7]"]) == b"[PAD 7]"
    assert tokenizer.decode([ID["\u0120"], ID["hello"]]) == " hello"


def test_a_stream_holds_back_part_of_a_character() -> None:
    tokenizer = small("gpt-2")
    stream = tokenizer.stream()
    assert [stream.push(token) for token in tokenizer.encode("🙂")] == ["", "", "", "🙂"]


def test_bytes_missing_in_the_vocabulary_are_left_out_or_unknown() -> None:
    pieces, kinds = ["h", "i", "<unk>"], [NORMAL, NORMAL, 2]
    keys = list(vocabulary_keys("gpt-2", pieces, kinds, []).values())
    assert tokenizer_of(keys).encode("hi!") == [0, 1]
    assert tokenizer_of([*keys, number("unknown_token_id", 2)]).encode("hi!") == [0, 1, 2]


def test_a_file_without_a_pre_tokenizer_means_the_default_one() -> None:
    model = trained("default")
    keys = vocabulary_keys(None, model.pieces, model.kinds, model.merges)
    text = "x=$5, 'twas 12345678 times!?"
    expected = trained_tokenizer("default").encode(text)
    assert tokenizer_of(list(keys.values())).encode(text) == expected


def test_an_unknown_pre_tokenizer_is_named() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        small("gpt-9")
    message = str(caught.value)
    assert message.startswith("x.gguf: pre-tokenizer 'gpt-9' is not supported; supported: llama-")
    assert "qwen2" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "replacement", "fault"),
    [
        ("merges", None, "merges' is missing"),
        ("merges", number("merges", 1), "merges' is no array"),
        ("merges", key("tokenizer.ggml.merges", ARRAY, array(UINT32, 1, bytes(4))), "of strings"),
        ("pre", number("pre", 1), "pre' is not text"),
        ("tokens", key("tokenizer.ggml.tokens", ARRAY, strings([])), "tokens' is missing, empty"),
    ],
)
def test_a_malformed_vocabulary_is_named(name: str, replacement: bytes | None, fault: str) -> None:
    keys = vocabulary_keys("gpt-2", PIECES, KINDS, MERGES)
    del keys[name]
    with pytest.raises(ModelFileError, match=fault):
        tokenizer_of([*keys.values(), *([] if replacement is None else [replacement])])


@pytest.mark.parametrize("merge", ["", " ", "h", "h  e", "h e l", "  ", "\u0120 "])
def test_a_merge_that_is_no_pair_never_applies(merge: str) -> None:
    assert small("gpt-2", merges=[merge]).encode("hel") == [ID["h"], ID["e"], ID["l"]]


def test_a_hostile_pre_tokenizer_name_stays_on_one_line() -> None:
    keys = vocabulary_keys(None, PIECES, KINDS, MERGES)
    pre = key("tokenizer.ggml.pre", STRING, string("a\n\x1b[31m" + "b" * 500))
    with pytest.raises(UnsupportedModelError) as caught:
        tokenizer_of([*keys.values(), pre])
    assert str(caught.value).isprintable()


def test_long_runs_take_no_quadratic_time() -> None:
    """Each of these is minutes of work where an expression looks at a run from every position."""
    runs = (" " * 50_000 + "3", "A" * 50_000, "\t" * 50_000 + "x", "'" * 50_000, "\u0301" * 50_000)
    for name in ("deepseek-llm", "tekken", "gpt-4o", "falcon", "default", "llama-bpe"):
        rule = pre_tokenizer(name)
        assert rule is not None
        for text in runs:
            assert "".join(rule.words(text)) == text
