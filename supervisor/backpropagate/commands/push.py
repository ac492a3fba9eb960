"""`push`: an adapter, a merged model or a GGUF to the hub, with a card that says how it was made."""

from __future__ import annotations

from pathlib import Path

import click

from backpropagate.commands.drills import fault_flag
from backpropagate.commands.flags import Command, from_table
from backpropagate.screen import Screen, current
from backpropagate.wishes.options import Value
from backpropagate_protocol.errors import InvalidSettingError
from backpropagate_protocol.spec import PlannedFault, PushSpec


def _never_in_argv(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None:
        raise InvalidSettingError(
            "--token is not taken: everybody on this machine can read the command lines of others, and shells remember them",
            suggestion="Log in with `hf auth login`, set HF_TOKEN, or give --token-file FILE.",
        )


@click.command(cls=Command)
@click.argument("what", metavar="RUN|PATH", default=".")
@click.option("--repo", metavar="OWNER/NAME", help="Repository on the hub; made if it is not there.")
@click.option("--private/--public", default=True, help="Who may see a repository that is made.  [default: private]")
@click.option("--dry-run", is_flag=True, help="Say what would go up, and send nothing.")
@click.option(
    "--token-file", metavar="FILE", help="File with the token. Default: HF_TOKEN, or that of `hf auth login`."
)
@click.option("--hub-revision", "--revision", "revision", metavar="BRANCH", help="Branch to push to.  [default: main]")
@click.option("--message", "--hub-commit-message", "message", help="Of the commit.")
@click.option("--no-card", is_flag=True, help="Make no model card; a README.md in the folder goes up as it is.")
@click.option("--runs", "output_dir", metavar="FOLDER", help="Output folder in which RUN is looked up and the upload is recorded.  [default: ./output]")  # fmt: skip
@from_table("runner.python", "safety.wait")
@click.option("--detach", is_flag=True, help="Start the upload and return; it goes on without this terminal.")
@click.option("--token", "--hub-token", hidden=True, expose_value=False, callback=_never_in_argv)
@fault_flag
def push(
    what: str,
    repo: str | None,
    private: bool,
    dry_run: bool,
    token_file: str | None,
    revision: str | None,
    message: str | None,
    no_card: bool,
    detach: bool,
    faults: tuple[PlannedFault, ...],
    **given: Value,
) -> int:
    """Push an adapter, a merged model or a GGUF to the hub.

    RUN is a run id, any unique prefix of one, or `latest`: its adapter goes up, or what it exported. PATH is the folder of an
    adapter or model, or one GGUF. The repository is private unless --public is said. The token is never an argument.
    """
    from backpropagate.commands.supervising import begin
    from backpropagate.wishes.push_run import PushWish, push_run
    from backpropagate.wishes.settings import Settings

    screen = current()
    settings = Settings(given)
    screen.verbose = screen.verbose or settings.flag("debug")
    wish = PushWish(
        repo=repo,
        private=private,
        dry_run=dry_run,
        revision=revision,
        message=message,
        token_file=token_file,
        card=not no_card,
    )
    spec = push_run(settings, what, wish, detached=detach, verbose=screen.verbose, faults=faults)
    if dry_run:
        assert spec.push is not None
        return _rehearse(screen, spec.push, spec.runner_python)
    return begin(screen, spec, detach)


def _rehearse(screen: Screen, spec: PushSpec, python: str | None) -> int:
    """In a child of its own, and no run: nothing is done that would have to be gone on with."""
    from backpropagate.api.export_result import size
    from backpropagate.doors.oneshot import run_job
    from backpropagate_protocol.jobs import PushJob
    from backpropagate_protocol.messages import Pushed

    told = run_job(PushJob(push=spec), Pushed, backend="none", runner_python=python)
    total = sum(count for _, count in told.files)
    stays = _left_out(spec, {name.partition("/")[0] for name, _ in told.files})
    document = {
        "repo": spec.repo,
        "private": spec.private,
        "revision": spec.revision,
        "url": told.url,
        "files": [{"name": name, "bytes": count} for name, count in told.files],
        "bytes": total,
        "left_out": stays,
        "card": spec.card,
    }
    listed = "\n".join(f"{size(count):>12}  {name}" for name, count in told.files)
    kind = "private" if spec.private else "public"
    if stays:
        listed += f"\n{'stays here':>12}  {', '.join(stays)}"
    screen.data(document, f"{listed}\n{size(total):>12}  to {told.url or spec.repo} ({kind}); nothing was sent")
    return 0


def _left_out(spec: PushSpec, goes: set[str]) -> list[str]:
    """What lies beside the files that go up, where nobody said that it is to stay."""
    folder = Path(spec.folder)
    if spec.files or not folder.is_dir():
        return []
    found = [f"{path.name}/" if path.is_dir() else path.name for path in sorted(folder.iterdir())]
    return [name for name in found if name.rstrip("/") not in goes and not name.startswith(".")]
