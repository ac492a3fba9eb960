"""What is to be exported, as what, and where to: wishes → ExportSpec, each wrong one an error before anything starts.

Nothing is written and nobody is asked here. What only a child can know (the model's architecture, the tools that are
installed, whether Ollama answers) is the preflight's, the first stage of every export.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from backpropagate.doors.environ import environment
from backpropagate.keep.exports import check_replaceable
from backpropagate.wishes.options import BY_KEY
from backpropagate.wishes.settings import Settings
from backpropagate.wishes.suggest import did_you_mean
from backpropagate.wishes.surroundings import writable_folder
from backpropagate_protocol.errors import ConfigurationError, InvalidSettingError, UserInputError
from backpropagate_protocol.export_formats import FORMATS, QUANTIZATIONS
from backpropagate_protocol.ollama_names import check_name, parse_host
from backpropagate_protocol.rundir import ExportDir
from backpropagate_protocol.spec import ExportSpec

CONVERTER = "convert_hf_to_gguf.py"  # of llama.cpp, by which its folder is recognised
_LONGEST_NAME = 100
_NOT_IN_NAMES = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportWish:
    """What one call asked for, beside the settings.

    format       None: gguf if anything else asks for one (a quantization, Ollama, LM Studio), else lora
    destination  a folder; None: that of the settings, else the default one
    name         of the file without quantization and suffix; None: made from the run or the folder
    ollama       register it; the name is the setting's, or made from `name`
    """

    format: str | None = None
    destination: str | None = None
    name: str | None = None
    ollama: bool = False
    lmstudio: bool = False
    prompts: tuple[str, ...] = ()


def export_spec(
    settings: Settings,
    wish: ExportWish,
    *,
    name: str,
    folder: str,
    adapter: str | None,
    base_alone: bool = False,
    whole: bool = False,
    inputs: Sequence[str] = (),
) -> ExportSpec:
    """Raises a coded error for the first wish that cannot be served.

    name, folder: what the result is called and where it goes if nobody said so. inputs: folders and files that must not be
    replaced. base_alone: there is no adapter, nor will there be one. whole: a full fine-tune, which has none either.
    """
    kind = _format(settings, wish, base_alone, whole)
    gguf = kind == "gguf"
    called = _name(wish.name) if wish.name is not None else file_name(name)
    quantization = settings.text("export.quantization") if gguf else None
    directory = wish.destination or settings.text_or_none("export.directory")
    destination = writable_folder(directory or folder, least_mib=1, flag="-o")
    _replaceable(ExportDir(Path(destination)).result(called, kind, quantization), inputs)
    return ExportSpec(
        format=kind,
        quantization=quantization,
        destination=destination,
        name=called,
        adapter=adapter,
        ollama_name=_ollama_name(settings, wish, called) if gguf else None,
        ollama_host=_ollama_host(settings),
        lmstudio=_models_folder(settings) if gguf and _wants_lmstudio(settings, wish) else None,
        converter_folder=_converter_folder(settings) if gguf else None,
        memory=settings.whole("export.memory"),
        prompts=_prompts(wish.prompts),
    )


def after_training(settings: Settings, *, name: str, folder: str) -> ExportSpec | None:
    """The export that a training is to end with, if any: `--export FORMAT|QUANTIZATION`, or just a name for Ollama."""
    wanted = settings.text_or_none("export.after_training")
    if wanted is None and not settings["export.ollama_name"].given:
        return None
    if wanted in QUANTIZATIONS:
        if settings["export.quantization"].given and settings.text("export.quantization") != wanted:
            raise InvalidSettingError(
                f"two quantizations were given: {wanted} and {settings.text('export.quantization')}"
            )
        settings = settings.with_argument("quantization", wanted)
        wanted = "gguf"
    whole = settings.text("training.mode") == "full"
    return export_spec(settings, ExportWish(format=wanted), name=name, folder=folder, adapter=None, whole=whole)


def file_name(text: str) -> str:
    """`text` as a name for files: `My model/v2` → `My-model-v2`."""
    kept = re.sub(r"[^\w.+-]+", "-", text).strip("-. ")[:_LONGEST_NAME].rstrip("-. ")
    return kept or "model"


# --- the format -----------------------------------------------------------------------------------------------------


def _format(settings: Settings, wish: ExportWish, base_alone: bool, whole: bool) -> str:
    """The one that was asked for, or follows from the rest; refused where the rest cannot be had with it."""
    if wish.format is not None and wish.format.lower() not in FORMATS:
        raise InvalidSettingError(
            f"format: {wish.format!r} is not one of {', '.join(FORMATS)}{did_you_mean(wish.format, FORMATS)}",
            suggestion="Choose lora, merged, gguf, lora-gguf or mlx; docs/export.md says what each is for.",
        )
    asking_for_gguf = {
        "a quantization": settings["export.quantization"].given,
        "Ollama": wish.ollama or settings["export.ollama_name"].given,
        "LM Studio": _wants_lmstudio(settings, wish),
    }
    reasons = [reason for reason, asked in asking_for_gguf.items() if asked]
    kind = wish.format.lower() if wish.format is not None else "gguf" if reasons or base_alone or whole else "lora"
    if reasons and kind != "gguf":
        raise InvalidSettingError(
            f"{' and '.join(reasons)} {'goes' if len(reasons) == 1 else 'go'} with a GGUF of the whole model, not with {kind}",
            suggestion="Say --format gguf, or leave the rest out.",
        )
    if whole and kind in ("lora", "lora-gguf", "mlx"):
        raise UserInputError(
            f"{kind} is made of an adapter, and a full fine-tune has none",
            code="INPUT_ADAPTER_UNSUPPORTED",
            suggestion="Export the whole model: --format gguf or merged.",
        )
    if base_alone and kind != "gguf":
        raise UserInputError(
            f"{kind} is made of an adapter, and this is a model without one",
            suggestion="Name a run or the folder of an adapter; a model alone can be exported with --format gguf.",
        )
    return kind


# --- names ----------------------------------------------------------------------------------------------------------


def _name(name: str) -> str:
    wrong = (
        "is empty"
        if not name.strip()
        else "is longer than 100 characters"
        if len(name) > _LONGEST_NAME
        else "has a character that file names cannot have everywhere"
        if _NOT_IN_NAMES.search(name)
        else "begins with a dot or ends with a dot or a space"
        if name.startswith(".") or name != name.rstrip(". ")
        else ""
    )
    if wrong:
        raise InvalidSettingError(f"--name: {name!r} {wrong}", suggestion="Give a plain file name, such as my-model.")
    return name


def _ollama_name(settings: Settings, wish: ExportWish, name: str) -> str | None:
    given = settings.text_or_none("export.ollama_name")
    if given is None and not wish.ollama:
        return None
    wanted = given or re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")[:80] or "model"
    wrong = check_name(wanted)
    if wrong is not None:
        raise InvalidSettingError(f"--ollama-name: {wrong}", suggestion="Give a name such as my-model or my-model:q4.")
    return wanted


def _ollama_host(settings: Settings) -> str:
    """Empty for what nobody said but Ollama's own variable: each supervisor of the run then reads it anew."""
    setting = settings["export.ollama_host"]
    url = _host(settings.text("export.ollama_host"), setting.source)
    theirs = setting.source in [f"environment {name}" for name in BY_KEY["export.ollama_host"].foreign]
    return "" if theirs or not setting.explicit else url


