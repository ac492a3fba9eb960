"""Windows: how much of the host's memory stands in for a card's. Its driver lends it silently where others run out of memory.

The performance counters know it for each process. NVML does not, and elsewhere nothing is lent.
"""

from __future__ import annotations

import sys
from collections.abc import Collection

_MIB = 1 << 20


def shared_memory(pids: Collection[int]) -> int | None:
    """MiB that these processes have of it; None where nobody says."""
    if sys.platform == "win32":
        return sum(size for pid, size in _by_process() if pid in pids) // _MIB if pids else 0
    return None


def pid_of(instance: str) -> int:
    """Of a counter's instance, such as `pid_1234_luid_0x00000000_0x0000C4F1_phys_0`; 0 for one that names none."""
    words = instance.split("_")
    return int(words[1]) if len(words) > 1 and words[0] == "pid" and words[1].isdigit() else 0


if sys.platform == "win32":
    import ctypes
    from ctypes import wintypes

    _COUNTER = r"\GPU Process Memory(*)\Shared Usage"
    _LARGE = 0x400  # PDH_FMT_LARGE
    _MORE_DATA = 0x800007D2

    class _Value(ctypes.Structure):
        _fields_ = [("status", wintypes.DWORD), ("large", ctypes.c_longlong)]

    class _Item(ctypes.Structure):
        _fields_ = [("name", wintypes.LPWSTR), ("value", _Value)]

    def _by_process() -> list[tuple[int, int]]:
        """Pid and bytes; empty where the counters are not there."""
        pdh = ctypes.windll.pdh
        query, counter = wintypes.HANDLE(), wintypes.HANDLE()
        if pdh.PdhOpenQueryW(None, None, ctypes.byref(query)):
            return []
        try:
            if pdh.PdhAddEnglishCounterW(query, _COUNTER, None, ctypes.byref(counter)):
                return []
            if pdh.PdhCollectQueryData(query):
                return []
            size, count = wintypes.DWORD(0), wintypes.DWORD(0)
            asked = (counter, _LARGE, ctypes.byref(size), ctypes.byref(count))
            if pdh.PdhGetFormattedCounterArrayW(*asked, None) & 0xFFFFFFFF != _MORE_DATA:
                return []
            buffer = ctypes.create_string_buffer(size.value)
            if pdh.PdhGetFormattedCounterArrayW(*asked, buffer):
                return []
            items = ctypes.cast(buffer, ctypes.POINTER(_Item))
            return [(pid_of(items[i].name or ""), int(items[i].value.large)) for i in range(count.value)]
        finally:
            pdh.PdhCloseQuery(query)
