"""Go templates derived from Jinja chat templates say the same; where they cannot, there is none."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from backpropagate_runner.export import go_template
from backpropagate_runner.export.jinja_chat import TemplateRefused, renderer
from backpropagate_runner.export.ollama_template import Derived, Tokens, derive, template_of
from backpropagate_runner.export.read_gguf import GgufFile
from tests.runner.export.chat_templates import (
    CHATML,
    CHATML_TOKENS,
    GEMMA_LIKE,
    GEMMA_TOKENS,
    LLAMA_LIKE,
    LLAMA_TOKENS,
    MISTRAL_LIKE,
    MISTRAL_TOKENS,
    PHI_LIKE,
    PHI_TOKENS,
    QWEN_LIKE,
    write_gguf,
)

_ROOT = Path(__file__).parents[3]
# Its sources bring the templates of real models.
_LLAMA_CPP = Path(os.environ.get("LLAMA_CPP_DIR") or Path(tempfile.gettempdir()) / "llama.cpp-src")

_TALK = [
    {"role": "user", "content": "What, then, is {this}?"},
    {"role": "assistant", "content": "Nothing."},
    {"role": "user", "content": "Again:\n\n{{ this }}"},
]
_TOLD = [{"role": "system", "content": "Be of good cheer."}, *_TALK]


def _go(found: Derived, turns: list[dict[str, str]]) -> str:
    system = "".join(turn["content"] for turn in turns if turn["role"] == "system")
    messages = [{"Role": turn["role"], "Content": turn["content"]} for turn in turns]
    return go_template.render(found.template, {"System": system, "Messages": messages})


@pytest.mark.parametrize(
    ("source", "tokens", "stops"),
    [
        (CHATML, CHATML_TOKENS, ("<|im_end|>", "<|im_start|>")),
        (QWEN_LIKE, CHATML_TOKENS, ("<|im_end|>", "<|im_start|>")),
        (LLAMA_LIKE, LLAMA_TOKENS, ("<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")),
        (PHI_LIKE, PHI_TOKENS, ("<|endoftext|>", "<|end|>", "<|user|>")),
    ],
    ids=["chatml", "qwen", "llama", "phi"],
)
def test_a_derived_template_says_what_the_jinja_says(source: str, tokens: Tokens, stops: tuple[str, ...]) -> None:
    found = derive(source, tokens)
    assert found is not None
    assert found.stops == stops
    assert found.system
    render = renderer(source, {"bos_token": tokens.bos, "eos_token": tokens.eos})
    for turns in (_TALK[:1], _TALK, _TOLD[:2], _TOLD):
        wanted = render(turns)
        assert _go(found, turns) == (wanted.removeprefix(tokens.bos) if tokens.adds_bos else wanted)


def test_a_begin_token_stays_where_the_runtime_adds_none() -> None:
    bare = Tokens(bos="<s>", eos="</s>", adds_bos=False)
    found = derive("{{ bos_token }}" + CHATML, bare)
    assert found is not None
    assert _go(found, _TALK).startswith("<s><|im_start|>user")
    adding = Tokens(bos="<s>", eos="</s>", adds_bos=True)
    found = derive("{{ bos_token }}" + CHATML, adding)
    assert found is not None
    assert _go(found, _TALK).startswith("<|im_start|>user")


def test_a_template_that_moves_the_system_message_has_no_derivation() -> None:
    assert derive(MISTRAL_LIKE, MISTRAL_TOKENS) is None


def test_a_template_that_refuses_system_messages_is_derived_without_a_place_for_them() -> None:
    found = derive(GEMMA_LIKE, GEMMA_TOKENS)
    assert found is not None
    assert not found.system
    assert "System" not in found.template.replace("(and (eq $i 1) $.System)", "")
    assert found.stops == ("<end_of_turn>", "<start_of_turn>")


def test_a_template_with_a_date_is_marked() -> None:
    dated, timeless = derive(LLAMA_LIKE, LLAMA_TOKENS), derive(CHATML, CHATML_TOKENS)
    assert dated is not None
    assert dated.dated
    assert timeless is not None
    assert not timeless.dated


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages",  # no Jinja
        "{{ raise_exception('no') }}",
        "no contents at all",
        "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
        "{% for m in messages %}[{{ m.content | length }}] {{ m.content }}{% endfor %}",
        "{% for m in messages | reverse %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ loop.index }}: {{ m.content }}\n{% endfor %}",
    ],
)
def test_what_cannot_be_said_in_the_frame_is_refused(source: str) -> None:
    assert derive(source, CHATML_TOKENS) is None


def test_the_tiny_bases_template_is_derived() -> None:
    source = (_ROOT / "fixtures" / "tiny-base" / "chat_template.jinja").read_text(encoding="utf-8")
    found = derive(source, CHATML_TOKENS)
    assert found is not None
    assert found.stops == ("<|im_end|>", "<|im_start|>")
    assert _go(found, _TOLD).endswith("Again:\n\n{{ this }}<|im_end|>\n<|im_start|>assistant\n")


def test_braces_in_a_template_do_not_become_actions() -> None:
    found = derive("{{ '{{{' }}" + CHATML, CHATML_TOKENS)
    assert found is not None
    assert _go(found, _TALK).startswith("{{{<|im_start|>user")


@pytest.mark.skipif(not (_LLAMA_CPP / "models" / "templates").is_dir(), reason="no sources of llama.cpp here")
@pytest.mark.parametrize(
    ("name", "derived"),
    [
        ("Qwen-Qwen2.5-7B-Instruct.jinja", True),
        ("Qwen-Qwen3-0.6B.jinja", True),
        ("meta-llama-Llama-3.1-8B-Instruct.jinja", True),
        ("meta-llama-Llama-3.2-3B-Instruct.jinja", True),
        ("microsoft-Phi-3.5-mini-instruct.jinja", True),
        ("google-gemma-2-2b-it.jinja", True),
        ("HuggingFaceTB-SmolLM3-3B.jinja", True),
        ("mistralai-Mistral-Nemo-Instruct-2407.jinja", False),
    ],
)
def test_real_templates(name: str, derived: bool) -> None:
    path = _LLAMA_CPP / "models" / "templates" / name
    if not path.is_file():
        pytest.skip("not among these sources")
    tokens = Tokens(bos="<s>", eos="</s>", adds_bos=True)
    assert (derive(path.read_text(encoding="utf-8"), tokens) is not None) is derived


# --- reading a GGUF -------------------------------------------------------------------------------------------------


def test_template_and_tokens_are_read_from_a_gguf(tmp_path: Path) -> None:
    source, tokens = template_of(GgufFile(write_gguf(tmp_path / "m.gguf", CHATML)))
    assert source == CHATML
    assert tokens == Tokens(
        bos="<|endoftext|>", eos="<|im_end|>", control=("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    )


def test_whether_the_runtime_adds_a_begin_token_is_read_or_known_of_the_vocabulary(tmp_path: Path) -> None:
    assert template_of(GgufFile(write_gguf(tmp_path / "a.gguf", None, adds_bos=True)))[1].adds_bos
    assert not template_of(GgufFile(write_gguf(tmp_path / "b.gguf", None, adds_bos=False, pre="llama-bpe")))[1].adds_bos
    assert template_of(GgufFile(write_gguf(tmp_path / "c.gguf", None, pre="llama-bpe")))[1].adds_bos
    assert template_of(GgufFile(write_gguf(tmp_path / "d.gguf", None)))[0] is None


# --- the renderers --------------------------------------------------------------------------------------------------


def test_the_go_subset_trims_and_chooses_as_go_does() -> None:
    data: dict[str, go_template.Value] = {"A": "x", "B": "", "L": [{"N": "1"}, {"N": "2"}]}
    assert go_template.render("a  {{- .A -}}  b", data) == "axb"
    assert go_template.render('{{ if .B }}1{{ else if eq .A "x" }}2{{ else }}3{{ end }}', data) == "2"
    assert (
        go_template.render("{{ range $i, $_ := .L }}{{ if eq $i 1 }},{{ end }}{{ .N }}{{ $.A }}{{ end }}", data)
        == "1x,2x"
    )
    assert go_template.render('{{ "{{" }}{{ or .B .A }}{{ and .A .B }}', data) == "{{x"


@pytest.mark.parametrize("template", ["{{ .A | upper }}", "{{ end }}", "{{ if .A }}", "{{ .A", "{{ len .A }}"])
def test_what_is_outside_the_go_subset_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        go_template.render(template, {"A": "x"})


def test_a_jinja_template_is_rendered_as_transformers_does() -> None:
    source = (
        "{%- for m in messages %}\n    {%- if loop.index0 == 2 %}{% break %}{% endif %}\n"
        "    {%- generation %}{{ {'text': m.content, 'ä': 1} | tojson }}{% endgeneration %}\n{%- endfor %}\n"
    )
    assert renderer(source, {})(_TALK[1:]) == '{"text": "Nothing.", "ä": 1}{"text": "Again:\\n\\n{{ this }}", "ä": 1}'
    with pytest.raises(TemplateRefused):
        renderer("{{ messages[9].content.x }}", {})(_TALK)
