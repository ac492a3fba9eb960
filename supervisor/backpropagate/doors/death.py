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
    0xC0000006: "a page that could not be read from the disk",
    0xC0000017: "too little memory",
    0xC000001D: "an illegal instruction",
    0xC0000094: "a division by zero",
    0xC000009A: "too few system resources",
    0xC00000FD: "a stack overflow",
    0xC000012D: "a full page file",
    0xC000013A: "Ctrl-C",
    0xC0000135: "a missing DLL",
    0xC0000142: "a DLL that failed to start",
    0xC0000374: "a damaged heap",
    0xC0000409: "an abort",
    0xC0000602: "an abort",
    0xC06D007E: "a missing DLL",
    0x40010004: "the debugger or the Job Object",
}
_OUT_OF_MEMORY = frozenset({0xC0000017, 0xC000012D})

# What such an end comes from, where the system does not say more. The words are those of `decode`.
_MEANINGS = {
    "SIGKILL": "ended from outside: `kill -9`, a job manager, or a memory killer other than the kernel's for this group",
    "SIGTERM": "somebody asked it to end",
    "SIGSEGV": "native code (a driver, an extension module) touched memory that is not its own",
    "SIGBUS": "a file that it had mapped became shorter or unreadable, or shared memory ran out",
    "SIGABRT": "native code gave up by itself: a failed assertion, a damaged heap",
    "SIGILL": "a package was built for another processor",
    "SIGFPE": "native code divided by zero",
    "SIGSYS": "a sandbox forbade a system call",
    "SIGXCPU": "the limit of processor time was reached (`ulimit -t`)",
    "SIGXFSZ": "the limit of file sizes was reached (`ulimit -f`)",
    "an access violation": "native code (a driver, an extension module) touched memory that is not its own",
    "a page that could not be read from the disk": "the disk, or a network share, failed under a mapped file",
    "too little memory": "the machine's memory and its page file were used up",
    "a full page file": "the machine's memory and its page file were used up",
    "an illegal instruction": "a package was built for another processor",
    "a missing DLL": "an installation that is not whole, or without the Visual C++ runtime",
    "a damaged heap": "native code wrote past the end of its memory",
    "an abort": "native code gave up by itself: a failed assertion, a broken invariant",
}


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
        return Death(code, f"ended by {_NTSTATUS[status]} (0x{status:08X})", host_oom=status in _OUT_OF_MEMORY)
    if code == 0:
        return Death(code, "exited with 0 without a result")
    return Death(code, f"exited with {code}")


def meaning(death: Death) -> str:
    """What an end of this kind comes from; nothing where its text says it all, or nobody can know."""
    if death.host_oom or death.device_oom or death.code is None:
        return ""
    if death.code < 0:
        try:
            return _MEANINGS.get(Signals(-death.code).name, "")
        except ValueError:
            return ""
    named = _NTSTATUS.get(death.code & 0xFFFFFFFF)
    if named is not None:
        return _MEANINGS.get(named, "")
    if 128 < death.code < 128 + 65 and sys.platform != "win32":
        try:
            name = Signals(death.code - 128).name
        except ValueError:
            return ""
        return f"a shell or a container reports {name} this way: {_MEANINGS.get(name, 'a signal ended what it ran')}"
    return ""


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
