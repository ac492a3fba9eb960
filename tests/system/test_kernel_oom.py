"""The kernel's own OOM killer, in a control group made for one run: it takes the child, and the run goes on with smaller batches."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backpropagate.events import AttemptStarted, FaultRecorded, FaultSeen, RunEnded
from backpropagate.keep import journal, runs
from backpropagate.outcome import Outcome
from tests.conftest import Oracle
from tests.system.supervised import toy_spec
from tests.waiting import eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's"),
]
GROUPS = Path("/sys/fs/cgroup")
LIMIT = 200 << 20  # bytes: several times a supervisor and a child of the toy
JOINED = 'echo $$ > "$0/cgroup.procs" && exec "$@"'


@contextmanager
def limited(name: str) -> Iterator[Path]:
    """A control group of our own with so much memory and no swap; skips the test where we may not make one."""
    old = GROUPS / "memory"
    group = (old if old.is_dir() else GROUPS) / name
    limit, swap = ("memory.limit_in_bytes", "memory.swappiness") if old.is_dir() else ("memory.max", "memory.swap.max")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error.strerror}")
    try:
        if not all((group / file).is_file() for file in (limit, swap, "cgroup.procs")):
            pytest.skip("the folder that was made is no control group, or has no say over memory")
        try:
            (group / limit).write_text(str(LIMIT))
            (group / swap).write_text("0")
        except OSError as error:
            pytest.skip(f"its memory cannot be limited here: {error.strerror}")
        if (group / limit).read_text().strip() != str(LIMIT):
            pytest.skip("the limit was not taken")
        yield group
    finally:
        members = group / "cgroup.procs"
        eventually(lambda: not members.is_file() or not members.read_text().split(), "everybody has left the group")
        group.rmdir()


def test_a_child_that_the_kernel_kills_for_memory_is_replaced_with_half_the_micro_batch(
    oracle: Oracle, undisturbed: Outcome
) -> None:
    run_dir = runs.create(toy_spec(oracle.output(), "eat_memory:12"))
    supervisor = [sys.executable, "-P", "-m", "backpropagate", "_supervise", str(run_dir.path)]
    with limited(f"backpropagate-test-{os.getpid()}") as group:
        done = subprocess.run(
            ["sh", "-c", JOINED, str(group), *supervisor], capture_output=True, text=True, check=False
        )
        kills = (group / ("memory.oom_control" if "memory" in group.parts else "memory.events")).read_text()
    assert done.returncode == 0, done.stderr
    assert "oom_kill 1" in kills.splitlines()
    events = list(journal.read(run_dir.events))
    [fault] = [event for event in events if isinstance(event, FaultSeen)]
    assert fault.code == "RUNTIME_HOST_OOM"
    [record] = [event for event in events if isinstance(event, FaultRecorded)]
    assert "killed by the kernel for want of memory" in record.death
    first, second = (event for event in events if isinstance(event, AttemptStarted))
    assert second.micro_batch * 2 == first.micro_batch
    end = events[-1]
    assert isinstance(end, RunEnded)
    assert (end.status, end.order) == ("completed", undisturbed.order)
