"""What the kernel wrote of a process: killed for want of memory, a segmentation fault, an error of the GPU. Linux only.

Many systems let only root read it; then nothing is known here, and `dmesg` as root tells.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator

_DEVICE = "/dev/kmsg"
_RECORD = 1 << 13  # the kernel gives a whole record at a time, and none is longer
_MOST = 20_000  # records; a full buffer has fewer
_SLACK = 2.0  # the kernel's clock and ours differ by fractions of a second
_HINTS = 8
_GPU = re.compile(r"NVRM: (Xid|GPU .* has fallen off the bus)")


def hints(pid: int, since: float) -> tuple[str, ...]:
    """What concerns the process `pid`, or the GPU, since the moment `since` of `time.monotonic`; at most 8 lines."""
    if sys.platform != "linux":
        return ()
    try:
        descriptor = os.open(_DEVICE, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return ()
    try:
        return concerning(_records(descriptor), pid, since)
    finally:
        os.close(descriptor)


def concerning(records: Iterable[str], pid: int, since: float) -> tuple[str, ...]:
    """`records` as the kernel words them: `priority,number,microseconds,flags;text`."""
    own = re.compile(rf"(Killed process {pid} |\[{pid}\]: segfault|\bpid={pid}\b)")
    found = []
    for record in records:
        head, _, text = record.partition(";")
        fields = head.split(",")
        if len(fields) < 3 or not fields[2].isdecimal() or int(fields[2]) / 1e6 < since - _SLACK:
            continue
        line = text.split("\n", 1)[0].strip()  # below it stand the device's properties
        if own.search(line) or _GPU.search(line):
            found.append(line)
    return tuple(found[-_HINTS:])


def _records(descriptor: int) -> Iterator[str]:
    for _ in range(_MOST):
        try:
            record = os.read(descriptor, _RECORD)
        except BrokenPipeError:
            continue  # this one was overwritten meanwhile
        except OSError:
            return  # BlockingIOError: that was the newest
        if not record:
            return
        yield record.decode(errors="replace")
