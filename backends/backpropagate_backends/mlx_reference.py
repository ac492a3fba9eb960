"""The reference of an export, held by MLX: for models that only MLX can read, and for what was exported to MLX.

In float32, as everywhere in a proof: what is measured is the export, and no rounding beside it. Weights that MLX quantised
stay what they are.
"""

from __future__ import annotations

import mlx.core as mx
import msgspec
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from backpropagate_backends import mlx_lora
from backpropagate_backends.base import Reporting
from backpropagate_backends.mlx_generate import ends_of
from backpropagate_backends.mlx_model import Base, device_name, load_base
from backpropagate_backends.model_source import find
from backpropagate_backends.reference_prompts import Logits, write_reference_of
from backpropagate_backends.torch_tokenizer import trained_tokenizer
from backpropagate_protocol.jobs import ReferenceJob
from backpropagate_protocol.messages import Made

_STORED = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


def write_reference(job: ReferenceJob, stage: Reporting) -> Made:
    """The stage: see `base.Backend.reference`."""
    source = find(job.model)
    tokenizer = trained_tokenizer(source, job.adapter)
    stage.advance(0, len(job.prompts), f"loading {source.name} in fp32 on {device_name()}")
    base = load_base(source, msgspec.structs.replace(job.model, dtype="fp32", load_in_4bit=None), stage.notice)
    if job.adapter is not None:
        mlx_lora.wear(base, job.adapter)
    held = _HeldByMlx(base, tuple(sorted(ends_of(base, tokenizer))))
    stored = _STORED.get(str(base.config.get("dtype") or base.config.get("torch_dtype")), "bf16")
    return write_reference_of(job, tokenizer, held, stored, (), stage)


class _HeldByMlx:
    """See `reference_prompts.Held`."""

    label = "fp32"

    def __init__(self, base: Base, ends: tuple[int, ...]) -> None:
        self._model, self.ends, self.place = base.model, ends, device_name()
        self._cache: list[object] = []
        self._words = 0

    @property
    def words(self) -> int:
        return self._words

    def first(self, ids: tuple[int, ...], kept: int) -> Logits:
        self._cache = make_prompt_cache(self._model)
        return self._read(list(ids))[-kept:]

    def next(self, token: int) -> Logits:
        return self._read([token])

    def _read(self, ids: list[int]) -> Logits:
        logits = np.array(self._model(mx.array([ids]), cache=self._cache)[0].astype(mx.float32))
        self._words = logits.shape[-1]
        return logits
