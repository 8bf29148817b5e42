"""Byte-level vocabularies trained by the tokenizers library, which is the oracle, as GGUF files.

Each pre-tokenizer is built as its models' tokenizer.json has it, with the library's own regular
expressions, and trained on a few sentences of many scripts.
"""
# ruff: noqa: RUF001, E501 - characters of many scripts are what this file is about

from __future__ import annotations

import functools
import json
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import gguf_writing
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Oracle

from edgellama.model.gguf import GgufFile
from edgellama.model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
CONTROL_PIECES = ("<|begin|>", "<|end|>", "<|turn|>")
USER_DEFINED_PIECES = ("<|fold|>", "    ", "  ")

GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
GPT_4O = (
    TEKKEN.replace(r"]+|[^\r", rf"]+{CONTRACTION}|[^\r", 1)
    .replace(r"]*|\p{N}|", rf"]*{CONTRACTION}|\p{{N}}|", 1)
    .replace(r"|\p{N}|", r"|\p{N}{1,3}|", 1)
)
DEEPSEEK_V3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The letters that have a case, as U+0041 and so on, from DeepSeek's own expression.
DEEPSEEK_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ"
    "\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗ"
    "Ａ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
CJK = "[一-龥ࠀ-一가-\ud7ff]+"

CORPUS = [
    "Once upon a time, there was a little girl named Lily. She loved to play outside; didn't she?",
    "The quick brown fox jumps over the lazy dog; THE QUICK BROWN FOX? 1234567890 2024 1999 100000.",
    "I'm sure they've said we'll go, he'd stay. IT'S WE'RE THEY'LL. camelCaseWords HTTPServer x86_64",
    "Der Zwölfboxkämpfer jagt Eva quer über den großen Sylter Deich. Führer STRASSE Öl",
    "Съешь ещё этих мягких французских булок, да выпей же чаю. нещо на Български",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. Cửa Việt",
    "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر. ٣٣٣٣ ۱۲۳۴",
    "דג סקרן שט בים מאוכזב ולפתע מצא חברה.",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश। १२३४५६",
    "いろはにほへと ちりぬるを 色は匂へど散りぬるを。　「全角」ＡＢＣ１２３！",
    "我能吞下玻璃而不伤身体。天地玄黃 宇宙洪荒。我想在apple工作1314151天～",
    "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다.",
    "កាន់តែពិសេសអាចខលចេញ เป็นมนุษย์สุดประเสริฐเลิศคุณค่า",
    "def f(x):\n\treturn [x ** 2 for x in range(10)]  # spaces:    four\r\n\r\n\n\n    if x != 0 && y <= 1: $5+$6",
    "🙂🙃👩‍👩‍👧‍👦🏳️‍🌈 flags 🇩🇪🇯🇵 keycap 1️⃣ 🚀 (normal) 😶‍🌫️ ✅ ½ ² Ⅷ 〇",
    "......!!!!!!?????? ''''''```````\"\"\"\" ------======= <<>> ~~ ^^ || $$ ++ // \\\\ {} [] () @#%&*_",
]
HARD = [
    "",
    " ",
    "  ",
    "   ",
    " " * 200,
    " " * 5 + "x",
    "\t",
    "\n",
    "\n\n",
    "\n\n\n",
    "\t\n",
    "\r\n \r\n",
    " \n \t \n  x\n",
    "Hello world",
    " Hello world!",
    "    Hello\n    Hello",
    " (",
    "\n =",
    "' era",
    "''s '' 'S 'T 'Re 'vE 'M 'LL 'lL 'd 'D '\u017f \u2019s \u02bcs \uff07s `s '\u017fa x'\u017fé 'ssa",
    "Hello, y'all! How are you 😁 ?我想在apple工作1314151天～",
    "we'll've y'all'd've 'tis 'twas rock 'n' roll O'Neill's",
    *("3" * count for count in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 100)),
    "3.3 3..3 3...3 1,000,000 0x1F 1e-5 v1.2.3 3 33 333 3333",
    "٣٣٣٣ ३३३३ ３３３３ ²²²² ⅧⅧ ½½½ 三三 〇〇",
    "!!!!!!\r\n\r\n??\n/ //\n a/b\\c",
    "e\u0301 a\u030a n\u0303 \u0301x x\u0301\u0302\u0303y \u0301\u0301 A\u0301B E\u0301e\u0301",
    "zero\u200bwidth\u200djoin\u2060er\ufeffbom\u00adsoft\u180e",
    "nbsp\u00a0x\u2003y\u3000z\u2028line\u2029para\u0085next\u1680ogham \u00a0 \u2003\u2003a",
    "\x00\x01\x1b[0m\x1c\x1d\x1e\x1f\x7f",
    "\u01c5 \u01c8 ǅungla ﬁn ß ẞ İ ı ŉ ſ K Å ʰ ˈ ᵃ ª º",
    "ABCdef ABC Abc aBC ABc ÀÉÎ àéî Ärger ПРИВЕТ Привет приВЕТ ΑΒΓ αβγ ԱԲաբ ႠႡაბ ᏣᎳᎩ ꭰꭱ 𐐀𐐨 𞤀𞤢",
    "कान्हा की बाँसुरी ക്ഷ தமிழ் বাংলা ગુજરાતી ဗမာ བོད ລາວ ქართული አማርኛ ᠮᠣᠩᠭᠣᠯ",
    "កាន់តែពិសេសអាច😁 ស្រ្តី",
    "한국어ㅋㅋㅋㅎㅎ ㄱㄴㄷ ᄀᄁ",
    "ひらがなカタカナｶﾀｶﾅ漢字ー々〆〤 㐀䶵 龥龦 豈 𠀀𪛖",
    "\U0001fae8\U0001f9cc\U0002ebf0\U00031350\U000105c0\u1c89\ua7cb\U00011f04\U00011f50",
    "\ue000\uf8ff\U000f0000\U0010ffff\uffff\u0378",
    "word" * 100,
    "a" * 500 + "🙂" * 100,
    "AAAA" * 50 + "aaaa" * 50,
    "=" * 300 + "-" * 300 + "\n" * 50,
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶‍🌫️ (multiple emojis) ✅ 🦙🦙 3 33",
    "I've been 'told he's there, 'RE you sure? 'M not sure I'll make it, 'D you like tea? We'Ve a'lL",
]


