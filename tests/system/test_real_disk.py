"""A disk that really fills up under real training: a small tmpfs, and a file that takes all the room that is left."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from backpropagate.events import AttemptStarted, CheckpointCommitted, CheckpointMissed
from backpropagate_protocol import durable
from backpropagate_protocol.errors import DiskFullError
from tests.conftest import Oracle
from tests.system.real import Trained, assert_bit_identical, real_spec, trained
from tests.system.supervised import At, resume_here, run_here

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

_MIB = 24


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[str]:
    """The name, within the test's folder, of one that lies on a disk of 24 MiB. To be asked for before `oracle`."""
    if sys.platform != "linux":
        pytest.skip("a tmpfs is mounted on Linux only")
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_MIB}m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield folder.name
    subprocess.run(["umount", str(folder)], check=True)


class Ballast:
    """A file that takes all the room there is."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self) -> None:
        with open(self.path, "wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                try:
                    while True:
                        file.write(b"\0" * size)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def drop(self) -> None:
        self.path.unlink()


def test_a_disk_that_stays_full_stops_the_run_resumable_and_the_resume_leaves_the_same_bits(
    small_disk: str, oracle: Oracle, untroubled: Trained
) -> None:
    output = oracle.output(f"{small_disk}/out")
    spec = real_spec(output, save_steps=2)
    ballast = Ballast(oracle.home / small_disk / "ballast")
    filling = At(lambda event: isinstance(event, CheckpointCommitted) and event.step == 4, ballast.fill)
    outcome, story = run_here(spec, sinks=[filling])
    assert (outcome.status, outcome.exit_code, outcome.code) == ("interrupted", 75, "RUNTIME_DISK_FULL")
    assert [missed.failures for missed in story.of(CheckpointMissed)] == [1, 2, 3]
    saved = story.of(CheckpointCommitted)
    assert [checkpoint.step for checkpoint in saved[-2:]] == [2, 4]
    for checkpoint in saved:
        assert durable.verify_dir(output.run(spec.run_id).checkpoint(checkpoint.step)).step == checkpoint.step
    ballast.fill()  # a save that was under way when it was full has left its room
    with pytest.raises(DiskFullError):
        resume_here(output.run(spec.run_id))
    ballast.drop()
    outcome, story = resume_here(output.run(spec.run_id))
    assert [attempt.resume_step for attempt in story.of(AttemptStarted)] == [4]
    assert_bit_identical(trained(spec, outcome), untroubled)


def test_a_disk_that_has_room_again_costs_nothing_but_a_checkpoint(
    small_disk: str, oracle: Oracle, untroubled: Trained
) -> None:
    spec = real_spec(oracle.output(f"{small_disk}/out"), save_steps=2)
    ballast = Ballast(oracle.home / small_disk / "ballast")
    filling = At(lambda event: isinstance(event, CheckpointCommitted) and event.step == 4, ballast.fill)
    freeing = At(lambda event: isinstance(event, CheckpointMissed), ballast.drop)
    outcome, story = run_here(spec, sinks=[filling, freeing])
    assert filling.done
    assert freeing.done
    assert len(story.of(AttemptStarted)) == 1
    assert_bit_identical(trained(spec, outcome), untroubled)
