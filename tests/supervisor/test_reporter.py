"""What is told, to whom, and when: a rehearsal is seen at once, and written down only if anything follows."""

from __future__ import annotations

from pathlib import Path

from backpropagate.drive.reporter import Reporter
from backpropagate.events import Event, Noticed, PhaseEntered, RunCreated, RunEnded, StageEnded
from backpropagate.keep import journal, runs
from backpropagate.keep.journal import Journal
from backpropagate.keep.record import Record
from tests.supervisor.keep.test_history import TIME, spec


class Heard:
    """A watcher that keeps every event."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def event(self, event: Event) -> None:
        self.events.append(event)

    def close(self) -> None: ...


CREATED = RunCreated(time=TIME, run_id="a")
CHECKED = StageEnded(time=TIME, run_id="a", stage="preflight")
NOTICE = Noticed(time=TIME, run_id="a", level="info", text="x")


def test_a_rehearsal_that_nothing_follows_leaves_no_line_and_no_row(tmp_path: Path) -> None:
    run_dir, heard = runs.create(spec(tmp_path, "a")), Heard()
    with Journal(run_dir.events) as lines:
        report = Reporter(run_dir, lines, Record(spec(tmp_path, "a"), run_dir), [heard])
        report.begin(CREATED, now=False)
        with report.rehearsing():
            report.event(CHECKED)
        assert not report.begun
    assert heard.events == [CHECKED]
    assert list(journal.read(run_dir.events)) == []
    assert not run_dir.output.history.exists()


def test_what_follows_a_rehearsal_brings_it_along_in_order_and_nobody_hears_it_twice(tmp_path: Path) -> None:
    run_dir, heard = runs.create(spec(tmp_path, "a")), Heard()
    with Journal(run_dir.events) as lines:
        report = Reporter(run_dir, lines, Record(spec(tmp_path, "a"), run_dir), [heard])
        report.begin(CREATED, now=False)
        with report.rehearsing():
            report.event(CHECKED)
        report.event(NOTICE)
        assert report.begun
    assert list(journal.read(run_dir.events)) == [CREATED, CHECKED, NOTICE]
    assert heard.events == [CHECKED, CREATED, NOTICE]
    assert run_dir.output.history.exists()


def test_only_a_scoring_that_lasts_gets_a_line_amid_a_training(tmp_path: Path) -> None:
    run_dir, clock = runs.create(spec(tmp_path, "a")), [0.0]
    with Journal(run_dir.events) as lines:
        report = Reporter(run_dir, lines, Record(spec(tmp_path, "a"), run_dir), [], clock=lambda: clock[0])
        for seconds, phase, done in [
            (0, "train", 0),
            (10, "evaluate", 0),
            (11, "evaluate", 5),
            (12, "train", 0),
            (20, "evaluate", 0),
            (26, "evaluate", 5),
            (27, "evaluate", 6),
            (28, "train", 0),
        ]:
            clock[0] = seconds
            report.event(PhaseEntered(time=TIME, run_id="a", phase=phase, done=done))
    told = [event for event in journal.read(run_dir.events) if isinstance(event, PhaseEntered)]
    assert [(event.phase, event.done) for event in told] == [("train", 0), ("evaluate", 5)]


def test_a_run_that_began_long_ago_keeps_its_rehearsal_at_once(tmp_path: Path) -> None:
    run_dir = runs.create(spec(tmp_path, "a"))
    with Journal(run_dir.events) as lines:
        report = Reporter(run_dir, lines, Record(spec(tmp_path, "a"), run_dir), [])
        report.begin(CREATED, now=True)
        with report.rehearsing():
            report.event(CHECKED)
        report.event(RunEnded(time=TIME, run_id="a", status="failed", exit_code=1, step=0, total_steps=0))
    assert [type(event) for event in journal.read(run_dir.events)] == [RunCreated, StageEnded, RunEnded]
