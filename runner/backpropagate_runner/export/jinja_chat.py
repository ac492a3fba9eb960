"""Renders a chat template as transformers does, without transformers: the same Jinja environment, the same variables."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

Conversation = Sequence[Mapping[str, str]]


class TemplateRefused(Exception):
    """The template raised for this conversation, or is no template."""


class _Generation(Extension):
    """`{% generation %}` marks what is trained on; for rendering it is only brackets."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(message: str) -> None:
    raise TemplateRefused(message)


def _to_json(value: object, ensure_ascii: bool = False, indent: int | None = None, **more: object) -> str:
    separators = more.get("separators")
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators if isinstance(separators, tuple) else None,
        sort_keys=bool(more.get("sort_keys")),
    )


def renderer(
    source: str, variables: Mapping[str, str], now: Callable[[], datetime] = datetime.now
) -> Callable[[Conversation], str]:
    """A function from a conversation to its text with the generation prompt. `variables`: bos_token, eos_token, ….

    Raises TemplateRefused if the source is no Jinja; the function raises it if the template refuses a conversation.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: now().strftime(form)
    try:
        template = environment.from_string(source)
    except jinja2.TemplateError as error:
        raise TemplateRefused(str(error)) from error

    def render(conversation: Conversation) -> str:
        try:
            return template.render(
                messages=[dict(turn) for turn in conversation],
                tools=None,  # said in every case, as a template may ask whether they are defined
                documents=None,
                add_generation_prompt=True,
                **variables,
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise TemplateRefused(str(error)) from error

    return render
