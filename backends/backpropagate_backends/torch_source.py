"""Where the files of a model are: a folder or a hub id. What cannot work is said before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from backpropagate_protocol.errors import ModelLoadError, UserInputError
from backpropagate_protocol.spec import ModelSpec

_CONFIG = "config.json"
_WEIGHTS = ("*.safetensors", "*.bin")


@dataclass(frozen=True, slots=True)
class Source:
    """A model that is there: `path` is a folder, or a hub id whose config.json has been fetched."""

    name: str  # as the user said it
    path: str
    revision: str | None
    trust_remote_code: bool
    local: bool

    def options(self) -> dict[str, str | bool | None]:
        """What every `from_pretrained` gets besides the path."""
        return {
            "revision": self.revision,
            "trust_remote_code": self.trust_remote_code,
            "local_files_only": self.local,
        }


def find(model: ModelSpec) -> Source:
    """Raises UserInputError [INPUT_MODEL_NOT_FOUND] if it is neither a model folder nor a hub id, and ModelLoadError
    [DEP_MODEL_LOAD_FAILED] if the hub does not give it."""
    folder = Path(model.path)
    if folder.is_dir():
        _check_folder(model.name, folder)
        return Source(model.name, str(folder), None, model.trust_remote_code, local=True)
    if folder.is_absolute() or model.path.startswith((".", "~")) or model.path.count("/") > 1 or "\\" in model.path:
        raise UserInputError(f"there is no folder {model.path}", code="INPUT_MODEL_NOT_FOUND")
    _ask_hub(model)
    return Source(model.name, model.path, model.revision, model.trust_remote_code, local=False)


def _check_folder(name: str, folder: Path) -> None:
    if not (folder / _CONFIG).is_file():
        hint = ""
        if (folder / "adapter_config.json").is_file():
            hint = "; it holds an adapter, give the base model that it was trained on"
        raise UserInputError(f"{folder} is not a model: it has no {_CONFIG}{hint}", code="INPUT_MODEL_NOT_FOUND")
    if not any(next(folder.glob(pattern), None) for pattern in _WEIGHTS):
        raise ModelLoadError(f"{name} has a {_CONFIG} but no weights in {folder}")


def _ask_hub(model: ModelSpec) -> None:
    try:
        hf_hub_download(model.path, _CONFIG, revision=model.revision)
    except HFValidationError as error:
        raise UserInputError(
            f"{model.name!r} is neither a folder nor a hub id such as owner/name", code="INPUT_MODEL_NOT_FOUND"
        ) from error
    except GatedRepoError as error:
        raise ModelLoadError(
            f"{model.name} is gated and your account has no access",
            suggestion="Accept its terms on huggingface.co and log in: `hf auth login`, or set HF_TOKEN.",
        ) from error
    except RevisionNotFoundError as error:
        raise ModelLoadError(f"{model.name} has no revision {model.revision!r}") from error
    except RepositoryNotFoundError as error:
        raise ModelLoadError(
            f"the hub has no model {model.name}, or it is private and you are not logged in"
        ) from error
    except LocalEntryNotFoundError as error:
        raise ModelLoadError(
            f"{model.name} is not in the local cache, and the hub cannot be reached",
            suggestion="Check the network, or give the folder of a model that is on this machine.",
        ) from error
    except EntryNotFoundError as error:
        raise ModelLoadError(f"{model.name} has no {_CONFIG}: it is not a transformers model") from error
    except Exception as error:  # noqa: BLE001 - whatever the HTTP stack raises, the model cannot be had
        raise ModelLoadError(f"{model.name} cannot be fetched from the hub: {error}") from error
