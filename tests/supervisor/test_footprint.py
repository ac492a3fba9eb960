"""A process' high water in the machine's memory, and whether someone stopped it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from backpropagate.doors.footprint import peak, stopped


def test_a_process_that_lives_has_taken_memory() -> None:
    assert peak(os.getpid()) > 5


def test_one_that_is_gone_is_not_known() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert peak(process.pid) == 0


def test_memory_that_was_given_back_still_counts() -> None:
    program = "import sys; b = bytearray(80 << 20); del b; print(1, flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        high = peak(process.pid)
    assert high > 80 or sys.platform == "darwin"  # there only what it holds at the moment is told


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells it")
def test_a_process_that_was_stopped_is_told_from_one_that_runs() -> None:
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as process:
        assert not stopped(process.pid)
        os.kill(process.pid, signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        try:
            assert stopped(process.pid)
        finally:
            os.kill(process.pid, signal.SIGCONT)
    assert not stopped(process.pid)
