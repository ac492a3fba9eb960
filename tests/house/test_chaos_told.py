"""What the chaos gate calls untold: its rules can fail, and ask for nothing that no child could tell."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from backpropagate.events import (
    AttemptStarted,
    CheckpointCommitted,
    CheckpointMissed,
    Event,
    FaultSeen,
    Noticed,
    RunEnded,
    RunResumed,
)
from backpropagate_protocol.planned import announcement

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def rules(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return import_module("_chaos_told")


def child(attempt: int) -> Event:
    return AttemptStarted(time=0, run_id="r", attempt=attempt, pid=1, micro_batch=8, accumulation=1)


def says(kind: str) -> Event:
    return Noticed(time=0, run_id="r", level="info", text=announcement("before step 3", kind))


def fault(attempt: int) -> Event:
    return FaultSeen(time=0, run_id="r", attempt=attempt, kind="died", code="X", message="")


SAVED: Event = CheckpointCommitted(
    time=0, run_id="r", name="step-8", step=8, samples_seen=64, order=1, seconds=0.1, bytes=9
)
MISSED: Event = CheckpointMissed(time=0, run_id="r", step=8, code="X", message="", failures=1)
END: Event = RunEnded(time=0, run_id="r", status="completed", exit_code=0, step=9, total_steps=9)
ANOTHER_SUPERVISOR: Event = RunResumed(time=0, run_id="r", previous="running")


@pytest.mark.parametrize(
    ("events", "missing"),
    [
        ([child(1), fault(1), child(2), END], 0),
        ([child(1), child(2), END], 1),
        ([child(1), fault(2), child(2), END], 1),
        ([child(1), child(2), fault(2), child(3), fault(3), fault(3), END], 1),  # others' faults do not make up for it
        ([child(1), says("sigkill"), ANOTHER_SUPERVISOR, child(2), END], 0),  # its supervisor was killed
        ([child(1), says("sigkill"), END], 1),
        ([child(1), says("hold"), says("flood"), says("disk_full"), MISSED, END], 0),
    ],
)
def test_each_child_that_was_replaced_owes_a_fault_of_its_own(
    rules: ModuleType, events: Sequence[Event], missing: int
) -> None:
    assert len(rules.untold(events)) == missing


@pytest.mark.parametrize(
    ("events", "struck", "missing"),
    [
        ([child(1), says("disk_full"), MISSED, SAVED, END], set(), 0),
        ([child(1), says("disk_full"), SAVED, END], set(), 1),
        ([child(1), says("disk_error"), END], set(), 1),
        ([child(1), says("disk_error"), fault(1), child(2), END], set(), 1),
        ([child(1), says("disk_error"), fault(1), child(2), END], {1}, 0),  # killed from outside, maybe too soon
        ([child(1), says("disk_error"), fault(1), child(2), END], {2}, 1),
        ([child(1), says("disk_error"), SAVED, fault(1), child(2), END], {1}, 1),  # it lived to save again
    ],
)
def test_a_save_that_the_disk_did_not_take_is_owed_unless_the_child_was_killed(
    rules: ModuleType, events: Sequence[Event], struck: set[int], missing: int
) -> None:
    assert len(list(rules.missed_in_silence(events, struck))) == missing
