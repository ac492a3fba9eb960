"""The reference of an export: what the trained model says to the proof's prompts, held in the precision that is exported.

The base is loaded in full precision, never in 4 bit, with the adapter on top of it as PEFT puts it there: unmerged, so that
what merging rounds away is measured, too. On the GPU if it fits, else on the CPU; if it fits nowhere, the prompts are
rendered and tokenised all the same, and the prover looks at the weights instead of the answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from backpropagate_backends.base import Reporting
from backpropagate_backends.host_memory import free_host_memory
from backpropagate_backends.model_source import Source, find
from backpropagate_backends.torch_generate import ends_of, with_adapter
from backpropagate_backends.torch_model import Precision, load_model
from backpropagate_backends.torch_tokenizer import trained_tokenizer
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

_WEIGHTS = "adapter_model.safetensors"
_LABELS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_FP32_AT_MOST = 4_000_000_000  # parameters; above, float32 on a CPU takes longer than the proof is worth
_PROBES, _PROBE_TOKENS = 4, 100
_SPARE = 1.15  # of the weights: activations, logits, what loading holds for a moment


def write_reference(job: ReferenceJob, device: Literal["cpu", "cuda"], stage: Reporting) -> Made:
    """The stage: see `base.Backend.reference`."""
    source = find(job.model)
    tokenizer = trained_tokenizer(source, job.adapter)
    prompts = tuple(dict.fromkeys(job.prompts))
    # one for all of it: a second reference is compared with this one, and may be made after midnight
    moment = datetime.fromisoformat(job.moment) if job.moment else datetime.now()
    plan = _plan(source, device)
    notes = []
    model = None
    if isinstance(plan, str):
        notes.append(plan)
        stage.notice(f"{plan}: the export will be proved by its weights, not by its answers", "warning")
    else:
        in_4_bit = job.model.load_in_4bit or (job.model.load_in_4bit is None and device == "cuda")
        if in_4_bit and job.adapter is not None:
            notes.append("the exported model uses the full-precision base, also where the training held it in 4 bit")
        stage.advance(0, len(prompts), f"loading {source.name} in {plan.label} on {plan.place}")
        model = load_model(source, plan, tokenizer, stage.notice)
        if job.adapter is not None:
            model = with_adapter(model, job.adapter)
        model.eval()
    writer = ReferenceWriter(Path(job.out))
    try:
        ends = tuple(ends_of(model, tokenizer)) if model is not None else _ends(tokenizer)
        for index, prompt in enumerate(prompts):
            answered = _asked(tokenizer, (("user", prompt),), moment)
            rows = b""
            if model is not None:
                answered, rows = _answered(model, tokenizer, answered, ends)
            writer.add(answered, rows)
            stage.advance(index + 1, len(prompts), prompt.partition("\n")[0])
        template = tokenizer.get_chat_template() if tokenizer.chat_template else None
        size, digest = writer.commit(
            Reference(
                model=job.model.path,
                adapter=job.adapter,
                adapter_digest=_digest(job.adapter),
                precision=plan.label if isinstance(plan, Precision) else "",
                stored=_stored(source),
                device=plan.place if isinstance(plan, Precision) else "",
                vocabulary=_width(model) if model is not None else 0,
                template=template,
                template_digest=hashlib.sha256(template.encode()).hexdigest() if template else "",
                variables={name: str(token) for name, token in tokenizer.special_tokens_map.items()},
                special=_special(tokenizer),
                ends=ends,
                adds_bos=_adds_bos(tokenizer),
                moment=moment.isoformat(),
                rendered=tuple(Rendered(turns, _text(tokenizer, turns, moment)) for turns in CONVERSATIONS if template),
                probes=_probes(tokenizer),
                why_not=plan if isinstance(plan, str) else "",
            )
        )
    finally:
        writer.close()
    return Made(job.out, size, digest, tuple(notes))


# --- where it fits ----------------------------------------------------------------------------------------------------


def _plan(source: Source, device: Literal["cpu", "cuda"]) -> Precision | str:
    """Where and how it is held; or why it cannot be."""
    parameters = _parameters(source)
    half = torch.bfloat16 if _stored(source) != "fp16" else torch.float16
    if device == "cuda":
        free, _ = torch.cuda.mem_get_info()
        for dtype in (torch.float32, half):
            if parameters * dtype.itemsize * _SPARE < free:
                return Precision("cuda", dtype, four_bit=False)
    free_host = free_host_memory()
    half = torch.bfloat16  # the CPU has no arithmetic in float16 worth the name
    for dtype in (torch.float32, half):
        if dtype is torch.float32 and parameters > _FP32_AT_MOST:
            continue
        if parameters * dtype.itemsize * _SPARE < free_host:
            return Precision("cpu", dtype, four_bit=False)
    needed = parameters * half.itemsize * _SPARE
    return f"the full-precision model needs {needed / 2**30:.1f} GiB, and {free_host / 2**30:.1f} GiB are free"


def _parameters(source: Source) -> int:
    """Counted on a model without memory behind it; 0 if its class does not let itself be made that way."""
    try:
        config = AutoConfig.from_pretrained(source.path, **source.options())
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config, trust_remote_code=source.trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError, AttributeError, NotImplementedError, RuntimeError):
        return 0
    return sum(parameter.numel() for parameter in empty.parameters())


def _stored(source: Source) -> str:
    """As the configuration says; float32 where it says nothing."""
    config = AutoConfig.from_pretrained(source.path, **source.options())
    return _LABELS.get(getattr(config.get_text_config(), "dtype", None) or config.dtype or torch.float32, "fp32")


# --- what it says -----------------------------------------------------------------------------------------------------


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

    def take(self, logits: torch.Tensor) -> None:
        left = MAX_ROWS - len(self.data)
        for row in logits[:left]:
            self.data.append(row.float().cpu().contiguous().numpy().astype("<f4", copy=False).tobytes())


@torch.inference_mode()
def _answered(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: Answered, ends: tuple[int, ...]
) -> tuple[Answered, bytes]:
    """The likeliest token each time, without the penalties that a model's generation settings may ask for."""
    kept = min(PROMPT_ROWS, len(asked.ids))
    rows = _Rows([])
    ids = torch.tensor([asked.ids], device=model.device)
    out = model(input_ids=ids, use_cache=True)
    rows.take(out.logits[0, -kept:])
    answer: list[int] = []
    gaps: list[float] = []
    while True:
        best = out.logits[0, -1].float().topk(2)
        answer.append(int(best.indices[0]))
        gaps.append(float(best.values[0] - best.values[1]))
        if answer[-1] in ends or len(answer) == MAX_NEW_TOKENS:
            break
        ids = torch.tensor([answer[-1:]], device=model.device)
        out = model(input_ids=ids, past_key_values=out.past_key_values, use_cache=True)
        rows.take(out.logits[0, -1:])
    return (
        Answered(
            turns=asked.turns,
            text=asked.text,
            ids=asked.ids,
            answer=tuple(answer),
            answer_text=str(tokenizer.decode(answer, skip_special_tokens=True)),
            gaps=tuple(gaps),
            ended=answer[-1] in ends,
            first=len(asked.ids) - kept,
            rows=len(rows.data),
        ),
        b"".join(rows.data),
    )


def _width(model: PreTrainedModel) -> int:
    return int(model.get_output_embeddings().weight.shape[0])


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
    with open(Path(adapter) / _WEIGHTS, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
