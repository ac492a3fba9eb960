"""What is written down of a fault, read from real runs of real children that really died."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from backpropagate.events import FaultRecorded, FaultSeen
from backpropagate.keep import faults, journal
from backpropagate_protocol.rundir import OutputDir, RunDir
from tests.conftest import Oracle
from tests.system.supervised import At, run_here, toy_spec

pytestmark = pytest.mark.slow


def show_run(output: OutputDir, *flags: str) -> str:
    command = [sys.executable, "-P", "-m", "backpropagate", "show-run", "latest", "--output", str(output.path), *flags]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, check=True).stdout


def only_run(output: OutputDir) -> RunDir:
    [folder] = output.runs.iterdir()
    return RunDir(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_every_fault_of_a_run_is_told_from_its_cause_to_what_was_done(oracle: Oracle) -> None:
    spec = toy_spec(oracle.output(), "sigkill:7", "error:12:2", "hang:18:3", hang_floor=5.0)
    outcome, story = run_here(spec)
    assert (outcome.status, outcome.recoveries) == ("completed", 3)
    run_dir = only_run(oracle.output())
    killed, failed, hung = faults.read_all(run_dir)

    assert (killed.kind, killed.exit_code, killed.death) == ("died", -9, "was killed by SIGKILL")
    assert (killed.attempt, killed.phase, killed.step, killed.ended_by) == (1, "train", 6, "")
    assert killed.last_lines[-1] == "planned fault before step 7: sigkill"
    assert killed.pid
    assert killed.memory > 5
    assert killed.done == "recovering: from step 5, batch 8 × 1; 1 step done again"

    assert (failed.kind, failed.step, failed.message) == ("internal", 11, "RuntimeError: a planned error")
    assert failed.stacks.startswith("Traceback")
    assert "a planned error" in failed.stacks

    assert (hung.kind, hung.step, hung.exit_code) == ("hang", 17, -6)
    assert (hung.ended_by, hung.meaning) == ("no progress in phase train for 5 s", "")
    assert "in _hang" in hung.stacks
    assert "Current thread" in hung.stacks
    assert all(record.advice.startswith("Nothing: the run went on by itself.") for record in (killed, failed, hung))

    told = story.of(FaultRecorded)
    assert [(each.number, each.attempt, each.pid) for each in told] == [
        (record.number, record.attempt, record.pid) for record in (killed, failed, hung)
    ]
    assert all((run_dir.path / each.record).is_file() for each in told)
    assert told == [event for event in journal.read(run_dir.events) if isinstance(event, FaultRecorded)]

    document = json.loads(show_run(oracle.output(), "--json"))
    assert [each["kind"] for each in document["faults"]] == [killed.kind, failed.kind, hung.kind]
    shown = show_run(oracle.output())
    for record in (killed, failed, hung):
        assert f"fault {record.number}, " in shown
        assert record.message in shown
        assert record.done in shown


def test_the_last_fault_says_why_the_run_ended_and_what_to_do(oracle: Oracle) -> None:
    outcome, _ = run_here(toy_spec(oracle.output(), "error:4", "error:4:2"))
    assert outcome.status == "failed"
    first, last = faults.read_all(only_run(oracle.output()))
    assert first.done.startswith("recovering")
    assert last.done.startswith("ended the run (failed): the same fault came twice")
    assert last.advice == outcome.suggestion


def test_a_disk_that_takes_no_record_costs_the_record_alone(oracle: Oracle) -> None:
    """Where the folder should be is a file."""
    output = oracle.output()
    spec = toy_spec(output, "error:7")
    block = At(lambda event: isinstance(event, FaultSeen), lambda: output.run(spec.run_id).faults.write_text("mine"))
    outcome, story = run_here(spec, sinks=[block])
    assert (outcome.status, outcome.recoveries) == ("completed", 1)
    [told] = story.of(FaultRecorded)
    assert (told.record, told.attempt) == ("", 1)
    assert faults.read_all(output.run(spec.run_id)) == []


def test_a_run_without_a_fault_has_no_folder_for_them(oracle: Oracle) -> None:
    run_here(toy_spec(oracle.output(), steps=2))
    assert not only_run(oracle.output()).faults.exists()
