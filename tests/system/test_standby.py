"""The runner that waits: it takes over, it is replaced when it dies, and it never outlives its run."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from backpropagate.doors.process import RUN_ID_VARIABLE
from backpropagate.events import AttemptStarted, FaultSeen, Recovering
from tests.conftest import Oracle
from tests.system.supervised import Supervisor, is_gone, resume_here, supervisor, toy_spec
from tests.waiting import eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="signals"),
]
KILL = signal.SIGKILL if sys.platform != "win32" else signal.SIGTERM


def runners(over: Supervisor) -> set[int]:
    """The runners of a supervisor that live."""
    found = set()
    for child in psutil.Process(over.process.pid).children():
        try:
            ours = child.environ().get(RUN_ID_VARIABLE) == over.run_dir.run_id
            if ours and child.status() != psutil.STATUS_ZOMBIE:
                found.add(child.pid)
        except psutil.Error:
            continue
    return found


def standby_of(over: Supervisor, attempt: int) -> tuple[int, int]:
    """The pids of the child that makes this attempt and of the standby, once both live."""
    over.until(lambda: len(over.of(AttemptStarted)) >= attempt, f"attempt {attempt} began")
    over.until(lambda: len(runners(over)) == 2, "there is a standby")
    works = over.child()
    (waits,) = runners(over) - {works}
    return works, waits


def victim_score(pid: int) -> str:
    return Path(f"/proc/{pid}/oom_score_adj").read_text().strip()


def test_a_standby_takes_over_and_is_replaced_when_it_dies(oracle: Oracle) -> None:
    # A child that hangs waits for us: nothing here depends on who is faster.
    spec = toy_spec(oracle.output(), "hang:12", "hang:17:2", standby="on", hang_floor=100.0)
    with supervisor(spec) as over:
        works, first = standby_of(over, 1)
        os.kill(first, KILL)
        over.until(lambda: is_gone(first), "the first standby is dead")
        _, second = standby_of(over, 1)
        if sys.platform == "linux":
            assert victim_score(second) == "1000"
        os.kill(works, KILL)
        works, third = standby_of(over, 2)
        assert works == second
        if sys.platform == "linux":
            assert victim_score(works) == victim_score(over.process.pid)
        log = over.run_dir.log  # from its Job on it writes where all write
        over.until(lambda: "planned fault before step 17: hang" in log.read_text(), "the second hangs")
        os.kill(third, KILL)
        over.until(lambda: is_gone(third), "the third is dead")
        os.kill(works, KILL)
        assert over.wait() == 0
        assert [attempt.standby for attempt in over.of(AttemptStarted)] == [False, True, False]
        assert [seen.kind for seen in over.of(FaultSeen)] == ["died", "died"]
        assert len(over.of(Recovering)) == 2
        assert (over.ended().status, over.ended().step) == ("completed", 30)
        assert over.run_dir.standby_log.is_file()


def test_a_stop_ends_the_standby_too(oracle: Oracle) -> None:
    with supervisor(toy_spec(oracle.output(), toy="toy?step_seconds=0.05", steps=10**5, standby="on")) as over:
        _, waits = standby_of(over, 1)
        over.signal(signal.SIGTERM)
        assert over.wait() == 75
    assert is_gone(waits)


def test_no_standby_outlives_a_killed_supervisor(oracle: Oracle) -> None:
    with supervisor(toy_spec(oracle.output(), "hang:12", standby="on", hang_floor=100.0)) as over:
        works, waits = standby_of(over, 1)
        over.signal(KILL)
        over.wait()
    eventually(lambda: is_gone(works) and is_gone(waits), "both runners are gone")
    outcome, _ = resume_here(over.run_dir)
    assert outcome.status == "completed"
