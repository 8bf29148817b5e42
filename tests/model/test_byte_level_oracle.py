"""Byte-level tokenizers against the tokenizers library, for every pre-tokenizer."""
# ruff: noqa: RUF001 - characters of many scripts are what this file is about

from __future__ import annotations

import functools
from typing import Any

import pytest
from byte_level_models import (
    CORPUS,
    HARD,
    PRE_TOKENIZERS,
    WORD_SPLITS,
    split,
    trained,
    trained_tokenizer,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from edgellama.model.pre_tokenizers import PRE_TOKENIZER_NAMES, pre_tokenizer

# Letters, marks, numbers, signs and spaces of every kind that some rule tells apart.
ALPHABET = (
    " \t\n\r\x0b\x1c\x85\xa0\u2003\u3000aAbzZéÉßǅʰªककि\u0301\u0903\u20dd三龥龦가ㄱアาກ١９²Ⅷ½"
    "19'\u2019\u017f.,!?$+<=>^~|`_-/\\()[]{}@€°😁🏽\u200d\u200b\ufeff\ue000\u0378sStTrReEvVmMlLdD"
)


def check(name: str, text: str) -> None:
    ids = trained_tokenizer(name).encode(text, add_special=False)
    assert ids == trained(name).oracle.encode(text, add_special_tokens=False).ids, repr(text)
    assert trained_tokenizer(name).decode(ids) == text


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_hard_texts(name: str) -> None:
    for text in [*HARD, *CORPUS, "\n".join(CORPUS), " ".join(HARD)]:
        check(name, text)


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
@settings(deadline=None, max_examples=60)
@given(text=st.text(st.sampled_from(ALPHABET), max_size=40))
def test_mixtures_of_kinds(name: str, text: str) -> None:
    check(name, text)


@settings(deadline=None, max_examples=100)
@given(text=st.text(max_size=40), name=st.sampled_from(sorted(PRE_TOKENIZERS)))
def test_any_text_comes_back(text: str, name: str) -> None:
    """The tokens of characters newer than either side's Unicode may differ; the text may not."""
    tokenizer = trained_tokenizer(name)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def library_words(steps: list[Any], text: str) -> list[str]:
    found = pre_tokenizers.Sequence(steps).pre_tokenize_str(text)
    return [text[first:past] for _, (first, past) in found]


def our_words(name: str, text: str) -> list[str]:
    rule = pre_tokenizer(name)
    assert rule is not None
    return rule.words(text)


@pytest.mark.parametrize("name", WORD_SPLITS)
def test_words(name: str) -> None:
    """Words are compared too: a wrong cut shows in ids only where some merge crosses it."""
    for text in [*HARD, *CORPUS, " ".join(HARD)]:
        assert our_words(name, text) == library_words(WORD_SPLITS[name], text)


@pytest.mark.parametrize("name", WORD_SPLITS)
@settings(deadline=None, max_examples=60)
@given(text=st.text(st.sampled_from(ALPHABET), max_size=40))
def test_words_of_mixtures(name: str, text: str) -> None:
    assert our_words(name, text) == library_words(WORD_SPLITS[name], text)


@pytest.mark.parametrize("name", ["llama-bpe", "tekken", "deepseek-v3", "deepseek-llm"])
def test_every_character_of_unicode_16(name: str) -> None:
    """Each character between two others shows its kind: that of the oracle's own tables.

    The first is no ASCII letter: those are cut off by DeepSeek's expression for signs.
    """
    of_16 = library_words(split(r"\p{Lu}"), "\u1c89-") == ["\u1c89", "-"]
    if not of_16 or library_words(split(r"\p{L}"), "\ua7ce-") == ["\ua7ce", "-"]:
        pytest.skip("this version of the tokenizers library does not hold Unicode 16.0")
    codes = (*range(0x32500), 0xE0001, 0xE0100, 0xF0000, 0x10FFFF)
    text = "".join(f"é{chr(code)}1" for code in codes if not 0xD800 <= code < 0xE000)
    assert our_words(name, text) == library_words(WORD_SPLITS[name], text)


def test_every_name_has_a_rule_and_no_other_does() -> None:
    assert all(pre_tokenizer(name) is not None for name in PRE_TOKENIZER_NAMES)
    assert set(PRE_TOKENIZERS) <= set(PRE_TOKENIZER_NAMES)
    assert pre_tokenizer("gpt-5") is None


@functools.cache
def long_text() -> str:
    return "\n".join(CORPUS * 200)


def test_a_long_text() -> None:
    check("llama-bpe", long_text())
