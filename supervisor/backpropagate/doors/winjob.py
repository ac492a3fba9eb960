"""Windows Job Objects: a handle that, once closed by whatever means, kills the child and all that it started.

The child starts suspended, is put into the job, and only then runs, so that no grandchild can escape. The handle is not
inheritable: the kernel closes the last one when this process dies, however it dies.
"""

from __future__ import annotations

import ctypes
import sys

CREATE_SUSPENDED = 0x4
_KILL_ON_JOB_CLOSE = 0x2000
_EXTENDED_LIMITS = 9
_ACCOUNTING = 1
_CTRL_BREAK = 1
_PROCESS_RIGHTS = 0x0100 | 0x0001 | 0x0800  # set quota, terminate, suspend and resume


class _IoCounters(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("reads", "writes", "others", "read", "written", "other")]


class _BasicLimits(ctypes.Structure):
    _fields_ = [
        ("per_process_time", ctypes.c_int64),
        ("per_job_time", ctypes.c_int64),
        ("flags", ctypes.c_uint32),
        ("minimum_working_set", ctypes.c_size_t),
        ("maximum_working_set", ctypes.c_size_t),
        ("active_processes", ctypes.c_uint32),
        ("affinity", ctypes.c_size_t),
        ("priority", ctypes.c_uint32),
        ("scheduling", ctypes.c_uint32),
    ]


class _ExtendedLimits(ctypes.Structure):
    _fields_ = [
        ("basic", _BasicLimits),
        ("io", _IoCounters),
        ("process_memory", ctypes.c_size_t),
        ("job_memory", ctypes.c_size_t),
        ("peak_process_memory", ctypes.c_size_t),
        ("peak_job_memory", ctypes.c_size_t),
    ]


class _Accounting(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("user_time", "kernel_time", "period_user_time", "period_kernel_time")),
        *((name, ctypes.c_uint32) for name in ("page_faults", "processes", "active_processes", "terminated_processes")),
    ]


if sys.platform == "win32":
    _kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
    _ntdll = ctypes.WinDLL("ntdll")
    _kernel32.CreateJobObjectW.restype = ctypes.c_void_p
    _kernel32.CreateJobObjectW.argtypes = [ctypes.c_void_p, ctypes.c_wchar_p]
    _kernel32.SetInformationJobObject.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint32]
    _kernel32.QueryInformationJobObject.argtypes = [
        ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p
    ]  # fmt: skip
    _kernel32.GenerateConsoleCtrlEvent.argtypes = [ctypes.c_uint32, ctypes.c_uint32]
    _kernel32.OpenProcess.restype = ctypes.c_void_p
    _kernel32.OpenProcess.argtypes = [ctypes.c_uint32, ctypes.c_int, ctypes.c_uint32]
    _kernel32.AssignProcessToJobObject.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    _kernel32.TerminateJobObject.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    _kernel32.CloseHandle.argtypes = [ctypes.c_void_p]
    _ntdll.NtResumeProcess.argtypes = [ctypes.c_void_p]
    _ntdll.NtResumeProcess.restype = ctypes.c_int32

    class JobObject:
        """One child's job. `adopt` takes a suspended child and lets it run."""

        def __init__(self) -> None:
            self._handle = _checked(_kernel32.CreateJobObjectW(None, None))
            limits = _ExtendedLimits()
            limits.basic.flags = _KILL_ON_JOB_CLOSE
            size = ctypes.sizeof(limits)
            try:
                _checked(_kernel32.SetInformationJobObject(self._handle, _EXTENDED_LIMITS, ctypes.byref(limits), size))
            except OSError:
                self.close()
                raise

        def adopt(self, pid: int) -> None:
            process = _checked(_kernel32.OpenProcess(_PROCESS_RIGHTS, False, pid))
            try:
                _checked(_kernel32.AssignProcessToJobObject(self._handle, process))
                status = _ntdll.NtResumeProcess(process)
                if status < 0:  # an NTSTATUS: left suspended, it would look like a hang
                    raise OSError(f"the process cannot be resumed (0x{status & 0xFFFFFFFF:08X})")
            finally:
                _kernel32.CloseHandle(process)

        def kill(self) -> None:
            """Ends everything in the job; nothing happens if nothing is."""
            if self._handle:
                _kernel32.TerminateJobObject(self._handle, 9)

        def is_empty(self) -> bool:
            """Whether nothing in the job runs any more. Behind a virtual environment's launcher the runner itself ends a
            moment after the process that was started."""
            if not self._handle:
                return True
            said = _Accounting()
            size = ctypes.sizeof(said)
            known = _kernel32.QueryInformationJobObject(self._handle, _ACCOUNTING, ctypes.byref(said), size, None)
            return not known or said.active_processes == 0

        def close(self) -> None:
            if self._handle:
                _kernel32.CloseHandle(self._handle)
                self._handle = 0

    def ctrl_break(group: int) -> None:
        """Sends CTRL_BREAK to a process group in our console. Raises OSError where there is no console to carry it.

        Not `os.kill`: that of Python 3.11 goes on after such a failure, and ends the process.
        """
        _checked(_kernel32.GenerateConsoleCtrlEvent(_CTRL_BREAK, group))

    def _checked(result: int | None) -> int:
        if not result:
            raise ctypes.WinError(ctypes.get_last_error())
        return result
