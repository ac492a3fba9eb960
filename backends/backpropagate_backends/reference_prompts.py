"""The reference of an export, as far as the tokenizer goes and whoever computes: which prompts are asked in which words, what
is kept of the answers, and the file that they are written to.

Who holds the model, torch or MLX, is a `Held`: it turns a prompt's tokens into logits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from backpropagate_backends.base import ADAPTER_WEIGHTS, Reporting
from backpropagate_protocol.jobs import ReferenceJob
from backpropagate_protocol.messages import Made
from backpropagate_protocol.reference import (
    CONVERSATIONS,
    MAX_NEW_TOKENS,
    MAX_ROWS,
    PROMPT_ROWS,
    Answered,
    Probe,
    Reference,
    ReferenceWriter,
    Rendered,
    Turns,
)

_PROBES, _PROBE_TOKENS = 4, 100
Logits = NDArray[np.float32]


class Held(Protocol):
    """A model that is held somewhere and can be asked. label: fp32, bf16, fp16; place: cpu, cuda:0, metal, …"""

    label: str
    place: str
    ends: tuple[int, ...]

    @property
    def words(self) -> int:
        """Width of its logits."""

    def first(self, ids: tuple[int, ...], kept: int) -> Logits:
        """Begins a text: the logits, float32 (kept, words), of its last `kept` tokens."""

    def next(self, token: int) -> Logits:
        """Goes on with one token: float32 (1, words)."""


def write_reference_of(
    job: ReferenceJob,
    tokenizer: PreTrainedTokenizerBase,
    held: Held | str,
    stored: str,
    notes: tuple[str, ...],
    stage: Reporting,
) -> Made:
    """`held` as a text: why the model can be held nowhere. Then the prompts are rendered and tokenised all the same, and the
    prover looks at the weights instead of the answers."""
    prompts = tuple(dict.fromkeys(job.prompts))
    # one for all of it: a second reference is compared with this one, and may be made after midnight
    moment = datetime.fromisoformat(job.moment) if job.moment else datetime.now()
    if isinstance(held, str):
        notes = (*notes, held)
        stage.notice(f"{held}: the export will be proved by its weights, not by its answers", "warning")
    writer = ReferenceWriter(Path(job.out))
    try:
        ends = _ends(tokenizer) if isinstance(held, str) else held.ends
        for index, prompt in enumerate(prompts):
            answered = _asked(tokenizer, (("user", prompt),), moment)
            rows = b""
            if not isinstance(held, str):
                answered, rows = _answered(held, tokenizer, answered)
            writer.add(answered, rows)
            stage.advance(index + 1, len(prompts), prompt.partition("\n")[0])
        template = tokenizer.get_chat_template() if tokenizer.chat_template else None
        size, digest = writer.commit(
            Reference(
                model=job.model.path,
                adapter=job.adapter,
                adapter_digest=_digest(job.adapter),
                precision="" if isinstance(held, str) else held.label,
                stored=stored,
                device="" if isinstance(held, str) else held.place,
                vocabulary=0 if isinstance(held, str) else held.words,
                template=template,
                template_digest=hashlib.sha256(template.encode()).hexdigest() if template else "",
                variables={name: str(token) for name, token in tokenizer.special_tokens_map.items()},
                special=_special(tokenizer),
                ends=ends,
                adds_bos=_adds_bos(tokenizer),
                moment=moment.isoformat(),
                rendered=tuple(Rendered(turns, _text(tokenizer, turns, moment)) for turns in CONVERSATIONS if template),
                probes=_probes(tokenizer),
                why_not=held if isinstance(held, str) else "",
            )
        )
    finally:
        writer.close()
    return Made(job.out, size, digest, notes)


def _asked(tokenizer: PreTrainedTokenizerBase, turns: Turns, moment: datetime) -> Answered:
    """The prompt as text and tokens. A model without a template gets the plain text."""
    text = _text(tokenizer, turns, moment) if tokenizer.chat_template else None
    if text is None:
        text = turns[-1][1]
        return Answered(turns, text, tuple(tokenizer(text)["input_ids"]))
    # The template has written all special tokens there are to be.
    return Answered(turns, text, tuple(tokenizer(text, add_special_tokens=False)["input_ids"]))


def _probes(tokenizer: PreTrainedTokenizerBase) -> tuple[Probe, ...]:
    """Texts made of the vocabulary's own tokens, from the first to the last: where words are split, and in which order
    pieces are joined, shows there. ASCII alone, since in rare scripts llama.cpp splits differently in every conversion."""
    special = set(tokenizer.all_special_ids)
    plain = {}
    for token in range(len(tokenizer)):
        text = "" if token in special else str(tokenizer.decode([token]))
        if text.isascii():
            plain[token] = text
    step = max(1, len(plain) // (_PROBES * _PROBE_TOKENS))
    chosen = list(plain.values())[::step]
    texts = ("".join(chosen[first::_PROBES][:_PROBE_TOKENS]) for first in range(_PROBES))
    return tuple(Probe(text, tuple(tokenizer(text, add_special_tokens=False)["input_ids"])) for text in texts)


def _text(tokenizer: PreTrainedTokenizerBase, turns: Turns, moment: datetime) -> str | None:
    messages = [{"role": role, "content": content} for role, content in turns]
    try:
        with _clock(tokenizer.get_chat_template(), moment):
            return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except Exception:  # noqa: BLE001 - a template may raise what it likes: it has no system role, for one
        return None


@contextmanager
def _clock(template: str, moment: datetime) -> Iterator[None]:
    """Stops the clock that a template may ask. transformers takes only plain data for its variables, so that the function
    has to be put into the template that it compiled and keeps."""
    variables = chat_template_utils._compile_jinja_template(template).globals
    before = variables["strftime_now"]
    variables["strftime_now"] = lambda form: moment.strftime(form)
    try:
        yield
    finally:
        variables["strftime_now"] = before


@dataclass(slots=True)
class _Rows:
    """The rows that are kept of one prompt."""

    data: list[bytes]

    def take(self, logits: Logits) -> None:
        left = MAX_ROWS - len(self.data)
        for row in logits[:left]:
            self.data.append(np.ascontiguousarray(row).astype("<f4", copy=False).tobytes())


def _answered(held: Held, tokenizer: PreTrainedTokenizerBase, asked: Answered) -> tuple[Answered, bytes]:
    """The likeliest token each time, without the penalties that a model's generation settings may ask for."""
    kept = min(PROMPT_ROWS, len(asked.ids))
    rows = _Rows([])
    logits = held.first(asked.ids, kept)
    rows.take(logits)
    answer: list[int] = []
    gaps: list[float] = []
    while True:
        best = int(logits[-1].argmax())
        second = float(np.partition(logits[-1], -2)[-2])
        answer.append(best)
        gaps.append(float(logits[-1][best]) - second)
        if best in held.ends or len(answer) == MAX_NEW_TOKENS:
            break
        logits = held.next(best)
        rows.take(logits)
    return (
        Answered(
            turns=asked.turns,
            text=asked.text,
            ids=asked.ids,
            answer=tuple(answer),
            answer_text=str(tokenizer.decode(answer, skip_special_tokens=True)),
            gaps=tuple(gaps),
            ended=answer[-1] in held.ends,
            first=len(asked.ids) - kept,
            rows=len(rows.data),
        ),
        b"".join(rows.data),
    )


def _ends(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    return () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)


def _special(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    named = {name: getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad", "unk")}
    return {name: int(token) for name, token in named.items() if token is not None}


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id


def _digest(adapter: str | None) -> str:
    if adapter is None:
        return ""
    with open(Path(adapter) / ADAPTER_WEIGHTS, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
