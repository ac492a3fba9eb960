"""What goes into an exported model besides its weights: configuration, tokenizer, licence, and whose chat template.

The base's own files are kept: a tokenizer that has been loaded and saved again is the same to the library that saved it,
and not always to the next. The adapter's come in where it says something else: another vocabulary, or a chat template.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from backpropagate_runner.export.adapter import Adapter
from backpropagate_runner.export.digests import files_below
from backpropagate_runner.export.model_files import ModelFiles
from backpropagate_runner.export.model_layout import TEMPLATE_FILES, TOKENIZER_FILES, is_one_of

TOKENIZER = "tokenizer.json"


class _Token(msgspec.Struct, frozen=True):
    id: int
    content: str
    special: bool = False


class _Model(msgspec.Struct):
    vocab: dict[str, int] | list[tuple[str, float]]


class _Tokenizer(msgspec.Struct):
    model: _Model
    added_tokens: list[_Token] = []


def side_files(files: ModelFiles, adapter: Adapter | None) -> dict[str, Path]:
    """Every file but the weights, by its name in the exported folder (with forward slashes)."""
    chosen = files.side_files()
    if adapter is None:
        return chosen
    own = {name: path for name, path in files_below(adapter.folder).items() if is_one_of(name, TOKENIZER_FILES)}
    if TOKENIZER in own and TOKENIZER in chosen and not _same(own[TOKENIZER], chosen[TOKENIZER]):
        replaced: tuple[str, ...] = TOKENIZER_FILES
    elif any(is_one_of(name, TEMPLATE_FILES) for name in own):
        replaced = TEMPLATE_FILES
    else:
        return chosen
    chosen = {name: path for name, path in chosen.items() if not is_one_of(name, replaced)}
    return chosen | {name: path for name, path in own.items() if is_one_of(name, replaced)}


def _same(one: Path, other: Path) -> bool:
    if one.read_bytes() == other.read_bytes():
        return True
    found = _vocabulary(one)
    return found is not None and found == _vocabulary(other)


def _vocabulary(path: Path) -> tuple[str, frozenset[_Token]] | None:
    """A digest of the tokens and their numbers, and the added ones; None if the file is of another build."""
    try:
        read = msgspec.json.decode(path.read_bytes(), type=_Tokenizer)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None
    vocabulary = hashlib.sha256(msgspec.json.encode(read.model.vocab, order="sorted")).hexdigest()
    return vocabulary, frozenset(read.added_tokens)
