"""The machine's memory as the kernel tells it, and a container's limit that is tighter."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from backpropagate_protocol.host_memory import Memory, host_memory

GIB = 1 << 30
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="what is read elsewhere cannot be written for a test")


def machine(root: Path, *, total: int, available: int, group: str | None = None) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: {total} kB\nMemFree: 1 kB\nMemAvailable: {available} kB\n")
    if group is not None:
        (root / "proc/self/cgroup").write_text(f"0::{group}\n")
    return root


def limit(folder: Path, text: str, used: int, cache: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(text + "\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cache}\n")


def test_this_machine_tells_its_memory() -> None:
    found = host_memory()
    assert found is not None
    assert 0 < found.available <= found.total


@LINUX
def test_the_tightest_limit_around_us_holds_and_cached_files_count_as_free(tmp_path: Path) -> None:
    root = machine(tmp_path, total=64 << 20, available=48 << 20, group="/a/b")
    top = root / "sys/fs/cgroup"
    limit(top / "a/b", "max", 5 * GIB, 0)
    limit(top / "a", str(8 * GIB), 5 * GIB, GIB)
    assert host_memory(root) == Memory(8192, 4096)


@LINUX
def test_without_a_group_the_machine_itself_is_asked(tmp_path: Path) -> None:
    assert host_memory(machine(tmp_path, total=64 << 20, available=48 << 20)) == Memory(65536, 49152)


@LINUX
def test_a_machine_that_says_nothing_is_no_error(tmp_path: Path) -> None:
    assert host_memory(tmp_path) is None
