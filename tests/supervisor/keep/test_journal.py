"""The journal: whole lines survive, long runs stay small, a failing disk costs lines and not the run."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import pytest

from backpropagate.events import CheckpointCommitted, Noticed, Step
from backpropagate.keep.journal import Follower, Journal, read
from backpropagate_protocol.durable import Disk


def step(number: int) -> Step:
    return Step(time=0.0, run_id="r", step=number, total_steps=10, samples_seen=number, order=number)


def note(text: str) -> Noticed:
    return Noticed(time=0.0, run_id="r", level="info", text=text)


def checkpoint(number: int) -> CheckpointCommitted:
    return CheckpointCommitted(
        time=0.0, run_id="r", name=f"step-{number:08d}", step=number, samples_seen=0, order=0, seconds=0.0, bytes=0
    )


def test_events_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with Journal(path) as journal:
        for event in (note("a"), step(1), step(2), note("b")):
            journal.append(event)
    assert list(read(path)) == [note("a"), step(1), step(2), note("b")]


def test_a_long_run_stays_small_and_keeps_its_last_step(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with Journal(path, clock=lambda: 0.0) as journal:
        for number in range(1, 300_002):
            journal.append(step(number))
    steps = [event.step for event in read(path) if isinstance(event, Step)]
    assert steps[:2000] == list(range(1, 2001))
    assert steps[-1] == 300_001
    assert len(steps) < 20_000


def test_a_step_that_is_told_for_ever_fills_no_disk(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with Journal(path, clock=lambda: 0.0) as journal:
        for _ in range(1000):
            journal.append(step(0))
        journal.append(note("anew"))
        journal.append(step(0))
    assert list(read(path)) == [step(0), step(0), note("anew"), step(0)]


def test_the_newest_step_is_on_disk_before_any_other_event(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with Journal(path, clock=lambda: 0.0) as journal:
        for number in range(1, 2004):
            journal.append(step(number))
        journal.append(checkpoint(2003))
        events = list(read(path))
    assert events[-2:] == [step(2003), checkpoint(2003)]


def test_slow_steps_are_written_often_enough_to_be_followed(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    now = [0.0]
    with Journal(path, clock=lambda: now[0]) as journal:
        for number in range(1, 10_000):
            journal.append(step(number))
        before = len(list(read(path)))
        for number in range(10_001, 10_011):
            now[0] += 20.0
            journal.append(step(number))
        assert len(list(read(path))) >= before + 10


def test_a_torn_last_line_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with Journal(path) as journal:
        journal.append(note("a"))
        journal.append(note("b"))
    path.write_bytes(path.read_bytes()[:-10])
    with Journal(path) as journal:
        journal.append(note("c"))
    assert list(read(path)) == [note("a"), note("c")]


def test_a_line_of_a_newer_version_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event":"of_the_future","time":1,"run_id":"r"}\n')
    with Journal(path) as journal:
        journal.append(note("a"))
    assert list(read(path)) == [note("a")]


def test_a_follower_sees_each_event_once_and_waits_for_the_rest_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    follower = Follower(path)
    assert follower.poll() == []
    with Journal(path) as journal:
        journal.append(note("a"))
        journal.append(note("b"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert follower.poll() == [note("a")]
    path.write_bytes(whole)
    assert follower.poll() == [note("b")]


class FullDisk(Disk):
    """Refuses to sync while `full`."""

    full = False

    def fsync(self, descriptor: int) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "full")


def test_a_disk_that_was_full_for_a_while_costs_no_later_line(tmp_path: Path) -> None:
    path, disk = tmp_path / "events.jsonl", FullDisk()
    with Journal(path, disk=disk) as journal:
        journal.append(note("a"))
        disk.full = True
        journal.append(note("b"))
        disk.full = False
        journal.append(note("c"))
        assert journal.lost == 1
    assert list(read(path))[-1] == note("c")


def test_a_line_that_was_cut_by_a_full_disk_costs_no_later_line_and_no_descriptor(tmp_path: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("there a file cannot be kept from growing")
    import resource

    path = tmp_path / "events.jsonl"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(path) as journal:
        journal.append(note("a"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, limits[1]))
        try:
            for text in "bcd":
                journal.append(note(text))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        journal.append(note("e"))
        assert journal.lost == 3
    assert list(read(path)) == [note("a"), note("e")]
