"""How byte-level tokenizers cut a text into words before they merge bytes within each word.

The rule is the one that ``tokenizer.ggml.pre`` names. Each is a list of regular expressions in
turn: what one finds becomes words, what lies between stays, and the next one looks at every part.
Sources: the tokenizer.json files of the models, and the names in llama.cpp/src/llama-vocab.cpp.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NamedTuple

from edgellama.model.character_kinds import (
    CASELESS,
    LETTER,
    LONG_S,
    LOWER,
    MARK,
    NUMBER,
    PUNCTUATION,
    SPACE,
    SYMBOL,
    UPPER,
    WHITE_SPACE,
    kinds_of,
)


class _Step(NamedTuple):
    pattern: re.Pattern[str]
    over_kinds: bool  # looks at `kinds_of` the text, not at the text itself


def _kinds(pattern: str) -> _Step:
    return _Step(re.compile(pattern), over_kinds=True)


def _text(pattern: str) -> _Step:
    return _Step(re.compile(pattern), over_kinds=False)


@dataclass(frozen=True)
class PreTokenizer:
    """One rule; make it with `pre_tokenizer`.

    ``adds_bos``: BOS goes before a text where the file does not say. ``ignores_merges``: a word
    that is a token is that token, whatever the merges would make of it.
    """

    steps: tuple[_Step, ...]
    adds_bos: bool = False
    ignores_merges: bool = False

    def words(self, text: str) -> list[str]:
        """Cut a text into its words; together they are the text."""
        kinds = kinds_of(text)
        parts = [(0, len(text))]
        for step in self.steps:
            seen = kinds if step.over_kinds else text
            parts = [part for span in parts for part in _cut(step.pattern, seen, *span)]
        return [text[first:past] for first, past in parts]


def _cut(pattern: re.Pattern[str], seen: str, first: int, past: int) -> list[tuple[int, int]]:
    """Return the parts of seen[first:past]: what the pattern finds and what lies between."""
    parts = []
    done = first
    # A copy of the part: an expression must not look at what lies around it.
    for match in pattern.finditer(seen[first:past]):
        start, end = first + match.start(), first + match.end()
        if start > done:
            parts.append((done, start))
        parts.append((start, end))
        done = end
    if done < past:
        parts.append((done, past))
    return parts


_ANY_CASE_CONTRACTION: Final = f"'(?:[sStTmMdD{LONG_S}]|[rRvV][eE]|[lL][lL])"
_SPACES_BUT_LAST: Final = f"[{SPACE}]+(?![^{SPACE}])"
_NEITHER: Final = f"[^{SPACE}{LETTER}{NUMBER}]"  # neither white space nor letter nor number
_NEWLINES_AND_SPACES: Final = f"[{SPACE}]*[\\r\\n]+|{_SPACES_BUT_LAST}|[{SPACE}]+"

_GPT_2: Final = _kinds(
    f"'(?:[stmd]|[rv]e|ll)| ?[{LETTER}]+| ?[{NUMBER}]+| ?{_NEITHER}+|{_SPACES_BUT_LAST}|[{SPACE}]+"
)
_EACH_NUMBER: Final = _kinds(f"[{NUMBER}]")
_THREE_DIGITS: Final = _kinds("[0-9][0-9][0-9]")


def _llama_3(numbers: str, word: str = LETTER) -> _Step:
    """Return Llama 3's expression; ``word`` is what words consist of."""
    return _kinds(
        f"{_ANY_CASE_CONTRACTION}|[^\\r\\n{LETTER}{NUMBER}]?[{word}]+|[{NUMBER}]{numbers}"
        f"| ?[^{SPACE}{word}{NUMBER}]+[\\r\\n]*|{_NEWLINES_AND_SPACES}"
    )


def _by_case(numbers: str, after_word: str = "") -> _Step:
    """Return the expression of tekken and of GPT-4o, which also cut where case begins anew."""
    before, upper, lower = f"[^\\r\\n{LETTER}{NUMBER}]?", UPPER, LOWER
    rest = CASELESS + MARK
    return _kinds(
        f"{before}[{upper}{rest}]*[{lower}{rest}]+{after_word}"
        f"|{before}[{upper}{rest}]+[{lower}{rest}]*{after_word}"
        f"|[{NUMBER}]{numbers}| ?{_NEITHER}+[\\r\\n/]*|{_NEWLINES_AND_SPACES}"
    )


