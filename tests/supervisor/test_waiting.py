"""Waiting for a taken output folder: it ends with the folder's freedom, with the owner's wish, and with the owner."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backpropagate.keep import history, journal, locks, runs
from backpropagate.wishes.build_spec import build_spec
from backpropagate.wishes.settings import Settings
from backpropagate_protocol.rundir import RunDir
from tests.waiting import eventually


def new_run(tmp_path: Path, *, wait_in_spec: bool) -> RunDir:
    (tmp_path / "data.jsonl").write_text("".join(f'{{"text": "row number {i}"}}\n' for i in range(40)))
    wishes = {"data": tmp_path / "data.jsonl", "backend": "toy", "steps": 50_000_000, "output_dir": tmp_path / "out"}
    return runs.create(build_spec(Settings({**wishes, "wait": wait_in_spec}, environ={}, folder=tmp_path)))


@contextmanager
def waiting(run: RunDir) -> Iterator[subprocess.Popen[bytes]]:
    """A supervisor with a control pipe, ours to be its owner."""
    command = [sys.executable, "-P", "-m", "backpropagate", "_supervise", str(run.path), "--owner", "--wait"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("wait_in_spec", [False, True], ids=["a resumed run", "a new run"])
@pytest.mark.parametrize("wish", [b"stop\n", b"kill\n", b""], ids=["stop", "kill", "the owner is gone"])
def test_a_supervisor_that_waits_for_its_folder_hears_its_owner(
    tmp_path: Path, wish: bytes, wait_in_spec: bool
) -> None:
    run = new_run(tmp_path, wait_in_spec=wait_in_spec)
    with locks.hold(run.output.lock, "another-run", "the folder"), waiting(run) as process:
        out, _ = process.communicate(wish, timeout=120)

    error = json.loads(out)["error"]
    assert process.returncode == error["exit_code"] == 75
    assert error["code"] == "RUNTIME_TRAINING_ABORTED"
    assert "run another-run" in error["message"]
    assert not run.events.exists()


def test_a_run_that_waited_still_hears_its_owner(tmp_path: Path) -> None:
    run = new_run(tmp_path, wait_in_spec=False)
    with waiting(run) as process:
        with locks.hold(run.output.lock, "another-run", "the folder"):
            assert process.stderr is not None
            assert process.stderr.readline().startswith(b"waiting: the output folder")
        eventually(lambda: '"event":"step"' in text_of(run), "it trains", lambda: text_of(run))
        assert process.stdin is not None
        process.stdin.write(b"stop\n")
        process.stdin.flush()
        eventually(lambda: '"event":"run_ended"' in text_of(run), "it stops", lambda: text_of(run))

    assert list(journal.read(run.events))
    assert history.list_rows(run.output)[0].status == "interrupted"


def text_of(run: RunDir) -> str:
    return run.events.read_text() if run.events.exists() else ""
