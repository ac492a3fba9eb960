"""What there is to talk to: RUN|PATH|MODEL|GGUF → ChatJob, refused at once where nothing could answer."""

from __future__ import annotations

import os
from pathlib import Path

from backpropagate.wishes.settings import Settings
from backpropagate.wishes.sources import find, named, named_as_model
from backpropagate.wishes.surroundings import check_backend, check_runner, installed
from backpropagate_protocol.errors import DependencyError, InvalidSettingError, UserInputError
from backpropagate_protocol.jobs import ChatJob

_MAGIC = b"GGUF"
_LOADING = ("torch", "transformers", "peft")


def chat_job(
    settings: Settings, what: str, *, base: bool, max_new_tokens: int, temperature: float, seed: int
) -> tuple[ChatJob, str | None, str]:
    """The Job, the interpreter for it, and in words who will answer."""
    named(what)
    path = Path(os.path.abspath(os.path.expanduser(what)))
    gguf: Path | None = None
    source = None
    python = settings.text_or_none("runner.python")
    if path.suffix.lower() == ".gguf":
        gguf = _gguf(path)
    else:
        source = find(what, settings)
        if source.run is None and source.trained is None and not named_as_model(what):
            raise UserInputError(
                f"{what!r} is no run, no folder and no model",
                code="INPUT_MODEL_NOT_FOUND",
                suggestion="`backprop list-runs` shows the runs; a model of the hub is named owner/name.",
            )
        python = source.runner_python
        made = source.exported
        can = python is not None or installed("llama_cpp")
        if made is not None and made.suffix == ".gguf" and not base and (can or source.trained is None):
            gguf = _gguf(made)
    if gguf is not None:
        if base:
            raise InvalidSettingError("--base: a GGUF is one model", suggestion="Leave it out, or name the run.")
        python = check_runner(python, "toy")
        if python is None and not installed("llama_cpp"):
            raise DependencyError(
                "talking with a GGUF needs llama-cpp-python, not installed here",
                code="DEP_EXPORT_TOOL_MISSING",
                suggestion="pip install 'backpropagate[export]', or let Ollama run it: docs/export.md says how.",
            )
        job = ChatJob(gguf=str(gguf), max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
        return job, python, gguf.name
    assert source is not None
    check_backend(source.backend)
    python = check_runner(source.runner_python, source.backend, what="talking with it", needs=_LOADING)
    model, adapter = source.subject(base)
    job = ChatJob(
        model=model,
        adapter=adapter,
        backend=source.backend,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
    )
    if base or source.trained is None:
        return job, python, source.model.name
    return job, python, f"{source.model.name} {'with' if adapter else 'as trained in'} {source.trained}"


def _gguf(path: Path) -> Path:
    """Raises UserInputError for what is none; an adapter alone cannot answer, which its child finds out."""
    if not path.is_file():
        raise UserInputError(f"there is no file {path}", code="INPUT_MODEL_NOT_FOUND")
    try:
        with open(path, "rb") as file:
            magic = file.read(len(_MAGIC))
    except OSError as error:
        raise UserInputError(f"{path} cannot be read: {error.strerror or error}") from error
    if magic != _MAGIC:
        raise UserInputError(
            f"{path} is called .gguf, but is none", suggestion="Export it again, or name another file."
        )
    return path
