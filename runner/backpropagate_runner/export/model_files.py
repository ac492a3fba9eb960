"""The files of a model: found in a folder or fetched from the hub, and what is in them, before a weight is read.

Only what an export needs is fetched: safetensors, configuration, tokenizer, licence; code only where it is trusted.
Weights that are not safetensors are refused: reading them means running what is in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from backpropagate_backends.model_source import Source, find
from backpropagate_protocol.errors import ModelLoadError, UserInputError
from backpropagate_protocol.spec import ModelSpec
from backpropagate_runner.export.hub_files import Fetcher
from backpropagate_runner.export.model_layout import CODE, SIDE_FILES
from backpropagate_runner.export.tensor_file import BadTensorFile, StoredTensor, TensorFile
from backpropagate_runner.export.whole import check_whole

Advance = Callable[[int, int, str], None]  # bytes done, bytes in all, what

CONFIG = "config.json"
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_BIN = ("*.bin", "*.pt", "*.pth", "*.ckpt")

_FULL_PRECISION = (
    "Give the full-precision model that it was made from (such as owner/name without -4bit, -GPTQ, -AWQ or -FP8). "
    "Training with load_in_4bit on that one is fine: the adapter is then merged into its full-precision weights."
)


@dataclass(frozen=True)
class ModelFiles:
    """A model on this machine. `tensors` is empty where only its small files were asked for and the rest is not here."""

    name: str  # as the user said it
    folder: Path
    commit: str  # of a hub's model; else empty
    config: dict[str, object]
    shards: tuple[Path, ...]
    tensors: dict[str, StoredTensor] = field(repr=False)
    parameters: int  # 0: unknown
    weight_bytes: int  # 0: unknown
    trust_remote_code: bool

    @property
    def quantized(self) -> bool:
        """Whether the weights are stored in 4 or 8 bits, so that nothing can be merged into them without loss."""
        return bool(self.config.get("quantization_config") or self.config.get("quantization"))

    def side_files(self) -> dict[str, Path]:
        """Everything but the weights, by name below the folder (with forward slashes)."""
        patterns = SIDE_FILES + (CODE if self.trust_remote_code else ())
        return {path.relative_to(self.folder).as_posix(): path for path in _matching(self.folder, patterns)}


def open_model(model: ModelSpec, advance: Advance | None = None, *, weights: bool = True) -> ModelFiles:
    """Finds or fetches the model. A folder is never looked up anywhere else.

    Raises UserInputError [INPUT_MODEL_NOT_FOUND, INPUT_MODEL_UNSUPPORTED], ModelLoadError [DEP_MODEL_LOAD_FAILED] and,
    for a hub that does not answer, [DEP_HUB_UNREACHABLE]; OSError where the disk is the trouble. With `weights` False
    only the small files are fetched, a quantized model is not refused, and sizes are what the hub says.
    """
    source = find(model)
    if source.local and Path(source.path).is_dir():
        folder, told = Path(source.path), None
        if weights:  # of a full fine-tune; the preflight need not read gigabytes for that
            check_whole(folder, "DEP_MODEL_LOAD_FAILED")
    else:
        fetcher = Fetcher(source, advance or _silent)
        folder = fetcher.fetch(SIDE_FILES + (CODE if source.trust_remote_code else ()))
        told = fetcher.told()
        if weights:
            _fetch_weights(source, fetcher, folder)
    config = _config(source, folder)
    shards, missing = _shards(source, folder)
    here = bool(shards) and not missing
    if weights or here:
        _require(source, folder, shards, missing)
    tensors = _tensors(source, shards) if here else {}
    if here:
        parameters = sum(tensor.elements for tensor in tensors.values())
        size = sum(tensor.bytes for tensor in tensors.values())
    else:
        parameters, size = told or (0, 0)
    files = ModelFiles(
        name=source.name,
        folder=folder,
        commit=source.commit,
        config=config,
        shards=shards if here else (),
        tensors=tensors,
        parameters=parameters,
        weight_bytes=size,
        trust_remote_code=source.trust_remote_code,
    )
    if weights:
        check_full_precision(files)
    return files


def check_full_precision(files: ModelFiles) -> None:
    """Raises UserInputError [INPUT_MODEL_UNSUPPORTED] for a quantized model."""
    if not files.quantized:
        return
    about = files.config.get("quantization_config")
    method = about.get("quant_method", "unknown") if isinstance(about, dict) else "unknown"
    if files.config.get("quantization"):
        raise UserInputError(
            f"the weights of {files.name} are quantized by MLX, which alone can read them",
            code="INPUT_MODEL_UNSUPPORTED",
            suggestion="Export with --format mlx: that gives a model in full precision, which can be exported further. Or say "
            "with --base which full-precision model it was made from.",
        )
    raise UserInputError(
        f"the weights of {files.name} are quantized ({method}): exporting them would write dequantised numbers, "
        "which are not those that the model was made with",
        code="INPUT_MODEL_UNSUPPORTED",
        suggestion=_FULL_PRECISION,
    )


def _silent(done: int, total: int, detail: str) -> None:
    pass


def _config(source: Source, folder: Path) -> dict[str, object]:
    try:
        return msgspec.json.decode((folder / CONFIG).read_bytes(), type=dict[str, object])
    except FileNotFoundError as error:
        raise ModelLoadError(f"{source.name} has no {CONFIG}: it is not a transformers model") from error
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ModelLoadError(f"the {CONFIG} of {source.name} cannot be read: {error}") from error


def _fetch_weights(source: Source, fetcher: Fetcher, folder: Path) -> None:
    if _INDEX in fetcher.names:
        fetcher.fetch((_INDEX,))
        fetcher.fetch(sorted(_indexed(source, folder)))
    elif _SINGLE in fetcher.names:
        fetcher.fetch((_SINGLE,))


def _indexed(source: Source, folder: Path) -> set[str]:
    """The names of the shards that the index speaks of."""

    class Index(msgspec.Struct):
        weight_map: dict[str, str]

    try:
        names = set(msgspec.json.decode((folder / _INDEX).read_bytes(), type=Index).weight_map.values())
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ModelLoadError(f"the {_INDEX} of {source.name} cannot be read: {error}") from error
    if any(Path(name).name != name for name in names):
        raise ModelLoadError(f"the {_INDEX} of {source.name} points outside of its folder")
    return names


def _shards(source: Source, folder: Path) -> tuple[tuple[Path, ...], list[str]]:
    """Those that are here in the order of their names, and the names of those that are not."""
    if (folder / _INDEX).is_file():
        names = sorted(_indexed(source, folder))
    elif (folder / _SINGLE).is_file():
        names = [_SINGLE]
    else:
        names = [path.name for path in folder.glob("*.safetensors")]
        names = names if len(names) == 1 else []  # several without an index could be anything
    found = tuple(folder / name for name in names if (folder / name).is_file())
    return found, [name for name in names if not (folder / name).is_file()]


def _require(source: Source, folder: Path, shards: tuple[Path, ...], missing: list[str]) -> None:
    if missing:
        raise ModelLoadError(
            f"{source.name} lacks {len(missing)} of its weight files: {', '.join(missing[:3])}",
            suggestion="Download or copy the model again.",
        )
    if shards:
        return
    if any(next(folder.glob(pattern), None) for pattern in _BIN):
        raise UserInputError(
            f"{source.name} has its weights only in pickled files, which are not safe to read",
            code="INPUT_MODEL_UNSUPPORTED",
            suggestion="Save it as safetensors once: transformers' from_pretrained(…) and then save_pretrained(folder); "
            "then give that folder.",
        )
    raise ModelLoadError(f"{source.name} has no {_SINGLE} and no {_INDEX}")


def _tensors(source: Source, shards: Iterable[Path]) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for shard in shards:
        try:
            found = TensorFile(shard).tensors
        except BadTensorFile as error:
            raise ModelLoadError(
                f"{shard.name} of {source.name} is damaged: {error}", suggestion="Download or copy the model again."
            ) from error
        twice = tensors.keys() & found.keys()
        if twice:
            raise ModelLoadError(f"{source.name} holds {min(twice)} in two of its files")
        tensors.update(found)
    return tensors


def _matching(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