def split(*patterns: str) -> list[Any]:
    """Return one Split of the library for each regular expression, what is found kept apart."""
    return [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]


def byte_level(use_regex: bool) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def digits(individual: bool) -> Any:
    return pre_tokenizers.Digits(individual_digits=individual)


# As the tokenizer.json of the models: https://huggingface.co and llama.cpp for "default".
PRE_TOKENIZERS: dict[str, list[Any]] = {
    "llama-bpe": [*split(LLAMA_3), byte_level(False)],
    "dbrx": [*split(LLAMA_3), byte_level(False)],
    "qwen2": [*split(LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")), byte_level(False)],
    "qwen35": [*split(QWEN_35), byte_level(False)],
    "gpt-2": [byte_level(True)],
    "smollm": [digits(True), byte_level(True)],
    "starcoder": [digits(True), byte_level(True)],
    "refact": [digits(True), byte_level(True)],
    "command-r": [digits(True), byte_level(True)],
    "tekken": [*split(TEKKEN), byte_level(False)],
    "gpt-4o": [*split(GPT_4O), byte_level(False)],
    "falcon": [
        pre_tokenizers.Punctuation("contiguous"),
        byte_level(True),
        digits(False),
        *split("[0-9][0-9][0-9]"),
    ],
    "default": [
        *split(r"[\p{P}\$\+<=>\^~\|]+", GPT_2, r"\p{N}+", "[0-9][0-9][0-9]"),
        byte_level(False),
    ],
    "deepseek-llm": [
        *split("[\r\n]", rf"\s?[{DEEPSEEK_LETTERS}]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$"),
        *split(CJK),
        digits(True),
        byte_level(False),
    ],
    "deepseek-coder": [
        *split("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK),
        digits(True),
        byte_level(False),
    ],
    "deepseek-v3": [*split(r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK_V3), byte_level(False)],
}
# What cuts words in them, with the same result but for what is named in docs/spec/tokenizer.md:
# the whole expression instead of ByteLevel's, and numbers no finer than in llama.cpp.
WORD_SPLITS: dict[str, list[Any]] = {
    "llama-bpe": split(LLAMA_3),
    "dbrx": split(LLAMA_3),
    "qwen2": PRE_TOKENIZERS["qwen2"][:-1],
    "qwen35": split(QWEN_35),
    "gpt-2": split(GPT_2),
    "smollm": split(r"\p{N}", GPT_2),
    "starcoder": split(r"\p{N}", GPT_2),
    "refact": split(r"\p{N}", GPT_2),
    "command-r": split(r"\p{N}", GPT_2),
    "tekken": split(TEKKEN),
    "gpt-4o": split(GPT_4O),
    "falcon": [
        pre_tokenizers.Punctuation("contiguous"),
        *split(GPT_2, "[0-9][0-9][0-9]"),
    ],
    "default": PRE_TOKENIZERS["default"][:-1],
    "deepseek-llm": [*PRE_TOKENIZERS["deepseek-llm"][:-2], *split(r"\p{N}+")],
    "deepseek-coder": PRE_TOKENIZERS["deepseek-coder"][:-1],
    "deepseek-v3": PRE_TOKENIZERS["deepseek-v3"][:-1],
}
IGNORE_MERGES = ("llama-bpe", "tekken")


class Trained(NamedTuple):
    """A trained vocabulary: what the library needs and what a GGUF file holds."""

    oracle: Oracle
    pieces: list[str]
    kinds: list[int]
    merges: list[str]


@functools.cache
def trained(name: str) -> Trained:
    """Train a vocabulary of 1,500 tokens as a model's author would."""
    oracle = Oracle(models.BPE(ignore_merges=name in IGNORE_MERGES))
    oracle.pre_tokenizer = pre_tokenizers.Sequence(PRE_TOKENIZERS[name])
    oracle.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=list(CONTROL_PIECES),
    )
    oracle.train_from_iterator(CORPUS * 3, trainer)
    oracle.add_tokens([AddedToken(piece, normalized=False) for piece in USER_DEFINED_PIECES])
    size = oracle.get_vocab_size()
    pieces = [oracle.id_to_token(token) for token in range(size)]
    kind_of = dict.fromkeys(CONTROL_PIECES, CONTROL) | dict.fromkeys(
        USER_DEFINED_PIECES, USER_DEFINED
    )
    model = json.loads(oracle.to_str())["model"]
    return Trained(
        oracle,
        pieces,
        [kind_of.get(piece, NORMAL) for piece in pieces],
        [" ".join(pair) for pair in model["merges"]],
    )


def vocabulary_keys(
    pre: str | None, pieces: Sequence[str], kinds: Sequence[int], merges: Sequence[str]
) -> dict[str, bytes]:
    """Return the encoded metadata of a byte-level vocabulary, by their names without prefix."""
    keys = {
        "model": gguf_writing.key("tokenizer.ggml.model", 8, gguf_writing.string("gpt2")),
        "tokens": gguf_writing.key("tokenizer.ggml.tokens", 9, gguf_writing.strings(list(pieces))),
        "token_type": gguf_writing.key(
            "tokenizer.ggml.token_type",
            9,
            gguf_writing.array(5, len(kinds), struct.pack(f"<{len(kinds)}i", *kinds)),
        ),
        "merges": gguf_writing.key("tokenizer.ggml.merges", 9, gguf_writing.strings(list(merges))),
    }
    if pre is not None:
        keys["pre"] = gguf_writing.key("tokenizer.ggml.pre", 8, gguf_writing.string(pre))
    return keys


def tokenizer_of(keys: Sequence[bytes]) -> Tokenizer:
    """Return the tokenizer of a file with this metadata."""
    return Tokenizer.from_gguf(GgufFile.parse(gguf_writing.whole_file(keys), "x.gguf"))


@functools.cache
def trained_tokenizer(name: str) -> Tokenizer:
    """Return our tokenizer of the trained vocabulary."""
    model = trained(name)
    return tokenizer_of(
        list(vocabulary_keys(name, model.pieces, model.kinds, model.merges).values())
    )
