"""Finds out in seconds whether an export can work and which way it goes, before any weight is read.

Everything that the later stages will need is asked for here, cheapest first; the first thing that is missing is raised with
its code and every way around it. Of a hub's model only the small files are fetched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from backpropagate_backends.host_memory import free_host_memory
from backpropagate_protocol.errors import (
    DependencyError,
    InvalidSettingError,
    OllamaRegistrationError,
    UserInputError,
)
from backpropagate_protocol.export_formats import FORMATS, QUANTIZATIONS
from backpropagate_protocol.jobs import PreflightJob
from backpropagate_protocol.messages import ExportRoute
from backpropagate_protocol.mlx_rules import PACKAGES
from backpropagate_protocol.ollama_names import check_name
from backpropagate_protocol.spec import ExportSpec
from backpropagate_runner.export import llama, official
from backpropagate_runner.export.adapter import open_adapter
from backpropagate_runner.export.gguf_arch import NotCovered
from backpropagate_runner.export.gguf_arch import read as read_architecture
from backpropagate_runner.export.gguf_vocab import chat_template, tokenizer_folder
from backpropagate_runner.export.gguf_vocab import read as read_vocabulary
from backpropagate_runner.export.model_files import ModelFiles, check_full_precision, open_model
from backpropagate_runner.export.ollama import Server
from backpropagate_runner.export.room import check_disk, check_writable, megabytes, same_disk
from backpropagate_runner.export.route import Way, no_converter, unsupported, way
from backpropagate_runner.export.sizes import (
    Sizes,
    estimated_parameters,
    folder_bytes,
    of_gguf,
    of_merged,
    reference_bytes,
    stored_type,
)
from backpropagate_runner.export.stage import Stage

_PROMPTS = 12  # of every proof, with some out of the training data
_LOADING = 1.3  # what holding a model takes, over the size of its weights
_RUNNING = 512 << 20  # llama.cpp's cache for the longest prompt in float32, and what it computes with


class _Converter(NamedTuple):
    """own, official, or empty where nothing is converted."""

    name: str = ""
    folder: str = ""


def preflight(job: PreflightJob, stage: Stage) -> ExportRoute:
    """Raises the coded error for the first thing that is missing: see the functions below, and `open_model`."""
    export = job.export
    _check_wish(export)
    check_writable(Path(export.destination))
    version = _ollama(export, stage)
    stage.advance(detail=f"the files of {job.model.name}")
    files = open_model(job.model, stage.advance, weights=False)
    adapter_bytes = _adapter(job, export)
    notes: list[str] = []
    converter, how = _Converter(), Way("", "")
    stored = stored_of(files)
    if export.format == "mlx":
        converter = _mlx(files)
    elif export.format != "lora":
        check_full_precision(files)
    if export.format in ("gguf", "lora-gguf"):
        stage.advance(detail="the converter")
        converter = _converter(files, job, export)
    if export.format == "gguf":
        notes += _template(files, job, export)
        stage.advance(detail="llama.cpp")
        how = way(str(export.quantization), stored, llama.available(), ollama=export.ollama_name is not None)
    if export.format == "lora-gguf":
        how = Way("f32", "")
    parameters = files.parameters or estimated_parameters(files.config)
    sizes = _sizes(export, how, parameters, stored, adapter_bytes, files.config)
    stage.advance(detail="the disk")
    free = _disks(job, export, sizes)
    verifier = _verifier(export, sizes.result, files.weight_bytes or folder_bytes(parameters, stored), notes)
    if verifier == "weights" and export.format == "gguf" and not _readable(files):
        notes.append(
            f"{files.name} is an architecture that llama.cpp's converter alone knows: unless it is run, the proof covers "
            "template and vocabulary, not the weights"
        )
    if how.quantizer == "ollama":
        notes.append(f"the file will be {how.type.upper()}; Ollama makes {export.quantization} of it on the way in")
    if job.model.load_in_4bit and export.format in ("merged", "gguf"):
        notes.append(
            "trained over 4-bit weights, exported over the full-precision ones: the answers may differ a little from "
            "those during the training"
        )
    return ExportRoute(
        architecture=_architecture(files),
        parameters=parameters,
        converter=converter.name,
        converter_folder=converter.folder,
        type=how.type,
        quantizer=how.quantizer,
        verifier=verifier,
        bytes=sizes.result,
        work_bytes=sizes.work,
        free_bytes=free,
        ollama_version=version,
        notes=tuple(notes),
    )


def stored_of(files: ModelFiles) -> str:
    """The precision that most of the model's weights have: what their headers say, else its config."""
    if not files.tensors:
        return stored_type(files.config)
    bytes_of: dict[str, int] = {}
    for tensor in files.tensors.values():
        bytes_of[tensor.dtype] = bytes_of.get(tensor.dtype, 0) + tensor.bytes
    return max(bytes_of, key=lambda dtype: bytes_of[dtype])


def _check_wish(export: ExportSpec) -> None:
    if export.format not in FORMATS:
        raise InvalidSettingError(f"{export.format!r} is no format of an export", suggestion=_one_of(FORMATS))
    if export.format == "gguf" and export.quantization not in QUANTIZATIONS:
        raise InvalidSettingError(
            f"{export.quantization!r} is no quantization", suggestion=_one_of(list(QUANTIZATIONS))
        )


def _one_of(names: Sequence[str]) -> str:
    return f"Choose one of {', '.join(names)}."


