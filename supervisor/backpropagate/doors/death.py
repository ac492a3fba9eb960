"""How a process ended, in words: signals, Windows status codes, and whether the kernel's memory killer did it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from signal import Signals

from backpropagate.judge.decisions import Death
from backpropagate_protocol.mlx_rules import CPU_DEVICE, OUT_OF_MEMORY

_NTSTATUS = {
    0xC0000005: "an access violation",
    0xC0000017: "too little memory",
    0xC00000FD: "a stack overflow",
    0xC000013A: "Ctrl-C",
    0xC0000135: "a missing DLL",
    0xC0000142: "a DLL that failed to start",
    0xC0000374: "a damaged heap",
    0xC0000409: "an abort",
    0x40010004: "the debugger or the Job Object",
}
_OUT_OF_MEMORY = 0xC0000017


def decode(code: int | None, *, oom_kills: int = 0) -> Death:
    """`code` as the operating system gave it: negative signal number on POSIX, NTSTATUS on Windows.

    oom_kills: by how much the kernel's counter grew while the process lived.
    """
    if code is None:
        return Death(None, "vanished without an exit code")
    if code < 0:
        try:
            name = Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        if name == "SIGKILL" and oom_kills > 0:
            return Death(code, "was killed by the kernel for want of memory (SIGKILL)", host_oom=True)
        return Death(code, f"was killed by {name}")
    status = code & 0xFFFFFFFF
    if sys.platform == "win32" and status in _NTSTATUS:
        return Death(code, f"ended by {_NTSTATUS[status]} (0x{status:08X})", host_oom=status == _OUT_OF_MEMORY)
    if code == 0:
        return Death(code, "exited with 0 without a result")
    return Death(code, f"exited with {code}")


def with_last_words(death: Death, words: str, device: str) -> Death:
    """`death`, known to be one for want of device memory if its last words or its device say so.

    On Metal, MLX ends in an abort when a computation finds no memory. Its CPU build takes no notice of an allocation that
    failed, and ends in a segmentation fault.
    """
    if sys.platform == "win32":
        return death
    if death.code == -Signals.SIGABRT and any(text in words.lower() for text in OUT_OF_MEMORY):
        return replace(death, text=f"{death.text}: Metal had not enough memory", device_oom=True)
    if death.code == -Signals.SIGSEGV and device == CPU_DEVICE:
        text = f"{death.text}, which is how MLX's CPU build ends when memory runs out"
        return replace(death, text=text, device_oom=True)
    return death


def oom_kill_count(root: Path = Path("/")) -> int:
    """The kernel's count of memory kills in our control group; 0 where there is none to read."""
    if sys.platform != "linux":
        return 0
    try:
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                file = root / f"sys/fs/cgroup{path}/memory.events"
            elif "memory" in controllers.split(","):
                file = root / f"sys/fs/cgroup/memory{path}/memory.oom_control"
            else:
                continue
            if file.exists():
                for entry in file.read_text().splitlines():
                    if entry.startswith("oom_kill "):
                        return int(entry.split()[1])
    except (OSError, ValueError):
        pass
    return 0
