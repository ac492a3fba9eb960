"""Where a drill lies: it asks for room first, leaves nothing, and takes away what dead drills left, never what lives."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from backpropagate.drive.drill_folder import LOCK, PREFIX, TOY_ROOM, drill_folder, sweep
from backpropagate_protocol.errors import DiskFullError


@pytest.fixture
def temporary(tmp_path: Path) -> Iterator[Path]:
    before, tempfile.tempdir = tempfile.tempdir, str(tmp_path)
    yield tmp_path
    tempfile.tempdir = before


def left(temporary: Path, name: str, *, seconds_ago: float = 3600.0) -> Path:
    """A folder as a killed drill leaves it."""
    folder = temporary / f"{PREFIX}{name}"
    (folder / "toy" / "sigkill").mkdir(parents=True)
    (folder / LOCK).touch()
    os.utime(folder / LOCK, (time.time() - seconds_ago,) * 2)
    return folder


def test_a_drill_leaves_nothing_and_one_that_is_kept_is_never_swept(temporary: Path) -> None:
    with drill_folder(TOY_ROOM) as folder:
        (folder.path / "toy").mkdir()
        assert folder.full() is None
    assert list(temporary.iterdir()) == []
    with drill_folder(TOY_ROOM) as folder:
        (folder.path / "toy").mkdir()
        folder.keep = True
    sweep(temporary)
    assert [path.name for path in folder.path.iterdir()] == ["toy"]


def test_what_a_killed_drill_left_goes_and_what_lives_or_was_just_made_stays(temporary: Path) -> None:
    dead, living, new = left(temporary, "dead"), left(temporary, "living"), left(temporary, "new", seconds_ago=0.0)
    lock = FileLock(living / LOCK)
    with lock:
        os.utime(living / LOCK, (0, 0))
        sweep(temporary)
    assert (dead.exists(), (living / "toy").exists(), (new / "toy").exists()) == (False, True, True)


def test_a_folder_without_room_is_refused_before_anything_begins(temporary: Path) -> None:
    with pytest.raises(DiskFullError, match="a drill needs") as caught, drill_folder(1 << 60):
        pass
    assert caught.value.exit_code == 75
    assert str(temporary) in caught.value.message
    assert ("TEMP" if sys.platform == "win32" else "TMPDIR") in caught.value.suggestion
    assert list(temporary.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting a tmpfs takes root on Linux")
def test_a_disk_that_became_full_is_found_to_be(temporary: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(temporary)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine mounts nothing")
    try:
        with drill_folder(1 << 20) as folder:
            assert folder.full() is None
            (folder.path / "ballast").write_bytes(bytes(shutil.disk_usage(temporary).free - (1 << 19)))
            full = folder.full()
            assert full is not None
            assert full.code == "RUNTIME_DISK_FULL"
        assert list(temporary.iterdir()) == []
    finally:
        subprocess.run(["umount", str(temporary)], check=True)