def _ollama(export: ExportSpec, stage: Stage) -> str:
    """The server's version; empty if none is wanted."""
    if export.ollama_name is None:
        return ""
    if export.format != "gguf":
        raise InvalidSettingError(
            f"Ollama gets a whole GGUF, and the format is {export.format}", suggestion="Give --format gguf."
        )
    if wrong := check_name(export.ollama_name):
        raise OllamaRegistrationError(
            wrong, suggestion="Give another --ollama-name, such as my-model or me/my-model:v1."
        )
    stage.advance(detail="Ollama")
    return Server(export.ollama_host).version()


def _adapter(job: PreflightJob, export: ExportSpec) -> int:
    """Bytes of the adapter; 0 if it is still to be trained. Raises UserInputError [INPUT_ADAPTER_UNSUPPORTED]."""
    folder = job.adapter or export.adapter
    wanted = export.format
    if folder is None:
        if job.full and wanted in ("lora", "lora-gguf"):
            raise _no_such_adapter("a full fine-tune has no adapter", wanted)
        if job.dora and wanted == "lora-gguf":
            raise _no_such_adapter("a DoRA adapter cannot be a GGUF adapter", wanted)
        return 0
    adapter = open_adapter(folder)
    if problems := adapter.kind_problems(wanted):
        raise _no_such_adapter(f"the adapter in {folder} cannot be a {wanted}: {'; '.join(problems)}", wanted)
    return adapter.bytes


def _no_such_adapter(why: str, wanted: str) -> UserInputError:
    return UserInputError(
        why,
        code="INPUT_ADAPTER_UNSUPPORTED",
        suggestion=f"Export the whole model instead of {wanted}: --format gguf or merged.",
    )


def _converter(files: ModelFiles, job: PreflightJob, export: ExportSpec) -> _Converter:
    if find_spec("gguf") is None:
        raise DependencyError(
            "the gguf package is not installed",
            code="DEP_EXPORT_TOOL_MISSING",
            suggestion="pip install gguf (it comes with 'backpropagate[cpu]' and [cuda]); or export --format merged.",
        )
    folder = job.adapter or export.adapter
    name = _architecture(files)
    try:
        arch = read_architecture(files.config)
        if export.format == "gguf":  # an adapter alone has no tokens
            read_vocabulary(
                tokenizer_folder(files.folder, Path(folder) if folder else None), arch.vocabulary, files.config
            )
        return _Converter("own")
    except NotCovered as error:
        why = str(error)
    if export.format == "lora-gguf":
        raise unsupported(files.name, name, "a GGUF adapter", why)
    found = official.find_converter(export.converter_folder)
    if found is None:
        raise no_converter(files.name, name, why)
    if not official.knows(found, name):
        raise unsupported(
            files.name, name, "a GGUF", f"neither our converter ({why}) nor llama.cpp's in {found} knows it"
        )
    return _Converter("official", str(found))


def _mlx(files: ModelFiles) -> _Converter:
    """A base that MLX quantised is fused by MLX, into full precision; every other one is merged like for transformers."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise DependencyError(
            f"the proof of an export to MLX asks it in MLX, and {', '.join(missing)} is not installed",
            code="DEP_MLX_UNAVAILABLE",
        )
    if files.config.get("quantization"):
        return _Converter("mlx")
    check_full_precision(files)
    return _Converter()


def _template(files: ModelFiles, job: PreflightJob, export: ExportSpec) -> list[str]:
    folder = job.adapter or export.adapter
    if chat_template(tokenizer_folder(files.folder, Path(folder) if folder else None)) is not None:
        return []
    return [f"{files.name} has no chat template: the file will have none, and whoever runs it continues plain text"]


def _sizes(
    export: ExportSpec, how: Way, parameters: int, stored: str, adapter_bytes: int, config: Mapping[str, object]
) -> Sizes:
    reference = reference_bytes(config, _PROMPTS + len(export.prompts))
    match export.format:
        case "merged" | "mlx":
            return of_merged(parameters, stored, reference)
        case "gguf":
            quantized = export.quantization if how.quantizer == "llama" else None
            return of_gguf(parameters, how.type, quantized, reference)
        case _:
            return Sizes(adapter_bytes, adapter_bytes)


def _disks(job: PreflightJob, export: ExportSpec, sizes: Sizes) -> int:
    """Free bytes where the stages work. A second place on that disk costs nothing: it is a link."""
    work = Path(job.work)
    free = check_disk(work, sizes.work, f"the export to {export.format}")
    if export.lmstudio is not None:
        models = Path(export.lmstudio)
        check_writable(models)
        if not same_disk(models, work):
            check_disk(models, sizes.result, "LM Studio's copy")
    return free


def _verifier(export: ExportSpec, file_bytes: int, weight_bytes: int, notes: list[str]) -> str:
    """llama if what is exported can be run here, else weights; the reason for less is told. An adapter alone answers
    nothing, so there is nothing to compare."""
    if export.format in ("lora", "lora-gguf"):
        return ""
    if export.format == "gguf" and (missing := llama.available()):
        notes.append(f"the file will be read, not run, to prove it: {missing}")
        return "weights"
    # A GGUF is mapped, and only its cache is allocated; whether the trained model can be asked is the reference's business.
    needed = file_bytes + _RUNNING if export.format == "gguf" else int(weight_bytes * _LOADING)
    free = free_host_memory()
    if free < needed:
        notes.append(
            f"the weights will be read, not run, to prove them: running the model takes about {megabytes(needed)} of "
            f"memory, and {megabytes(free)} are free"
        )
        return "weights"
    return "llama" if export.format == "gguf" else "weights"


def _readable(files: ModelFiles) -> bool:
    """Whether its tensors can be told from the file's by our own converter."""
    try:
        read_architecture(files.config)
    except NotCovered:
        return False
    return True


def _architecture(files: ModelFiles) -> str:
    names = files.config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else str(files.config.get("model_type", "unknown"))
