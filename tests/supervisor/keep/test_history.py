"""The index of runs: right, quick, and never lost."""

from __future__ import annotations

import math
import os
import threading
from pathlib import Path

import msgspec
import pytest

from backpropagate.events import (
    AttemptStarted,
    CheckpointCommitted,
    FaultSeen,
    Recovering,
    RunCreated,
    RunEnded,
    RunResumed,
    Step,
)
from backpropagate.keep import history, locks, runs
from backpropagate.keep.journal import Journal
from backpropagate.keep.record import LOSS_POINTS, Record, RunRow
from backpropagate_protocol.errors import RunNotFoundError
from backpropagate_protocol.rundir import OutputDir, RunDir
from backpropagate_protocol.spec import RunSpec
from tests.supervisor.transcript import spec as scenario_spec

TIME = 1_800_000_000.0


def spec(output: Path, run_id: str) -> RunSpec:
    return msgspec.structs.replace(
        scenario_spec(), run_id=run_id, output=str(output), created="2026-01-01T00:00:00Z", name="mine"
    )


def row(run_id: str, status: str = "completed", **fields: object) -> RunRow:
    return msgspec.convert({"run_id": run_id, "status": status, **fields}, RunRow)


def a_run(output: Path, run_id: str) -> RunDir:
    """A run directory with the journal of a run that had one fault."""
    run_dir = runs.create(spec(output, run_id))

    def step(number: int, loss: float) -> Step:
        return Step(time=TIME, run_id=run_id, step=number, total_steps=4, samples_seen=8 * number, order=5, loss=loss)

    with Journal(run_dir.events) as journal:
        journal.append(RunCreated(time=TIME, run_id=run_id, versions={"backpropagate": "0"}))
        journal.append(AttemptStarted(time=TIME, run_id=run_id, attempt=1, pid=1, micro_batch=8, accumulation=1))
        journal.append(step(1, 2.0))
        journal.append(
            CheckpointCommitted(
                time=TIME, run_id=run_id, name="step-00000001", step=1, samples_seen=8, order=5, seconds=0.1, bytes=1
            )
        )
        journal.append(step(2, 1.5))
        journal.append(
            FaultSeen(time=TIME, run_id=run_id, attempt=1, kind="oom", code="RUNTIME_GPU_OOM", message="oom", step=2)
        )
        journal.append(
            Recovering(time=TIME, run_id=run_id, reason="oom", delay=0.0, micro_batch=4, accumulation=2, resume_step=1)
        )
        journal.append(
            AttemptStarted(time=TIME, run_id=run_id, attempt=2, pid=2, micro_batch=4, accumulation=2, resume_step=1)
        )
        journal.append(step(2, 1.25))
        journal.append(
            RunEnded(
                time=TIME,
                run_id=run_id,
                status="completed",
                exit_code=0,
                step=4,
                total_steps=4,
                final_loss=0.5,
                adapter="/a",
                seconds=9.0,
            )
        )
    return run_dir


def test_a_row_is_folded_from_the_journal(tmp_path: Path) -> None:
    folded = history.row_of(a_run(tmp_path, "run-1"))
    assert (folded.status, folded.final_loss, folded.steps, folded.duration_seconds) == ("completed", 0.5, 4, 9.0)
    assert folded.loss_history == [(1, 2.0), (2, 1.25)]
    assert folded.micro_batch_history == [(0, 8), (1, 4)]
    assert (folded.recoveries, [fault["code"] for fault in folded.faults]) == (1, ["RUNTIME_GPU_OOM"])
    assert folded.checkpoint_path == str(OutputDir(tmp_path).run("run-1").checkpoint(1))
    assert (folded.name, folded.model_name, folded.dataset_info) == ("mine", "toy", "/data")


def test_what_a_killed_supervisor_did_counts_and_what_lies_between_two_does_not(tmp_path: Path) -> None:
    """Up to its last line: nobody knows how long it lived after that."""

    def step(at: float) -> Step:
        return Step(time=TIME + at, run_id="r", step=1, total_steps=4, samples_seen=8, order=5)

    def ended(at: float, seconds: float) -> RunEnded:
        return RunEnded(
            time=TIME + at, run_id="r", status="interrupted", exit_code=75, step=0, total_steps=4, seconds=seconds
        )

    record = Record(spec(tmp_path, "r"), OutputDir(tmp_path).run("r"))
    took = []
    for event in (
        RunCreated(time=TIME, run_id="r"),
        step(36.0),  # and here it is killed
        RunResumed(time=TIME + 500, run_id="r", previous="interrupted"),
        step(510.0),
        ended(512.0, seconds=11.5),
        RunResumed(time=TIME + 900, run_id="r", previous="interrupted"),
        step(890.0),  # the clock was set back
    ):
        record.fold(event)
        took.append(record.row().duration_seconds)
    assert took == [0.0, 36.0, 36.0, 46.0, 47.5, 47.5, 47.5]


