"""A real file system that fills up: the run stops resumable, older checkpoints stand, and it goes on when there is room."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from backpropagate import checkpoints
from backpropagate.events import CheckpointMissed
from backpropagate.outcome import Outcome
from backpropagate_protocol.rundir import OutputDir
from tests.conftest import Oracle
from tests.system.supervised import resume_here, run_here, toy_spec

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting a tmpfs takes root on Linux"),
]


@pytest.fixture
def small_disk(tmp_path: Path, oracle: Oracle) -> Iterator[OutputDir]:
    """An output folder with room for 3 MB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(mount)], capture_output=True)
    if done.returncode:
        pytest.skip("this machine mounts nothing")
    output = OutputDir(mount / "out")
    oracle.outputs.append(output)
    yield output
    assert not oracle.leftovers()
    oracle.outputs.remove(output)
    subprocess.run(["umount", str(mount)], check=True)


def test_a_disk_that_fills_up_stops_the_run_and_one_with_room_again_lets_it_finish(
    small_disk: OutputDir, undisturbed: Outcome
) -> None:
    small_disk.path.mkdir()
    ballast = small_disk.path / "somebody else's"
    ballast.write_bytes(bytes(1_300_000))
    spec = toy_spec(small_disk, toy="toy?state_bytes=700000&step_seconds=0.02", keep_checkpoints=2)
    outcome, story = run_here(spec)
    assert (outcome.status, outcome.exit_code, outcome.code) == ("interrupted", 75, "RUNTIME_DISK_FULL")
    assert [missed.failures for missed in story.of(CheckpointMissed)][:3] == [1, 2, 3]
    found = checkpoints.newest_good(small_disk.run(spec.run_id)).found
    assert found is not None
    assert found.step == outcome.step

    ballast.unlink()
    again, _ = resume_here(small_disk.run(spec.run_id))
    assert (again.status, again.order) == ("completed", undisturbed.order)
