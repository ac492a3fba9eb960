"""The stage that uploads a folder to the hub: as one commit, private unless asked otherwise, the token never in a text.

The token is read from the file that the Job names, or found by the hub's client where the user keeps it (HF_TOKEN, the
login's cache). It is handed to the client and nowhere else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from backpropagate_protocol.errors import BackpropagateError, error_for
from backpropagate_protocol.jobs import PushJob
from backpropagate_protocol.messages import Pushed
from backpropagate_protocol.spec import PushSpec
from backpropagate_runner.export.push_errors import check_repo, translated
from backpropagate_runner.export.push_files import PushFile, choose
from backpropagate_runner.export.stage import Stage

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

_TICK = 1.0  # seconds between two signs while one file is uploaded
_AHEAD = 8 << 20  # bytes; larger files are uploaded one by one before the commit, smaller ones within it
_MAIN = "main"

_STAYS = "does not belong to the model, and stays here"
_LISTED = 8

T = TypeVar("T")


def push(job: PushJob, stage: Stage, endpoint: str | None = None) -> Pushed:
    """Uploads what `choose` chooses; `endpoint` is another hub than the client's own. Raises the HUB_PUSH_ errors,
    INPUT_AUTH_REQUIRED, and what `choose` raises."""
    from huggingface_hub import constants

    spec = job.push
    check_repo(spec.repo)
    chosen = choose(Path(spec.folder), spec.card, spec.files)
    files = chosen.files
    if chosen.left_out:
        stage.notice(f"{_listed(chosen.left_out)} in {spec.folder} {_STAYS}")
    listed = tuple((file.name, file.size) for file in files)
    if spec.dry_run:
        return Pushed(url=f"{endpoint or constants.ENDPOINT}/{spec.repo}", commit="", files=listed)
    token = _token(spec.token_file)
    try:
        url, commit = _upload(spec, files, stage, token, endpoint)
    except BackpropagateError:
        raise
    except Exception as error:  # noqa: BLE001 - the client's own classes change; each is told in our codes
        raise translated(error, spec.repo, token) from None  # the original may hold the token
    return Pushed(url=url, commit=commit, files=listed)


def _listed(names: tuple[str, ...]) -> str:
    rest = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + rest


def _token(file: str | None) -> str:
    """Raises INPUT_AUTH_REQUIRED if there is none."""
    from huggingface_hub import get_token

    if file is None:
        token = get_token()
        if not token:
            raise error_for("INPUT_AUTH_REQUIRED", "there is no token for the hub on this machine")
        return token
    try:
        token = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        words = getattr(error, "strerror", None) or "it is not text"
        raise error_for("INPUT_AUTH_REQUIRED", f"the token file {file} cannot be read: {words}") from None
    if not token or len(token.split()) != 1:
        raise error_for("INPUT_AUTH_REQUIRED", f"the token file {file} does not hold one token and nothing else")
    return token


def _upload(spec: PushSpec, files: list[PushFile], stage: Stage, token: str, endpoint: str | None) -> tuple[str, str]:
    """(address of the repository, id of the commit)"""
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()  # they are drawn for a terminal; ours has none
    api = HfApi(endpoint=endpoint, token=token, library_name="backpropagate")
    total = sum(file.size for file in files)

    def wait(action: Callable[[], T], done: int, detail: str) -> T:
        return _ticking(action, lambda: stage.advance(done, total, detail))

    url = wait(lambda: api.create_repo(spec.repo, private=spec.private, exist_ok=True), 0, "asking the hub")
    if spec.private and not wait(lambda: api.model_info(spec.repo), 0, "asking the hub").private:
        stage.notice(f"{spec.repo} exists and is public: what is pushed to it can be seen by everyone", "warning")
    if spec.revision != _MAIN:
        wait(lambda: api.create_branch(spec.repo, branch=spec.revision, exist_ok=True), 0, "asking the hub")
    additions = [CommitOperationAdd(file.name, file.content if file.path is None else file.path) for file in files]
    done = _ahead(api, spec, files, additions, wait)
    info = wait(
        lambda: api.create_commit(
            spec.repo, operations=additions, commit_message=spec.message or "Upload", revision=spec.revision
        ),
        done,
        "committing",
    )
    stage.advance(total, total, "committed")
    return str(url), str(info.oid)


def _ahead(
    api: HfApi,
    spec: PushSpec,
    files: list[PushFile],
    additions: list[CommitOperationAdd],
    wait: Callable[[Callable[[], None], int, str], None],
) -> int:
    """Uploads the large files one by one, so that it can be told how far it is; returns the bytes."""
    done = 0
    for number, (file, addition) in enumerate(zip(files, additions, strict=True), 1):
        if file.size < _AHEAD:
            continue

        def send(addition: CommitOperationAdd = addition) -> None:
            api.preupload_lfs_files(spec.repo, [addition], revision=spec.revision, free_memory=False)

        wait(send, done, f"{file.name} ({number} of {len(files)})")
        done += file.size
    return done


class _Answer(Generic[T]):
    """What a thread came to."""

    value: T
    error: BaseException | None = None


def _ticking(action: Callable[[], T], tick: Callable[[], None]) -> T:
    """`action` in a thread, while this one gives a sign every second: the client gives none."""
    answer: _Answer[T] = _Answer()

    def run() -> None:
        try:
            answer.value = action()
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
            answer.error = error

    worker = threading.Thread(target=run, name="hub", daemon=True)
    tick()
    worker.start()
    while worker.is_alive():
        worker.join(_TICK)
        tick()
    if answer.error is not None:
        raise answer.error
    return answer.value
