"""How short the machine's memory is, where a GPU shares it with every program: read before the machine swaps itself to death.

macOS says so by a level of its own, which `memory_pressure` shows, too: 1 normal, 2 warning, 4 critical. Linux tells for how
much of the last ten seconds every program waited for memory (PSI), for our control group where it has one.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from pathlib import Path

import anyio

from backpropagate.judge.decisions import Input, MemoryShort
from backpropagate_protocol.mlx_rules import CPU_DEVICE, METAL_DEVICE, apple_silicon

INTERVAL = 2.0
_CRITICAL = 4
_STALLED = 40.0  # percent
_IN_A_ROW = 2  # readings; one may be a program that starts
_REST = 30.0  # seconds after a killing, until the averages tell of the time since
_LEVEL = b"kern.memorystatus_vm_pressure_level"


def concerns(device: str) -> bool:
    """Whether the GPU, or what stands for one, has no memory of its own."""
    return device == CPU_DEVICE or device.startswith(METAL_DEVICE)


def expected(backend: str) -> str:
    """The device that a training will have, as far as the wish tells: weights are loaded before the child says."""
    return METAL_DEVICE if backend == "mlx" or (backend == "auto" and apple_silicon()) else ""


def shortage(root: Path = Path("/")) -> str | None:
    """In words, if the memory is critically short; None if it is not, or nobody says."""
    if sys.platform == "darwin":
        level, size = ctypes.c_int(0), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
        failed = ctypes.CDLL(None).sysctlbyname(_LEVEL, ctypes.byref(level), ctypes.byref(size), None, 0)
        return "macOS calls its memory pressure critical" if not failed and level.value >= _CRITICAL else None
    if sys.platform == "linux":
        stalled = _stalled(root)
        return f"for {stalled:.0f} % of the time every program waits for memory" if stalled >= _STALLED else None
    return None


async def watch(
    feed: Callable[[Input], None],
    device: Callable[[], str],
    clock: Callable[[], float] = time.monotonic,
    *,
    root: Path = Path("/"),
    interval: float = INTERVAL,
) -> None:
    """For as long as the run lasts; looks only while `device` is one of those concerned."""
    seen = 0
    while True:
        found = shortage(root) if concerns(device()) else None
        seen = seen + 1 if found else 0
        if found and seen >= _IN_A_ROW:
            feed(MemoryShort(clock(), found))
            seen = 0
            await anyio.sleep(_REST)
        await anyio.sleep(interval)


def _stalled(root: Path) -> float:
    """Percent of the last ten seconds; 0 where the kernel does not say."""
    try:
        group = next(
            line.split(":", 2)[2]
            for line in (root / "proc/self/cgroup").read_text(encoding="ascii").splitlines()
            if line.startswith("0::")
        )
    except (OSError, StopIteration):
        group = ""
    for path in (root / f"sys/fs/cgroup{group}/memory.pressure", root / "proc/pressure/memory"):
        try:
            for line in path.read_text(encoding="ascii").splitlines():
                if line.startswith("full "):
                    return float(line.split("avg10=", 1)[1].split()[0])
        except (OSError, ValueError, IndexError):
            continue
    return 0.0
