"""A sandbox for chat templates: no way to Python, no endless loop, no gigabytes.

Runs in the front. Comes in: the source of a template, from the model directory, never from a
client. Goes out: a `SandboxedTemplate`, whose every rendering has a budget of loop turns and
characters. Next: `template.py`.
"""

import datetime
import json
from collections.abc import Sized
from typing import Any, TypeVar

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MOST_TURNS = 1_000_000  # of all loops and macros of one rendering
MOST_CHARACTERS = 16 * 2**20  # of the result, or of any string or list built on the way
LARGEST_EXPONENT = 64


Body = TypeVar("Body", nodes.For, nodes.Macro, nodes.CallBlock)


class TemplateRaised(jinja2.TemplateError):
    """The template itself refused what it was given."""


class _GenerationBlock(Extension):
    """`{% generation %}` marks training targets; for serving its body is all there is."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as an instance attribute

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    """Operators that can build large values are checked before they do."""

    intercepted_binops = frozenset({"+", "*", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and abs(right) > LARGEST_EXPONENT:
            raise jinja2.TemplateRuntimeError(f"an exponent is > {LARGEST_EXPONENT}: {right}")
        if operator == "+" and isinstance(left, Sized) and isinstance(right, Sized):
            _check_size(len(left) + len(right))
        if operator == "*":
            for sequence, times in ((left, right), (right, left)):
                if isinstance(sequence, Sized) and isinstance(times, int):
                    _check_size(len(sequence) * times)
        return super().call_binop(context, operator, left, right)


class _Budgeting(NodeTransformer):
    """Puts a call in front of each loop's and macro's body, and one in place of each `~`."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        return self._counted(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:
        return self._counted(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.CallBlock:
        return self._counted(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:
        self.generic_visit(node)
        return _call("concatenate", node.nodes, node.lineno)

    def _counted(self, node: Body) -> Body:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call("count_turn", [], node.lineno)))
        return node


class SandboxedTemplate:
    """A compiled template. Raises `jinja2.TemplateSyntaxError` if it cannot be compiled."""

    def __init__(self, source: str) -> None:
        environment = _environment()
        self.tree = environment.parse(source)
        budgeted = _Budgeting().visit(environment.parse(source))
        budgeted.set_lineno(1).set_environment(environment)
        self._template = environment.from_string(budgeted)

    def render(self, variables: dict[str, Any]) -> str:
        """The text. Raises `TemplateRaised`, or whatever else Python code can raise."""
        turns = 0

        def count_turn() -> None:
            nonlocal turns
            turns += 1
            if turns > MOST_TURNS:
                raise jinja2.TemplateRuntimeError(f"the template takes > {MOST_TURNS} turns")

        pieces, length = [], 0
        for piece in self._template.generate(
            {**variables, "count_turn": count_turn, "concatenate": _concatenate}
        ):
            pieces.append(piece)
            length += len(piece)
            _check_size(length)
        return "".join(pieces)


def _call(name: str, arguments: list[nodes.Expr], line: int) -> nodes.Call:
    function = nodes.Name(name, "load", lineno=line)
    return nodes.Call(function, arguments, [], None, None, lineno=line)


def _concatenate(*values: object) -> str:
    texts = [str(value) for value in values]
    _check_size(sum(map(len, texts)))
    return "".join(texts)


def _check_size(size: int) -> None:
    if size > MOST_CHARACTERS:
        raise jinja2.TemplateRuntimeError(f"the template builds > {MOST_CHARACTERS} characters")


def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _GenerationBlock],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: jinja2's own filter escapes for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise TemplateRaised(message)


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)
