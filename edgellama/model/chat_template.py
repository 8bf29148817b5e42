"""The chat template of a model file: from the messages of a conversation to one prompt."""

from __future__ import annotations

import re
from datetime import date
from typing import TYPE_CHECKING, Final

from jinja2.exceptions import TemplateError, TemplateSyntaxError

from edgellama.errors import MisuseError, UnsupportedModelError
from edgellama.model.gguf_header import file_fault, file_unsupported, quoted
from edgellama.model.template_sandbox import RaisedError, TemplateSandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgellama.model.gguf import GgufFile
    from edgellama.model.tokenizer import Tokenizer
    from edgellama.values import Turn

TEMPLATE_CHARACTERS_MAX: Final = 1 << 17  # that of Qwen 3 has 4,200
_KEY: Final = "tokenizer.chat_template"
_REASON_CHARACTERS_MAX: Final = 200


class ChatTemplate:
    """One model's template. ``name`` is the file's, for messages."""

    def __init__(self, text: str, name: str, bos: str = "", eos: str = "") -> None:
        self._text = text
        self._name = name
        self._roles = {"bos_token": bos, "eos_token": eos}

    @classmethod
    def from_gguf(cls, gguf: GgufFile, tokenizer: Tokenizer) -> ChatTemplate | None:
        """Return the template of a model file, None where it has none; raises ModelFileError.

        It is not looked at before it is used: a bad one is no trouble to who asks without it.
        """
        text = gguf.metadata.get(_KEY)
        if text is None:
            return None
        if not isinstance(text, str):
            raise file_fault(gguf.path_name, f"metadata key '{_KEY}' is not text")
        bos, eos = (
            "" if token is None else tokenizer.piece(token)
            for token in (tokenizer.bos, tokenizer.eos)
        )
        return cls(text, gguf.path_name, bos, eos)

    def render(self, messages: Sequence[Turn], today: int) -> str:
        """Return the prompt that asks for the assistant's next message.

        ``today``: the asker's date as Python's proleptic ordinal, for templates that print it.
        Raises MisuseError where the template itself refuses such a conversation,
        UnsupportedModelError for a template that fails or does more than it may.
        """
        if len(self._text) > TEMPLATE_CHARACTERS_MAX:
            raise self._unusable(f"it is longer than {TEMPLATE_CHARACTERS_MAX} characters")
        given = {
            "messages": [message._asdict() for message in messages],
            "add_generation_prompt": True,
            "tools": None,
            "documents": None,
            "strftime_now": _formatter(today),
            **self._roles,
        }
        try:
            return TemplateSandbox().render(self._text, len(messages), given)
        except RaisedError as error:
            reason = f"{self._name}: the model's chat template refuses: {_line(error)}"
            raise MisuseError(reason) from None
        except TemplateSyntaxError as error:
            raise self._unusable(f"line {error.lineno}: {_line(error)}") from None
        except TemplateError as error:
            raise self._unusable(_line(error)) from None
        except MemoryError:
            raise
        except Exception as error:
            # Whatever its expressions do wrong: a type, an index, a recursion without end.
            raise self._unusable(f"{type(error).__name__}: {_line(error)}") from None

    def tokens(self, tokenizer: Tokenizer, messages: Sequence[Turn], today: int) -> list[int]:
        """Return the tokens of the prompt; see `render`."""
        return tokenizer.encode_prompt(self.render(messages, today))

    def _unusable(self, reason: str) -> UnsupportedModelError:
        return file_unsupported(
            self._name, f"the chat template cannot be used ({reason}); --raw asks without it"
        )


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    if not text.isprintable():
        text = quoted(text)
    return text if len(text) <= _REASON_CHARACTERS_MAX else text[:_REASON_CHARACTERS_MAX] + "..."


_MONTHS: Final = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
_DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_DATE_CODE: Final = re.compile("%(-?.?)", re.DOTALL)


def _formatter(today: int) -> Callable[[str], str]:
    """Return the ``strftime_now`` of that day: no clock, no locale, the same on every device."""
    day = date.fromordinal(min(max(today, 1), date.max.toordinal()))
    month, weekday = _MONTHS[day.month - 1], _DAYS[day.weekday()]
    texts = {"Y": f"{day.year:04}", "y": f"{day.year % 100:02}", "%": "%"}
    texts |= {"m": f"{day.month:02}", "-m": f"{day.month}", "B": month, "b": month[:3]}
    texts |= {"d": f"{day.day:02}", "-d": f"{day.day}", "A": weekday, "a": weekday[:3]}
    texts |= {"H": "00", "M": "00", "S": "00", "I": "12", "p": "AM"}

    def text_of(code: re.Match[str]) -> str:
        if code[1] not in texts:
            raise TemplateError(f"a date has no {code[0]}")
        return texts[code[1]]

    def strftime_now(pattern: str) -> str:
        return _DATE_CODE.sub(text_of, pattern)

    return strftime_now
