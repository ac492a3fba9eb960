"""Windows Job Objects: the shapes that the kernel is given, everywhere; the kernel's own doings on Windows."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from backpropagate.doors import winjob

WIDE = pytest.mark.skipif(ctypes.sizeof(ctypes.c_void_p) != 8, reason="the sizes are those of 64 bits")


@WIDE
def test_the_limits_have_the_layout_of_the_windows_headers() -> None:
    assert ctypes.sizeof(winjob._BasicLimits) == 64
    assert winjob._BasicLimits.flags.offset == 16
    assert ctypes.sizeof(winjob._IoCounters) == 48
    assert ctypes.sizeof(winjob._ExtendedLimits) == 144


@WIDE
def test_the_accounting_has_the_layout_of_the_windows_headers() -> None:
    assert ctypes.sizeof(winjob._Accounting) == 48
    assert winjob._Accounting.active_processes.offset == 40


if sys.platform == "win32":
    # A child that starts one of its own and says so; both stay until they are ended.
    _TWO = """
import subprocess, sys, threading
subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()"])
print("two", flush=True)
threading.Event().wait()
"""

    def _suspended(program: str) -> subprocess.Popen[str]:
        flags = winjob.CREATE_SUSPENDED | subprocess.CREATE_NEW_PROCESS_GROUP
        return subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
            creationflags=flags,
        )  # fmt: skip

    @pytest.mark.parametrize("how", ["kill", "close"])
    def test_a_job_ends_the_child_and_what_it_started(how: str) -> None:
        job = winjob.JobObject()
        with _suspended(_TWO) as child:
            job.adopt(child.pid)
            assert child.stdout is not None
            assert child.stdout.readline() == "two\n"
            assert not job.is_empty()
            if how == "kill":
                job.kill()
            job.close()
            assert child.stdout.read() == ""  # ends only when the grandchild, which inherited it, has ended too
            child.wait(60)

    def test_a_break_for_a_group_that_does_not_exist_is_an_error_and_ends_nobody() -> None:
        with _suspended("") as child:
            job = winjob.JobObject()
            job.adopt(child.pid)
            child.wait(60)
            job.close()
        with pytest.raises(OSError, match="WinError"):
            winjob.ctrl_break(0xFFFFFFF0)
