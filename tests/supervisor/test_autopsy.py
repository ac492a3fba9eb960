"""What is gathered of a child and written down, in the order in which a driver tells of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from backpropagate.drive.autopsy import Autopsy
from backpropagate.drive.reporter import Reporter
from backpropagate.events import CardTrouble, FaultRecorded, FaultSeen, Recovering, RunCreated, Step
from backpropagate.judge import telling
from backpropagate.judge.decisions import Death
from backpropagate.keep import faults, journal, runs
from backpropagate.keep.journal import Journal
from backpropagate.keep.record import Record
from backpropagate_protocol.catalogue import CATALOGUE
from backpropagate_protocol.rundir import RunDir
from tests.supervisor.keep.test_history import TIME, spec

KILLED = Death(-9, "was killed by SIGKILL")
FAULT = FaultSeen(time=TIME, run_id="a", attempt=1, kind="died", code="RUNTIME_CHILD_DIED", message="it died", step=7)
AGAIN = Recovering(time=TIME, run_id="a", reason="", delay=0.0, micro_batch=4, accumulation=2)


@pytest.fixture
def report(tmp_path: Path) -> Iterator[Reporter]:
    run_dir = runs.create(spec(tmp_path, "a"))
    with Journal(run_dir.events) as lines:
        report = Reporter(run_dir, lines, Record(spec(tmp_path, "a"), run_dir), [])
        report.begin(RunCreated(time=TIME, run_id="a"), now=True)
        yield report


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "runs" / "a")


def recorded(run_dir: RunDir) -> list[FaultRecorded]:
    return [event for event in journal.read(run_dir.events) if isinstance(event, FaultRecorded)]


async def until(fact: Callable[[], object]) -> None:
    with anyio.fail_after(60):
        while not fact():
            await anyio.sleep(0.005)


def test_what_was_seen_while_it_lived_is_in_the_record(report: Reporter, run_dir: RunDir) -> None:
    autopsy = Autopsy(run_dir, report, look=lambda pid, _since: (f"Killed process {pid}",))
    autopsy.begin()
    autopsy.born(os.getpid())
    for step, used in ((1, 500), (2, 900), (3, 700)):
        autopsy.saw(Step(time=TIME, run_id="a", step=step, total_steps=9, samples_seen=8, order=1, memory_used=used))
    autopsy.saw(CardTrouble(time=TIME, run_id="a", source="xid", code=31, text="Xid 31", deed="restart"))
    autopsy.measure(now=True)
    autopsy.saw(FAULT)
    autopsy.killed("it did not stop when asked")
    autopsy.died(KILLED, "step 3\nhf_" + "a" * 34 + " is the token\n")

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(autopsy.bury)
            await until(lambda: faults.read_all(run_dir))
            tasks.cancel_scope.cancel()

    anyio.run(main)
    [record] = faults.read_all(run_dir)
    assert (record.pid, record.device_memory, record.card) == (os.getpid(), 900, ("Xid 31",))
    assert record.memory > 5
    assert record.ended_by == "it did not stop when asked"
    assert record.last_lines == ("step 3", "[redacted] is the token")
    assert record.kernel == (f"Killed process {os.getpid()}",)
    assert not record.done


def test_an_end_without_a_fault_is_none_of_its_business(report: Reporter, run_dir: RunDir) -> None:
    async def main() -> None:
        autopsy = Autopsy(run_dir, report)
        autopsy.begin()
        autopsy.died(KILLED, "")
        await autopsy.bury()
        await autopsy.ended(telling.completed())

    anyio.run(main)
    assert faults.read_all(run_dir) == []


def test_what_was_done_may_be_known_before_or_after_the_burial(report: Reporter, run_dir: RunDir) -> None:
    async def main() -> None:
        autopsy = Autopsy(run_dir, report)
        async with anyio.create_task_group() as tasks:
            for decided_at_once in (True, False):
                autopsy.begin()
                autopsy.died(KILLED, "")
                autopsy.saw(FAULT)
                if decided_at_once:
                    autopsy.saw(AGAIN)
                autopsy.begin()
                tasks.start_soon(autopsy.bury)
                await anyio.lowlevel.checkpoint()
                if not decided_at_once:
                    autopsy.saw(AGAIN)
            await autopsy.ended(telling.completed())

    anyio.run(main)
    first, second = faults.read_all(run_dir)
    assert first.done == second.done == "recovering: from the start, batch 4 × 2"
    assert CATALOGUE["RUNTIME_CHILD_DIED"].remedy in first.advice
    assert [told.number for told in recorded(run_dir)] == [1, 2]


def test_a_fault_in_the_midst_of_a_recovery_closes_the_one_before(report: Reporter, run_dir: RunDir) -> None:
    async def main() -> None:
        autopsy = Autopsy(run_dir, report)
        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                autopsy.begin()
                autopsy.died(KILLED, "")
                autopsy.saw(FAULT)
                tasks.start_soon(autopsy.bury)
                await anyio.lowlevel.checkpoint()
            await autopsy.ended(telling.unkillable())

    anyio.run(main)
    first, second = faults.read_all(run_dir)
    assert first.done == "tried again, and that failed, too"
    assert second.done.startswith("ended the run (failed)")


def test_a_child_that_no_kill_ends_has_its_record(report: Reporter, run_dir: RunDir) -> None:
    autopsy = Autopsy(run_dir, report)
    autopsy.begin()
    autopsy.born(os.getpid())
    autopsy.saw(FAULT)
    autopsy.killed("no progress")
    anyio.run(autopsy.ended, telling.unkillable())
    [record] = faults.read_all(run_dir)
    assert (record.death, record.exit_code) == ("could not be ended: the driver holds it", None)
    assert record.advice == CATALOGUE["RUNTIME_GPU_LOST"].remedy


def test_neither_the_next_child_nor_the_end_waits_for_a_record_that_cannot_be_written(
    report: Reporter, run_dir: RunDir
) -> None:
    """Here the kernel's log does not answer, until the test is over."""
    never, took_over = threading.Event(), []

    def silent(_pid: int, _since: float) -> tuple[str, ...]:
        never.wait()
        return ()

    async def main() -> None:
        autopsy = Autopsy(run_dir, report, look=silent, patience=0.05)
        async with anyio.create_task_group() as tasks:
            for number in range(2):
                autopsy.begin()
                autopsy.born(os.getpid())
                autopsy.died(KILLED, "")
                autopsy.saw(FAULT)
                tasks.start_soon(autopsy.bury)
                tasks.start_soon(anyio.lowlevel.checkpoint)
                await anyio.lowlevel.checkpoint()
                took_over.append(recorded(run_dir)[number:])
            await autopsy.ended(telling.unkillable())
            tasks.cancel_scope.cancel()

    anyio.run(main)
    never.set()
    assert took_over == [[], []]
    assert [(told.record, told.attempt) for told in recorded(run_dir)] == [("", 1), ("", 1)]


def test_a_record_that_comes_late_has_the_number_that_was_told_and_what_was_done(
    report: Reporter, run_dir: RunDir
) -> None:
    asked, answers = threading.Event(), threading.Event()

    def slow(_pid: int, _since: float) -> tuple[str, ...]:
        asked.set()
        answers.wait()
        return ("Killed process",)

    async def main() -> None:
        autopsy = Autopsy(run_dir, report, look=slow)
        async with anyio.create_task_group() as tasks:
            autopsy.born(os.getpid())
            autopsy.died(KILLED, "")
            autopsy.saw(FAULT)
            tasks.start_soon(autopsy.bury)
            await until(asked.is_set)
            tasks.cancel_scope.cancel()
        autopsy.saw(AGAIN)
        answers.set()
        await until(lambda: faults.read_all(run_dir))

    anyio.run(main)
    [told], [record] = recorded(run_dir), faults.read_all(run_dir)
    assert (told.number, told.record, record.number) == (1, "", 1)
    assert record.done == "recovering: from the start, batch 4 × 2"
    assert record.kernel == ("Killed process",)
