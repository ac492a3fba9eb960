"""The tokenizer's files, as they are: what goes out with an adapter is what the base came with."""

from __future__ import annotations

import shutil
from pathlib import Path

_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "vocab.json", "vocab.txt", "merges.txt", "*.model", "*.tiktoken", "tekken.json", "tokenization_*.py",
)  # fmt: skip


def copy_tokenizer(source: Path, target: Path) -> None:
    """From one folder into another that is there."""
    for pattern in _FILES:
        for file in source.glob(pattern):
            shutil.copyfile(file, target / file.name)
