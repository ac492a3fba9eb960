"""Asking a model on MLX: answers to prompts, and a conversation; with or without an adapter, on any base that MLX can hold."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache
from transformers import PreTrainedTokenizerBase

from backpropagate_backends import mlx_lora
from backpropagate_backends.mlx_model import Base, load_base
from backpropagate_backends.model_source import find
from backpropagate_backends.rope_styles import Config
from backpropagate_backends.torch_tokenizer import trained_tokenizer
from backpropagate_backends.whole_characters import pieces
from backpropagate_protocol.errors import UserInputError
from backpropagate_protocol.jobs import ChatJob, GenerateJob
from backpropagate_protocol.spec import ModelSpec

_PREFILL = 512  # tokens of a prompt that are read at once


class Speaker:
    """A model with its tokenizer, ready to go on from any tokens."""

    def __init__(self, model: ModelSpec, adapter: str | None) -> None:
        source = find(model)
        self.tokenizer: PreTrainedTokenizerBase = trained_tokenizer(source, adapter)
        self.base: Base = load_base(source, model, lambda text, level: None)
        if adapter is not None:
            mlx_lora.wear(self.base, adapter)
        self.ends = ends_of(self.base, self.tokenizer)
        self.room = _room(self.base.config)

    def continuation(self, ids: Sequence[int], limit: int, temperature: float) -> Iterator[int]:
        """Token after token until an end or the limit; the likeliest each time unless temperature > 0."""
        for logits in self.said(ids, limit):
            scaled = logits / temperature if temperature > 0 else logits
            chosen = mx.random.categorical(scaled) if temperature > 0 else mx.argmax(scaled)
            token = cast(int, chosen.item())
            if token in self.ends:
                return
            yield token
            self.feed(token)

    def said(self, ids: Sequence[int], limit: int) -> Iterator[mx.array]:
        """Logits, float32 (words,), after the prompt and after each token that `feed` is given in between."""
        cache = make_prompt_cache(self.base.model)
        fed = list(ids)
        for _ in range(limit):
            while len(fed) > _PREFILL:
                self.base.model(mx.array([fed[:_PREFILL]]), cache=cache)
                mx.eval([part.state for part in cache])
                fed = fed[_PREFILL:]
            logits = self.base.model(mx.array([fed]), cache=cache)[0, -1].astype(mx.float32)
            mx.eval(logits)
            self._next: int | None = None
            yield logits
            if self._next is None:
                return
            fed = [self._next]

    def feed(self, token: int) -> None:
        """What was chosen after the logits that `said` gave last."""
        self._next = token


def generate(job: GenerateJob) -> tuple[str, ...]:
    """One text for each prompt. Greedy, and so repeatable, unless temperature > 0; then `seed` decides."""
    speaker = Speaker(job.model, job.adapter)
    mx.random.seed(job.seed)
    answers = []
    for prompt in job.prompts:
        ids = prompt_ids(speaker.tokenizer, (("user", prompt),))
        made = list(speaker.continuation(ids, job.max_new_tokens, job.temperature))
        answers.append(str(speaker.tokenizer.decode(made, skip_special_tokens=True)).strip())
    return tuple(answers)


class MlxConversation:
    """See `base.Conversation`. Greedy unless temperature > 0; then the seed decides, anew for each answer."""

    def __init__(self, job: ChatJob) -> None:
        if job.model is None:
            raise UserInputError("there is no model to talk with")
        self._job = job
        self._speaker = Speaker(job.model, job.adapter)

    def answer(self, messages: Sequence[tuple[str, str]]) -> Iterator[str]:
        """Raises UserInputError if the conversation is longer than the model can read."""
        ids = prompt_ids(self._speaker.tokenizer, messages)
        limit, room = self._job.max_new_tokens, self._speaker.room
        if room is not None:
            limit = min(limit, room - len(ids))
        if limit <= 0:
            raise UserInputError(f"the conversation of {len(ids)} tokens is longer than the model's {room}")
        mx.random.seed(self._job.seed)
        yield from pieces(self._speaker.continuation(ids, limit, self._job.temperature), self._text)

    def _text(self, ids: Sequence[int]) -> str:
        decode = self._speaker.tokenizer.decode
        return str(decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[tuple[str, str]]) -> list[int]:
    """By the model's own template; a model without one gets the plain text."""
    if not tokenizer.chat_template:
        return list(tokenizer("\n".join(content for _, content in messages))["input_ids"])
    turns = [{"role": role, "content": content} for role, content in messages]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def ends_of(base: Base, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Every token that ends an answer: the tokenizer's, and those that the model's own configuration adds."""
    ends = {tokenizer.eos_token_id}
    for own in (base.config.get("eos_token_id"), _generation(base.folder).get("eos_token_id")):
        ends |= set(own) if isinstance(own, list) else {own}
    return {end for end in ends if isinstance(end, int)}


def _generation(folder: Path) -> Config:
    try:
        found = json.loads((folder / "generation_config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _room(config: Config) -> int | None:
    text = config.get("text_config")
    found = (text if isinstance(text, dict) else config).get("max_position_embeddings")
    return found if isinstance(found, int) else None
