"""Chat templates as model files hold them: what they write, and what bad ones come to."""
# ruff: noqa: E501, ISC004 - templates read best as they stand

from __future__ import annotations

import contextlib
import json
from datetime import date
from pathlib import Path
from typing import NoReturn

import jinja2
import jinja2.ext
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from published_suite import SUITE

from edgellama.errors import EdgellamaError, MisuseError, UnsupportedModelError
from edgellama.model.chat_template import ChatTemplate
from edgellama.model.conversation import conversation
from edgellama.values import Turn

FOLDER = Path(__file__).with_name("chat_templates")
TEXTS = {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.jinja"))}
PUBLISHED = sorted(SUITE.rglob("*.jinja")) if SUITE.is_dir() else []
TODAY = date(2026, 3, 7).toordinal()

QUESTION = conversation("", (), "Who are you?")
WITH_SYSTEM = conversation("Be brief.", (), " Who are you?\n")
TALK = [
    *conversation("Be brief.", (), "Hi"),
    Turn("assistant", "<think>\nWell.\n</think>\n\nHello!"),
    Turn("user", "Bye"),
]


def template(text: str, bos: str = "<s>", eos: str = "</s>") -> ChatTemplate:
    return ChatTemplate(text, "x.gguf", bos, eos)


def rendered(text: str, messages: list[Turn] = QUESTION) -> str:
    return template(text).render(messages, TODAY)


LLAMA_3_HEAD = "<|start_header_id|>{}<|end_header_id|>\n\n"
LLAMA_3_DATES = "Cutting Knowledge Date: December 2023\nToday Date: 07 Mar 2026\n\n"
SYSTEM, USER, ASSISTANT = map(LLAMA_3_HEAD.format, ("system", "user", "assistant"))
QWEN_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
SMOLLM_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def chatml(*turns: str) -> str:
    roles = {"s": "system", "u": "user", "a": "assistant"}
    turns_written = [f"<|im_start|>{roles[turn[0]]}\n{turn[2:]}<|im_end|>\n" for turn in turns]
    return "".join(turns_written) + "<|im_start|>assistant\n"


# Worked out by hand from the models' documentation: question, with system, talk.
WRITTEN: dict[str, tuple[str | None, str | None, str | None]] = {
    "llama-3": (
        f"<s>{USER}Who are you?<|eot_id|>{ASSISTANT}",
        f"<s>{SYSTEM}Be brief.<|eot_id|>{USER}Who are you?<|eot_id|>{ASSISTANT}",
        f"<s>{SYSTEM}Be brief.<|eot_id|>{USER}Hi<|eot_id|>{ASSISTANT}"
        f"<think>\nWell.\n</think>\n\nHello!<|eot_id|>{USER}Bye<|eot_id|>{ASSISTANT}",
    ),
    "llama-3.2": (
        f"<s>{SYSTEM}{LLAMA_3_DATES}<|eot_id|>{USER}Who are you?<|eot_id|>{ASSISTANT}",
        f"<s>{SYSTEM}{LLAMA_3_DATES}Be brief.<|eot_id|>{USER}Who are you?<|eot_id|>{ASSISTANT}",
        f"<s>{SYSTEM}{LLAMA_3_DATES}Be brief.<|eot_id|>{USER}Hi<|eot_id|>{ASSISTANT}"
        f"<think>\nWell.\n</think>\n\nHello!<|eot_id|>{USER}Bye<|eot_id|>{ASSISTANT}",
    ),
    "qwen2.5": (
        chatml("s " + QWEN_SYSTEM, "u Who are you?"),
        chatml("s Be brief.", "u  Who are you?\n"),
        chatml("s Be brief.", "u Hi", "a <think>\nWell.\n</think>\n\nHello!", "u Bye"),
    ),
    "qwen3": (
        chatml("u Who are you?"),
        chatml("s Be brief.", "u  Who are you?\n"),
        chatml("s Be brief.", "u Hi", "a Hello!", "u Bye"),
    ),
    "smollm2": (
        chatml("s " + SMOLLM_SYSTEM, "u Who are you?"),
        chatml("s Be brief.", "u  Who are you?\n"),
        chatml("s Be brief.", "u Hi", "a <think>\nWell.\n</think>\n\nHello!", "u Bye"),
    ),
    "zephyr": (  # TinyLlama's is the same
        "<|user|>\nWho are you?</s>\n<|assistant|>\n",
        "<|system|>\nBe brief.</s>\n<|user|>\n Who are you?\n</s>\n<|assistant|>\n",
        "<|system|>\nBe brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\n"
        "<think>\nWell.\n</think>\n\nHello!</s>\n<|user|>\nBye</s>\n<|assistant|>\n",
    ),
    "mistral": ("<s>[INST] Who are you? [/INST]", None, None),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_published_template_writes_what_its_model_expects(name: str) -> None:
    for messages, expected in zip((QUESTION, WITH_SYSTEM, TALK), WRITTEN[name], strict=True):
        if expected is not None:
            assert rendered(TEXTS[name], messages) == expected


def plain_jinja(text: str, messages: list[Turn]) -> str:
    """Render as the transformers library does, without any bounds."""

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols], autoescape=False
    )
    environment.filters["tojson"] = lambda value, **how: json.dumps(
        value, ensure_ascii=False, **how
    )
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda how: date.fromordinal(TODAY).strftime(how),
    }
    return environment.from_string(text).render(
        messages=[message._asdict() for message in messages],
        tools=None,
        documents=None,
        add_generation_prompt=True,
        bos_token="<s>",
        eos_token="</s>",
    )


