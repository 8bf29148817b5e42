"""The vocabulary of a Hugging Face folder as the keys of a GGUF.

``tokenizer.model`` (SentencePiece) is taken where there is one, else ``tokenizer.json``: byte-pair
encoding over bytes (``gpt2`` in a GGUF) or over characters with byte tokens (``llama``). How a
byte-level tokenizer cuts words is told by its expressions, compared with those that are known.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edgellama.model.gguf_header import file_fault, file_unsupported
from edgellama.model.json_fields import JsonFields
from edgellama.model.sentencepiece_model import read_sentencepiece_model
from edgellama.model.vocabulary import BYTE_PIECES, PieceKind

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

TEMPLATE_BYTES_MAX: Final = 1 << 20

_PREFIX: Final = "tokenizer.ggml."
_SPACE: Final = "\u2581"
# What a token stays when it is listed among the added ones too.
_KEPT: Final = (PieceKind.UNKNOWN, PieceKind.CONTROL, PieceKind.BYTE)
_LEAST_SCORE: Final = -1e9  # of pieces that no merge makes

_CASELESS_CONTRACTION: Final = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_NEWLINES_AND_SPACES: Final = r"\s*[\r\n]+|\s+(?!\S)|\s+"


def _llama_3(numbers: str) -> str:
    return (
        rf"{_CASELESS_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{numbers}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_NEWLINES_AND_SPACES}"
    )


_BEFORE: Final = r"[^\r\n\p{L}\p{N}]?"
_UPPER: Final = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER: Final = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN: Final = (
    rf"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_NEWLINES_AND_SPACES}"
)

_GPT_2: Final = ("ByteLevel", True)
_BYTES: Final = ("ByteLevel", False)  # bytes as characters, and no cutting

# What a tokenizer.json does in turn -> the name of this in a GGUF. An expression may have its
# contractions spelled out letter by letter or by a flag: both cut alike.
_PRE_TOKENIZERS: Final[dict[tuple[tuple[str, Any], ...], str]] = {
    (("Split", _llama_3("{1,3}")), _BYTES): "llama-bpe",
    (("Split", _llama_3("")), _BYTES): "qwen2",
    (("Split", _TEKKEN), _BYTES): "tekken",
    (_GPT_2,): "gpt-2",
    (("Digits", True), _GPT_2): "smollm",
}
_SPELLED_CONTRACTION: Final = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"


@dataclass
class _Pieces:
    """What becomes of each token id; ``scores`` or ``merges`` as the algorithm wants."""

    model: str  # tokenizer.ggml.model
    texts: list[str]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    keys: dict[str, Any] = field(default_factory=dict)

    def kind_of(self, token: int, text: str) -> int:
        """Return the kind of a token that has this text already, UNUSED where it has not."""
        known = token < len(self.texts) and self.texts[token] == text
        return self.types[token] if known else PieceKind.UNUSED

    def put(self, token: int, text: str, kind: PieceKind) -> None:
        """Give an id its text; ids before it that have none are unused."""
        while len(self.texts) <= token:
            self.texts.append(f"[PAD{len(self.texts)}]")
            self.types.append(PieceKind.UNUSED)
            if self.scores is not None:
                self.scores.append(_LEAST_SCORE)
        self.texts[token] = text
        self.types[token] = kind


def tokenizer_keys(folder: Path, size: int) -> dict[str, Any]:
    """Return the keys under ``tokenizer.`` for a vocabulary of ``size`` tokens.

    Ids of the embedding that the tokenizer does not name are unused tokens. Raises ModelFileError
    or UnsupportedModelError.
    """
    config = _optional(folder / "tokenizer_config.json")
    stored = _optional(folder / "tokenizer.json")
    if (folder / "tokenizer.model").is_file():
        pieces = _from_sentencepiece(folder / "tokenizer.model")
    elif stored.fields:
        pieces = _from_json(stored)
    else:
        raise file_fault(str(folder), "has neither tokenizer.model nor tokenizer.json")
    for token, text, special in _added_tokens(stored, config):
        if token >= size:
            raise file_fault(str(folder), f"token {token} lies beyond the embedding's {size} rows")
        if pieces.kind_of(token, text) not in _KEPT:
            pieces.put(token, text, PieceKind.CONTROL if special else PieceKind.USER_DEFINED)
    if len(pieces.texts) > size:
        raise file_fault(
            str(folder), f"the tokenizer has {len(pieces.texts)} tokens, the embedding {size}"
        )
    if len(pieces.texts) < size:
        pieces.put(size - 1, f"[PAD{size - 1}]", PieceKind.UNUSED)
    keys = {
        "model": pieces.model,
        "tokens": pieces.texts,
        "token_type": np.array(pieces.types, np.int32),
        **pieces.keys,
        **_roles(folder, config, stored, pieces),
    }
    if pieces.scores is not None:
        keys["scores"] = np.array(pieces.scores, np.float32)
    if pieces.merges is not None:
        keys["merges"] = pieces.merges
    named = {f"{_PREFIX}{key}": value for key, value in keys.items()}
    template = _chat_template(folder, config)
    return {**named, "tokenizer.chat_template": template} if template else named


def _optional(path: Path) -> JsonFields:
    return JsonFields.read(path) if path.is_file() else JsonFields(str(path), {})


def _from_sentencepiece(path: Path) -> _Pieces:
    texts, scores, types, adds_space = read_sentencepiece_model(path)
    keys = {"add_space_prefix": adds_space}
    return _Pieces("llama", texts, types, scores=scores, keys=keys)


def _from_json(stored: JsonFields) -> _Pieces:
    model = stored.child("model")
    if model.value("type") not in ("BPE", None):
        raise file_unsupported(stored.name, "its algorithm is not BPE, the one that is supported")
    vocabulary = model.child("vocab").fields
    ids = sorted(vocabulary.values()) if _are_ids(vocabulary.values()) else []
    if not ids or ids[-1] >= 1 << 22 or len(set(ids)) < len(ids):
        raise model.fault("vocab", "does not give each token an id of its own")
    merges = _merges(model)
    if model.flag("byte_fallback", default=False):
        return _character_pieces(stored, vocabulary, merges)
    pieces = _Pieces("gpt2", [], [], merges=[" ".join(pair) for pair in merges])
    for text, token in vocabulary.items():
        pieces.put(token, text, PieceKind.NORMAL)
    pieces.keys["pre"] = _pre_tokenizer(stored)
    return pieces


def _are_ids(values: Any) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


def _merges(model: JsonFields) -> list[tuple[str, str]]:
    """Return the merges, the first to be made first; older files join each pair by a space."""
    pairs = []
    for each in model.value("merges") or []:
        pair = each.split(" ") if isinstance(each, str) else each
        if not isinstance(pair, list) or len(pair) != 2 or not all(map(_is_piece, pair)):
            raise model.fault("merges", "holds what is no pair of pieces")
        pairs.append((pair[0], pair[1]))
    return pairs


def _is_piece(value: object) -> bool:
    return isinstance(value, str) and value != "" and " " not in value


def _character_pieces(
    stored: JsonFields, vocabulary: Mapping[str, int], merges: list[tuple[str, str]]
) -> _Pieces:
    """Return pieces as SentencePiece has them: a piece's score says when it is merged."""
    adds_space = _adds_space(stored)
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    pieces = _Pieces("llama", [], [], scores=[], keys={"add_space_prefix": adds_space})
    unknown = stored.child("model").value("unk_token")
    assert pieces.scores is not None
    for text, token in vocabulary.items():
        kind = PieceKind.BYTE if text in BYTE_PIECES else PieceKind.NORMAL
        pieces.put(token, text, PieceKind.UNKNOWN if text == unknown else kind)
        pieces.scores[token] = -float(ranks[text]) if text in ranks else _LEAST_SCORE
    return pieces


