"""The kernel's link between a process and its parent: when the parent dies, in any way, this process dies too.

Linux has it as a setting of the child (here). Windows has it as the Job Object into which the parent puts the child.
macOS has none; there the runner's lease and the end of its control pipe take its place.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int | None = None) -> None:
    """From now on the kernel kills this process when the thread that started it is gone. Linux; elsewhere nothing.

    The parent may have died before this call; with `parent`, its pid, that is noticed and this process ends here.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent is not None and not is_alive(parent):
        os._exit(1)


def worker_init(_worker: int) -> None:
    """For a data loader's `worker_init_fn`: its workers are children of the runner and must not outlive it either."""
    die_with_parent(os.getppid())


def is_alive(pid: int) -> bool:
    """Whether a process with this id exists; a zombie, on POSIX, still does."""
    if sys.platform == "win32":
        from ctypes import wintypes

        # A library object of our own: the types below are no business of others who use kernel32. Without them a
        # handle, 64 bits wide, would be cut to an int.
        kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
        kernel32.OpenProcess.argtypes = (wintypes.DWORD, wintypes.BOOL, wintypes.DWORD)
        kernel32.OpenProcess.restype = wintypes.HANDLE
        kernel32.WaitForSingleObject.argtypes = (wintypes.HANDLE, wintypes.DWORD)
        kernel32.WaitForSingleObject.restype = wintypes.DWORD
        kernel32.CloseHandle.argtypes = (wintypes.HANDLE,)
        kernel32.CloseHandle.restype = wintypes.BOOL
        handle = kernel32.OpenProcess(0x00100000, False, pid)  # SYNCHRONIZE
        if not handle:
            return ctypes.get_last_error() == 5  # ERROR_ACCESS_DENIED: there is one, of another user
        try:
            return bool(kernel32.WaitForSingleObject(handle, 0) == 0x102)  # WAIT_TIMEOUT: still running
        finally:
            kernel32.CloseHandle(handle)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