CONTENT = st.text(max_size=30) | st.sampled_from(
    ["</think>a", "\n<think>x\n</think>\n\ny", "{{ 1 }}"]
)
ROLES = st.sampled_from(["system", "user", "assistant", "tool"])


@pytest.mark.parametrize("name", TEXTS)
@settings(deadline=None, max_examples=40)
@given(messages=st.lists(st.builds(Turn, ROLES, CONTENT), min_size=1, max_size=6))
def test_templates_write_what_plain_jinja_writes(name: str, messages: list[Turn]) -> None:
    compare_with_plain_jinja(TEXTS[name], messages)


def compare_with_plain_jinja(text: str, messages: list[Turn]) -> None:
    """Compare what is written, or why nothing is: templates for tools may fail without any."""
    expected = refusal = ""
    try:
        expected = plain_jinja(text, messages)
    except (jinja2.TemplateError, TypeError) as error:
        refusal = str(error)
    if not refusal:
        assert rendered(text, messages) == expected
        return
    with pytest.raises(EdgellamaError) as caught:
        rendered(text, messages)
    assert refusal in str(caught.value)


@pytest.mark.skipif(not PUBLISHED, reason="no published templates at hand")
@pytest.mark.parametrize("messages", [QUESTION, WITH_SYSTEM, TALK, TALK * 40])
@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.name)
def test_the_published_collection(path: Path, messages: list[Turn]) -> None:
    compare_with_plain_jinja(path.read_text(encoding="utf-8"), messages)


