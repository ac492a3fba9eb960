"""How a process ended, in words."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from backpropagate.doors.death import decode, meaning, oom_kill_count, with_last_words
from backpropagate.judge.decisions import Death


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_signal_has_its_name() -> None:
    assert decode(-11).text == "was killed by SIGSEGV"
    assert decode(-9).text == "was killed by SIGKILL"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_kill_while_the_kernels_counter_grew_was_for_memory() -> None:
    assert decode(-9, oom_kills=1).host_oom
    assert not decode(-11, oom_kills=1).host_oom


def test_zero_without_a_result_is_no_success() -> None:
    assert decode(0).text == "exited with 0 without a result"


@pytest.mark.skipif(sys.platform != "linux", reason="control groups")
@pytest.mark.parametrize(
    ("group", "file"),
    [
        ("0::/job", "sys/fs/cgroup/job/memory.events"),
        ("5:cpu:/x\n4:memory:/job", "sys/fs/cgroup/memory/job/memory.oom_control"),
    ],
)
def test_the_counter_is_read_in_both_kinds_of_control_groups(tmp_path: Path, group: str, file: str) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(group + "\n")
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text("low 0\noom 3\noom_kill 2\n")
    assert oom_kill_count(tmp_path) == 2


def test_where_there_is_no_counter_it_is_zero(tmp_path: Path) -> None:
    assert oom_kill_count(tmp_path) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_an_abort_of_metal_for_want_of_memory_is_known_by_its_last_words() -> None:
    said = (
        "libc++abi: terminating due to uncaught exception of type std::runtime_error: [METAL] Command buffer execution "
        "failed: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)"
    )
    assert with_last_words(decode(-6), said, "metal Apple M2").device_oom
    assert not with_last_words(decode(-6), "an assertion failed", "metal Apple M2").device_oom
    assert not with_last_words(decode(0), said, "metal Apple M2").device_oom


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_segmentation_fault_of_mlx_on_the_cpu_is_a_want_of_memory() -> None:
    assert with_last_words(decode(-11), "", "mlx-cpu").device_oom
    assert not with_last_words(decode(-11), "", "cpu").device_oom


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(
    ("code", "word"),
    [(-9, "kill -9"), (-11, "native code"), (-7, "mapped"), (-4, "processor"), (137, "SIGKILL"), (139, "SIGSEGV")],
)
def test_an_end_is_explained(code: int, word: str) -> None:
    assert word in meaning(decode(code))


@pytest.mark.parametrize("code", [None, 0, 1, 2, 254])
def test_an_end_that_says_nothing_is_not_explained(code: int | None) -> None:
    assert meaning(decode(code)) == ""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_death_for_want_of_memory_needs_no_further_word() -> None:
    assert meaning(decode(-9, oom_kills=1)) == ""


@pytest.mark.parametrize(
    ("status", "word"),
    [(0xC0000005, "native code"), (0xC0000135, "installation"), (0xC000001D, "processor"), (0xC0000374, "memory")],
)
def test_a_status_of_windows_is_explained(status: int, word: str) -> None:
    assert word in meaning(Death(status, f"ended by 0x{status:08X}"))
