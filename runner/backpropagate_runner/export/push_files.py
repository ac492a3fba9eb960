"""Which files of a folder go to the hub: those that belong to one model. Whatever else there is stays here, and is told.

So neither a checkpoint, a log, a half-written file, a run's manifest or report (which hold local paths), nor a token that
lies beside the weights can get out by accident.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from backpropagate_protocol.errors import UserInputError
from backpropagate_protocol.export_formats import QUANTIZATIONS
from backpropagate_protocol.rundir import MANIFEST
from backpropagate_runner.export.model_layout import belongs
from backpropagate_runner.export.read_gguf import GgufFile
from backpropagate_runner.export.whole import check_header, check_whole

CARD = "README.md"

_WEIGHTS = (".safetensors", ".gguf", ".bin")
_QUANTIZED = re.compile(rf"[-._]({'|'.join(QUANTIZATIONS)})$", re.IGNORECASE)
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_FOLDERS = ("additional_chat_templates",)  # the only one whose files belong to the model around it
_OURS = (MANIFEST, ".export.json", ".partial", ".rejected")  # what only this machine has a use for


class PushFile(NamedTuple):
    """One file to be uploaded, under its name in the repository."""

    name: str
    size: int
    path: Path | None = None  # None: `content`
    content: bytes = b""


@dataclass(frozen=True, slots=True)
class Choice:
    """`left_out`: names beside the chosen ones that somebody could miss."""

    files: list[PushFile]
    left_out: tuple[str, ...] = ()


def choose(folder: Path, card: str, only: Sequence[str] = ()) -> Choice:
    """The files of `folder` (or that one GGUF file) to upload, small ones first; `card` takes the place of its README.md.
    `only`: names to which the choice is restricted.

    Raises UserInputError if there is nothing to push, no weights in what there is, more than one model, or a file that is
    damaged; the error of a folder that is not what its training wrote.
    """
    if not folder.exists():
        raise UserInputError(
            f"there is no folder {folder}", suggestion="Give the folder of an adapter, a merged model or GGUF files."
        )
    there = {folder.name: folder} if folder.is_file() else _there(folder)
    code = _brings_code(folder)
    files = [PushFile(name, path.stat().st_size, path) for name, path in there.items() if _wanted(name, path, code)]
    if only:
        files = [file for file in files if file.name in only]
        if missing := sorted(set(only) - {file.name for file in files}):
            raise UserInputError(f"{missing[0]} is not in {folder}, or is no file of a model")
    if not any(file.name.endswith(_WEIGHTS) for file in files):
        raise UserInputError(
            f"{folder} holds no adapter, no merged model and no GGUF file",
            suggestion="Give the folder that an export or a training wrote; `backprop list-runs` shows them.",
        )
    if any(file.name.endswith(".safetensors") for file in files):
        check_whole(folder)
    for file in files:
        assert file.path is not None
        check_header(file.path)
    files = _one_model(folder, files)
    gone = {file.name for file in files}
    left_out = () if only else tuple(name for name in there if name not in gone and _missed(name))
    if card:
        content = card.encode()
        files = [PushFile(CARD, len(content), content=content), *(file for file in files if file.name != CARD)]
    return Choice(sorted(files, key=lambda file: (file.size, file.name)), left_out)


def _there(folder: Path) -> dict[str, Path]:
    """Everything in it by name; of the folders in it their names, with a slash behind, unless their files belong to it."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name in _FOLDERS and not path.is_symlink():
            found.update({f"{path.name}/{inner.name}": inner for inner in sorted(path.iterdir())})
        else:
            found[f"{path.name}/" if path.is_dir() else path.name] = path
    return found


def _wanted(name: str, path: Path, code: bool) -> bool:
    """A regular file that belongs to a model; a link could lead anywhere."""
    return (name == CARD or belongs(name, code=code)) and path.is_file() and not path.is_symlink()


def _brings_code(folder: Path) -> bool:
    """Whether a model cannot be loaded without the programs beside it."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and bool(config.get("auto_map"))


def _one_model(folder: Path, files: list[PushFile]) -> list[PushFile]:
    """Several quantizations are one model. An adapter beside whole models is none of them: it is pushed by its own name."""
    kinds = {file.name: _kind(file) for file in files if file.name.endswith(".gguf")}
    models = {_stem(name) for name, kind in kinds.items() if kind == "model"}
    adapters = {_stem(name) for name, kind in kinds.items() if kind == "adapter"}
    if len(several := models or adapters) > 1:
        raise UserInputError(
            f"{folder} holds {len(several)} models: {', '.join(sorted(several)[:4])}",
            suggestion="A repository is for one: name a single file, or a folder with the files of one model.",
        )
    return [file for file in files if not models or kinds.get(file.name) != "adapter"]


def _kind(file: PushFile) -> str:
    assert file.path is not None
    return str(GgufFile(file.path).fields.get("general.type", "model"))


def _stem(name: str) -> str:
    """`m-Q4_K_M.gguf` and `m-F16-00001-of-00002.gguf` are both of m."""
    return _QUANTIZED.sub("", _SHARD.sub("", name.removesuffix(".gguf")))


def _missed(name: str) -> bool:
    return not name.startswith(".") and not name.endswith(_OURS)
