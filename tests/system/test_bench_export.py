"""The benchmark of exports runs, on a model that proves nothing but that it still measures what it names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.llama_sources import LLAMA_SOURCES, with_llama_sources

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_export.py"


@pytest.mark.slow
@with_llama_sources
def test_both_ways_from_an_adapter_to_a_q4_k_m_are_measured(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--small", "--rounds", "1", "--folder", str(tmp_path)]
    done = subprocess.run(
        [*command, "--llama-cpp", str(LLAMA_SOURCES)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    for row in ("ours: merge and convert", "plain: PEFT merge", "**plain, in all**", "time", "peak memory"):
        assert f"| {row}" in done.stdout
    assert list(tmp_path.iterdir()) == []
