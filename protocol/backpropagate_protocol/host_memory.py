"""How much memory the machine has, and how much of it a new process could take. A container's limit counts."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from pathlib import Path

_KIB, _MIB = 1 << 10, 1 << 20


@dataclass(frozen=True, slots=True)
class Memory:
    """In MiB: of the machine, or of the container we are in."""

    total: int
    available: int


def host_memory(root: Path = Path("/")) -> Memory | None:
    """None where nobody says."""
    try:
        if sys.platform == "win32":
            return _windows()
        if sys.platform == "darwin":
            total, level = (
                _sysctl(b"hw.memsize", ctypes.c_uint64()),
                _sysctl(b"kern.memorystatus_level", ctypes.c_uint32()),
            )
            return Memory(total // _MIB, total * level // 100 // _MIB)  # the level is in percent
        return _linux(root)
    except (OSError, ValueError, KeyError):
        return None


def _linux(root: Path) -> Memory:
    fields = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text(encoding="ascii").splitlines())
    total, available = (int(fields[name].split()[0]) * _KIB for name in ("MemTotal", "MemAvailable"))
    for group in _groups(root):
        try:
            limit, used = (int((group / f"memory.{name}").read_text(encoding="ascii")) for name in ("max", "current"))
            cache = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        except (OSError, ValueError):  # no group of its own, or one without a limit (`max`)
            continue
        total = min(total, limit)
        available = min(available, max(0, limit - used + int(cache.get("inactive_file", 0))))
    return Memory(total // _MIB, available // _MIB)


def _groups(root: Path) -> list[Path]:
    """Our control group and those around it: the tightest limit holds."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except OSError:
        return []
    top = root / "sys/fs/cgroup"
    own = next((top / line.split(":", 2)[2].lstrip("/") for line in lines if line.startswith("0::")), top)
    return [folder for folder in (own, *own.parents) if folder.is_relative_to(top)]


if sys.platform == "win32":
    from ctypes import wintypes

    class _Status(ctypes.Structure):
        _fields_ = [
            ("length", wintypes.DWORD),
            ("load", wintypes.DWORD),
            *((name, ctypes.c_uint64) for name in ("total", "available", "total_page", "page", "total_virtual")),
            ("virtual", ctypes.c_uint64),
            ("extended", ctypes.c_uint64),
        ]

    def _windows() -> Memory:
        status = _Status(length=ctypes.sizeof(_Status))
        if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
            raise OSError("the memory's status is not told")
        return Memory(status.total // _MIB, status.available // _MIB)


if sys.platform == "darwin":

    def _sysctl(name: bytes, value: ctypes.c_uint64 | ctypes.c_uint32) -> int:
        size = ctypes.c_size_t(ctypes.sizeof(value))
        if ctypes.CDLL(None).sysctlbyname(name, ctypes.byref(value), ctypes.byref(size), None, 0):
            raise OSError(f"{name!r} is not told")
        return int(value.value)
