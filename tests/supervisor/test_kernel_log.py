"""What the kernel's own lines say of a process, and which of them concern nobody here."""

from __future__ import annotations

import os
import sys
import time

import pytest

from backpropagate.doors.kernel_log import concerning, hints

RECORDS = [
    "6,800,50000000,-;Out of memory: Killed process 4711 (python) total-vm:9kB, anon-rss:8kB",  # long before it was born
    "6,900,100500000,-;oom-kill:constraint=CONSTRAINT_NONE,task=python,pid=4711,uid=0",
    "3,901,100500001,-;Out of memory: Killed process 4711 (python) total-vm:9kB, anon-rss:8kB\n SUBSYSTEM=pci",
    "3,902,100600000,-;Out of memory: Killed process 47110 (firefox) total-vm:9kB",
    "4,903,100700000,-;NVRM: Xid (PCI:0000:01:00): 79, pid=4711, GPU has fallen off the bus.",
    "6,904,100800000,-;python[4711]: segfault at 0 ip 0000 sp 0000 error 4 in libc.so",
    "6,905,100900000,-;usb 1-1: new device",
    "no record at all",
]


def test_the_lines_of_its_own_process_and_of_the_card_are_found() -> None:
    assert [line.split(":")[0] for line in concerning(RECORDS, 4711, 101.0)] == [
        "oom-kill",
        "Out of memory",
        "NVRM",
        "python[4711]",
    ]


def test_another_process_with_a_longer_number_is_another_process() -> None:
    assert all("firefox" not in line for line in concerning(RECORDS, 4711, 0.0))


def test_properties_of_the_device_are_left_out() -> None:
    assert all("SUBSYSTEM" not in line for line in concerning(RECORDS, 4711, 0.0))


def test_of_many_lines_the_newest_are_kept() -> None:
    flood = [f"3,{i},{i}000000,-;NVRM: Xid (PCI:0000:01:00): {i}" for i in range(100)]
    assert [line.rsplit(" ", 1)[1] for line in concerning(flood, 1, 0.0)] == [str(i) for i in range(92, 100)]


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/kmsg")
def test_a_log_that_nobody_may_read_or_that_says_nothing_is_no_error() -> None:
    assert isinstance(hints(os.getpid(), time.monotonic()), tuple)
