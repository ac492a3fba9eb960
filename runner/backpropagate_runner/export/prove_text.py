"""Compares how a GGUF turns conversations into text and text into tokens with how the trained model's tokenizer does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from backpropagate_protocol.measured import Check
from backpropagate_protocol.reference import Reference, Turns
from backpropagate_runner.export.jinja_chat import TemplateRefused, renderer
from backpropagate_runner.export.llama import Llama
from backpropagate_runner.export.read_gguf import GgufFile

_SENTENCEPIECE = "llama"  # tokenizer.ggml.model

Render = Callable[[Sequence[dict[str, str]]], str]


def check_template(reference: Reference, file: GgufFile) -> Check:
    """Every conversation must become the same text, and one that is refused there must be refused here."""
    if reference.template is None:
        passed = file.template is None
        return Check("template", passed, detail="neither has one" if passed else "the trained model has none")
    if file.template is None:
        return Check("template", False, detail="the exported model has none")
    moment = datetime.fromisoformat(reference.moment)
    try:
        render = renderer(file.template, reference.variables, lambda: moment)
    except TemplateRefused as error:
        return Check("template", False, detail=f"it is no template: {error}")
    expected: list[tuple[Turns, str | None]] = [(prompt.turns, prompt.text) for prompt in reference.prompts]
    expected += [(rendered.turns, rendered.text) for rendered in reference.rendered]
    different = [turns for turns, text in expected if _text(render, turns) != text]
    if not different:
        return Check("template", True, float(len(expected)), detail=f"{len(expected)} conversations are the same text")
    roles = ", ".join(role for role, _ in different[0])
    detail = f"{len(different)} of {len(expected)} conversations are another text, the first one of {roles}"
    return Check("template", False, float(len(expected) - len(different)), float(len(expected)), detail)


def _text(render: Render, turns: Turns) -> str | None:
    try:
        return render([{"role": role, "content": content} for role, content in turns])
    except TemplateRefused:
        return None


def check_tokens(reference: Reference, file: GgufFile, model: Llama) -> Check:
    """Every prompt must become the same tokens, with what a server adds before and after.

    Two differences are told, not judged. A tokenizer that begins plain text with the BOS does so before a conversation,
    too, wherever a GGUF is served, though its template may not write it. And SentencePiece is split differently by
    llama.cpp in rare places (blanks after a special token), in every conversion of such a model.
    """
    total = len(reference.prompts)
    different, begun = [], 0
    for prompt in reference.prompts:
        ids = tuple(model.prompt(prompt.text))
        if reference.adds_bos and ids == (model.bos, *prompt.ids):
            begun += 1
        elif ids != prompt.ids:
            different.append(prompt)
    same = float(total - len(different))
    probes = [probe for probe in reference.probes if tuple(model.tokenize(probe.text)) != probe.ids]
    told = f"; {begun} of them begin with a BOS that the template does not write" if begun else ""
    if not different and not probes:
        return Check("tokens", True, same, float(total), f"{total} prompts are the same tokens{told}")
    first = different[0].turns[-1][1] if different else probes[0].text
    detail = (
        f"{len(different)} of {total} prompts and {len(probes)} of {len(reference.probes)} word lists are other tokens"
    )
    detail += f", the first one: {first[:60]!r}"
    lenient = file.fields.get("tokenizer.ggml.model") == _SENTENCEPIECE and len(different) < total
    return Check("tokens", lenient, same, float(total), detail + told)


def wrong_ends(reference: Reference, model: Llama) -> str:
    """What is wrong with the tokens that end an answer; empty if nothing is."""
    ends = {prompt.answer[-1] for prompt in reference.prompts if prompt.ended}
    if (eos := reference.special.get("eos")) is not None:
        ends.add(eos)
    missed = sorted(token for token in ends if not model.ends(token))
    return f"answers would not end at token {missed[0]}" if missed else ""
