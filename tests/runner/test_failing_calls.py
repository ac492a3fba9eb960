"""Each call to the operating system that a save makes fails once, one after the other, until none fails any more."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backpropagate import checkpoints
from backpropagate_protocol.durable import NotWhole, verify_dir
from backpropagate_protocol.rundir import OutputDir, RunDir
from backpropagate_runner.checkpoint import commit, make_room, prune
from tests.runner.test_power_cut import a_manifest

# What durable.py and those below it (pathlib, shutil) call; reads, writes and closes go through the files that open makes.
CALLS = (
    "open",
    "fsync",
    "replace",
    "rename",
    "unlink",
    "remove",
    "rmdir",
    "mkdir",
    "scandir",
    "listdir",
    "stat",
    "lstat",
)


class Faulty:
    """Counts calls; the one with the number `fail_at` (1 = the first) raises `error` instead of being made."""

    def __init__(self, fail_at: int, error: int) -> None:
        self.fail_at, self.error = fail_at, error
        self.calls = 0
        self.failed = ""

    def tick(self, name: str) -> None:
        self.calls += 1
        if self.calls == self.fail_at:
            self.failed = name
            raise OSError(self.error, os.strerror(self.error))


class _File(io.FileIO):
    """A file whose every write and read counts."""

    faulty: Faulty

    def write(self, data: object, /) -> int:
        self.faulty.tick("write")
        assert isinstance(data, bytes | bytearray | memoryview)
        return super().write(data)

    def readinto(self, buffer: object, /) -> int | None:
        self.faulty.tick("read")
        assert isinstance(buffer, bytearray | memoryview)
        return super().readinto(buffer)


@contextmanager
def failing(fail_at: int, error: int) -> Iterator[Faulty]:
    """The operating system's own functions, where Python keeps them: no code of ours is replaced."""
    faulty = Faulty(fail_at, error)

    def counted(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            faulty.tick(name)
            return real(*arguments, **named)

        return call

    def opened(path: str | Path, mode: str = "r", *_: object, **__: object) -> io.BufferedIOBase:
        faulty.tick("open")
        raw = _File(path, mode.replace("b", ""))
        raw.faulty = faulty
        return io.BufferedWriter(raw) if "w" in mode else io.BufferedReader(raw)

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, counted(name, getattr(os, name)))
        patch.setattr("builtins.open", opened)
        patch.setattr(io, "open", opened)
        yield faulty


def save(run: RunDir, step: int) -> None:
    """As the runner does it: nothing is told of a save that raised."""
    make_room(run.checkpoint(step), a_manifest(step))
    commit(run.staging / f"checkpoint-{step}", run.checkpoint(step), a_manifest(step))


def stage(run: RunDir, step: int) -> None:
    staged = run.staging / f"checkpoint-{step}"
    (staged / "deep").mkdir(parents=True, exist_ok=True)
    (staged / "weights.bin").write_bytes(bytes([step]) * 64)
    (staged / "deep" / "state.json").write_bytes(b"{}")


@pytest.mark.parametrize("error", [errno.EIO, errno.EACCES])
def test_whichever_call_of_a_save_fails_the_run_keeps_what_it_had_and_saves_the_next_time(
    tmp_path: Path, error: int
) -> None:
    names: set[str] = set()
    fail_at = 0
    while True:
        fail_at += 1
        run = OutputDir(tmp_path / str(fail_at)).run("r")
        run.checkpoints.mkdir(parents=True)
        for step in (5, 10):
            stage(run, step)
            save(run, step)
        stage(run, 15)
        saved = False
        with failing(fail_at, error) as faulty:
            try:
                save(run, 15)
                saved = True
                prune(run, 15, 2)
            except (OSError, NotWhole):
                pass
        names.add(faulty.failed)
        where = f"call {fail_at}, {faulty.failed}"
        found = checkpoints.newest_good(run).found
        assert found is not None, where
        assert found.step == 15 if saved else found.step in (10, 15), where
        if not saved:
            stage(run, 20)
            save(run, 20)
            assert verify_dir(run.checkpoint(20)).step == 20, where
        checkpoints.sweep(run)
        left = [
            path.name for path in run.checkpoints.iterdir() if not path.name.startswith("step-") or "." in path.name
        ]
        assert not left, where
        if not faulty.failed:
            break
    assert saved
    assert fail_at > 25
    assert {"open", "write", "read", "fsync", "replace", "mkdir"} <= names
