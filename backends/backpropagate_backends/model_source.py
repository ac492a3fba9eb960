"""Where the files of a model are: a folder or a hub id. What cannot work is said before anything is loaded."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from huggingface_hub import constants, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from backpropagate_protocol.errors import ModelLoadError, UserInputError
from backpropagate_protocol.hub import is_hub_trouble
from backpropagate_protocol.spec import ModelSpec

_CONFIG = "config.json"
_SECONDS = 5.0  # for the hub's first answer
_WEIGHTS = ("*.safetensors", "*.bin")
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True, slots=True)
class Source:
    """A model that is there: `path` is a folder, or a hub id whose config.json has been fetched.

    `revision` of a hub's model is the commit that its config.json came with: whatever is fetched later comes with the same,
    though the branch may have moved on meanwhile.
    """

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

    @property
    def commit(self) -> str:
        """Empty for a folder."""
        return self.revision or ""

    def failure(self, error: Exception, what: str = "") -> ModelLoadError:
        """The coded error for what loading from here raised: the model's fault, or the way's to the hub."""
        return ModelLoadError(f"{what}{self.name} cannot be loaded: {error}", code=_code(error))


def find(model: ModelSpec) -> Source:
    """Raises UserInputError [INPUT_MODEL_NOT_FOUND] if it is neither a model folder nor a hub id, or half an adapter
    [INPUT_ADAPTER_INVALID]; and ModelLoadError if the hub does not give it [DEP_MODEL_LOAD_FAILED] or cannot be reached
    [DEP_HUB_UNREACHABLE]."""
    folder = Path(model.path)
    if folder.is_dir():
        _check_folder(model.name, folder)
        return Source(model.name, str(folder), None, model.trust_remote_code, local=True)
    if folder.is_absolute() or model.path.startswith((".", "~")) or model.path.count("/") > 1 or "\\" in model.path:
        raise UserInputError(f"there is no folder {model.path}", code="INPUT_MODEL_NOT_FOUND")
    cached = _is_cached(model)
    reachable = _hub_answers(model)
    if not reachable and not cached:
        raise ModelLoadError(
            f"{model.name} is neither a folder nor in the local cache, and "
            + ("HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"),
            code="DEP_MODEL_LOAD_FAILED" if constants.HF_HUB_OFFLINE else "DEP_HUB_UNREACHABLE",
            suggestion="Check the spelling and the network, or give the folder of a model that is on this machine.",
        )
    if reachable:
        _ask_hub(model)
    # Without a network the cache is all there is: every file that is looked for there would be a long wait otherwise.
    return Source(model.name, model.path, _commit(model), model.trust_remote_code, local=not reachable)


def _code(error: BaseException) -> str:
    unreachable = is_hub_trouble(error) and not constants.HF_HUB_OFFLINE
    return "DEP_HUB_UNREACHABLE" if unreachable else "DEP_MODEL_LOAD_FAILED"


def _commit(model: ModelSpec) -> str | None:
    config = try_to_load_from_cache(model.path, _CONFIG, revision=model.revision)
    return Path(config).parent.name if isinstance(config, str) else model.revision


def _check_folder(name: str, folder: Path) -> None:
    if not (folder / _CONFIG).is_file():
        hint = ""
        if (folder / "adapter_config.json").is_file():
            hint = "; it holds an adapter, give the base model that it was trained on"
        elif any((folder / name).is_file() for name in _ADAPTER_WEIGHTS):
            raise UserInputError(
                f"{folder} holds the weights of an adapter and no adapter_config.json, which says what they belong to",
                code="INPUT_ADAPTER_INVALID",
                suggestion="Copy the whole folder of the adapter, its adapter_config.json too.",
            )
        raise UserInputError(f"{folder} is not a model: it has no {_CONFIG}{hint}", code="INPUT_MODEL_NOT_FOUND")
    if not any(next(folder.glob(pattern), None) for pattern in _WEIGHTS):
        raise ModelLoadError(f"{name} has a {_CONFIG} but no weights in {folder}")


def _is_cached(model: ModelSpec) -> bool:
    try:
        return isinstance(try_to_load_from_cache(model.path, _CONFIG, revision=model.revision), str)
    except HFValidationError as error:
        raise UserInputError(
            f"{model.name!r} is neither a folder nor a hub id such as owner/name", code="INPUT_MODEL_NOT_FOUND"
        ) from error


def _hub_answers(model: ModelSpec) -> bool:
    """One request without the hub client's own retries, which take half a minute where there is no network."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        with urlopen(
            Request(hf_hub_url(model.path, _CONFIG, revision=model.revision), method="HEAD"), timeout=_SECONDS
        ):
            return True
    except HTTPError:
        return True  # whatever it said, the hub client reads it better
    except URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # somebody is there; the hub client may know the certificate
    except OSError:
        return False


def _ask_hub(model: ModelSpec) -> None:
    try:
        hf_hub_download(model.path, _CONFIG, revision=model.revision)
    except GatedRepoError as error:
        raise ModelLoadError(
            f"{model.name} is gated and your account has no access",
            suggestion="Accept its terms on its page of the hub and log in: `hf auth login`, or set HF_TOKEN.",
        ) from error
    except RevisionNotFoundError as error:
        raise ModelLoadError(f"{model.name} has no revision {model.revision!r}") from error
    except RepositoryNotFoundError as error:
        raise ModelLoadError(
            f"the hub has no model {model.name}, or it is private and you are not logged in"
        ) from error
    except LocalEntryNotFoundError as error:  # the hub client's word for: not here, and nobody answers
        raise ModelLoadError(
            f"{model.name} cannot be fetched: the hub does not answer", code="DEP_HUB_UNREACHABLE"
        ) from error
    except EntryNotFoundError as error:
        raise ModelLoadError(f"{model.name} has no {_CONFIG}: it is not a transformers model") from error
    except Exception as error:
        raise ModelLoadError(f"{model.name} cannot be fetched from the hub: {error}", code=_code(error)) from error
