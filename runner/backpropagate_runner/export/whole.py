"""Whether files that are about to be exported or pushed are those that a training wrote, and whole."""

from __future__ import annotations

from pathlib import Path

from backpropagate_protocol.durable import NotWhole, verify_dir
from backpropagate_protocol.errors import BackpropagateError, GGUFExportError, UserInputError, error_for
from backpropagate_protocol.rundir import MANIFEST
from backpropagate_runner.export.read_gguf import GgufFile
from backpropagate_runner.export.tensor_file import BadTensorFile, TensorFile

_OURS = (b'"seal":"', b'"data_digest"')
_AGAIN = "Copy it again from where it was made, or export it again."


def check_whole(folder: Path, code: str = "INPUT_ADAPTER_INVALID") -> None:
    """Holds a folder that a training finished against its manifest; a folder without one can only be read.

    Raises the error of `code`, which names the file; OSError if the disk does not let it be told.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file() or not any(mark in manifest.read_bytes() for mark in _OURS):
        return
    try:
        verify_dir(folder)
    except NotWhole as error:
        raise _changed(folder, code, str(error)) from error


def _changed(folder: Path, code: str, why: str) -> BackpropagateError:
    return error_for(
        code,
        f"{folder} is not what the training wrote: {why}",
        suggestion="Copy it again from where it was made, or take an earlier checkpoint. If it was changed on purpose, "
        f"copy it without its {MANIFEST}.",
    )


def check_header(path: Path) -> None:
    """Raises UserInputError if a .gguf or .safetensors file is empty, cut off, or something else; reads its header only."""
    try:
        match path.suffix:
            case ".gguf":
                GgufFile(path)
            case ".safetensors":
                TensorFile(path)
    except GGUFExportError as error:
        raise UserInputError(error.message, suggestion=_AGAIN) from error
    except BadTensorFile as error:
        raise UserInputError(f"{path.name} is damaged: {error}", suggestion=_AGAIN) from error
