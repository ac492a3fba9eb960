"""Real training that is stopped, and whose supervisor is killed: nothing survives it, and a resume leaves the same bits."""

from __future__ import annotations

import signal
import stat
import sys
from pathlib import Path

import psutil
import pytest

from backpropagate.events import AttemptStarted, RunResumed, Step
from tests.conftest import Oracle
from tests.system.real import Trained, assert_bit_identical, real_spec, trained
from tests.system.supervised import Supervisor, is_gone, supervisor
from tests.waiting import eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals"),
]


def until_trained(run: Supervisor, step: int) -> None:
    """Waits until the child of the newest attempt has trained `step`."""

    def newest() -> bool:
        events = run.events
        begun = max((at for at, event in enumerate(events) if isinstance(event, AttemptStarted)), default=len(events))
        return any(isinstance(event, Step) and event.step == step for event in events[begun:])

    run.until(newest, f"step {step} was trained")


def test_sigterm_saves_the_step_and_a_resume_leaves_the_same_bits(oracle: Oracle, untroubled: Trained) -> None:
    spec = real_spec(oracle.output(), "hold:10")
    with supervisor(spec) as run:
        until_trained(run, 9)
        run.signal(signal.SIGTERM)
        assert run.wait() == 75, run.output()
        assert (run.ended().status, run.ended().step) == ("interrupted", 10)
    with Supervisor(run.run_dir) as again:
        assert again.wait() == 0, again.output()
        assert [attempt.resume_step for attempt in again.of(AttemptStarted)] == [0, 10]
        assert_bit_identical(trained(spec, again.outcome()), untroubled)


def test_a_supervisor_killed_twice_takes_its_child_along_even_out_of_a_c_call_and_a_resume_leaves_the_same_bits(
    oracle: Oracle, untroubled: Trained
) -> None:
    """The second child sleeps in a C function that keeps the GIL: not one line of its Python can run any more."""
    if sys.platform != "linux":
        pytest.skip("elsewhere the child's lease ends it, after a while")
    spec = real_spec(oracle.output(), "hold:6", "hang_gil:11:2")
    with supervisor(spec) as first:
        until_trained(first, 5)
        kill_and_see_it_gone(first)
    with Supervisor(first.run_dir) as second:
        until_trained(second, 10)
        kill_and_see_it_gone(second)
    with Supervisor(first.run_dir) as third:
        assert third.wait() == 0, third.output()
        assert [attempt.resume_step for attempt in third.of(AttemptStarted)] == [0, 4, 8]
        assert len(third.of(RunResumed)) == 2
        assert_bit_identical(trained(spec, third.outcome()), untroubled)


def kill_and_see_it_gone(run: Supervisor) -> None:
    child = run.child()
    run.process.kill()
    run.wait()
    eventually(lambda: is_gone(child), "the child died with its parent")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel has no such link, and workers are off")
def test_a_killed_supervisor_takes_the_data_loaders_workers_along_and_a_resume_leaves_the_same_bits(
    oracle: Oracle, untroubled: Trained
) -> None:
    spec = real_spec(oracle.output(), "hold:9", runner_python=python_with_workers(oracle.home))
    with supervisor(spec) as run:
        until_trained(run, 8)
        child = psutil.Process(run.child())
        workers = child.children(recursive=True)
        assert len(workers) == 2, workers
        run.process.kill()
        run.wait()
        _, alive = psutil.wait_procs((child, *workers), timeout=60)
        assert not [process for process in alive if not is_gone(process.pid)]
    with Supervisor(run.run_dir) as again:
        assert again.wait() == 0, again.output()
        assert_bit_identical(trained(spec, again.outcome()), untroubled)


def python_with_workers(folder: Path) -> Path:
    """An interpreter for the runner in which the data loader has two worker processes; by itself it has none."""
    program = folder / "python-with-workers"
    program.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        "from backpropagate_backends import torch_train\n"
        "torch_train.DATALOADER_WORKERS = 2\n"
        "sys.argv = sys.argv[sys.argv.index('-m') + 1 :]\n"
        "from backpropagate_runner.__main__ import main\n"
        "main()\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program
