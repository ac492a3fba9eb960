"""The door to llama.cpp's own converter: found, never shipped; run inside the process that does nothing else.

It brings its own `gguf` package, which has the name and the version of the registry's and is another one. So a process that
converts with it must not have imported `gguf` before, and is of no use for anything else after.

What is put in its way, all of it before it starts:
- the adapter is merged into each tensor as it is read, so that no merged model need be written first;
- a vocabulary that it does not recognize is named by the rules that split text, as our own converter does;
- without sentencepiece it goes on as far as it needs none;
- its progress is ours.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import re
import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from backpropagate_protocol.errors import BackpropagateError, DependencyError, GGUFExportError, UserInputError
from backpropagate_protocol.jobs import ConvertJob
from backpropagate_protocol.messages import Made
from backpropagate_runner.export import gguf_vocab
from backpropagate_runner.export.adapter import open_adapter
from backpropagate_runner.export.fetch_converter import SCRIPT, converter_in, default_folder
from backpropagate_runner.export.gguf_write import fitting_name
from backpropagate_runner.export.model_files import ModelFiles, open_model
from backpropagate_runner.export.stage import Stage, new_file
from backpropagate_runner.export.tensors import open_weights
from backpropagate_runner.export.weights import Weights

Advance = Callable[[int, int, str], None]


class _Part(Protocol):
    """What the converter knows of one tensor of a file."""

    dtype: str
    shape: tuple[int, ...]

    def mmap_bytes(self) -> NDArray[np.uint8]: ...


def find_converter(folder: str | None) -> Path | None:
    """The folder with the converter: `folder` if one is named, else the one that `fetch_converter` fills."""
    return converter_in(Path(folder) if folder else default_folder())


def knows(folder: Path, architecture: str) -> bool:
    """Whether the converter in this folder has an entry for it. Nothing is imported: its source is read as text."""
    quoted = re.compile(rf"""["']{re.escape(architecture)}["']""")
    package = folder / "conversion"
    files = [folder / SCRIPT, *(package.glob("*.py") if package.is_dir() else ())]
    return any(quoted.search(file.read_text(encoding="utf-8")) for file in files)


def convert_officially(job: ConvertJob, stage: Stage) -> Made:
    """Raises DEP_EXPORT_TOOL_MISSING, INPUT_MODEL_UNSUPPORTED, or RUNTIME_GGUF_EXPORT_FAILED with the converter's words."""
    folder = find_converter(job.converter_folder)
    if folder is None:
        raise DependencyError(
            f"there is no llama.cpp converter in {job.converter_folder or default_folder()}",
            code="DEP_EXPORT_TOOL_MISSING",
            suggestion="Fetch it with `backprop setup --converter`, or set LLAMA_CPP_DIR to a checkout of llama.cpp.",
        )
    files = open_model(job.model, stage.advance)
    weights = open_weights(files, open_adapter(job.adapter) if job.adapter is not None else None)
    _check_merge(files, weights)
    out = Path(job.out)
    with new_file(out) as partial:
        _run(folder, files, weights, partial, job, stage.advance)
        with open(partial, "rb") as made:
            digest = hashlib.file_digest(made, "sha256").hexdigest()
    return Made(
        path=str(out), bytes=out.stat().st_size, digest=digest, notes=("converted by llama.cpp's own converter",)
    )


def _check_merge(files: ModelFiles, weights: Weights) -> None:
    """The converter reads the base's own files; it sees other numbers in them, but no other tensors."""
    stored = {name: (tensor.dtype, tensor.shape) for name, tensor in files.tensors.items()}
    if {name: (weights.dtype(name), weights.shape(name)) for name in weights.names} != stored:
        raise UserInputError(
            f"with this adapter {files.name} has other tensors than without it, which llama.cpp's converter cannot be told",
            code="INPUT_ADAPTER_UNSUPPORTED",
            suggestion="Export it as `merged`, then convert the merged model.",
        )


def _run(folder: Path, files: ModelFiles, weights: Weights, out: Path, job: ConvertJob, advance: Advance) -> None:
    there = sys.modules.get("gguf")
    if there is not None and not Path(str(there.__file__)).is_relative_to(folder):
        raise RuntimeError("this process has imported another gguf package already")
    sys.path[:0] = [str(folder), str(folder / "gguf-py")]
    words, arguments_before = _Words(advance), sys.argv
    logging.getLogger().addHandler(words)
    try:
        _without_sentencepiece()
        conversion = importlib.import_module("conversion")
        arguments = [
            str(files.folder),
            "--outfile",
            str(out),
            "--outtype",
            job.type,
            "--model-name",
            fitting_name(job.name, phi3=gguf_vocab.swallows_like_phi3(files.folder)),
        ]
        # the head that speculates on further tokens was not trained along: it would guess for another model
        if _speculates(conversion, files):
            arguments.append("--no-nextn")
        sys.argv = [SCRIPT, *arguments]
        with _our_numbers(weights) as unread, _our_names(), _our_progress(advance):
            _convert(folder)
        if unread:
            raise GGUFExportError(
                f"llama.cpp's converter in {folder} reads tensors in a way that is not known here, and would have lost "
                f"the adapter: {len(unread)} that it changes were not asked for, among them {min(unread)}",
                suggestion="Use the converter that `backprop setup --converter` fetches; or export --format merged.",
            )
    except BackpropagateError:
        raise
    except SystemExit:
        raise GGUFExportError(f"llama.cpp's converter gave up on {files.name}: {words.last}") from None
    except (NotImplementedError, ImportError) as error:
        raise UserInputError(
            f"llama.cpp's converter does not know how to convert {files.name}: {error}",
            code="INPUT_MODEL_UNSUPPORTED",
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError, RuntimeError) as error:
        raise GGUFExportError(
            f"llama.cpp's converter failed on {files.name}: {type(error).__name__}: {error}"
        ) from error
    finally:
        sys.argv = arguments_before
        logging.getLogger().removeHandler(words)


def _convert(folder: Path) -> None:
    """Raises SystemExit only for a failure."""
    try:
        runpy.run_path(str(folder / SCRIPT), run_name="__main__")
    except SystemExit as end:
        if end.code not in (None, 0):
            raise


def _speculates(conversion: ModuleType, files: ModelFiles) -> bool:
    names = files.config.get("architectures")
    if not isinstance(names, list) or not names:
        return False
    try:
        return bool(getattr(conversion.get_model_class(str(names[0])), "supports_mtp_export", False))
    except NotImplementedError:
        return False


@contextmanager
def _our_numbers(weights: Weights) -> Iterator[set[str]]:
    """Tensors that the adapter changes are computed when the converter reads them; the rest stay mapped files.

    What is given are the names of the former that were not read yet: another converter may read by another way.
    """
    utility = importlib.import_module("gguf.utility")
    opened, plain = utility.SafetensorsLocal.__enter__, utility.LocalTensor.mmap_bytes
    names: dict[int, str] = {}  # by the identity of what stands for them; they are all kept until the end
    kept: list[_Part] = []
    unread = {name for name in weights.names if weights.touched(name)}

    def named(part_file: object) -> dict[str, _Part]:
        parts: dict[str, _Part] = opened(part_file)
        names.update({id(part): name for name, part in parts.items()})
        kept.extend(parts.values())
        return parts

    def bytes_of(part: _Part) -> NDArray[np.uint8]:
        name = names.get(id(part))
        if name is None or not weights.touched(name):
            read: NDArray[np.uint8] = plain(part)
            return read
        unread.discard(name)
        return np.ascontiguousarray(weights.stored(name, 0, part.shape[0])).reshape(-1).view(np.uint8)

    utility.SafetensorsLocal.__enter__ = named
    utility.LocalTensor.mmap_bytes = bytes_of
    try:
        yield unread
    finally:
        utility.SafetensorsLocal.__enter__, utility.LocalTensor.mmap_bytes = opened, plain


@contextmanager
def _our_names() -> Iterator[None]:
    text_model = importlib.import_module("conversion.base").TextModel
    original = text_model.get_vocab_base_pre

    def named(model: _Model, tokenizer: object) -> str:
        try:
            return str(original(model, tokenizer))
        except NotImplementedError:
            found = gguf_vocab.pre_tokenizer(model.dir_model)
            if found is None:
                raise
            return found

    text_model.get_vocab_base_pre = named
    try:
        yield
    finally:
        text_model.get_vocab_base_pre = original


class _Model(Protocol):
    dir_model: Path


def _without_sentencepiece() -> None:
    """The converter imports it before it looks whether the model has anything for it to read."""
    if find_spec("sentencepiece") is not None:
        return

    class SentencePieceProcessor:
        def __init__(self) -> None:
            raise DependencyError(
                "the tokenizer of this model is read with the sentencepiece package, which is not installed",
                code="DEP_EXPORT_TOOL_MISSING",
                suggestion="pip install sentencepiece",
            )

    stand_in = ModuleType("sentencepiece")
    stand_in.__spec__ = ModuleSpec("sentencepiece", None)
    stand_in.SentencePieceProcessor = SentencePieceProcessor  # type: ignore[attr-defined]
    sys.modules["sentencepiece"] = stand_in


@contextmanager
def _our_progress(advance: Advance) -> Iterator[None]:
    class Bar:
        """Stands where the converter has its progress bar."""

        def __init__(self, *rest: object, total: int = 0, **more: object) -> None:
            self._done, self._total = 0, total

        def update(self, bytes_: int) -> None:
            self._done += bytes_
            advance(self._done, self._total, "")

        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *rest, **more: None

    names = vars(importlib.import_module("tqdm"))
    original, names["tqdm"] = names["tqdm"], Bar
    try:
        yield
    finally:
        names["tqdm"] = original


class _Words(logging.Handler):
    """Each line of its log is a sign of progress; the last complaint is kept."""

    def __init__(self, advance: Advance) -> None:
        super().__init__()
        self.last = "it said nothing"
        self._advance = advance

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            self.last = record.getMessage()
        self._advance(0, 0, "reading the model")
