"""Jinja2 for templates from model files: sandboxed, immutable, and bounded in steps and size.

A template is a program from an untrusted file. The sandbox keeps it from everything but its
arguments; what is here keeps it from running or growing without end. There is no clock: work is
counted, so that a template is cut at the same place on every device.

Before a template is compiled, its syntax tree is given the places where it has to pay: the start
of each loop's and macro's body, for all that the body holds, and each value that it reads or makes
and that may be large. What could grow at one blow is refused or measured beforehand: the filters
and methods that stay are listed here, and each gives no more than a few times what it is given.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, cast

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from jinja2.parser import Parser
    from jinja2.runtime import Context

STEPS_MAX: Final = 200_000  # a conversation of 100 messages takes 4,000 to 30,000
STEPS_PER_MESSAGE: Final = 2_000
NODES_MAX: Final = 20_000  # of the syntax tree; that of Qwen 3 has 360
BRANCHES_MAX: Final = 200  # Python's parser takes a level of its stack for each ``elif``
VALUE_SIZE_MAX: Final = 1 << 18  # characters and items, besides a multiple of what was given
VALUE_SIZE_FACTOR: Final = 4
_CHARACTERS_A_STEP: Final = 1 << 12
_ITEMS_A_STEP: Final = 16
_INDENT_MAX: Final = 16  # and of separators in JSON
_NUMBER_MAX: Final = 1 << 63

# fmt: off
_STRING_METHODS: Final = frozenset(
    (
        "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum",
        "isalpha", "isascii", "isdecimal", "isdigit", "islower", "isnumeric", "isspace",
        "istitle", "isupper", "join", "lower", "lstrip", "partition", "removeprefix",
        "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip",
        "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper"
    )
)
_FILTERS: Final = frozenset(
    (
        "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first",
        "float", "groupby", "int", "items", "last", "length", "list", "lower", "map", "max",
        "min", "reject", "rejectattr", "reverse", "round", "safe", "select", "selectattr",
        "sort", "string", "sum", "title", "trim", "truncate", "unique", "upper", "wordcount"
    )
)
# fmt: on


class TooMuchError(TemplateError):
    """The template would take more steps, or make larger values, than a conversation needs."""


class RaisedError(TemplateError):
    """The template itself refuses what it was given, by ``raise_exception``."""


def raise_exception(message: object = "") -> NoReturn:
    """Refuse, with a message of the template's author."""
    raise RaisedError(str(message))