def test_a_run_that_kept_nothing_is_at_step_0_and_one_that_was_killed_where_it_was_last_seen(tmp_path: Path) -> None:
    record = Record(spec(tmp_path, "r"), OutputDir(tmp_path).run("r"))
    record.fold(RunCreated(time=TIME, run_id="r"))
    record.fold(Step(time=TIME, run_id="r", step=4, total_steps=40, samples_seen=32, order=5, loss=1.5))
    assert record.row().steps == 4
    record.fold(RunEnded(time=TIME, run_id="r", status="interrupted", exit_code=130, step=0, total_steps=40))
    assert (record.row().steps, record.row().samples_seen, record.row().loss_history) == (0, 0, [(4, 1.5)])


def test_the_loss_history_of_a_long_run_is_short_and_ends_with_its_last_step(tmp_path: Path) -> None:
    record = Record(spec(tmp_path, "r"), OutputDir(tmp_path).run("r"))
    for number in range(1, 50_002):
        record.fold(
            Step(time=0, run_id="r", step=number, total_steps=50_001, samples_seen=0, order=0, loss=float(number))
        )
    points = record.row().loss_history
    assert len(points) <= LOSS_POINTS
    assert points[-1] == (50_001, 50_001.0)


def test_a_loss_that_is_no_number_never_gets_into_the_file(tmp_path: Path) -> None:
    record = Record(spec(tmp_path, "r"), OutputDir(tmp_path).run("r"))
    record.fold(Step(time=0, run_id="r", step=1, total_steps=2, samples_seen=0, order=0, loss=math.nan))
    record.fold(RunEnded(time=0, run_id="r", status="failed", exit_code=2, step=1, total_steps=2, final_loss=math.inf))
    history.record(tmp_path, record.row())
    assert b"NaN" not in OutputDir(tmp_path).history.read_bytes()
    assert history.list_rows(tmp_path)[0].final_loss is None


def test_rows_are_listed_newest_first_by_status_and_up_to_a_limit(tmp_path: Path) -> None:
    for number in range(5):
        history.record(tmp_path, row(f"run-{number}", "failed" if number % 2 else "completed"))
    assert [r.run_id for r in history.list_rows(tmp_path, limit=2)] == ["run-4", "run-3"]
    assert [r.run_id for r in history.list_rows(tmp_path, status="failed")] == ["run-3", "run-1"]


def test_a_row_replaces_that_of_the_same_run(tmp_path: Path) -> None:
    history.record(tmp_path, row("run-1", "running"))
    history.record(tmp_path, row("run-2"))
    history.record(tmp_path, row("run-1", "completed"))
    assert [(r.run_id, r.status) for r in history.list_rows(tmp_path)] == [
        ("run-2", "completed"),
        ("run-1", "completed"),
    ]


def test_the_file_is_a_json_array_for_others(tmp_path: Path) -> None:
    history.record(tmp_path, row("run-1"))
    history.record(tmp_path, row("run-2"))
    loaded = msgspec.json.decode(OutputDir(tmp_path).history.read_bytes())
    assert [entry["run_id"] for entry in loaded] == ["run-1", "run-2"]


def test_a_file_that_an_editor_has_laid_out_anew_is_still_understood(tmp_path: Path) -> None:
    history.record(tmp_path, row("run-1"))
    path = OutputDir(tmp_path).history
    path.write_bytes(msgspec.json.format(path.read_bytes(), indent=4))
    history.record(tmp_path, row("run-2"))
    assert [r.run_id for r in history.list_rows(tmp_path)] == ["run-2", "run-1"]


@pytest.mark.parametrize("torn", [b"", b"[\n{", b'[\n{"run_id":"x"', b"not json at all"])
def test_a_torn_file_is_moved_aside_and_made_again(tmp_path: Path, torn: bytes) -> None:
    a_run(tmp_path, "run-1")
    history_file = OutputDir(tmp_path).history
    history_file.write_bytes(torn)
    assert [(r.run_id, r.status) for r in history.list_rows(tmp_path)] == [("run-1", "completed")]
    aside = [path.read_bytes() for path in tmp_path.glob("run_history.json.torn-*")]
    assert aside == [torn]


