"""What templates may do, and where they are stopped."""

import jinja2
import pytest

from serving.front.chat.sandbox import SandboxedTemplate, TemplateRaised


def render(source: str, **variables: object) -> str:
    return SandboxedTemplate(source).render(variables)


def test_block_lines_leave_no_trace() -> None:
    source = "{% for a in x %}\n    {% if true %}\n{{ a }}\n    {% endif %}\n{% endfor %}"
    assert render(source, x="ab") == "a\nb\n"


def test_loops_can_break() -> None:
    assert render("{% for a in x %}{{ a }}{% break %}{% endfor %}", x="ab") == "a"


def test_generation_blocks_are_transparent() -> None:
    source = "{% for a in x %}{% generation %}{{ a }}{% endgeneration %}{% endfor %}"
    assert render(source, x="ab") == "ab"


def test_loops_within_loops_and_macros_work() -> None:
    source = (
        "{% macro f(n) %}{{ n ~ '!' ~ none ~ missing }}{% if n %}{{ f(n - 1) }}{% endif %}"
        "{% endmacro %}{% for a in range(2) %}{% for b in 'xy' %}{{ loop.index ~ b }}{% endfor %}"
        "{{ f(a) }}{% else %}never{% endfor %}"
    )
    assert render(source) == "1x2y0!None1x2y1!None0!None"


def test_tojson_does_not_escape_for_html() -> None:
    assert render("{{ x | tojson }}", x="<é&'>") == '"<é&\'>"'


def test_tojson_takes_an_indent() -> None:
    assert render("{{ {'a': 1} | tojson(indent=2) }}") == '{\n  "a": 1\n}'


def test_the_date_can_be_asked_for() -> None:
    assert len(render("{{ strftime_now('%Y-%m-%d') }}")) == 10


def test_a_refusal_is_told_apart() -> None:
    with pytest.raises(TemplateRaised, match="no"):
        render("{{ raise_exception('no') }}")


def test_values_of_clients_are_not_templates() -> None:
    assert render("{{ x }}", x="{{ 1 + 1 }}") == "{{ 1 + 1 }}"


@pytest.mark.parametrize(
    "source",
    [
        "{{ x.__class__.__mro__ }}",
        "{{ x.append(1) }}",
        "{{ x.append.__self__.y }}",
    ],
)
def test_there_is_no_way_to_python(source: str) -> None:
    with pytest.raises(jinja2.exceptions.SecurityError):
        render(source, x=[])


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
            "> 1000000 turns",
        ),
        ("{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{% for a in range(99999) %}{{ 'a' * 1000 }}{% endfor %}", "characters"),
        ("{{ 'a' * 10 ** 10 }}", "characters"),
        ("{{ 10 ** (10 ** 10) }}", "exponent"),
        ("{{ range(10 ** 9) }}", "Range too big"),
        *(
            (
                "{% set ns = namespace(x=" + start + ") %}{% for a in range(60) %}"
                "{% set ns.x = ns.x " + operator + " ns.x %}{% endfor %}",
                "characters",
            )
            for start, operator in (("'a'", "~"), ("'a'", "+"), ("['a']", "+"))
        ),
    ],
)
def test_there_is_an_end_to_time_and_memory(source: str, words: str) -> None:
    with pytest.raises(Exception, match=words):
        render(source)