class _Generation(Extension):
    """The ``{% generation %}`` block, with which some templates mark answers for training."""

    tags = {"generation"}  # noqa: RUF012 - as the base class declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return what the block holds, as if the marks were not there."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """The environment of one template; used by one thread at a time."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # nothing is worked out before there is something to count
            finalize=self._printed,
            extensions=["jinja2.ext.loopcontrols", _Generation],
        )
        self.filters |= {name: _refusal(name) for name in self.filters if name not in _FILTERS}
        self.filters |= {"join": self._join, "replace": self._replace, "indent": self._indent}
        self.filters["tojson"] = self._to_json
        del self.globals["lipsum"]  # text by chance
        self.globals |= {"range": self._range, "raise_exception": raise_exception}
        self._allow(0, 0)

    def render(self, text: str, messages: int, given: Mapping[str, Any]) -> str:
        """Return what the template ``text`` makes of the variables ``given``.

        ``messages``: how many they hold. Raises a TemplateError for a template that is malformed,
        refuses, or does more than it may; any other exception that its expressions raise.
        """
        self._allow(messages, _measure(given).size)
        tree = _Metered().visit(self.parse(text)).set_environment(self)
        # In pieces, so that nothing is put together that exceeds what is allowed.
        return "".join(self.from_string(tree).generate(given))

    def _allow(self, messages: int, given_size: int) -> None:
        self._steps = STEPS_MAX + STEPS_PER_MESSAGE * messages
        self._size_max = VALUE_SIZE_MAX + VALUE_SIZE_FACTOR * given_size
        self._printable = self._size_max
        self._characters_a_step = _CHARACTERS_A_STEP + given_size

    # What the syntax tree calls: see _Metered.

    def spend(self, steps: int) -> str:
        """Take steps from what the template may do; print nothing."""
        self._steps -= steps
        if self._steps < 0:
            raise TooMuchError("it takes too many steps")
        return ""

    def read(self, value: Any) -> Any:
        """Pay for going through a value; return it."""
        if isinstance(value, str):
            self.spend(1 + len(value) // self._characters_a_step)
        elif hasattr(value, "__len__"):
            self.spend(1 + len(value) // _ITEMS_A_STEP)
        return value

    def made(self, value: Any) -> Any:
        """Measure a new value and pay for it; return it."""
        if isinstance(value, str):
            self._check_size(len(value))
            self.spend(1 + len(value) // self._characters_a_step)
        elif isinstance(value, list | tuple | dict):
            self.spend(1 + self._measured(value).items // _ITEMS_A_STEP)
        elif isinstance(value, int) and abs(value) > _NUMBER_MAX:
            raise TooMuchError("it makes too large a number")
        return value

    def joined(self, *parts: Any) -> str:
        """Return what ``~`` makes of its operands."""
        return cast("str", self.made("".join([self._text(part) for part in parts])))

    # What the sandbox calls.

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Work out an operator that may make large values."""
        if operator == "**" or (operator == "%" and isinstance(left, str)):
            raise SecurityError(f"operator {operator} on {type(left).__name__} is not allowed")
        if operator == "*":
            for repeated, times in ((left, right), (right, left)):
                if hasattr(repeated, "__len__") and isinstance(times, int):
                    self._check_size(len(repeated) * times)
        return self.made(super().call_binop(context, operator, left, right))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Allow what the sandbox allows, and of a text's methods those of a short list."""
        if isinstance(obj, str) and attr not in _STRING_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """Leave ``format`` to `is_safe_attribute`: a width in it would make any length."""

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call what a template calls, measured."""
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if owner is __self:
            return __obj(*args)  # the rest is what jinja2 tells every function of the loop
        if isinstance(owner, str):
            __self.read(owner)
            if name == "replace":
                __self._check_replacement(owner, *map(__self._text, args[:2]))
            elif name == "join" and args:
                args = (__self._texts(args[0], len(owner)), *args[1:])
        __self.spend(1)
        return __self.made(super().call(__context, __obj, *args, **kwargs))

    # Filters and functions of templates.

    def _printed(self, value: Any) -> Any:
        text = self._text(value)
        self._printable -= len(text)
        if self._printable < 0:
            raise TooMuchError("it prints too much")
        return text

    def _range(self, *limits: int) -> range:
        numbers = range(*limits)
        self._check_size(len(numbers[: self._size_max + 1]))
        self.spend(len(numbers) // _ITEMS_A_STEP)
        return numbers

    def _join(self, values: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
        if attribute is not None:
            values = [self.getitem(value, attribute) for value in values]
        separator = self._text(d)
        return separator.join(self._texts(values, len(separator)))

    def _replace(self, text: Any, old: str, new: str, count: int | None = None) -> str:
        whole = self._text(text)
        self._check_replacement(whole, old, new)
        return whole.replace(old, new, -1 if count is None else count)

    def _indent(self, text: Any, width: int = 4, first: bool = False, blank: bool = False) -> str:
        if not 0 <= width <= _INDENT_MAX:
            raise SecurityError(f"an indent of {width} is not allowed")
        lines = self._text(text).splitlines(keepends=True)
        self._check_size(sum(map(len, lines)) + len(lines) * width)
        return "".join(
            " " * width + line if (index or first) and (blank or line.strip()) else line
            for index, line in enumerate(lines)
        )

    def _to_json(
        self,
        value: Any,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
        ensure_ascii: bool = False,
    ) -> str:
        """Return JSON as model authors expect it: nothing escaped for HTML."""
        if not 0 <= (indent or 0) <= _INDENT_MAX:
            raise SecurityError(f"an indent of {indent} is not allowed")
        if max(map(len, separators or ("",))) > _INDENT_MAX:
            raise SecurityError("a separator of that length is not allowed")
        self._measured(value)
        return json.dumps(
            value,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
            ensure_ascii=ensure_ascii,
        )

    def _text(self, value: Any) -> str:
        """Return a value as text; one that holds others is measured first."""
        if isinstance(value, str):
            return value
        self._measured(value)
        return str(value)

    def _measured(self, value: Any) -> _Measure:
        measure = _measure(value, self._size_max)
        self._check_size(measure.size)
        return measure

    def _texts(self, values: Iterable[Any], separator: int) -> list[str]:
        texts = []
        length = 0
        for value in values:
            texts.append(self._text(value))
            length = self._check_size(length + len(texts[-1]) + separator)
        return texts

    def _check_replacement(self, text: str, old: str = "", new: str = "") -> None:
        self._check_size(len(text) + text.count(old) * max(0, len(new) - len(old)))

    def _check_size(self, size: int) -> int:
        if size > self._size_max:
            raise TooMuchError("it makes too large a value")
        return size


def _refusal(name: str) -> Callable[..., NoReturn]:
    """Return a filter that refuses when it is used, not where a template merely names it."""

    def refuse(*_values: object, **_options: object) -> NoReturn:
        raise SecurityError(f"filter {name} is not allowed")

    return refuse


class _Measure(NamedTuple):
    size: int  # characters and items
    items: int


def _measure(value: Any, enough: int = 1 << 62) -> _Measure:
    """Count what a value and all that it holds consist of, up to a size of ``enough``.

    What is held in two places counts twice, so no work on the value can exceed its size.
    """
    size = items = 0
    waiting = [value]
    while waiting and size <= enough:
        each = waiting.pop()
        items += 1
        size += 1
        if isinstance(each, str):
            size += len(each)
        elif isinstance(each, dict):
            waiting.extend(each)
            waiting.extend(each.values())
        elif isinstance(each, list | tuple):
            waiting.extend(each)
    return _Measure(size, items)


class _Metered(NodeTransformer):
    """Writes the payments into a template's syntax tree."""

    _weight = 0  # of the nodes seen so far

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        """Return the node with its payments, those of what it holds included."""
        before = self._weight
        text = getattr(node, "data", None) or getattr(node, "value", None)
        self._weight += 1 + (len(text) // 64 if isinstance(text, str) else 0)
        branches = len(node.elif_) if isinstance(node, nodes.If) else 0
        if self._weight > NODES_MAX or branches > BRANCHES_MAX:
            raise TooMuchError("it is too long a program")
        self.generic_visit(node)
        match node:
            case nodes.For() | nodes.Macro() | nodes.CallBlock():
                weight = nodes.Const(self._weight - before, lineno=node.lineno)
                node.body.insert(0, nodes.ExprStmt(_call("spend", weight), lineno=node.lineno))
                if isinstance(node, nodes.For):
                    node.iter = _call("read", node.iter)
            case nodes.Compare():
                node.expr = _call("read", node.expr)
                for operand in node.ops:
                    operand.expr = _call("read", operand.expr)
            case nodes.Concat():
                return _call("joined", *node.nodes)
            case nodes.List() | nodes.Dict():
                return _call("made", node)
            case nodes.Tuple() if node.ctx == "load":
                return _call("made", node)
            case nodes.Filter() if node.node is not None and not _is_of_block(node):
                node.node = _call("read", node.node)
                return _call("made", node)
        return node


def _is_of_block(node: nodes.Expr | None) -> bool:
    """Say whether a chain of filters works on a block's output, which is counted as printed."""
    while isinstance(node, nodes.Filter):
        node = node.node
    return node is None


def _call(name: str, *arguments: nodes.Node) -> nodes.Call:
    """Return a call of the environment's method of that name."""
    function = nodes.EnvironmentAttribute(name)
    return nodes.Call(function, list(arguments), [], None, None, lineno=arguments[0].lineno)
