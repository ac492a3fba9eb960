"""A log that the disk does not take changes nothing about the training, nor about how its faults are told."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from backpropagate_protocol.messages import Done, Fault, FaultKind
from backpropagate_protocol.spec import PlannedFault
from backpropagate_runner.runlog import LossyStream
from tests.runner.child import Child, train_job

FULL = Path("/dev/full")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has a device that is always full"),
]


def test_what_a_full_disk_does_not_take_is_dropped() -> None:
    with open(FULL, "wb", buffering=0) as full:
        stream = LossyStream(full.fileno())
        assert stream.write("a line\n") == 7
        stream.flush()
        stream.close()


def test_a_fault_is_told_although_its_traceback_cannot_be_written(tmp_path: Path) -> None:
    with Child(FULL) as child:
        child.do(train_job(tmp_path, faults=(PlannedFault("oom", 7),)))
        fault = child.finish()
    assert isinstance(fault, Fault)
    assert (fault.kind, fault.step) == (FaultKind.OOM, 6)


def test_a_training_in_which_something_is_printed_ends_well_although_nothing_can_be_written(tmp_path: Path) -> None:
    with Child(FULL) as child:
        child.do(train_job(tmp_path, faults=(PlannedFault("flood", 7),)))
        assert isinstance(child.finish(), Done)
