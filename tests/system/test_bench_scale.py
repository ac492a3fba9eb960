"""The growth benchmark runs, at a scale that proves nothing but that it still measures what it names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_scale.py"


@pytest.mark.slow
def test_every_part_of_the_benchmark_gives_its_rows(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--scale", "0.001", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr  # 1: so few rows are all start-up, and a ratio of it means nothing
    assert not done.stderr
    for row in (
        "1,000 rows against 100: peak memory",
        "`list-runs` over 100 runs",
        "a toy run of 1,000 steps: events.jsonl",
    ):
        assert f"| {row}" in done.stdout
    assert list(tmp_path.iterdir()) == []
