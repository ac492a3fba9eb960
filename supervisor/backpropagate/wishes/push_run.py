"""What goes to the hub, and where: RUN|PATH and wishes → PushSpec, every check done that needs no network."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from backpropagate.doors.environ import environment
from backpropagate.keep import runs
from backpropagate.wishes.card import card_for
from backpropagate.wishes.export_run import run_spec
from backpropagate.wishes.settings import Settings
from backpropagate.wishes.sources import Source, find, named
from backpropagate.wishes.surroundings import check_runner, writable_folder
from backpropagate_protocol.errors import BackpropagateError, RunNotFoundError, UserInputError, error_for
from backpropagate_protocol.hub_names import check_repo
from backpropagate_protocol.rundir import MANIFEST
from backpropagate_protocol.spec import PlannedFault, PushSpec, RunSpec

_LARGEST_TOKEN = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class PushWish:
    """What one call asked for."""

    repo: str | None
    private: bool = True
    dry_run: bool = False
    revision: str | None = None
    message: str | None = None
    token_file: str | None = None
    card: bool = True


@dataclass(frozen=True, slots=True)
class Upload:
    """What goes up: a folder, or of it only `files`; and the run or adapter it was made from, if that is known."""

    folder: Path
    files: tuple[str, ...]
    source: Source | None
    output: str


def push_run(
    settings: Settings,
    what: str,
    wish: PushWish,
    *,
    detached: bool = False,
    verbose: bool = False,
    faults: Sequence[PlannedFault] = (),
) -> RunSpec:
    """Raises a coded error for the first wish that cannot be served; writes nothing."""
    push_spec(wish, Upload(Path(), (), None, ""), "")  # the wishes themselves, before anything is looked up
    upload = find_upload(what, settings)
    output = writable_folder(upload.output, least_mib=1, flag="--runs")
    chosen = settings.text_or_none("runner.python") or (upload.source.runner_python if upload.source else None)
    python = check_runner(chosen, "auto", what="pushing", needs=("huggingface_hub",))
    if not wish.dry_run and wish.token_file is None:
        _a_token_somewhere()
    run = upload.source.run if upload.source else None
    card = card_for(wish.repo or "", upload.folder, upload.files, run) if wish.card else ""
    spec = push_spec(wish, upload, card)
    return run_spec(
        settings,
        upload.source,
        output,
        runner_python=python,
        push=spec,
        detached=detached,
        verbose=verbose,
        faults=faults,
    )


def push_spec(wish: PushWish, upload: Upload, card: str) -> PushSpec:
    """Raises a coded error for the first wish that cannot be served."""
    spec = PushSpec(
        folder=str(upload.folder),
        files=upload.files,
        repo=_repo(wish.repo),
        private=wish.private,
        dry_run=wish.dry_run,
        revision=_revision(wish.revision),
        card=card,
        token_file=_token_file(wish.token_file),
    )
    return spec if wish.message is None else _with_message(spec, wish.message)


def find_upload(what: str, settings: Settings) -> Upload:
    """A path that is there is meant as a path; else it is a run: its adapter, or what it exported."""
    named(what)
    path = Path(os.path.abspath(os.path.expanduser(what)))
    output = settings.text("training.output_dir")
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise UserInputError(
                f"{path} is a file, and of files only a .gguf goes to the hub", suggestion="Name its folder."
            )
        return Upload(path.parent, (path.name,), _maker(path, settings), output)
    if path.is_dir():
        found = next((place for place in (path, path / "lora", path / "adapter") if _holds_a_model(place)), None)
        if found is None:
            raise UserInputError(
                f"{path} holds no adapter, no model and no GGUF",
                suggestion="Name a run, an exported file, or a folder with adapter_config.json, config.json or a .gguf file.",
            )
        return Upload(found, (), _maker(found, settings), output)
    source = _of_run(what, settings)
    if source.exported is not None and source.exported.is_file():
        return Upload(source.exported.parent, (source.exported.name,), source, source.output)
    if source.exported is not None:
        return Upload(source.exported, (), source, source.output)
    if source.trained is None:
        raise UserInputError(f"nothing that run {what} made is there any more")
    return Upload(Path(source.trained), (), source, source.output)


def _of_run(what: str, settings: Settings) -> Source:
    source = None
    try:
        source = find(what, settings)
    except UserInputError as error:
        if error.code != "INPUT_MODEL_NOT_FOUND":
            raise
    if source is None or source.run is None:
        raise RunNotFoundError(f"{what} is no run and no file or folder")
    own_export = runs.load_spec(source.run).kind == "export"
    return source if own_export else replace(source, exported=None)


def _holds_a_model(folder: Path) -> bool:
    named = any((folder / name).is_file() for name in ("adapter_config.json", "config.json"))
    return named or (folder.is_dir() and any(folder.glob("*.gguf")))


def _maker(path: Path, settings: Settings) -> Source | None:
    """The run that made what lies at `path`, for the card; None if nobody knows."""
    from backpropagate.keep.exports import read_report

    report = read_report(path)
    names = [report.run_id] if report is not None else []
    if any((path / own).is_file() for own in ("adapter_config.json", MANIFEST)):
        names.append(str(path))
    for name in names:
        try:
            return find(name, settings)
        except BackpropagateError:
            continue  # it was made elsewhere, or long ago
    return None


# --- the wishes -----------------------------------------------------------------------------------------------------


def _repo(repo: str | None) -> str:
    wrong = "no repository was named" if repo is None else check_repo(repo)
    if repo is None or wrong is not None:
        raise error_for("HUB_PUSH_INVALID_REPO", wrong or "")
    return repo


def _revision(revision: str | None) -> str:
    if revision is None:
        return "main"
    if not re.fullmatch(r"[A-Za-z0-9_][\w./-]*", revision) or ".." in revision or revision.endswith(("/", ".lock")):
        raise UserInputError(
            f"--revision: {revision!r} cannot be the name of a branch", suggestion="Leave it out for main."
        )
    return revision


def _with_message(spec: PushSpec, message: str) -> PushSpec:
    import msgspec

    if not message.strip():
        raise UserInputError("--message: it is empty", suggestion="Leave it out, or say something.")
    return msgspec.structs.replace(spec, message=message.strip())


def _a_token_somewhere() -> None:
    """Where the hub's client looks for one; whether it is good, only the hub knows."""
    env = environment()
    if env.get("HF_TOKEN") or env.get("HUGGING_FACE_HUB_TOKEN"):
        return
    home = env.get("HF_HOME") or os.path.join(
        env.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "huggingface"
    )
    if not Path(env.get("HF_TOKEN_PATH") or os.path.join(home, "token")).is_file():
        raise error_for("INPUT_AUTH_REQUIRED", "there is no token for the hub on this machine")


def _token_file(name: str | None) -> str | None:
    """Absolute, with something in it; what that is stays unknown here."""
    if name is None:
        return None
    path = Path(os.path.abspath(os.path.expanduser(name)))

    def wrong(text: str) -> BackpropagateError:
        return error_for("INPUT_AUTH_REQUIRED", f"--token-file: {path} {text}")

    if not path.is_file():
        raise wrong("is not a file")
    try:
        said = path.read_bytes()
    except OSError as error:
        raise wrong(f"cannot be read: {error.strerror or error}") from error
    if not said.strip() or len(said) > _LARGEST_TOKEN or len(said.split()) != 1:
        raise wrong("does not hold one token and nothing else")
    return str(path)
