"""Which trackers a run is told to: what was named, or `auto`, checked against what is installed here and set up.

Nothing is asked of the user and nothing is imported. A W&B without a login, or without a terminal where none was set up for
unattended use, keeps the run in a folder instead of sending it.
"""

from __future__ import annotations

import netrc
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from backpropagate.screen import terminal
from backpropagate.watch.notebook import in_notebook
from backpropagate.wishes.settings import Settings
from backpropagate.wishes.suggest import did_you_mean
from backpropagate.wishes.surroundings import installed
from backpropagate_protocol.errors import DependencyError, InvalidSettingError

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
_NOT_SAID = {"none", "auto"}
_PROJECT = re.compile(r"[\w][\w .-]{0,126}[\w]|\w")  # what every tracker takes
# By which of its own variables one knows that somebody has set a tracker up.
_SET_UP = {"mlflow": ("MLFLOW_TRACKING_URI",), "trackio": ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_DIR")}
_OFFLINE_MODES = ("offline", "dryrun")


@dataclass(frozen=True, slots=True)
class Wanted:
    """offline: nothing is sent to W&B. notices: what the user should read once."""

    names: tuple[str, ...]
    offline: bool = False
    notices: tuple[str, ...] = ()


def wanted_trackers(settings: Settings, environ: Mapping[str, str], *, watched: bool | None = None) -> Wanted:
    """Raises InvalidSettingError for a name that is none, DependencyError for a tracker that is not installed.

    watched: whether a person sits at a terminal or a notebook; None: to be found out.
    """
    names = _names(settings, environ)
    if not names:
        _check_project(settings)
        return Wanted(())
    project = settings.text("tracking.project")
    if not _PROJECT.fullmatch(project):
        raise InvalidSettingError(
            f"--project {project!r} is no name that every tracker takes",
            suggestion="Use letters, digits, spaces, dots, dashes and underscores, at most 128.",
        )
    if "wandb" not in names:
        return Wanted(names)
    if _mode(environ) == "disabled":
        without = tuple(name for name in names if name != "wandb")
        return Wanted(without, notices=("wandb: WANDB_MODE is disabled, so it is told nothing",))
    why = _why_offline(environ, _watched() if watched is None else watched)
    if not why:
        return Wanted(names)
    return Wanted(names, offline=True, notices=(f"wandb: {why}; the run is kept offline, for `wandb sync` afterwards",))


def check_tracker_names(settings: Settings) -> None:
    """As `wanted_trackers`, where none need be installed here."""
    if _said(settings) in ((), ("none",)):
        _check_project(settings)


def _check_project(settings: Settings) -> None:
    if settings["tracking.project"].given:
        raise InvalidSettingError(
            "--project would have no effect: no tracker is told of this run",
            suggestion="Add --report-to, or leave it out.",
        )


def _said(settings: Settings) -> tuple[str, ...]:
    """Raises InvalidSettingError for what is no tracker's name."""
    said = settings["tracking.report_to"].value
    names = tuple(dict.fromkeys(name.lower() for name in said)) if isinstance(said, tuple) else ()
    for name in names:
        if name not in TRACKERS and name not in _NOT_SAID:
            raise InvalidSettingError(
                f"--report-to: there is no tracker called {name}{did_you_mean(name, TRACKERS)}",
                suggestion=f"Use any of {', '.join(TRACKERS)}, or auto, or none.",
            )
    if len(names) > 1 and _NOT_SAID & set(names):
        raise InvalidSettingError(
            f"--report-to: {' and '.join(sorted(_NOT_SAID & set(names)))} cannot be said beside others",
            suggestion="Name the trackers, or say auto or none alone.",
        )
    return names


def _names(settings: Settings, environ: Mapping[str, str]) -> tuple[str, ...]:
    names = _said(settings)
    if names == ("none",):
        return ()
    if names == ("auto",):
        return tuple(name for name in TRACKERS if installed(name) and _set_up(name, environ))
    missing = [name for name in names if not installed(name)]
    if missing:
        raise DependencyError(
            f"{' and '.join(missing)} cannot be told of the run: not installed here", code="DEP_TRACKER_MISSING"
        )
    return names


def _set_up(name: str, environ: Mapping[str, str]) -> bool:
    if name == "wandb":
        mode = _mode(environ)
        return mode != "disabled" and (mode in _OFFLINE_MODES or _logged_in(environ))
    return name not in _SET_UP or any(environ.get(variable) for variable in _SET_UP[name])


def _why_offline(environ: Mapping[str, str], watched: bool) -> str:
    """Nothing, where the run may be sent."""
    mode = _mode(environ)
    if mode in _OFFLINE_MODES:
        return f"WANDB_MODE is {mode}"
    if not _logged_in(environ):
        return "no login is known"
    if not watched and mode != "online" and not environ.get("WANDB_API_KEY"):
        return "there is no terminal, and neither WANDB_API_KEY nor WANDB_MODE=online says that it may send"
    return ""


def _mode(environ: Mapping[str, str]) -> str:
    return environ.get("WANDB_MODE", "").strip().lower()


def _logged_in(environ: Mapping[str, str]) -> bool:
    if environ.get("WANDB_API_KEY") or environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    return any(_has_login(path, host) for path in _login_files(environ))


def _login_files(environ: Mapping[str, str]) -> list[Path]:
    if environ.get("NETRC"):
        return [Path(os.path.expanduser(environ["NETRC"]))]
    home = Path(os.path.expanduser("~"))
    return [home / ".netrc", home / "_netrc"]


def _has_login(path: Path, host: str) -> bool:
    try:
        return host in netrc.netrc(str(path)).hosts
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
        return False


def _watched() -> bool:
    return in_notebook() or terminal(sys.stderr)
