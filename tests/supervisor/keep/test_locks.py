"""Locks: one holder, named to the others, and free when it is gone."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from backpropagate.keep import locks
from backpropagate_protocol.errors import BusyError

_HOLD = """
import sys
from pathlib import Path
from backpropagate.keep import locks
with locks.hold(Path(sys.argv[1]), "their-run", "the folder"):
    print("held", flush=True)
    sys.stdin.read()
"""


_LOOK = """
import os, sys
from pathlib import Path
from backpropagate.keep import locks
if os.geteuid() == 0:
    os.seteuid(65534)  # who may write anything proves nothing
holder = locks.holder_of(Path(sys.argv[1]))
print(holder.run_id if holder else "nobody")
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


_RACE = """
import sys
from pathlib import Path
from backpropagate.keep import locks
from backpropagate_protocol.errors import BusyError
path = Path(sys.argv[1])
for line in sys.stdin:  # each line is a round; whoever wins it keeps the lock until all have answered
    try:
        with locks.hold(path, "a-run", "the folder", patience=0):
            print("won", flush=True)
            sys.stdin.readline()
    except BusyError:
        print("lost", flush=True)
        sys.stdin.readline()
    print("over", flush=True)
"""


def test_of_many_who_start_at_once_exactly_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    command = [sys.executable, "-P", "-c", _RACE, str(path)]
    with ExitStack() as ended:
        racers = [
            ended.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            for _ in range(5)
        ]

        def said(line: str | None) -> list[str]:
            for racer in racers:
                assert racer.stdin is not None
                if line is not None:
                    racer.stdin.write(line)
                    racer.stdin.flush()
            return [racer.stdout.readline().strip() for racer in racers if racer.stdout is not None]

        for _ in range(60):
            assert sorted(said("go\n")) == ["lost"] * 4 + ["won"]
            assert said("on\n") == ["over"] * 5
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.close()
    assert locks.holder_of(path) is None


def test_the_name_of_a_dead_holder_whose_number_another_process_has_now_keeps_nobody_out(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    with locks.hold(path, "dead-run", "the folder"):
        name = (tmp_path / "x.lock.holder").read_bytes()
    (tmp_path / "x.lock.holder").write_bytes(name)  # with the id of a process that lives: this one
    assert locks.holder_of(path) is None
    with locks.hold(path, "my-run", "the folder", patience=0):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be removed there, which is the same test")
def test_letting_go_survives_a_name_that_cannot_be_removed(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    with locks.hold(path, "my-run", "the folder"):
        name = tmp_path / "x.lock.holder"
        name.unlink()
        name.mkdir()
    name.rmdir()
    with locks.hold(path, "your-run", "the folder", patience=0):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="the rights of a file are others there")
def test_who_may_only_read_a_lock_still_sees_its_holder() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / "x.lock"
        with locks.hold(path, "my-run", "the folder"):
            path.chmod(0o444)
            command = [sys.executable, "-P", "-c", _LOOK, str(path)]
            held = subprocess.run(command, capture_output=True, text=True)
        free = subprocess.run(command, capture_output=True, text=True)
    assert (held.stdout.strip(), free.stdout.strip()) == ("my-run", "nobody"), held.stderr


def test_the_name_of_the_holder_goes_with_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    with locks.hold(path, "my-run", "the folder"):
        pass
    assert [p.name for p in tmp_path.iterdir()] in (["x.lock"], [])


def test_a_result_has_one_lock_by_whatever_way_its_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    try:
        (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    except OSError:
        pytest.skip("no links here")
    assert locks.export_lock(tmp_path / "link" / "m.gguf") == locks.export_lock(tmp_path / "real" / "m.gguf")
    assert locks.export_lock(tmp_path / "real" / "n.gguf") != locks.export_lock(tmp_path / "real" / "m.gguf")


def test_the_locks_of_old_exports_go_away_unless_somebody_holds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("XDG_STATE_HOME", "LOCALAPPDATA", "HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path / "state"))
    old, held, new = (locks.export_lock(tmp_path / name) for name in ("old", "held", "new"))
    for path in (old, held, new):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with locks.hold(held, "a-run", "the export"):
        for path in (old, held):
            os.utime(path, (1.0, 1.0))
        locks.forget_old_exports()
        assert [path.exists() for path in (old, held, new)] == [False, True, True]
