"""Clocks that jump and machines that sleep: the wall clock decides nothing, and a pause of everything is no hang."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from backpropagate.events import FaultSeen, Step
from backpropagate.outcome import Outcome
from tests.conftest import Oracle
from tests.system.supervised import supervisor, toy_spec
from tests.waiting import eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals, and the path of site"),
]

# Every process of the run reads this wall clock: a day ahead or behind, differently at each look.
_JUMPING = """
import random, time
_true = time.time
time.time = lambda: _true() + random.choice((-86400.0, 0.0, 86400.0))
"""


def test_a_wall_clock_that_jumps_by_days_has_no_effect(
    oracle: Oracle, undisturbed: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks = tmp_path / "clocks"
    clocks.mkdir()
    (clocks / "sitecustomize.py").write_text(_JUMPING)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(clocks), os.environ.get("PYTHONPATH", "")]))
    with supervisor(toy_spec(oracle.output(), "sigkill:12", "oom:17:2", hang_floor=20.0)) as run:
        assert run.wait() == 0, run.output()
    stamps = [event.time for event in run.events]
    assert max(stamps) - min(stamps) > 86_000, "the clock did not jump"
    assert [fault.kind for fault in run.of(FaultSeen)] == ["died", "oom"]
    assert (run.ended().samples_seen, run.ended().order) == (undisturbed.samples_seen, undisturbed.order)


def test_a_machine_that_slept_longer_than_a_step_may_take_finds_no_hang_when_it_wakes(
    oracle: Oracle, undisturbed: Outcome
) -> None:
    """Supervisor and child stand still together, for longer than the deadline of a step, as when a lid is closed."""
    with supervisor(toy_spec(oracle.output(), toy="toy?step_seconds=0.05", hang_floor=5.0)) as run:
        run.until(lambda: len(run.of(Step)) > 3, "it trains")
        child = run.child()
        for pid in (run.process.pid, child):
            os.kill(pid, signal.SIGSTOP)
        asleep = time.monotonic()
        eventually(lambda: time.monotonic() - asleep > 7.5, "the night is over")
        for pid in (run.process.pid, child):
            os.kill(pid, signal.SIGCONT)
        assert run.wait() == 0, run.output()
        assert not run.of(FaultSeen)
        assert run.ended().order == undisturbed.order
