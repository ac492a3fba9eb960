"""What a process has taken of the machine's memory at most, and whether it was stopped, as far as its system says."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

_QUERY = 0x1000  # PROCESS_QUERY_LIMITED_INFORMATION
_RESIDENT = 6  # its place among the numbers of rusage_info_v0, which follow 16 bytes of a UUID


class _Counters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS."""

    _fields_ = [
        ("size", ctypes.c_uint32),
        ("page_faults", ctypes.c_uint32),
        ("peak", ctypes.c_size_t),
        *((name, ctypes.c_size_t) for name in ("now", "a", "b", "c", "d", "pagefile", "peak_pagefile")),
    ]


class _Usage(ctypes.Structure):
    """rusage_info_v0."""

    _fields_ = [("uuid", ctypes.c_uint8 * 16), ("numbers", ctypes.c_uint64 * 10)]


def peak(pid: int) -> int:
    """MiB that it has held at most until now; on macOS what it holds at this moment. 0: gone, or not known."""
    if sys.platform == "linux":
        return next((int(value) >> 10 for value in _status(pid, "VmHWM:")), 0)
    if sys.platform == "darwin":
        usage = _Usage()
        failed = ctypes.CDLL(None).proc_pid_rusage(pid, 0, ctypes.byref(usage))
        return 0 if failed else int(usage.numbers[_RESIDENT]) >> 20
    if sys.platform == "win32":
        kernel32 = ctypes.WinDLL("kernel32")
        kernel32.OpenProcess.restype = ctypes.c_void_p
        handle = ctypes.c_void_p(kernel32.OpenProcess(_QUERY, 0, pid))
        if not handle:
            return 0
        try:
            counters = _Counters(size=ctypes.sizeof(_Counters))
            kernel32.K32GetProcessMemoryInfo(handle, ctypes.byref(counters), counters.size)
            return int(counters.peak) >> 20
        finally:
            kernel32.CloseHandle(handle)
    return 0


def stopped(pid: int) -> bool:
    """Whether someone holds it with SIGSTOP, a debugger or a terminal, so that it gets no time at all.

    Only Linux tells that of a process cheaply; elsewhere it is never known.
    """
    return sys.platform == "linux" and any(value in "Tt" for value in _status(pid, "State:"))


def _status(pid: int, name: str) -> list[str]:
    """The first word after the name, in the lines of that name: Linux alone has them."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return []
    return [line.split()[1] for line in status.splitlines() if line.startswith(name)]