# Everything that the syntax tree is rewritten for, and what templates commonly use.
CONSTRUCTS = [
    "{% for a, b in [(1, 'x'), (2, 'y')] %}{{ a ~ b ~ loop.index ~ loop.length }}{% endfor %}",
    "{% for x in messages if x.role == 'user' %}{{ x.content }}{% else %}none{% endfor %}",
    "{% for x in 'abc' %}{{ loop.cycle('1', '2') }}{% if loop.last %}!{% endif %}{% endfor %}",
    "{% for x in [[1, [2]], [3]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}",
    "{% macro m(a, b='d') %}{{ a|upper }}{{ b }}{{ caller() }}{% endmacro %}"
    "{% call m('x') %}in{% endcall %}",
    "{% set ns = namespace(n=0, l=[]) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% set ns.l = ns.l + [m.role] %}{% endfor %}{{ ns.n }}{{ ns.l | join(', ') }}",
    "{{ {'a': [1, 2.5, none, true], 'é': '<&>'} | tojson }}{{ [1, {'b': 2}] | tojson(indent=2) }}",
    "{{ messages | map(attribute='content') | list | join('|') }}{{ messages | length }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
    "{{ (messages | last).content.strip().upper().replace('YOU', 'we').split(' ')[-1] }}",
    "{{ ', '.join(['a', 'b']) }}{{ 'a-b-c'.split('-', 1) }}{{ 'x'.startswith(('x', 'y')) }}",
    "{% set block %}{{ 'in' }} a {{ 1 }}{% endset %}{{ block | trim | title }}",
    "{% filter upper %}ab{{ 'c' }}{% endfilter %}{% set f | trim | upper %} x {% endset %}{{ f }}",
    "{{ 'abc'[::-1] }}{{ [1, 2, 3][1:] }}{{ (1, 2) }}{{ 'b' in 'abc' }}{{ 1 < 2 < 3 }}{{ 7 % 3 }}",
    "{{ 'ab' * 3 }}{{ [0] * 2 }}{{ 7 // 2 }}{{ 7 / 2 }}{{ -3 + 1 }}{{ 'a' + 'b' }}{{ [1] + [2] }}",
    "{{ nothing }}{{ nothing is defined }}{{ nothing | default('d') }}{{ nothing or 'else' }}",
    "{{ 'a\nb\n\nc' | indent }}|{{ 'a\nb' | indent(2, true) }}|{{ 'aXbX' | replace('X', 'yy', 1) }}",
    "{% if 1 %}{% for x in range(5) %}{% if x == 3 %}{% break %}{% endif %}{{ x }}{% endfor %}{% endif %}",
    "{{ dict(a=1, b=2).items() | list }}{{ {'b': 1, 'a': 2} | dictsort }}{{ [3, 1] | sort | first }}",
    "{{ [1, 2] | sum }}{{ 'abcdef ghi' | truncate(5, true) }}"
    "{% for role, group in messages | groupby('role') %}{{ role }}{{ group | length }}{% endfor %}",
    "{{ '5' | int + 1 }}{{ 'x' | string }}{{ none }}{{ true }}{{ [1, 1] | unique | list }}",
    "{%- for x in [1, 2] -%} {{ x }} {%- endfor -%}\n  {% if true %}\n  a\n  {% endif %}\n{# note #}b",
    "{{ strftime_now('%d %B %Y, %A %-d.%-m.%y %b %a %H:%M 100%%') }}",
]


@pytest.mark.parametrize("text", CONSTRUCTS)
def test_what_a_template_may_do_comes_to_what_plain_jinja_makes_of_it(text: str) -> None:
    assert rendered(text, TALK) == plain_jinja(text, TALK)


def test_a_filter_that_is_not_allowed_may_stand_where_nothing_uses_it() -> None:
    assert rendered("{% macro m() %}{{ 1 | center(9) }}{% endmacro %}a") == "a"
    with pytest.raises(UnsupportedModelError, match="filter center is not allowed"):
        rendered("{% macro m() %}{{ 1 | center(9) }}{% endmacro %}{{ m() }}")


def test_marks_of_answers_are_passed_over() -> None:
    assert rendered("a{% generation %}b{{ 1 }}{% endgeneration %}c") == "ab1c"


