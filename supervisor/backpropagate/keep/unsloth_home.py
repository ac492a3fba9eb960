"""Where Unsloth lives on this machine: the environment that `backprop setup --unsloth` built, and our runner in it.

Unsloth's packages are installed there once. Our own code is copied in beside them, under the digest of its content, and a
path file names the copy in use: so both sides of the protocol are always the same code, and a child that runs keeps its own.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import sys
from pathlib import Path

import msgspec

from backpropagate.keep.userstate import state_dir
from backpropagate_protocol import durable

_PACKAGES = ("backpropagate_protocol", "backpropagate_backends", "backpropagate_runner")
_PREFIX = "backpropagate-"
_KEPT = 3  # copies: older children may still import from theirs


class _Home(msgspec.Struct, frozen=True, kw_only=True):
    """`unsloth.json`."""

    schema: int = 1
    python: str
    what: str  # versions, in words


def new_folder() -> Path:
    """Where the next environment is built; not the one in use, which stays as it is until the next one works.

    Raises OSError if there is no place for one.
    """
    first, second = state_dir() / "unsloth", state_dir() / "unsloth-2"
    home = _home()
    return second if home is not None and Path(home.python).is_relative_to(first) else first


def python_in(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def known() -> str | None:
    """Its interpreter, with the code of today; None: there is none. Raises OSError if the code cannot be written there."""
    home = _home()
    if home is None or not Path(home.python).exists():
        return None
    place_code(Path(home.python).parents[1])
    return home.python


def _home() -> _Home | None:
    try:
        return msgspec.json.decode((state_dir() / "unsloth.json").read_bytes(), type=_Home)
    except (OSError, msgspec.DecodeError):
        return None


def remember(python: Path, what: str) -> None:
    """Raises OSError."""
    state_dir().mkdir(parents=True, exist_ok=True)
    durable.write_file(state_dir() / "unsloth.json", msgspec.json.encode(_Home(python=str(python), what=what)))


def place_code(environment: Path) -> Path:
    """Copies our runner into it, unless this very code is there. The folder of the copy. Raises OSError."""
    pattern = "Lib/site-packages" if sys.platform == "win32" else "lib/python*/site-packages"
    found = sorted(environment.glob(pattern))
    if not found:
        raise FileNotFoundError(2, "there are no site-packages", str(environment))
    sources = {name: _files(_home_of(name)) for name in _PACKAGES}
    digest = hashlib.sha256()
    for name, files in sources.items():
        for inside, path in files.items():
            digest.update(f"{name}/{inside}\n".encode() + path.read_bytes())
    place = found[0] / f"{_PREFIX}{digest.hexdigest()[:16]}"
    if not place.is_dir():
        partial = place.with_name(f"{place.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        for name, files in sources.items():
            for inside, path in files.items():
                target = partial / name / inside
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
        partial.rename(place)
    durable.write_file(found[0] / "backpropagate.pth", f"{place.name}\n".encode())
    copies = sorted(found[0].glob(f"{_PREFIX}*"), key=lambda copy: copy.stat().st_mtime)
    for old in copies[:-_KEPT]:
        if old != place:
            shutil.rmtree(old, ignore_errors=True)
    return place


def _home_of(package: str) -> Path:
    """Found, not imported: the parent never loads a backend."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(2, "is not installed", package)
    return Path(spec.origin).parent


def _files(package: Path) -> dict[str, Path]:
    """By their place in the package."""
    files = (path for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {path.relative_to(package).as_posix(): path for path in sorted(files)}
