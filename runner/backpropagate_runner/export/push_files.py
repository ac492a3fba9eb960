"""Which files of a folder go to the hub: an exact list of names. Whatever is not on it stays here.

So neither a checkpoint, a log, a half-written file, a run's manifest or report (which hold local paths), nor a token that
lies beside the weights can get out by accident.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from backpropagate_protocol.errors import UserInputError

CARD = "README.md"

_NAMES = frozenset(
    {
        CARD,
        "LICENSE",
        "LICENSE.md",
        "LICENSE.txt",
        "NOTICE",
        "USE_POLICY.md",
        # an adapter
        "adapter_config.json",
        "adapter_model.safetensors",
        "adapter_model.bin",
        # a model
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        # a tokenizer
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
        "chat_template.json",
        "preprocessor_config.json",
        "processor_config.json",
    }
)
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_GGUF = re.compile(r"[^.].*\.gguf")
_WEIGHTS = (".safetensors", ".gguf", ".bin")


class PushFile(NamedTuple):
    """One file to be uploaded, under its name in the repository."""

    name: str
    size: int
    path: Path | None = None  # None: `content`
    content: bytes = b""


def choose(folder: Path, card: str, only: Sequence[str] = ()) -> list[PushFile]:
    """The files of `folder` (or that one GGUF file) to upload, small ones first; `card` takes the place of its README.md.
    `only`: names to which the choice is restricted.

    Raises UserInputError if there is nothing to push, or no weights in what there is.
    """
    if not folder.exists():
        raise UserInputError(
            f"there is no folder {folder}", suggestion="Give the folder of an adapter, a merged model or GGUF files."
        )
    paths = [folder] if folder.is_file() else sorted(folder.iterdir())
    files = [PushFile(path.name, path.stat().st_size, path) for path in paths if _wanted(path)]
    if only:
        files = [file for file in files if file.name in only]
        if missing := sorted(set(only) - {file.name for file in files}):
            raise UserInputError(f"{missing[0]} is not in {folder}, or is no file of a model")
    if not any(file.name.endswith(_WEIGHTS) for file in files):
        raise UserInputError(
            f"{folder} holds no adapter, no merged model and no GGUF file",
            suggestion="Give the folder that an export or a training wrote; `backprop list-runs` shows them.",
        )
    if card:
        content = card.encode()
        files = [PushFile(CARD, len(content), content=content), *(file for file in files if file.name != CARD)]
    return sorted(files, key=lambda file: (file.size, file.name))


def _wanted(path: Path) -> bool:
    """A regular file on the list; a link could lead anywhere."""
    name = path.name
    listed = name in _NAMES or _SHARD.fullmatch(name) or _GGUF.fullmatch(name)
    return bool(listed) and path.is_file() and not path.is_symlink()