NESTED_LOOPS = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}"
GROWING = (
    "{% set n = namespace(v='xxxxxxxx') %}{% for i in range(99) %}{% set n.v = VALUE %}{% endfor %}"
)
ENDLESS = {
    "nested loops": NESTED_LOOPS,
    "a filtered loop": "{% for a in range(9999) %}{% for b in range(9999) if false %}{% endfor %}{% endfor %}",
    "long lists in a filtered loop": "{% set l = [0] * 50000 %}{% for a in range(9999) %}"
    "{% for b in l if false %}{% endfor %}{% endfor %}",
    "a huge range": "{% for a in range(10 ** 9) %}{% endfor %}",
    "a huger range": "{% for a in range(999999999999999999999999999999) %}{% endfor %}",
    "a recursive macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "two recursive macros": (
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(99) }}"
    ),
    "a recursive loop": ("{% for x in [1] recursive %}{{ loop([1]) }}{{ loop([1]) }}{% endfor %}"),
    "much in a loop": "{% for a in range(9999) %}"
    + "{% if 1 in [1, 2] %}{% endif %}" * 99
    + "{% endfor %}",
    "much text": "{% for a in range(9999) %}" + "x" * 9999 + "{% endfor %}",
    "much printed": "{% for a in range(9999) %}{{ messages[0].content * 99 }}{% endfor %}",
    "a sum of texts": GROWING.replace("VALUE", "n.v + n.v"),
    "joined texts": GROWING.replace("VALUE", "n.v ~ n.v"),
    "a block": "{% set n = namespace(v='xxxxxxxx') %}{% for i in range(99) %}"
    "{% set v %}{{ n.v }}{{ n.v }}{% endset %}{% set n.v = v %}{% endfor %}",
    "a sum of lists": GROWING.replace("'xxxxxxxx'", "[1]").replace("VALUE", "n.v + n.v"),
    "nested lists": GROWING.replace("VALUE", "[n.v, n.v]"),
    "nested tuples": GROWING.replace("VALUE", "(n.v, n.v)"),
    "nested mappings": GROWING.replace("VALUE", "{'a': n.v, 'b': n.v}"),
    "mappings by function": GROWING.replace("VALUE", "dict(a=n.v, b=n.v)"),
    "lists by filters": GROWING.replace("VALUE", "[n.v, n.v] | list"),
    "equal lists": "{% set n = namespace(v=[1], w=[1]) %}{% for i in range(99) %}"
    "{% set n.v = [n.v, n.v] %}{% set n.w = [n.w, n.w] %}{% endfor %}{{ n.v == n.w }}",
    "a product": "{{ 'x' * 10000000000 }}",
    "a product the other way": "{{ 10000000000 * 'x' }}",
    "a product of lists": "{{ [1] * 10000000000 }}",
    "a number": "{% set n = namespace(v=9) %}{% for i in range(99) %}{% set n.v = n.v * n.v %}{% endfor %}",
    "a power": "{{ 10 ** 10 ** 10 }}",
    "a power of variables": "{% set n = 10 %}{{ n ** n ** n }}",
    "a format": "{{ '%9999999999d' % 1 }}",
    "a format method": "{{ '{:9999999999}'.format(1) }}",
    "a format filter": "{{ '%9999999999d' | format(1) }}",
    "a centred text": "{{ 'x'.center(9999999999) }}",
    "a centre filter": "{{ 'x' | center(9999999999) }}",
    "a filled text": "{{ 'x'.zfill(9999999999) }}",
    "a justified text": "{{ 'x'.ljust(9999999999) }}",
    "tabs": "{{ '\t'.expandtabs(9999999999) }}",
    "a translation": "{{ 'x'.translate({120: 'x' * 99999}) }}",
    "an indent": "{{ 'x' | indent(9999999999, true) }}",
    "an indent by text": "{{ 'x\n' * 9 | indent('x' * 99999) }}",
    "an indented object": "{{ [1] | tojson(indent=9999999999) }}",
    "a separated object": "{{ [1, 2, 3, 4] | tojson(separators=['x' * 99999, ':']) }}",
    "a replacement": "{{ ('x' * 99999).replace('x', 'y' * 99999) }}",
    "a replacement filter": "{{ ('x' * 99999) | replace('x', 'y' * 99999) }}",
    "an empty replacement": "{{ ('x' * 99999).replace('', 'y' * 99999) }}",
    "a joined list": "{{ ('y' * 99999).join(range(99999) | map('string')) }}",
    "a join filter": "{{ range(99999) | join('y' * 99999) }}",
    "a mapped join": "{{ [range(99999)] | map('join', 'y' * 99999) | list }}",
    "batches": "{{ [1] | batch(9999999999, 'x') | list }}",
    "slices": "{{ [1] | slice(9999999999) | list }}",
    "a separator": "{{ [1, 2, 3, 4] | tojson(separators=('x' * 99, ':')) }}",
    "a wide date": "{{ strftime_now('%9999999999d') }}",
    "words by chance": "{{ lipsum(n=99999) }}",
    "many filters": "{{ range(99999) " + "| map('upper') " * 3000 + "| list }}",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_what_runs_or_grows_without_end_is_cut(name: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        rendered(ENDLESS[name])
    message = str(caught.value)
    assert message.startswith("x.gguf: the chat template cannot be used (")
    assert message.endswith("); --raw asks without it")
    assert message.isprintable()


def test_the_message_says_what_there_was_too_much_of() -> None:
    with pytest.raises(UnsupportedModelError, match="it takes too many steps"):
        rendered(NESTED_LOOPS)
    with pytest.raises(UnsupportedModelError, match="it makes too large a value"):
        rendered(ENDLESS["a product"])
    with pytest.raises(UnsupportedModelError, match="it prints too much"):
        rendered(ENDLESS["much printed"], conversation("", (), "x" * 1000))


MISTAKES = {
    "an unknown filter": ("{{ 1 | frobnicate }}", "frobnicate"),
    "an unclosed block": ("\n{% if 1 %}", "line 2: "),
    "an unknown tag": ("{% include_me %}", "line 1: "),
    "an undefined object": ("{{ nothing.more }}", "'nothing' is undefined"),
    "a wrong type": ("{{ 1 + 'a' }}", "TypeError"),
    "a division by zero": ("{{ 1 / 0 }}", "ZeroDivisionError"),
    "an unknown date": ("{{ strftime_now('%Q') }}", "a date has no %Q"),
    "another file": ("{% include 'a' %}", "no loader"),
    "a base": ("{% extends 'a' %}", "no loader"),
    "an import": ("{% import 'a' as b %}", "no loader"),
    "private attributes": ("{{ ''.__class__.__mro__ }}", "unsafe"),
    "private attributes by name": ("{{ ''['__class__']['__mro__'] }}", "unsafe"),
    "private attributes by filter": (
        "{{ ([''] | map(attribute='__class__') | first).mro }}",
        "unsafe",
    ),
    "a changed list": ("{{ messages.append(1) }}", "unsafe"),
    "functions of functions": ("{{ raise_exception.__globals__.re }}", "unsafe"),
    "deep brackets": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "RecursionError"),
    "deep loops": ("{% for a in [1] %}" * 300 + "{% endfor %}" * 300, ""),
    "control characters": ("{{ raise_error('\x1b[31m\n') }}", "raise_error"),
    "a long text": ("x" * 300_000, "longer than 131072 characters"),
    "a long program": ("{{ 1~1 }}" * 12_000, "too long a program"),
    "a long chain": ("{% if 0 %}" + "{% elif 0 %}x" * 5000 + "{% endif %}", "too long a program"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_bad_template_is_named_in_one_line(name: str) -> None:
    text, fault = MISTAKES[name]
    with pytest.raises(UnsupportedModelError) as caught:
        rendered(text)
    message = str(caught.value)
    assert message.startswith("x.gguf: the chat template cannot be used (")
    assert fault in message
    assert message.isprintable()
    assert len(message) < 400


def test_a_template_may_refuse() -> None:
    with pytest.raises(MisuseError) as caught:
        rendered(TEXTS["mistral"], WITH_SYSTEM)
    assert str(caught.value) == (
        "x.gguf: the model's chat template refuses: Conversation roles must alternate "
        "user/assistant/user/assistant/..."
    )
    with pytest.raises(MisuseError) as caught:
        rendered("{{ raise_exception('a\x1b\n' ~ 'b' * 999) }}")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_a_template_cannot_reach_what_counts_its_steps() -> None:
    for text in (
        "{% set spend = 1 %}{% set environment = 2 %}{% set made = 3 %}" + NESTED_LOOPS,
        "{% macro spend() %}{% endmacro %}" + NESTED_LOOPS,
        "{{ self.environment }}{{ environment }}{{ context }}" + NESTED_LOOPS,
        "{{ loop.spend(-99999999) }}",
        "{{ namespace.spend }}" + NESTED_LOOPS,
    ):
        with pytest.raises(UnsupportedModelError):
            rendered(text)


def test_long_conversations_are_no_endless_ones() -> None:
    talk = [Turn("user" if n % 2 == 0 else "assistant", f"word {n} " * 50) for n in range(999)]
    for name, text in TEXTS.items():
        if name != "mistral":
            assert rendered(text, talk) == plain_jinja(text, talk)


def test_a_long_question_is_no_large_value() -> None:
    question = conversation("", (), "word " * 400_000)
    for text in TEXTS.values():
        assert rendered(text, question) == plain_jinja(text, question)


def test_a_template_starts_anew_each_time() -> None:
    counted = template("{% for x in range(9999) %}{{ 'x' }}{% endfor %}")
    assert {counted.render(QUESTION, TODAY) for _ in range(20)} == {"x" * 9999}


SCRAPS = (
    "{{ }} {% %} {%- -%} {# #} for x in messages if endfor endif set = macro m ( ) [ ] | join "
    "replace tojson ' \" x . ~ + * 9 role loop recursive call endcall , : range"
)


@settings(deadline=None, max_examples=150)
@given(parts=st.lists(st.sampled_from(SCRAPS.split()), max_size=25))
def test_any_text_is_a_prompt_or_one_clear_error(parts: list[str]) -> None:
    with contextlib.suppress(MisuseError, UnsupportedModelError):
        assert isinstance(rendered(" ".join(parts)), str)
