"""Fetches llama.cpp's own converter into the user's cache: two megabytes out of one pinned source package.

pip does the fetching, with the network settings that the user has given it, inside this process, which does nothing else.
The package is known by its SHA-256, which pip checks before it looks into it. Nothing of it is built or installed, but to
read a source package's metadata pip runs its build system, which it fetches for that (scikit-build-core). Only the
converter's files are taken out.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import runpy
import sys
import tarfile
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath

from backpropagate_protocol.errors import DependencyError
from backpropagate_protocol.jobs import FetchConverterJob
from backpropagate_protocol.messages import Made
from backpropagate_runner.export.stage import Stage, new_folder

SCRIPT = "convert_hf_to_gguf.py"
PACKAGE, VERSION = "llama-cpp-python", "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"

_ROOT = "llama_cpp_python-0.3.36/vendor/llama.cpp/"
_WANTED = re.compile(r"convert_hf_to_gguf\.py|LICENSE|conversion/\w+\.py|gguf-py/(LICENSE|gguf/\w+\.py)")
_NEEDED = (SCRIPT, "conversion/__init__.py", "conversion/base.py", "gguf-py/gguf/__init__.py")
_NAME = f"llama.cpp-converter-{VERSION}"
_RAW_PROGRESS = (24, 1)  # the first pip that says its progress in plain numbers

Advance = Callable[[int, int, str], None]


def default_folder() -> Path:
    """Where the converter is kept for all projects of this user."""
    home = Path.home()
    if sys.platform == "win32":
        return home / "AppData" / "Local" / "backpropagate" / _NAME
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "backpropagate" / _NAME
    return home / ".cache" / "backpropagate" / _NAME


def converter_in(folder: Path) -> Path | None:
    """The folder itself if all that the converter needs is in it."""
    return folder if all((folder / name).is_file() for name in _NEEDED) else None


def fetch(job: FetchConverterJob, stage: Stage) -> Made:
    """Raises DependencyError [DEP_EXPORT_TOOL_MISSING] if there is no pip, no network, or another package than expected."""
    folder = Path(job.folder) if job.folder else default_folder()
    with tempfile.TemporaryDirectory(prefix="backpropagate-") as room:
        package = _download(Path(room), stage.advance)
        stage.advance(detail="checking the package")
        with open(package, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != SHA256:
            raise _failed(f"{package.name} has the digest {found} instead of {SHA256}")
        unpack(package, folder, stage.advance)
    files = [path for path in folder.rglob("*") if path.is_file()]
    return Made(path=str(folder), bytes=sum(path.stat().st_size for path in files))


def unpack(package: Path, folder: Path, advance: Advance, wanted: re.Pattern[str] = _WANTED) -> None:
    """The converter's files, and nothing else, become `folder`: regular files with plain names below one root."""
    with new_folder(folder) as partial:
        with tarfile.open(package) as archive:
            for number, member in enumerate(archive):
                if number % 100 == 0:
                    advance(archive.offset, 0, "unpacking the converter")
                name = PurePosixPath(member.name.removeprefix(_ROOT))
                if not (member.isreg() and member.name.startswith(_ROOT) and wanted.fullmatch(str(name))):
                    continue
                content = archive.extractfile(member)
                if content is not None and ".." not in name.parts:
                    target = partial / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(content.read())
        if converter_in(partial) is None:
            raise _failed(f"{package.name} does not hold the converter")


def _download(room: Path, advance: Advance) -> Path:
    try:
        pip = version("pip")
    except PackageNotFoundError:
        raise _failed("pip is not installed in this environment") from None
    pinned = room / "pinned.txt"
    pinned.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n", encoding="utf-8")
    plain = tuple(int(part) for part in re.findall(r"\d+", pip)[:2]) >= _RAW_PROGRESS
    arguments = ["download", "--no-deps", "--no-binary", PACKAGE, "--require-hashes", "-r", str(pinned)]
    arguments += [
        "-d",
        str(room),
        "--no-input",
        "--disable-pip-version-check",
        "--progress-bar",
        "raw" if plain else "off",
    ]
    said = _Said(advance)
    said.sign()
    before = sys.argv
    sys.argv = ["pip", *arguments]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            runpy.run_module("pip", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code not in (None, 0):
            raise _failed(f"pip could not fetch {PACKAGE} {VERSION}: {said.complaint()}") from None
    finally:
        sys.argv = before
    found = list(room.glob("*.tar.gz"))
    if len(found) != 1:
        raise _failed(f"pip fetched no source package of {PACKAGE} {VERSION}")
    return found[0]


def _failed(why: str) -> DependencyError:
    return DependencyError(
        f"llama.cpp's converter cannot be fetched: {why}",
        code="DEP_EXPORT_TOOL_MISSING",
        suggestion="Try again with a network, or set LLAMA_CPP_DIR to a checkout of llama.cpp.",
    )


class _Said(io.TextIOBase):
    """Hears what pip says: bytes of bytes become progress, errors are kept for the message."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._line = ""
        self._errors: list[str] = []

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            if numbers := re.fullmatch(r"Progress (\d+) of (\d+)", line.strip()):
                self.sign(int(numbers[1]), int(numbers[2]))
            else:
                self.sign()
                if line.startswith("ERROR"):
                    self._errors.append(line.removeprefix("ERROR:").strip())
        return len(text)

    def sign(self, done: int = 0, total: int = 0) -> None:
        self._advance(done, total, f"fetching {PACKAGE} {VERSION}")

    def complaint(self) -> str:
        return "; ".join(dict.fromkeys(self._errors[-3:])) or "it did not say why"
