"""What a drill reads out of a journal: times, steps done again, and everything that is not as it should be."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from backpropagate import events as e
from backpropagate.commands.drill import _document, _table, drill
from backpropagate.drive import drill_reading
from backpropagate.drive.drill import Result
from backpropagate.drive.drill_reading import Struck, Truth
from backpropagate.drive.drill_rows import Blow, End, Row, real_rows, toy_rows
from backpropagate_protocol.planned import announcement
from backpropagate_protocol.spec import PlannedFault
from backpropagate_runner.drill import KINDS

RUN = "r"
TRUTH = Truth({1: (8, 11), 2: (16, 22), 3: (24, 33), 4: (32, 44)}, 0.5)
ROW = Row("sigkill", "child killed", (PlannedFault("sigkill", 3),), code="RUNTIME_CHILD_DIED")


def step(time: float, number: int, order: int | None = None) -> e.Step:
    samples, planned = TRUTH.after[number]
    order = planned if order is None else order
    return e.Step(time=time, run_id=RUN, step=number, total_steps=4, samples_seen=samples, order=order)


def attempt(time: float, micro: int = 8, accumulation: int = 1) -> e.AttemptStarted:
    return e.AttemptStarted(time=time, run_id=RUN, attempt=1, pid=99, micro_batch=micro, accumulation=accumulation)


def ready(time: float, at: int = 0) -> e.ModelReady:
    return e.ModelReady(
        time=time, run_id=RUN, attempt=1, backend="toy", device="toy", step=at, total_steps=4, micro_batch=8,
        accumulation=1, trainable_parameters=1, parameters=1, precision="fp64",
    )  # fmt: skip


def fault(time: float, code: str = "RUNTIME_CHILD_DIED") -> e.FaultSeen:
    return e.FaultSeen(time=time, run_id=RUN, attempt=1, kind="died", code=code, message="it died")


def ended(
    time: float, status: str = "completed", code: str | None = None, *, step: int = 4, loss: float = 0.5
) -> e.RunEnded:
    samples, order = TRUTH.after[step]
    return e.RunEnded(
        time=time, run_id=RUN, status=status, exit_code=0, step=step, total_steps=4, code=code, samples_seen=samples,
        order=order, final_loss=loss,
    )  # fmt: skip


def announced(time: float, kind: str = "sigkill") -> e.Noticed:
    return e.Noticed(time=time, run_id=RUN, level="info", text=announcement("before step 3", kind))


def recovered() -> list[e.Event]:
    return [
        attempt(0), ready(1), step(2, 1), step(3, 2), announced(4), fault(4.25), attempt(5), ready(6, at=1), step(7, 2),
        step(8, 3), step(9, 4), ended(10),
    ]  # fmt: skip


def calm() -> list[e.Event]:
    return [event for event in recovered() if not isinstance(event, e.FaultSeen)]


def test_a_fault_is_timed_from_its_announcement_to_its_notice_and_to_the_next_childs_first_step() -> None:
    times = drill_reading.times(ROW, recovered(), None)
    assert (times.noticed, times.recovered) == (0.25, 3)
    assert drill_reading.steps_lost(recovered()) == 1


def test_a_run_that_came_through_has_nothing_wrong() -> None:
    assert drill_reading.not_as_expected(ROW, recovered()) == []
    assert drill_reading.other_samples(recovered(), TRUTH, 1e-9) == []


def test_a_killed_supervisor_is_timed_by_what_was_seen_from_outside() -> None:
    row = Row("killed", "killed", (PlannedFault("hold", 3),), End.RESUMED, blow=Blow.KILL)
    events = calm()
    times = drill_reading.times(row, events, Struck(4.5, 4.6))
    assert times.noticed == pytest.approx(0.1)
    assert times.recovered == 2.5
    assert drill_reading.not_as_expected(row, events) == []


def test_a_failed_checkpoint_is_got_over_with_the_next_one() -> None:
    missed = e.CheckpointMissed(time=5, run_id=RUN, step=2, code="RUNTIME_DISK_FULL", message="full", failures=1)
    saved = e.CheckpointCommitted(time=7, run_id=RUN, name="x", step=3, samples_seen=24, order=33, seconds=0, bytes=1)
    row = Row("full", "disk full", (PlannedFault("disk_full", 2),), End.UNMOVED, "RUNTIME_DISK_FULL")
    events: list[e.Event] = [
        attempt(0),
        ready(1),
        step(3, 2),
        announced(4, "disk_full"),
        missed,
        step(6, 3),
        saved,
        ended(8),
    ]
    times = drill_reading.times(row, events, None)
    assert (times.noticed, times.recovered) == (1, 3)
    assert drill_reading.not_as_expected(row, events) == []


@pytest.mark.parametrize(
    ("row", "events", "said"),
    [
        (ROW, recovered()[:-1], "no last word"),
        (ROW, [attempt(0), step(1, 1), ended(2)], "RUNTIME_CHILD_DIED was to be seen, and nothing was"),
        (ROW, [attempt(0), fault(1, "RUNTIME_HANG"), ended(2)], "and RUNTIME_HANG was"),
        (ROW, [attempt(0), fault(1), ended(2, "failed", "RUNTIME_CRASH_LOOP")], "it ended as failed, RUNTIME_CRASH_LOOP"),
        (Row("noise", "noise", end=End.UNMOVED), recovered(), "a child was lost: it died"),
        (Row("lost", "lost", end=End.GIVEN_UP, code="RUNTIME_GPU_LOST"), recovered(), "it ended as completed"),
        (Row("full", "full", end=End.UNMOVED, code="RUNTIME_DISK_FULL"), [attempt(0), ended(1)], "was not told"),
        (Row("stop", "stop", end=End.RESUMED, code="X", blow=Blow.STOP), [ended(1)], "asked to stop, it ended as completed"),
        (Row("by", "by", ROW.faults, code=ROW.code, standby=True), recovered(), "the standby did not take over"),
        (Row("torn", "torn", (PlannedFault("torn_save", 2), *ROW.faults), code=ROW.code), recovered(), "its damage was not seen"),
    ],
)  # fmt: skip
def test_a_run_that_ends_otherwise_than_the_row_says_does_not_hold(row: Row, events: list[e.Event], said: str) -> None:
    assert said in "; ".join(drill_reading.not_as_expected(row, events))


def saved(time: float, number: int, name: str = "x") -> e.CheckpointCommitted:
    samples, order = TRUTH.after[number]
    return e.CheckpointCommitted(
        time=time, run_id=RUN, name=name, step=number, samples_seen=samples, order=order, seconds=0, bytes=1
    )


def heat(level: str) -> e.Heat:
    return e.Heat(time=4.2, run_id=RUN, level=level, celsius=91)


HOT = Row("hot", "hot", code=ROW.code, blow=Blow.CARD, celsius=(91,), heat="pause", halves=True)


@pytest.mark.parametrize(
    ("row", "events", "said"),
    [
        (ROW, [attempt(0), fault(1), attempt(2, 4, 2), ended(3)], "the micro-batch was halved"),
        (Row("oom", "oom", ROW.faults, code=ROW.code, halves=True), recovered(), "the micro-batch was not halved"),
        (HOT, recovered(), "the heat was to be met with pause, and was with nothing"),
        (HOT, [*recovered()[:5], heat("kill"), *recovered()[5:]], "and was with kill"),
        (HOT, [*recovered()[:5], heat("pause"), *recovered()[5:]], "it was rested without a save"),
        (ROW, [*recovered()[:4], saved(4, 2), *recovered()[4:]], "it went on from step 1 although step 2 was kept"),
    ],
)  # fmt: skip
def test_a_row_does_not_hold_for_what_its_samples_do_not_show(row: Row, events: list[e.Event], said: str) -> None:
    assert said in "; ".join(drill_reading.not_as_expected(row, events))


def test_going_on_from_the_one_before_a_damaged_checkpoint_loses_nothing_that_was_kept() -> None:
    damaged = e.CheckpointQuarantined(time=4.5, run_id=RUN, name="y", reason="torn")
    events = [*recovered()[:4], saved(3.5, 1), saved(4, 2, "y"), *recovered()[4:6], damaged, *recovered()[6:]]
    assert drill_reading.not_as_expected(ROW, events) == []


def test_a_row_to_which_nothing_was_done_does_not_hold() -> None:
    frozen = Row("frozen", "frozen", blow=Blow.FREEZE)
    assert drill_reading.not_struck(frozen, calm(), None) == ["the blow never fell"]
    assert drill_reading.not_struck(frozen, calm(), Struck(1)) == []
    noise = Row("noise", "noise", (PlannedFault("print_noise", 3),), End.UNMOVED)
    assert drill_reading.not_struck(noise, calm(), None) == ["print_noise never came about"]
    assert drill_reading.not_struck(ROW, recovered(), None) == []


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([attempt(0), step(1, 2, order=23), ended(2)], "at step 2 other samples"),
        ([attempt(0), attempt(1, micro=4, accumulation=1), ended(2)], "the effective batch was 4 and 8"),
        ([attempt(0), ended(1, step=3)], "3 steps were done instead of 4"),
        ([attempt(0), ended(1, loss=0.6)], "the loss came to 0.6 instead of 0.5"),
    ],
)
def test_other_samples_another_batch_or_another_loss_are_seen(events: list[e.Event], said: str) -> None:
    assert said in "; ".join(drill_reading.other_samples(events, TRUTH, 1e-9))


def test_a_run_with_a_fault_of_its_own_is_no_truth() -> None:
    assert drill_reading.truth(recovered()) is None
    assert drill_reading.truth(calm()) == TRUTH


def test_every_row_plans_faults_that_there_are_and_has_a_name_of_its_own() -> None:
    rows = [*toy_rows(quick=False), *real_rows(quick=False)]
    assert {planned.kind for row in rows for planned in row.faults} <= KINDS
    assert len({row.key for row in rows}) == len(rows)
    assert 0 < len(toy_rows(quick=True)) < len(toy_rows(quick=False))


def test_the_table_says_of_every_row_whether_it_holds_and_of_a_bad_one_why() -> None:
    good = Result("a", "child killed", "completed", 0.004, 0.5, 1, True, True, 0)
    stopped = Result("b", "GPU lost", "RUNTIME_GPU_LOST", 0.01, None, 0, True, None, 0)
    bad = Result("c", "hang", "completed", 1.5, 2.5, 1, False, False, 1, ("process 99 was left",))
    assert _table([good, stopped], None)[-1] == "All 2 rows hold."
    head, first, second, third, why, _, last = _table([good, stopped, bad], Path("kept"))
    assert head.split("  ")[0] == "fault"
    unmoved = Result("d", "libraries print", "completed", None, None, 0, True, True, 0)
    assert "no harm done" in _table([unmoved], None)[1]
    assert first.split()[-1] == second.split()[-1] == "holds"
    assert "ends, as it must" in second
    assert third.endswith("DOES NOT HOLD")
    assert why == "hang: process 99 was left"
    assert last == "1 of 3 rows do not hold; their runs are kept in kept"
    assert _document([good, bad], Path("kept"))["holds"] is False


def test_a_row_of_real_training_is_marked_as_one() -> None:
    toy = Result("oom", "out of memory", "completed", 0.01, 0.5, 1, True, True, 0)
    real = Result("real_oom", "out of memory", "completed", 0.1, 5.0, 1, True, True, 1, ("process 9 was left",), "tiny")
    assert not any("toy" in line for line in _table([toy], None))
    _, first, second, why, *_ = _table([toy, real], Path("kept"))
    assert ("  toy  " in first, "  real, of tiny  " in second) == (True, True)
    assert why == "out of memory, real training: process 9 was left"
    rows = _document([toy, real], Path("kept"))["rows"]
    assert isinstance(rows, list)
    assert [(row["real"], row["base"]) for row in rows] == [(False, None), (True, "tiny")]


@pytest.mark.skipif(sys.platform == "win32", reason="rows that need POSIX signals are left out")
def test_the_page_tells_how_many_faults_there_are() -> None:
    page = (Path(__file__).parents[2] / "docs" / "drill.md").read_text(encoding="utf-8")
    assert f"# {len(toy_rows(quick=False))} faults, no card needed" in page
    assert (len(toy_rows(quick=True)), len(real_rows(quick=False)), len(real_rows(quick=True))) == (8, 6, 2)
    told = " ".join((drill.help or "").split())
    assert f"36 faults ({len(toy_rows(quick=False))} where there are POSIX signals)" in told
    assert all(words in told for words in ("the eight of --quick", "--real adds six, or with --quick two"))
    assert all(words in page for words in ("# the eight most important", "# six more in real training", "two faults"))
