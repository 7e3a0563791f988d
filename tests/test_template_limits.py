"""Templates that hang, swell or raise anything are refused by name; those of models pass."""

from typing import Any

import pytest
from tests.small_tokenizer import small_tokenizer

from drift.chat import TemplateChat
from drift.errors import PolicyError
from drift.template_limits import MOST_TEXT, check_template

EACH = "{% set n = namespace(x='aa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}"
LOOP = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"


def chat(template: str) -> TemplateChat:
    tokenizer: Any = small_tokenizer()
    tokenizer.chat_template = template
    return TemplateChat(tokenizer, source="theirs")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("{{ 9 ** (9 ** 9) }}", "more than 3 seconds"),
        ("{{ 'x' * 5000000 }}", "more than 200,000 characters"),
        ("{{ 'x' * 10**14 }}", "or 512 MB"),
        (
            "{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
            "or 512 MB",
        ),
        ("{{ 1 + 'a' }}", "TypeError: unsupported operand"),
        ("{{ messages[0].role() }}", "TypeError: 'str' object is not callable"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ raise_exception('no') }}", "refuses a conversation of the roles user: no"),
        ("{% if %}", "refuses a conversation"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
    ],
)
def test_a_hostile_template_is_refused_by_name(more: str, said: str) -> None:
    with pytest.raises(PolicyError, match=r"the chat template of 'theirs'") as refused:
        chat(more + LOOP).first([{"role": "user", "content": "x"}])
    assert said in str(refused.value)


def test_text_that_swells_with_what_is_said_is_refused_when_it_comes() -> None:
    swelling = chat(
        LOOP + "{% for m in messages %}{% if m['content'] == 'now' %}{{ m['role'] * 99999 }}{% endif %}{% endfor %}"
    )
    swelling.first([{"role": "user", "content": "x"}])
    with pytest.raises(PolicyError, match=r"it writes [\d,]+ characters of 3"):
        swelling.first([{"role": "user", "content": "now"}])


def test_long_loops_over_what_is_said_pass() -> None:
    check_template(
        LOOP + "{% set x = namespace(n=0) %}{% for i in range(1000) %}{% set x.n = x.n + i %}{% endfor %}", "ours"
    )
    chat(LOOP).first([{"role": "user", "content": "x" * 3 * MOST_TEXT}])
