"""llama.cpp's conformance suite: vocabulary-only files, each with texts and the ids they give.

Beside ``NAME.gguf`` lie ``NAME.gguf.inp``, texts with a line ``__ggml_vocab_test__`` after each,
and ``NAME.gguf.out``, a line of ids for each text, without BOS. Put such triples into the folder
that EDGELLAMA_VOCAB_SUITE names or into ../shared/vocabs. Here the format itself is tested with
triples that the tokenizers library wrote.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import gguf_writing
import pytest
from byte_level_models import HARD, trained, vocabulary_keys
from published_suite import SUITE

from edgellama.errors import UnsupportedModelError
from edgellama.model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pathlib import Path

SEPARATOR = "\n__ggml_vocab_test__\n"


def beside(vocabulary: Path, ending: str) -> Path:
    return vocabulary.with_name(vocabulary.name + ending)


def has_texts(vocabulary: Path) -> bool:
    return beside(vocabulary, ".inp").exists() and beside(vocabulary, ".out").exists()


TRIPLES = sorted(filter(has_texts, SUITE.rglob("*.gguf"))) if SUITE.is_dir() else []


def check_triple(vocabulary: Path) -> None:
    """Compare the ids of every text; the message of a failure shows the text."""
    texts = beside(vocabulary, ".inp").read_bytes().decode().split(SEPARATOR)[:-1]
    lines = beside(vocabulary, ".out").read_bytes().decode().split("\n")[: len(texts)]
    assert len(texts) == len(lines) > 0, "as many lines of ids as texts"
    tokenizer = Tokenizer.from_gguf(vocabulary)
    for text, line in zip(texts, lines, strict=True):
        expected = [int(number) for number in line.split()]
        assert tokenizer.encode(text, add_special=False) == expected, repr(text)


@pytest.mark.skipif(not TRIPLES, reason="no vocabulary suite at hand")
@pytest.mark.parametrize("vocabulary", TRIPLES, ids=lambda path: path.name)
def test_published_vocabulary(vocabulary: Path) -> None:
    try:
        Tokenizer.from_gguf(vocabulary)
    except UnsupportedModelError as error:
        pytest.skip(str(error))
    check_triple(vocabulary)


def write_triple(folder: Path, name: str) -> Path:
    model = trained(name)
    path = folder / f"vocabulary-{name}.gguf"
    keys = vocabulary_keys(name, model.pieces, model.kinds, model.merges)
    path.write_bytes(gguf_writing.whole_file(list(keys.values())))
    beside(path, ".inp").write_bytes("".join(text + SEPARATOR for text in HARD).encode())
    ids = [model.oracle.encode(text, add_special_tokens=False).ids for text in HARD]
    lines = ["".join(f" {token}" for token in each) + "\n" for each in ids]
    beside(path, ".out").write_text("".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe"])
def test_a_triple_of_our_own(tmp_path: Path, name: str) -> None:
    path = write_triple(tmp_path, name)
    assert has_texts(path)
    check_triple(path)


def test_a_wrong_id_is_seen(tmp_path: Path) -> None:
    path = write_triple(tmp_path, "gpt-2")
    out = beside(path, ".out")
    lines = out.read_text(encoding="utf-8").splitlines()
    lines[-1] += " 5"
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(AssertionError):
        check_triple(path)
