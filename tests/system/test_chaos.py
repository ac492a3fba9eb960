"""The chaos gate at the scale of a test; the long one is run by hand, and its report is in docs/benchmarks.md."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "chaos.py"


@pytest.mark.slow
def test_random_faults_of_every_kind_lose_nothing_and_leave_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--faults", "10", "--seed", "3", "--jobs", "1", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| problems | 0 | 0 | met |" in done.stdout
    assert not list(tmp_path.glob("run-*")), "a run that went well leaves nothing"
