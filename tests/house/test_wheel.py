"""The wheel holds our four packages, the tiny base and the sample data, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.house.source import PARTS, ROOT

pytestmark = pytest.mark.slow

_BUNDLED = "backpropagate/_bundled/"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by hatchling itself, in this environment: no network."""
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def files_below(folder: Path) -> set[str]:
    found = (p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {p.relative_to(folder).as_posix() for p in found}


def test_the_wheel_holds_exactly_what_it_should(unpacked: Path) -> None:
    expected = {f"{package}/{name}" for part, package in PARTS.items() for name in files_below(ROOT / part / package)}
    expected |= {f"{_BUNDLED}tiny-base/{name}" for name in files_below(ROOT / "fixtures" / "tiny-base")}
    expected.add(f"{_BUNDLED}quickstart.jsonl")
    assert {name for name in files_below(unpacked) if ".dist-info/" not in name} == expected


def test_the_wheel_adds_no_generic_name_to_an_environment(unpacked: Path) -> None:
    assert {p.name for p in unpacked.iterdir() if p.suffix != ".dist-info"} == set(PARTS.values())


def test_the_wheel_is_small_enough_for_an_index(wheel: Path) -> None:
    assert wheel.stat().st_size < 8_000_000


def test_the_tiny_model_is_found_in_an_installed_wheel(unpacked: Path, tmp_path: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import backpropagate; assert backpropagate.__file__.startswith(sys.argv[1]), backpropagate.__file__\n"
        "from backpropagate.wishes.models import resolve_model\n"
        "print(resolve_model('tiny').path)\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, str(unpacked)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == unpacked / _BUNDLED / "tiny-base"
