"""Fetching the converter: the pinned package and nothing else, whole or not at all."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from backpropagate_protocol.errors import DependencyError
from backpropagate_runner.export.fetch_converter import converter_in, default_folder, unpack

_ROOT = "llama_cpp_python-0.3.36/vendor/llama.cpp/"
_FILES = ("convert_hf_to_gguf.py", "conversion/__init__.py", "conversion/base.py", "gguf-py/gguf/__init__.py")
_FETCH = """
import sys
from backpropagate_protocol.jobs import FetchConverterJob
from backpropagate_protocol.messages import Phase
from backpropagate_runner.export.fetch_converter import fetch
from tests.runner.export.heard import Heard

heard = Heard(Phase.FETCH)
made = fetch(FetchConverterJob(folder=sys.argv[1]), heard.stage)
print(made.bytes, heard.signs)
"""


def package(path: Path, names: tuple[str, ...], *, link: str = "") -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 1
            archive.addfile(info, io.BytesIO(b"x"))
        if link:
            info = tarfile.TarInfo(link)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(info)
    return path


def silent(done: int, total: int, detail: str) -> None:
    pass


def test_only_the_converters_own_files_are_taken_out(tmp_path: Path) -> None:
    others = ("setup.py", "conversion/../../outside.py", "src/llama.cpp", "conversion/deep/er.py", "gguf-py/tests/t.py")
    source = package(
        tmp_path / "p.tar.gz",
        (*(_ROOT + name for name in (*_FILES, "LICENSE", *others)), "/conversion/base.py", "../conversion/base.py"),
        link=_ROOT + "conversion/link.py",
    )
    unpack(source, tmp_path / "folder", silent)
    found = {
        path.relative_to(tmp_path / "folder").as_posix() for path in (tmp_path / "folder").rglob("*") if path.is_file()
    }
    assert found == {*_FILES, "LICENSE"}
    assert converter_in(tmp_path / "folder") == tmp_path / "folder"


def test_a_package_without_the_converter_leaves_what_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "mine").write_text("x")
    with pytest.raises(DependencyError, match="does not hold the converter") as raised:
        unpack(package(tmp_path / "p.tar.gz", (_ROOT + "LICENSE",)), folder, silent)
    assert raised.value.code == "DEP_EXPORT_TOOL_MISSING"
    assert [path.name for path in folder.iterdir()] == ["mine"]
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "p.tar.gz"}


def test_the_users_cache_is_named_after_the_version() -> None:
    assert default_folder().name == "llama.cpp-converter-0.3.36"
    assert default_folder().is_absolute()


@pytest.mark.slow
def test_a_folder_of_packages_without_it_ends_in_a_coded_error(tmp_path: Path) -> None:
    """As without a network, but at once: pip is told to look in an empty folder only."""
    done = subprocess.run(
        [sys.executable, "-c", _FETCH, str(tmp_path / "folder")],
        env={
            "PATH": "",
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(tmp_path),
            "SYSTEMROOT": str(Path(sys.executable).anchor),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode != 0
    assert "[DEP_EXPORT_TOOL_MISSING]: llama.cpp's converter cannot be fetched: pip could not fetch" in done.stderr
    assert not (tmp_path / "folder").exists()


@pytest.mark.slow
def test_what_is_fetched_is_the_converter(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FETCH, str(tmp_path / "folder")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    if "pip could not fetch" in done.stderr:
        pytest.skip("no network")
    assert done.returncode == 0, done.stderr
    bytes_, signs = map(int, done.stdout.split())
    assert 1_000_000 < bytes_ < 4_000_000
    assert signs > 10
    assert converter_in(tmp_path / "folder") is not None
