"""Windows: how much of the host's memory stands in for a card's. Its driver lends it silently where others run out of memory.

The performance counters know it for each process. NVML does not, and elsewhere nothing is lent.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Use:
    """What one process has of one adapter, in bytes. `instance`: the counter's name for the two of them."""

    instance: str
    dedicated: int
    shared: int


def shared_memory(pids: Collection[int]) -> int | None:
    """MiB that these processes, which are on the card, have of it; None where nobody says."""
    if sys.platform == "win32":
        return lent(_uses(), pids) // _MIB if pids else 0
    return None


def lent(uses: Sequence[Use], pids: Collection[int]) -> int:
    """Bytes, by the adapter of which these processes have the most memory. A graphics unit within the processor, which a laptop
    has besides, has none of its own: all that programs use of it is shared, and says nothing of the card."""
    own: dict[str, int] = {}
    shared: dict[str, int] = {}
    for use in uses:
        pid, adapter = whose(use.instance)
        if pid in pids:
            own[adapter] = own.get(adapter, 0) + use.dedicated
            shared[adapter] = shared.get(adapter, 0) + use.shared
    return shared[max(own, key=own.__getitem__)] if own else 0


def whose(instance: str) -> tuple[int, str]:
    """Process and adapter, of a name such as `pid_1234_luid_0x00000000_0x0000C4F1_phys_0`; 0 for one that names no process."""
    words = instance.split("_")
    if len(words) < 5 or words[0] != "pid" or words[2] != "luid" or not words[1].isdigit():
        return 0, ""
    return int(words[1]), f"{words[3]}_{words[4]}"


if sys.platform == "win32":
    import ctypes
    from ctypes import wintypes

    _DEDICATED = r"\GPU Process Memory(*)\Dedicated Usage"
    _SHARED = r"\GPU Process Memory(*)\Shared Usage"
    _LARGE = 0x400  # PDH_FMT_LARGE
    _MORE_DATA = 0x800007D2

    class _Value(ctypes.Structure):
        _fields_ = [("status", wintypes.DWORD), ("large", ctypes.c_longlong)]

    class _Item(ctypes.Structure):
        _fields_ = [("name", wintypes.LPWSTR), ("value", _Value)]

    def _uses() -> list[Use]:
        """Of every process and adapter; empty where the counters are not there."""
        pdh = ctypes.windll.pdh
        query, dedicated, shared = wintypes.HANDLE(), wintypes.HANDLE(), wintypes.HANDLE()
        if pdh.PdhOpenQueryW(None, None, ctypes.byref(query)):
            return []
        try:
            for name, counter in ((_DEDICATED, dedicated), (_SHARED, shared)):
                if pdh.PdhAddEnglishCounterW(query, name, None, ctypes.byref(counter)):
                    return []
            if pdh.PdhCollectQueryData(query):
                return []
            own = _values(dedicated)
            return [Use(name, own.get(name, 0), size) for name, size in _values(shared).items()]
        finally:
            pdh.PdhCloseQuery(query)

    def _values(counter: wintypes.HANDLE) -> dict[str, int]:
        """Bytes, by the counter's instances."""
        pdh = ctypes.windll.pdh
        size, count = wintypes.DWORD(0), wintypes.DWORD(0)
        asked = (counter, _LARGE, ctypes.byref(size), ctypes.byref(count))
        if pdh.PdhGetFormattedCounterArrayW(*asked, None) & 0xFFFFFFFF != _MORE_DATA:
            return {}
        buffer = ctypes.create_string_buffer(size.value)
        if pdh.PdhGetFormattedCounterArrayW(*asked, buffer):
            return {}
        items = ctypes.cast(buffer, ctypes.POINTER(_Item))
        return {items[i].name or "": int(items[i].value.large) for i in range(count.value)}
