"""A model that is held to be talked with: one token after the other, said as soon as it is text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from backpropagate_backends.model_source import find
from backpropagate_backends.torch_generate import ends_of, with_adapter
from backpropagate_backends.torch_model import choose_precision, load_model
from backpropagate_backends.torch_tokenizer import trained_tokenizer
from backpropagate_backends.whole_characters import pieces
from backpropagate_protocol.errors import UserInputError
from backpropagate_protocol.jobs import ChatJob


class TorchConversation:
    """See `base.Conversation`. Greedy unless temperature > 0; then the seed decides, anew for each answer."""

    def __init__(self, job: ChatJob, device: Literal["cpu", "cuda"]) -> None:
        if job.model is None:
            raise UserInputError("there is no model to talk with")
        source = find(job.model)
        self._job = job
        self._tokenizer: PreTrainedTokenizerBase = trained_tokenizer(source, job.adapter)
        precision = choose_precision(job.model, device, lambda text, level: None)
        model: PreTrainedModel | PeftModel = load_model(source, precision, self._tokenizer, lambda text, level: None)
        if job.adapter is not None:
            model = with_adapter(model, job.adapter)
        model.eval()
        self._model = model
        self._ends = ends_of(model, self._tokenizer)
        self._room: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)

    def answer(self, messages: Sequence[tuple[str, str]]) -> Iterator[str]:
        """Raises UserInputError if the conversation is longer than the model can read."""
        ids = self._prompt(messages)
        limit = self._job.max_new_tokens
        if self._room is not None:
            limit = min(limit, self._room - len(ids))
        if limit <= 0:
            raise UserInputError(f"the conversation of {len(ids)} tokens is longer than the model's {self._room}")
        yield from pieces(self._continuation(ids, limit), self._text)

    def _text(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _prompt(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        if not self._tokenizer.chat_template:
            return list(self._tokenizer("\n".join(content for _, content in messages))["input_ids"])
        turns = [{"role": role, "content": content} for role, content in messages]
        text = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _continuation(self, ids: list[int], limit: int) -> Iterator[int]:
        chance = torch.Generator(self._model.device).manual_seed(self._job.seed)
        fed, past = ids, None
        for _ in range(limit):
            with torch.inference_mode():
                out = self._model(
                    input_ids=torch.tensor([fed], device=self._model.device), past_key_values=past, use_cache=True
                )
                logits = out.logits[0, -1].float()
                if self._job.temperature > 0:
                    weights = (logits / self._job.temperature).softmax(-1)
                    token = int(weights.multinomial(1, generator=chance))
                else:
                    token = int(logits.argmax())
            if token in self._ends:
                return
            yield token
            fed, past = [token], out.past_key_values