def reaching(export: ExportSpec) -> ExportSpec:
    """With the address of Ollama as it is now. Raises InvalidSettingError if OLLAMA_HOST cannot be read."""
    if export.ollama_name is None or export.ollama_host:
        return export
    return msgspec.structs.replace(export, ollama_host=_host(environment().get("OLLAMA_HOST", ""), "OLLAMA_HOST"))


def _host(text: str, source: str) -> str:
    try:
        return parse_host(text).url
    except ValueError as error:
        raise InvalidSettingError(
            f"the address of Ollama ({source}): {error}",
            suggestion="OLLAMA_HOST reads host, host:port or http://host:port.",
        ) from None


# --- places ---------------------------------------------------------------------------------------------------------


def _replaceable(result: Path, inputs: Sequence[str]) -> None:
    """An earlier export of the same name gives way to the new one; anything else that is there does not."""
    for given in inputs:
        if os.path.exists(given) and (result.resolve() == Path(given).resolve() or result.resolve() in Path(given).resolve().parents):  # fmt: skip
            raise ConfigurationError(
                f"the export would replace what it is made from: {result}", suggestion="Choose another --name or -o."
            )
    check_replaceable(result)


def _wants_lmstudio(settings: Settings, wish: ExportWish) -> bool:
    return wish.lmstudio or settings["export.lmstudio_dir"].given


def _models_folder(settings: Settings) -> str:
    """Where LM Studio keeps its models: where the user says, else where it is on all three systems."""
    given = settings.text_or_none("export.lmstudio_dir")
    if given is not None:
        return writable_folder(given, least_mib=1, flag="--lmstudio-dir")
    home = Path(os.path.expanduser("~"))
    homes = (home / ".lmstudio", home / ".cache" / "lm-studio")  # the second is that of its first years
    found = next((place for place in homes if place.is_dir()), None)
    if found is None:
        raise InvalidSettingError(
            f"LM Studio was not found: there is no {homes[0]}",
            suggestion="Start LM Studio once, or name its models folder: --lmstudio-dir FOLDER.",
        )
    return writable_folder(str(found / "models"), least_mib=1, flag="--lmstudio-dir")


def _converter_folder(settings: Settings) -> str | None:
    """One that was named must be it; LLAMA_CPP_DIR may be meant for something else, and then does not count."""
    setting = settings["export.llama_cpp_dir"]
    if setting.value is None:
        return None
    folder = Path(os.path.abspath(os.path.expanduser(str(setting.value))))
    if (folder / CONVERTER).is_file():
        return str(folder)
    if not setting.given and any(setting.source.endswith(name) for name in BY_KEY["export.llama_cpp_dir"].foreign):
        return None
    raise InvalidSettingError(
        f"{folder} has no {CONVERTER}, so it is not the folder of llama.cpp ({setting.source})",
        suggestion="Name the folder of llama.cpp's sources, or fetch its converter: backprop setup --converter",
    )


def _prompts(prompts: Sequence[str]) -> tuple[str, ...]:
    if any(not prompt.strip() for prompt in prompts):
        raise InvalidSettingError("--prompt: a prompt is empty", suggestion="Leave it out, or say something.")
    return tuple(prompts)
