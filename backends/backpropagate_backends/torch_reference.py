"""The reference of an export: what the trained model says to the proof's prompts, held in the precision that is exported.

The base is loaded in full precision, never in 4 bit, with the adapter on top of it as PEFT puts it there: unmerged, so that
what merging rounds away is measured, too. On the GPU if it fits, else on the CPU; if it fits nowhere, the prompts are
rendered and tokenised all the same, and the prover looks at the weights instead of the answers.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from backpropagate_backends.base import Reporting
from backpropagate_backends.host_memory import free_host_memory
from backpropagate_backends.model_source import Source, find
from backpropagate_backends.reference_prompts import Logits, write_reference_of
from backpropagate_backends.torch_generate import ends_of, with_adapter
from backpropagate_backends.torch_model import Precision, load_model
from backpropagate_backends.torch_tokenizer import trained_tokenizer
from backpropagate_protocol.jobs import ReferenceJob
from backpropagate_protocol.messages import Made

_LABELS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_FP32_AT_MOST = 4_000_000_000  # parameters; above, float32 on a CPU takes longer than the proof is worth
_SPARE = 1.15  # of the weights: activations, logits, what loading holds for a moment


def write_reference(job: ReferenceJob, device: Literal["cpu", "cuda"], stage: Reporting) -> Made:
    """The stage: see `base.Backend.reference`."""
    source = find(job.model)
    tokenizer = trained_tokenizer(source, job.adapter)
    plan = _plan(source, device)
    if isinstance(plan, str):
        return write_reference_of(job, tokenizer, plan, _stored(source), (), stage)
    notes: tuple[str, ...] = ()
    in_4_bit = job.model.load_in_4bit or (job.model.load_in_4bit is None and device == "cuda")
    if in_4_bit and job.adapter is not None:
        notes = ("the exported model uses the full-precision base, also where the training held it in 4 bit",)
    stage.advance(0, len(job.prompts), f"loading {source.name} in {plan.label} on {plan.place}")
    model = load_model(source, plan, tokenizer, stage.notice)
    if job.adapter is not None:
        model = with_adapter(model, job.adapter)
    model.eval()
    held = _HeldByTorch(model, plan, tuple(ends_of(model, tokenizer)))
    return write_reference_of(job, tokenizer, held, _stored(source), notes, stage)


class _HeldByTorch:
    """See `reference_prompts.Held`."""

    def __init__(self, model: PreTrainedModel, plan: Precision, ends: tuple[int, ...]) -> None:
        self._model, self.label, self.place, self.ends = model, plan.label, plan.place, ends
        self._past: object = None

    @property
    def words(self) -> int:
        return int(self._model.get_output_embeddings().weight.shape[0])

    def first(self, ids: tuple[int, ...], kept: int) -> Logits:
        self._past = None
        return self._read(list(ids))[-kept:]

    def next(self, token: int) -> Logits:
        return self._read([token])

    @torch.inference_mode()
    def _read(self, ids: list[int]) -> Logits:
        fed = torch.tensor([ids], device=self._model.device)
        out = self._model(input_ids=fed, past_key_values=self._past, use_cache=True)
        self._past = out.past_key_values
        logits: Logits = out.logits[0].float().cpu().numpy().astype(np.float32, copy=False)
        return logits


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