def _adds_space(stored: JsonFields) -> bool:
    """Tell whether a text gets a space before it, once it is sure that spaces become U+2581."""
    steps = _in_turn(stored.child("normalizer"), "normalizers")
    for step in steps:
        if step.value("type") == "Prepend" and step.value("prepend") == _SPACE:
            return True
    before = _in_turn(stored.child("pre_tokenizer"), "pretokenizers")
    for step in (*steps, *before):
        if step.value("type") == "Metaspace":
            return step.value("prepend_scheme") != "never" and step.value("add_prefix_space") in (
                None,
                True,
            )
    if any(step.value("type") == "Replace" and step.value("content") == _SPACE for step in steps):
        return False
    raise file_unsupported(stored.name, "its way to treat spaces is not supported")


def _in_turn(step: JsonFields, key: str) -> list[JsonFields]:
    """Return the steps of a sequence, or the only one there is."""
    if not step.fields:
        return []
    return step.children(key) if step.value("type") == "Sequence" else [step]


def _pre_tokenizer(stored: JsonFields) -> str:
    """Return the name that a GGUF gives to the way in which words are cut."""
    for step in _in_turn(stored.child("normalizer"), "normalizers"):
        if step.value("type") != "NFC":  # which GGUF's runners leave out
            raise file_unsupported(stored.name, "its way to normalize text is not supported")
    steps = tuple(_signature(s) for s in _in_turn(stored.child("pre_tokenizer"), "pretokenizers"))
    name = _PRE_TOKENIZERS.get(steps)
    if name is None:
        known = ", ".join(_PRE_TOKENIZERS.values())
        raise file_unsupported(
            stored.name, f"its way to cut words is not one of those that are known: {known}"
        )
    return name


