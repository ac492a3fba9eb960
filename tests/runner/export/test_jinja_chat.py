"""A chat template becomes the text that transformers makes of it."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from backpropagate_protocol.redact import redact
from backpropagate_runner.export import jinja_chat
from backpropagate_runner.export.jinja_chat import TemplateRefused, renderer

VARIABLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
TALKS = (
    [{"role": "user", "content": "Hi "}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    [
        {"role": "user", "content": " Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Größe?"},
    ],
)


def theirs(template: str, talk: list[dict[str, str]]) -> str | None:
    try:
        (text,), _ = render_jinja_template([talk], chat_template=template, add_generation_prompt=True, **VARIABLES)
    except (TemplateError, TypeError, ValueError, KeyError, AttributeError):
        return None
    return str(text)


def ours(template: str, talk: list[dict[str, str]]) -> str | None:
    try:
        return renderer(template, VARIABLES, datetime.now)(talk)
    except TemplateRefused:
        return None


@pytest.mark.parametrize("name", ["tools", "documents", "date_string", "add_generation_prompt", "messages"])
@pytest.mark.parametrize("asked", ["is defined", "is not none", "is none"])
def test_a_template_may_ask_what_there_is(name: str, asked: str) -> None:
    template = f"{{% if {name} {asked} %}}yes{{% else %}}no{{% endif %}}"
    assert ours(template, TALKS[0]) == theirs(template, TALKS[0])


@pytest.mark.slow
def test_published_templates_make_the_same_text(llama_sources: Path) -> None:
    folder = llama_sources / "models" / "templates"
    sources = {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.jinja"))}
    assert len(sources) > 50
    dated = re.compile(r"\b\d\d:\d\d(:\d\d)?\b")
    different = [
        (name, number)
        for name, source in sources.items()
        for number, talk in enumerate(TALKS)
        if dated.sub("", ours(source, talk) or "") != dated.sub("", theirs(source, talk) or "")
    ]
    assert not different


def test_a_traceback_may_name_the_module() -> None:
    """A token of the hub begins with hf_, and whatever looks like one is made unreadable."""
    folder = Path(jinja_chat.__file__).parent
    assert not [path.name for path in folder.glob("*.py") if redact(f"export/{path.name}") != f"export/{path.name}"]
