"""What `--model` may be: `tiny`, a preset, a folder, or a hub id; and the adapter a trained run left behind."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import msgspec

from backpropagate.wishes.presets import MODELS
from backpropagate.wishes.suggest import did_you_mean
from backpropagate_protocol.errors import UserInputError

TINY = "tiny"
SAMPLE = "sample"  # for --data: five rows to try out everything with
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True, slots=True)
class Model:
    """What the runner loads: an absolute folder or a hub id; and what the user should know about it."""

    path: str
    note: str = ""


def _not_found(message: str) -> UserInputError:
    return UserInputError(message, code="INPUT_MODEL_NOT_FOUND")


def bundled_tiny() -> Path:
    """The folder of the bundled base."""
    return _bundled("tiny-base/config.json", "the bundled model `tiny`").parent


def bundled_sample() -> Path:
    """The file of the bundled example rows."""
    return _bundled("quickstart.jsonl", "the bundled data set `sample`")


def _bundled(name: str, what: str) -> Path:
    """Inside an installed wheel, else in the source tree."""
    package = Path(__file__).resolve().parent.parent
    for file in (package / "_bundled" / name, package.parents[1] / "fixtures" / name):
        if file.is_file():
            return file
    raise _not_found(f"{what} is missing from this installation; install the package again")


def looks_like_path(name: str) -> bool:
    """Said as a path, so that a hub id of the same spelling is not meant."""
    return name.startswith((".", "~", os.sep, "/")) or "\\" in name or Path(name).is_absolute() or name.count("/") > 1


def resolve_model(name: str) -> Model:
    """Raises UserInputError (INPUT_MODEL_NOT_FOUND) for what can be no model. Asks nothing of the network."""
    if name == TINY:
        return Model(str(bundled_tiny()))
    preset = MODELS.get(name.lower())
    if preset is not None:
        return Model(preset.repo, preset.note)
    folder = Path(os.path.abspath(os.path.expanduser(name)))
    if folder.is_dir():
        if (folder / "config.json").is_file():
            return Model(str(folder))
        if (folder / "adapter_config.json").is_file():
            raise _not_found(f"{folder} holds an adapter, not a model; name the base model that it was made from")
        raise _not_found(f"{folder} has no config.json, so it is not a model")
    if folder.exists():
        raise _not_found(f"{folder} is a file; a model is a folder with a config.json, or a hub id")
    if looks_like_path(name):
        raise _not_found(f"the folder {folder} does not exist")
    if not _HUB_ID.fullmatch(name):
        raise _not_found(f"{name!r} is not a folder, a preset or a hub id{did_you_mean(name, [*MODELS, TINY])}")
    hint = did_you_mean(name, [*MODELS, TINY]) if "/" not in name else ""
    if hint:
        raise _not_found(f"there is no model {name!r}{hint}")
    by_repo = {known.repo.lower(): known for known in MODELS.values()}
    known = by_repo.get(name.lower())
    return Model(name, known.note if known else "")


def last_part(name: str) -> str:
    """`Qwen/Qwen2.5-7B-Instruct` → `Qwen2.5-7B-Instruct`; of a folder, its own name."""
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2] or name


class _AdapterConfig(msgspec.Struct):
    base_model_name_or_path: str | None = None


def adapter_base(folder: Path) -> str:
    """The base model named in an adapter's own configuration."""
    path = folder / "adapter_config.json"
    try:
        base = msgspec.json.decode(path.read_bytes(), type=_AdapterConfig).base_model_name_or_path
    except (OSError, msgspec.DecodeError) as error:
        raise _not_found(f"{path} cannot be read: {error}") from error
    if not base:
        raise _not_found(f"{path} does not name its base model; give the run id instead")
    return base
