"""Which files belong to a model and to an adapter: one list for what is fetched, exported and pushed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

# What makes a model besides its weights. A pattern speaks of one level: `*` does not reach into a folder.
TEMPLATE_FILES = ("chat_template.json", "chat_template.jinja", "additional_chat_templates/*.jinja")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "tekken.json",
    *TEMPLATE_FILES,
)
SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "USE_POLICY*",
    *TOKENIZER_FILES,
)
CODE = ("*.py",)  # only of a model that brings code of its own, and only where it is trusted

_ADAPTER = frozenset({"adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"})
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json|[^.].*\.gguf")


def is_one_of(name: str, patterns: Iterable[str]) -> bool:
    """`name` is below the folder, with forward slashes."""
    return any(name.count("/") == pattern.count("/") and fnmatchcase(name, pattern) for pattern in patterns)


def belongs(name: str, *, code: bool) -> bool:
    """Whether a file is a part of a model, of an adapter or of a GGUF. `code`: the model brings its own."""
    if name.startswith(".") or "/." in name:
        return False
    known = name in _ADAPTER or _WEIGHTS.fullmatch(name) is not None
    return known or is_one_of(name, SIDE_FILES + (CODE if code else ()))
