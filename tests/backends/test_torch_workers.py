"""Data-loader workers, should there be any, go when the process that trains goes, however it goes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from backpropagate_backends.cpu import CpuBackend
from backpropagate_protocol.prepared import Prepared

pytestmark = pytest.mark.slow


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel has no such link, and workers are off")
def test_a_killed_trainer_leaves_no_workers(cpu: CpuBackend, tiny: Path, rows: Prepared, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.backends.torch_workers", str(tiny), str(rows.folder), str(tmp_path)]
    with (
        open(tmp_path / "log", "wb") as log,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=Path(__file__).parents[2]
        ) as child,
    ):
        assert child.stdout is not None
        workers = [psutil.Process(int(pid)) for pid in child.stdout.readline().split()]
        assert len(workers) == 2, (tmp_path / "log").read_text()
        child.kill()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not [worker for worker in alive if worker.status() != psutil.STATUS_ZOMBIE]