# Letters that have a case, as DeepSeek wrote them down from an older version of Unicode.
_DEEPSEEK_LETTERS: Final = (
    "A-Za-z\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5"
    "\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba"
    "\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45"
    "\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe"
    "\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"
    "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134"
    "\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee"
    "\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f"
    "\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_DEEPSEEK_SIGNS: Final = "!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002"
_EACH_NEWLINE: Final = _text("[\\r\\n]")
_DEEPSEEK_CJK: Final = _text("[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+")

_RULES: Final = {
    "llama-bpe": PreTokenizer((_llama_3("{1,3}"),), adds_bos=True, ignores_merges=True),
    "dbrx": PreTokenizer((_llama_3("{1,3}"),)),
    "qwen2": PreTokenizer((_llama_3(""),)),
    "qwen35": PreTokenizer((_llama_3("", word=LETTER + MARK),)),
    "gpt-2": PreTokenizer((_GPT_2,)),
    "starcoder": PreTokenizer((_EACH_NUMBER, _GPT_2)),
    "tekken": PreTokenizer((_by_case(""),), adds_bos=True, ignores_merges=True),
    "gpt-4o": PreTokenizer((_by_case("{1,3}", f"(?:{_ANY_CASE_CONTRACTION})?"),)),
    "falcon": PreTokenizer((_kinds(f"[{PUNCTUATION}$+<=>\\^~|`]+"), _GPT_2, _THREE_DIGITS)),
    "default": PreTokenizer(
        (
            _kinds(f"[{PUNCTUATION}$+<=>\\^~|]+"),
            _GPT_2,
            _kinds(f"[{NUMBER}]+"),
            _THREE_DIGITS,
        )
    ),
    "deepseek-llm": PreTokenizer(
        (
            _EACH_NEWLINE,
            _text(f"[{WHITE_SPACE}]?[{_DEEPSEEK_LETTERS}]+"),
            _text(f"[{WHITE_SPACE}]?[{_DEEPSEEK_SIGNS}]+"),
            # Only from the first of a run, or a long run would be looked at again and again.
            _text(f"(?<![{WHITE_SPACE}])[{WHITE_SPACE}]+\\Z"),
            _DEEPSEEK_CJK,
            _kinds(f"[{NUMBER}]+"),
        )
    ),
    "deepseek-coder": PreTokenizer(
        (
            _EACH_NEWLINE,
            _kinds(f"[{SPACE}]?[{LETTER}]+"),
            _kinds(f"[{SPACE}]?[{PUNCTUATION}]+"),
            _DEEPSEEK_CJK,
            _EACH_NUMBER,
        )
    ),
    "deepseek-v3": PreTokenizer(
        (
            _kinds(f"[{NUMBER}]{{1,3}}"),
            _text("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"),
            _kinds(
                "[!-/:-@\\[-`{-~][A-Za-z]+"
                f"|[^\\r\\n{LETTER}{PUNCTUATION}{SYMBOL}]?[{LETTER}{MARK}]+"
                f"| ?[{PUNCTUATION}{SYMBOL}]+[\\r\\n]*|{_NEWLINES_AND_SPACES}"
            ),
        )
    ),
}

# Other names of the same rules, for models that generate text.
_ALIASES: Final = {
    "llama-bpe": "llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2",
    "dbrx": "smaug-bpe chatglm-bpe glm4",
    "qwen2": "deepseek-r1-qwen megrez stablelm2 hunyuan kormo solar-open grok-2",
    "gpt-2": "phi-2 mpt olmo jais trillion gigachat a.x-4.0 mellum granite-docling exaone4",
    "starcoder": "refact command-r smollm codeshell exaone minerva-7b mellum2",
    "gpt-4o": "llama4 kanana2 talkie",
    "deepseek-v3": "hunyuan-dense joyai-llm hy_v4",
}
_BY_NAME: Final = _RULES | {
    alias: _RULES[name] for name, aliases in _ALIASES.items() for alias in aliases.split()
}
PRE_TOKENIZER_NAMES: Final = tuple(_BY_NAME)


def pre_tokenizer(name: str) -> PreTokenizer | None:
    """Return the rule of that name, None where there is none."""
    return _BY_NAME.get(name)
