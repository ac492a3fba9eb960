"""No runner outlives its supervisor, and none dies because its supervisor is merely asleep."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

DEADLINE = 60.0
ROOT = Path(__file__).parents[2]

linux = pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG")
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

# A supervisor as far as a runner can tell: starts one, gives it a Job, says its pid, and stays.
_PARENT = """
import sys, threading
from pathlib import Path
from backpropagate_protocol.spec import PlannedFault
from tests.runner.child import runner, train_job
folder, kind = Path(sys.argv[1]), sys.argv[2]
with runner(train_job(folder, faults=(PlannedFault(kind, 8),)), folder) as child:
    child.wait_until(lambda: "planned fault before step 8" in child.log.read_text())
    print(child.process.pid, flush=True)
    threading.Event().wait()
"""

# A lease of two seconds in the phase that it names; argv: pid to watch, then what to do.
_LEASED = """
import ctypes, os, signal, sys, threading
from pathlib import Path
from backpropagate_protocol.messages import Phase
from backpropagate_runner.lifeline import Lifeline
life = Lifeline(int(sys.argv[1]) or os.getppid(), lease=2.0, tick=0.05)
life.start()
life.enter(Phase.TRAIN)
print("leased", flush=True)
"""


def _gone(pid: int) -> bool:
    """Dead, whether or not init has got round to reaping it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def _until_gone(pid: int) -> None:
    end = time.monotonic() + DEADLINE
    while not _gone(pid):
        assert time.monotonic() < end, f"process {pid} outlived its parent"
        time.sleep(0.005)


@contextmanager
def _python(program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=DEADLINE)


def _first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@linux
@pytest.mark.parametrize("kind", ["hold", "hang", "hang_gil"])
def test_a_killed_parent_takes_its_runner_along(tmp_path: Path, kind: str) -> None:
    """Also while the runner is inside a C call that keeps every other thread of it from running."""
    with _python(_PARENT, str(tmp_path), kind) as parent:
        line = _first_line(parent)
        assert line, parent.communicate(timeout=DEADLINE)[1]
        runner = int(line)
        assert not _gone(runner)
        parent.kill()
        _until_gone(runner)


@posix
def test_the_lease_ends_a_process_whose_gil_is_held() -> None:
    program = _LEASED + "ctypes.PyDLL(None).sleep(600)"
    with _python(program, "0") as process:
        _, log = process.communicate(timeout=DEADLINE)
        assert process.returncode == 1
        assert "Timeout" in log


@pytest.mark.slow
def test_the_lease_is_renewed_while_the_parent_lives() -> None:
    """The program goes on for longer than a lease."""
    with _python(_LEASED + "threading.Event().wait(3.0); os._exit(42)", "0") as process:
        process.communicate(timeout=DEADLINE)
        assert process.returncode == 42


@pytest.mark.slow
def test_a_parent_that_is_stopped_is_not_gone(tmp_path: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("POSIX signals")
    survived = tmp_path / "survived"
    leased = _LEASED + f"threading.Event().wait(3.0); Path({str(survived)!r}).touch()"
    program = (
        "import os, signal, subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {leased!r}, '0'], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "os.kill(os.getpid(), signal.SIGSTOP)\n"
        "child.wait()\n"
    )
    with _python(program) as parent:
        end = time.monotonic() + DEADLINE
        while not survived.exists():
            assert time.monotonic() < end, "the child of a stopped parent died"
            time.sleep(0.02)
        os.kill(parent.pid, signal.SIGCONT)
        parent.communicate(timeout=DEADLINE)


def test_the_lease_runs_out_when_the_watched_process_is_gone() -> None:
    """Behind a launcher the supervisor is not the direct parent, so no kernel link holds."""
    with _python("import threading; print('here', flush=True); threading.Event().wait()") as supervisor:
        _first_line(supervisor)
        with _python(_LEASED + "threading.Event().wait()", str(supervisor.pid)) as process:
            assert _first_line(process) == "leased"
            supervisor.kill()
            supervisor.wait(DEADLINE)
            _, log = process.communicate(timeout=DEADLINE)
            assert process.returncode == 1
            assert "Timeout" in log


def test_the_last_lease_is_the_grace_and_is_not_renewed() -> None:
    with _python(_LEASED + "life.parent_gone(1.0); threading.Event().wait()", "0") as process:
        process.communicate(timeout=DEADLINE)
        assert process.returncode == 1


@linux
def test_a_parent_that_died_before_the_link_was_made_is_noticed() -> None:
    with _python("") as dead:
        dead.wait(DEADLINE)
    program = (
        "import sys; from backpropagate_protocol.lifeline import die_with_parent; die_with_parent(int(sys.argv[1]))"
    )
    with _python(program + "; sys.exit(42)", str(dead.pid)) as process:
        process.communicate(timeout=DEADLINE)
        assert process.returncode == 1


@linux
def test_a_worker_of_a_runner_goes_with_it() -> None:
    """What a data loader's workers call."""
    program = (
        "import os, sys, threading\n"
        "from backpropagate_protocol.lifeline import worker_init\n"
        "if (pid := os.fork()) == 0:\n"
        "    worker_init(0)\n"
        "    print(os.getpid(), flush=True)\n"
        "threading.Event().wait()\n"
    )
    with _python(program) as runner:
        worker = int(_first_line(runner))
        runner.kill()
        _until_gone(worker)