def test_a_row_whose_middle_is_damaged_is_made_again_too(tmp_path: Path) -> None:
    history.record(tmp_path, history.row_of(a_run(tmp_path, "run-1")))
    path = OutputDir(tmp_path).history
    path.write_bytes(path.read_bytes().replace(b'"completed"', b'"comp'))
    assert [r.status for r in history.list_rows(tmp_path)] == ["completed"]


def test_a_rebuild_finds_every_run(tmp_path: Path) -> None:
    for number in range(3):
        a_run(tmp_path, f"run-{number}")
    assert history.rebuild(tmp_path) == 3
    assert {r.run_id for r in history.list_rows(tmp_path)} == {"run-0", "run-1", "run-2"}


def test_a_rebuild_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunNotFoundError):
        history.rebuild(tmp_path / "nowhere")


def test_a_running_row_without_a_supervisor_is_shown_as_interrupted(tmp_path: Path) -> None:
    history.record(tmp_path, row("run-1", "running"))
    assert history.list_rows(tmp_path)[0].status == "interrupted"
    with locks.hold(OutputDir(tmp_path).lock, "run-1", "it"):
        assert history.list_rows(tmp_path)[0].status == "running"


def test_a_running_row_is_brought_up_to_date_from_its_journal(tmp_path: Path) -> None:
    run_dir = runs.create(spec(tmp_path, "run-1"))
    with Journal(run_dir.events) as journal:
        journal.append(RunCreated(time=TIME, run_id="run-1", versions={}))
        history.record(tmp_path, history.row_of(run_dir))
        journal.append(Step(time=TIME, run_id="run-1", step=3, total_steps=4, samples_seen=24, order=5, loss=1.5))
    assert [(row.status, row.steps) for row in history.list_rows(tmp_path)] == [("interrupted", 3)]
    with locks.hold(OutputDir(tmp_path).lock, "run-1", "it"):
        assert [(row.status, row.steps) for row in history.list_rows(tmp_path)] == [("running", 3)]


def test_several_writers_lose_no_row(tmp_path: Path) -> None:
    def write(number: int) -> None:
        for index in range(10):
            history.record(tmp_path, row(f"run-{number}-{index}"))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(history.list_rows(tmp_path)) == 40


def test_rows_larger_than_a_piece_of_the_file_are_read_from_its_end(tmp_path: Path) -> None:
    for number in range(3):
        history.record(tmp_path, row(f"run-{number}", failure_reason="x" * 300_000))
    assert [r.run_id for r in history.list_rows(tmp_path, limit=2)] == ["run-2", "run-1"]
    assert len(history.list_rows(tmp_path)) == 3


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / ".run_history.json.12345678.tmp").write_text("[")
    history.record(tmp_path, row("run-1"))
    assert not list(tmp_path.glob("*.tmp"))
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_run_that_was_killed_before_its_first_line_is_listed_as_interrupted(tmp_path: Path) -> None:
    a_run(tmp_path, "one-1")
    unbegun = runs.create(spec(tmp_path, "two-2"))
    unbegun.events.touch()
    assert [(found.run_id, found.status) for found in history.list_rows(tmp_path)] == [("two-2", "interrupted")]
    history.rebuild(tmp_path)
    assert sorted(found.run_id for found in history.list_rows(tmp_path)) == ["one-1", "two-2"]


def test_the_latest_run_to_resume_is_the_newest_that_is_not_complete(tmp_path: Path) -> None:
    """An export that was made of one run does not hide another that was interrupted."""
    for at, (run_id, status) in enumerate([("old-1", "interrupted"), ("mid-2", "partial"), ("new-3", "completed")]):
        run_dir = runs.create(spec(tmp_path, run_id))
        code = 0 if status == "completed" else 75
        with Journal(run_dir.events) as journal:
            journal.append(RunCreated(time=TIME, run_id=run_id))
            journal.append(RunEnded(time=TIME, run_id=run_id, status=status, exit_code=code, step=1, total_steps=2))
        os.utime(run_dir.spec, (TIME + at, TIME + at))
    assert history.to_resume(tmp_path, "latest").run_id == "mid-2"
    assert history.to_resume(tmp_path, "old").run_id == "old-1"
