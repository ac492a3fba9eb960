"""What counts as a training that is over: its adapter, whole; and what only says that it cannot be told now."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from backpropagate.drive.training import finished
from backpropagate_protocol.rundir import MANIFEST, OutputDir


def test_an_adapter_that_is_missing_or_damaged_is_none(tmp_path: Path) -> None:
    run_dir = OutputDir(tmp_path).run("a-run")
    assert finished(run_dir) is None
    run_dir.adapter.mkdir(parents=True)
    assert finished(run_dir) is None
    (run_dir.adapter / MANIFEST).write_bytes(b"half of")
    assert finished(run_dir) is None


@pytest.mark.skipif(sys.platform == "win32", reason="the way to a file that is there and cannot be read")
def test_an_adapter_that_cannot_be_read_now_is_no_reason_to_train_again(tmp_path: Path) -> None:
    run_dir = OutputDir(tmp_path).run("a-run")
    run_dir.adapter.mkdir(parents=True)
    (run_dir.adapter / MANIFEST).symlink_to(MANIFEST)  # leads to itself
    with pytest.raises(OSError, match=MANIFEST):
        finished(run_dir)