def _signature(step: JsonFields) -> tuple[str, Any]:
    kind = step.text("type", "")
    if kind == "Split" and step.value("behavior") == "Isolated" and not step.value("invert"):
        pattern = step.child("pattern").text("Regex", "")
        return kind, pattern.replace(_SPELLED_CONTRACTION, _CASELESS_CONTRACTION)
    if kind == "ByteLevel" and not step.value("add_prefix_space"):
        return kind, step.value("use_regex") is not False
    if kind == "Digits":
        return kind, step.value("individual_digits")
    return kind, None


def _added_tokens(stored: JsonFields, config: JsonFields) -> list[tuple[int, str, bool]]:
    """Return id, text and whether it is special of tokens beside the algorithm's own."""
    added = stored.children("added_tokens")
    if not added:  # of a tokenizer.model the configuration alone names them
        decoder = config.child("added_tokens_decoder")
        added = []
        for number in decoder.fields:
            if not number.isdecimal() or len(number) > 9:
                raise config.fault("added_tokens_decoder", "names a token that is no number")
            fields = decoder.child(number).fields
            added.append(JsonFields(config.name, {**fields, "id": int(number)}))
    return [
        (each.integer("id"), each.text("content"), each.flag("special", default=False))
        for each in added
    ]


def _roles(
    folder: Path, config: JsonFields, stored: JsonFields, pieces: _Pieces
) -> dict[str, int | bool]:
    """Return the ids of tokens with a role, and which of them are put around a text."""
    ids = {text: token for token, text in enumerate(pieces.texts)}
    model = JsonFields.read(folder / "config.json")
    roles: dict[str, int | bool] = {}
    for role, key in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")):
        token = ids.get(_text_of(config.value(f"{key}_token")))
        stated = model.value(f"{key}_token_id")
        if token is None and type(stated) is int and 0 <= stated < len(pieces.texts):
            token = stated
        if token is not None:
            roles[f"{role}_token_id"] = token
    ends = _optional(folder / "generation_config.json").value("eos_token_id")
    ends = [e for e in (ends if isinstance(ends, list) else [ends]) if type(e) is int]
    others = [end for end in ends if end != roles.get("eos_token_id") and end < len(pieces.texts)]
    if others:  # the end of a turn, where it is not that of a text
        roles["eot_token_id"] = others[-1]
    before, after = _around(stored)
    character = pieces.model == "llama"
    roles["add_bos_token"] = _stated(
        config, "add_bos_token", before or (character and not stored.fields)
    )
    roles["add_eos_token"] = _stated(config, "add_eos_token", after)
    return roles


def _text_of(token: object) -> str:
    """Return the text of a token, which newer files describe by an object."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""


def _stated(config: JsonFields, key: str, default: bool) -> bool:
    value = config.value(key)
    return value if isinstance(value, bool) else default


def _around(stored: JsonFields) -> tuple[bool, bool]:
    """Tell whether the tokenizer.json puts special tokens before and after a text."""
    for step in _in_turn(stored.child("post_processor"), "processors"):
        if step.value("type") == "TemplateProcessing":
            parts = ["SpecialToken" in each.fields for each in step.children("single")]
            return bool(parts) and parts[0], bool(parts) and parts[-1]
    return False, False


def _chat_template(folder: Path, config: JsonFields) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        data = path.read_bytes()[: TEMPLATE_BYTES_MAX + 1]
        try:
            template: object = data.decode("utf-8")
        except UnicodeDecodeError:
            raise file_fault(str(path), "is not UTF-8") from None
    else:
        template = config.value("chat_template")
    if isinstance(template, list):  # several, each with a name
        named = {each.get("name"): each.get("template") for each in template if type(each) is dict}
        template = named.get("default")
    if not isinstance(template, str):
        return None
    if len(template) > TEMPLATE_BYTES_MAX:
        raise file_fault(str(folder), f"the chat template is longer than {TEMPLATE_BYTES_MAX}")
    return template
