"""How much memory another process has held at most, as its system tells it."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil

IS_PEAK = sys.platform in ("linux", "win32")  # elsewhere the system tells nobody but the process itself
WORDS = "peak memory" if IS_PEAK else "memory, when looked at"


def held(pid: int) -> int:
    """Bytes, resident: the most so far, or what it is now (`IS_PEAK`). 0 if the process is gone."""
    try:
        if sys.platform == "linux":
            status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
            return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)
        memory = psutil.Process(pid).memory_info()
        return int(memory.peak_wset if sys.platform == "win32" else memory.rss)
    except (OSError, psutil.Error):
        return 0


def holds(pid: int) -> int:
    """Bytes, resident, at this moment. 0 if the process is gone."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0
