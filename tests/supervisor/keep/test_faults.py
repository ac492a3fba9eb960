"""Records of faults in a run directory."""

from __future__ import annotations

from pathlib import Path

from backpropagate.keep import faults
from backpropagate.keep.faults import FaultRecord
from backpropagate_protocol.rundir import RunDir


def a_record(run_dir: RunDir, number: int, done: str = "") -> FaultRecord:
    return FaultRecord(
        run_id=run_dir.run_id,
        number=number,
        time=1.0,
        kind="died",
        code="RUNTIME_CHILD_DIED",
        message="it died",
        done=done,
    )


def test_records_are_counted_on_over_all_supervisors(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    assert faults.next_number(run_dir) == 1
    assert faults.write(run_dir, a_record(run_dir, 1)) == "faults/001.json"
    faults.write(run_dir, a_record(run_dir, 12))
    assert faults.next_number(run_dir) == 13


def test_what_is_known_later_takes_the_place_of_what_was_known_first(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    faults.write(run_dir, a_record(run_dir, 1))
    faults.write(run_dir, a_record(run_dir, 1, done="recovering"))
    assert [record.done for record in faults.read_all(run_dir)] == ["recovering"]


def test_a_record_that_cannot_be_read_hides_no_other(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    for number in (1, 2, 3):
        faults.write(run_dir, a_record(run_dir, number))
    run_dir.fault(2).write_bytes(b'{"run_id": "torn')
    (run_dir.faults / "notes.json").write_text("a person's own")
    assert [record.number for record in faults.read_all(run_dir)] == [1, 3]
    assert faults.next_number(run_dir) == 4


def test_a_run_without_faults_has_no_records(tmp_path: Path) -> None:
    assert faults.read_all(RunDir(tmp_path)) == []
