"""Locks: one holder, named to the others, and free when it is gone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from backpropagate import locks
from backpropagate_protocol.errors import BusyError

_HOLD = """
import sys
from pathlib import Path
from backpropagate import locks
with locks.hold(Path(sys.argv[1]), "their-run", "the folder"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_second_is_told_who_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    mine, yours = locks.hold(path, "my-run", "the folder"), locks.hold(path, "your-run", "the folder")
    with mine, pytest.raises(BusyError) as caught, yours:
        pass
    assert caught.value.code == "STATE_BUSY"
    assert f"the folder is in use by run my-run (process {os.getpid()})" in caught.value.message


def test_it_is_free_again_when_its_holder_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    with subprocess.Popen(
        [sys.executable, "-P", "-c", _HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline().strip() == b"held"
        holder = locks.holder_of(path)
        assert holder is not None
        assert (holder.run_id, holder.pid) == ("their-run", other.pid)
        other.kill()
        other.wait()
    assert locks.holder_of(path) is None
    with locks.hold(path, "my-run", "the folder"):
        pass


def test_the_name_of_the_holder_goes_with_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    with locks.hold(path, "my-run", "the folder"):
        pass
    assert [p.name for p in tmp_path.iterdir()] in (["x.lock"], [])
