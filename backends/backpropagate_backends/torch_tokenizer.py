"""The tokenizer of a model: text and conversations to token ids and loss flags, by the model's own chat template.

Which tokens carry loss is the template's word: `{% generation %}` marks what the assistant says. Where a template lacks
the marks, TRL knows marked twins of the common ones; an unknown one is refused, never guessed. Messages render exactly
as they do at inference, and the tokenizer that goes out with an adapter keeps its original template.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from jinja2 import TemplateError
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from trl.chat_template_utils import (
    get_training_chat_template,
    has_generation_markers,
    is_chat_template_stop_token_trained,
)

from backpropagate_backends.model_source import Source, find
from backpropagate_protocol.errors import DatasetFormatError, ModelLoadError
from backpropagate_protocol.spec import ModelSpec

# Above this, a tokenizer's `model_max_length` is transformers' way of saying "unknown".
_NO_LIMIT = 10**9

# The files that hold a vocabulary, in any of the formats that transformers reads.
_VOCABULARIES = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "tekken.json", "tokenization_*.py")


def load_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """The tokenizer as transformers loads it, padding on the right, with a padding token. Raises ModelLoadError."""
    folder = Path(source.path)
    if folder.is_dir() and not any(next(folder.glob(pattern), None) for pattern in _VOCABULARIES):
        # transformers would make a tokenizer of this model's class with nothing in it
        raise ModelLoadError(f"{source.name} has no tokenizer in {folder}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.path, **source.options())
    except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError) as error:
        raise source.failure(error, "the tokenizer of ") from error
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # labels and attention masks are explicit, so any token will do
    return tokenizer


def trained_tokenizer(source: Source, adapter: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer that a model was trained with: the one saved beside the adapter, else the base's."""
    if adapter is None or not (Path(adapter) / "tokenizer.json").is_file():
        return load_tokenizer(source)
    return load_tokenizer(replace(source, path=adapter, revision=None, local=True))


class TorchTokenizer:
    """See `base.Tokenizer`."""

    def __init__(self, model: ModelSpec) -> None:
        source = find(model)
        self._name = model.name
        self._tokenizer = load_tokenizer(source)
        self._template = _training_template(self._tokenizer)
        self.max_length = _max_length(source, self._tokenizer)
        self.digest = _digest(self._tokenizer, self._template)

    def chat(self, messages: Sequence[dict[str, object]], tools: object | None) -> tuple[list[int], list[int]]:
        """A template that refuses the messages raises what it likes; whoever reads the rows knows which row it was."""
        encoded = self._tokenizer.apply_chat_template(
            list(messages),
            tools=tools,
            chat_template=self._template,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        return list(encoded["input_ids"]), [int(flag) for flag in encoded["assistant_masks"]]

    def completion(self, prompt: str, completion: str) -> tuple[list[int], list[int]]:
        """A token that straddles the border belongs to the completion."""
        ids = self._closed(self._ids(prompt + completion))
        alone = self._ids(prompt)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(alone, ids, strict=False)))
        return ids, [0] * shared + [1] * (len(ids) - shared)

    def text(self, text: str) -> tuple[list[int], list[int]]:
        ids = self._closed(self._ids(text))
        return ids, [1] * len(ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def check(self) -> None:
        """For conversations: what plain text needs is checked as it is encoded."""
        if not self._tokenizer.chat_template:
            raise DatasetFormatError(
                f"{self._name} has no chat template, so conversations cannot become tokens",
                suggestion="Use the instruction-tuned variant of the model, or plain `text` or `prompt`/`completion` rows.",
            )
        if self._template is None:
            raise DatasetFormatError(
                f"the chat template of {self._name} does not mark what the assistant says ({{% generation %}}), "
                "and no marked twin of it is known",
                suggestion="Add the marks to chat_template.jinja in a local copy of the model, or train on all tokens.",
            )
        if not is_chat_template_stop_token_trained(self._tokenizer, chat_template=self._template):
            raise DatasetFormatError(
                f"the chat template of {self._name} leaves the end of the assistant's turn out of the loss: "
                "the model would never learn to stop",
                suggestion="Move the end-of-turn token inside {% generation %} … {% endgeneration %} in a local copy.",
            )

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text)["input_ids"])

    def _closed(self, ids: list[int]) -> list[int]:
        eos = self._tokenizer.eos_token_id
        if eos is None:
            raise ModelLoadError(
                f"the tokenizer of {self._name} has no end-of-text token: a model could not learn to stop"
            )
        return ids if ids and ids[-1] == eos else [*ids, eos]


def _training_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A template with marks: the model's own, or TRL's twin of it; None if there is neither."""
    own = tokenizer.get_chat_template() if tokenizer.chat_template else None
    if own is None:
        return None
    if has_generation_markers(own):
        return str(own)
    try:
        twin = get_training_chat_template(tokenizer)
    except (ValueError, TemplateError, TypeError):
        return None
    return None if twin is None else str(twin)


def _max_length(source: Source, tokenizer: PreTrainedTokenizerBase) -> int | None:
    try:
        config = AutoConfig.from_pretrained(source.path, **source.options())
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise source.failure(error, "the configuration of ") from error
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if isinstance(positions, int):
        return positions
    limit = int(tokenizer.model_max_length)
    return limit if limit < _NO_LIMIT else None


def _digest(tokenizer: PreTrainedTokenizerBase, template: str | None) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    special = {name: str(value) for name, value in tokenizer.special_tokens_map.items()}
    whole = json.dumps([vocabulary, special, template or ""], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()
