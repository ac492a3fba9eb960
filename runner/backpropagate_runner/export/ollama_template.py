"""From a model's Jinja chat template to the Go template that older Ollama servers need, where the two can be equal.

The Jinja template is rendered with marks in the place of contents and cut at the marks; what lies between them is set into
a fixed Go frame. The result is used only if it says, word for word, what the Jinja template says of every probe
conversation. So a template that treats a turn by its place, or by what stands in it as far as the probes do, is refused
rather than approximated. Blanks around a content are the one difference that is accepted: a template that trims them
(as Llama 3's does) has no counterpart in Go, and the probes have none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from backpropagate_runner.export import go_template
from backpropagate_runner.export.jinja_chat import Conversation, TemplateRefused, renderer
from backpropagate_runner.export.read_gguf import GgufFile

_SYSTEM, _USER, _ANSWER, _AGAIN = "qSystemMarkq", "qUserMarkq", "qAnswerMarkq", "qAgainMarkq"
_CONTROL = 3  # a token's type in a GGUF: markers, not text
_ADDS_BOS = frozenset(
    {"llama-bpe", "llama3", "llama-v3", "tekken", "falcon3", "chameleon"}
)  # where a GGUF does not say


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a template and its stops are written with. An empty text: the vocabulary has no such token."""

    bos: str = ""
    eos: str = ""
    eot: str = ""  # end of a turn
    adds_bos: bool = False  # the runtime puts bos before every prompt
    control: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Derived:
    """A TEMPLATE and its stop parameters."""

    template: str
    stops: tuple[str, ...]
    system: bool  # whether it has a place for a system message
    dated: bool  # whether a date is frozen in it


def template_of(file: GgufFile) -> tuple[str | None, Tokens]:
    """A GGUF's chat template (None: it has none) and what it is written with."""
    fields = file.fields
    adds = fields.get("tokenizer.ggml.add_bos_token")
    if adds is None:
        adds = fields.get("tokenizer.ggml.model") == "llama" or fields.get("tokenizer.ggml.pre") in _ADDS_BOS
    kinds = fields.get("tokenizer.ggml.token_type")
    texts = file.texts("tokenizer.ggml.tokens")
    return file.template, Tokens(
        bos=file.token("tokenizer.ggml.bos_token_id"),
        eos=file.token("tokenizer.ggml.eos_token_id"),
        eot=file.token("tokenizer.ggml.eot_token_id"),
        adds_bos=bool(adds),
        control=tuple(
            text
            for text, kind in zip(texts, kinds if isinstance(kinds, list) else [], strict=False)
            if kind == _CONTROL
        ),
    )


def derive(source: str, tokens: Tokens) -> Derived | None:
    """The Go template that says what `source` says; None where there is none of our frame."""
    variables = {"bos_token": tokens.bos, "eos_token": tokens.eos, "pad_token": tokens.eos, "unk_token": ""}
    try:
        render = _without_bos(renderer(source, variables), tokens)
        plain = _cut(render(_turns(_USER, _ANSWER, _AGAIN)), _USER, _ANSWER, _AGAIN)
    except TemplateRefused:
        return None
    led = _led(render)
    if plain is None or led == ():
        return None
    template = _frame(plain, led)
    if not _equal(render, template, system=led is not None):
        return None
    return Derived(template, _stops(plain[2], tokens), system=led is not None, dated="strftime_now" in source)


def _without_bos(render: Callable[[Conversation], str], tokens: Tokens) -> Callable[[Conversation], str]:
    """Where the runtime puts bos before the prompt, the prompt must not hold it again."""
    if not (tokens.bos and tokens.adds_bos):
        return render
    return lambda conversation: render(conversation).removeprefix(tokens.bos)


def _turns(*contents: str) -> list[dict[str, str]]:
    """User and assistant by turns."""
    return [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(contents)]


def _with_system(system: str, *contents: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": system}, *_turns(*contents)]


def _led(render: Callable[[Conversation], str]) -> tuple[str, str] | tuple[()] | None:
    """What stands before and after a system message; None: the template has no place for one; (): it cannot be cut."""
    try:
        text = render(_with_system(_SYSTEM, _USER, _ANSWER, _AGAIN))
    except TemplateRefused:
        return None
    pieces = _cut(text, _SYSTEM, _USER, _ANSWER, _AGAIN)
    return (pieces[0], pieces[1]) if pieces else ()


def _cut(text: str, *marks: str) -> list[str] | None:
    """What lies before, between and after the marks; None unless each occurs once, in order."""
    pieces: list[str] = []
    for mark in marks:
        if text.count(mark) != 1:
            return None
        before, _, text = text.partition(mark)
        pieces.append(before)
    return [*pieces, text]


def _go(text: str) -> str:
    """Text as it stands in a Go template."""
    return text.replace("{", '{{ "{" }}')


def _frame(plain: Sequence[str], led: tuple[str, str] | tuple[()] | None) -> str:
    opening = _go(plain[0])
    if led:
        opening = (
            f"{{{{ if $.System }}}}{_go(led[0])}{{{{ $.System }}}}{_go(led[1])}{{{{ else }}}}{opening}{{{{ end }}}}"
        )
    return (
        "{{- range $i, $_ := .Messages }}"
        '{{ if eq .Role "user" }}'
        f"{{{{ if or (eq $i 0) (and (eq $i 1) $.System) }}}}{opening}{{{{ else }}}}{_go(plain[2])}{{{{ end }}}}"
        "{{ .Content }}"
        f'{{{{ else if eq .Role "assistant" }}}}{_go(plain[1])}{{{{ .Content }}}}'
        f"{{{{ end }}}}{{{{ end }}}}{_go(plain[3])}"
    )


_ASKED = 'What is a {loop}? Say it in "two" words;\nthen, in one: {{ it }}.'
_TOLD = "A circle.\n\nRound."
_PROBES = (_turns("Hi"), _turns(_ASKED), _turns("Hi", _TOLD, _ASKED), _turns("A", "B", "C", "D", "E"))
_LED_PROBES = tuple(_with_system("Be brief.\nBe kind.", *(turn["content"] for turn in probe)) for probe in _PROBES)


def _equal(render: Callable[[Conversation], str], template: str, *, system: bool) -> bool:
    probes = (*_PROBES, *_LED_PROBES) if system else _PROBES
    try:
        return all(render(probe) == go_template.render(template, _as_ollama(probe)) for probe in probes)
    except TemplateRefused:
        return False


def _as_ollama(conversation: Conversation) -> Mapping[str, go_template.Value]:
    """What Ollama hands to a template: all turns, and the system messages also by themselves."""
    system = "\n\n".join(turn["content"] for turn in conversation if turn["role"] == "system")
    turns = [{"Role": turn["role"], "Content": turn["content"]} for turn in conversation]
    return {"System": system, "Messages": turns}


def _stops(after_answer: str, tokens: Tokens) -> tuple[str, ...]:
    """The end of a text and of a turn, and every marker that a model which runs on would write next."""
    found = [tokens.eos, tokens.eot]
    found += sorted((mark for mark in tokens.control if mark and mark in after_answer), key=after_answer.index)
    return tuple(dict.fromkeys(mark for mark in found if mark and mark != tokens.bos))
