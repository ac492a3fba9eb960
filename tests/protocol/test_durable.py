"""durable.py against every legal crash, every failing call, and every kind of damage."""

from __future__ import annotations

import errno
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from backpropagate_protocol.durable import Disk, NotWhole, commit_dir, may_pass, rename, seal, verify_dir, write_file
from backpropagate_protocol.rundir import MANIFEST, PARTIAL, FileEntry, Manifest, checkpoint_step
from tests.protocol.lossy_disk import FailingDisk, LossyDisk, PowerCut, Tree, no_descriptors, write_tree

OLD, NEW = b"old content", b"the new content, which is longer"
STEP = "step-00000007"


def a_manifest(files: dict[str, FileEntry]) -> bytes:
    return msgspec.json.encode(
        Manifest(
            run_id="r", step=7, total_steps=9, samples_seen=56, order=1, micro_batch=8, accumulation=1,
            data_digest="d", spec_digest="s", backend="toy", files=files,
        )
    )  # fmt: skip


def a_staged_checkpoint(run: Path) -> tuple[Path, Path]:
    staged = run / "staging" / "7"
    (staged / "deeper").mkdir(parents=True)
    (staged / "weights.bin").write_bytes(bytes(range(256)) * 8)
    (staged / "deeper" / "state.json").write_bytes(b'{"step": 7}')
    (run / "checkpoints").mkdir()
    return staged, run / "checkpoints" / STEP


def commit(staged: Path, final: Path, disk: Disk) -> int:
    return commit_dir(staged, final, a_manifest, disk)


def test_a_crash_at_any_moment_leaves_the_old_content_or_the_new(tmp_path: Path) -> None:
    crash_at = 0
    finished = False
    while not finished:
        work = tmp_path / f"crash-{crash_at}"
        work.mkdir()
        target = work / "history.json"
        target.write_bytes(OLD)
        disk = LossyDisk(work, crash_at)
        try:
            write_file(target, NEW, disk)
            finished = True
        except PowerCut:
            pass

        found = {dict(state)["history.json"] for state in disk.states(work)}

        assert found
        assert found <= ({NEW} if finished else {OLD, NEW})
        crash_at += 1
    assert crash_at > 4  # it crashed at the write, its sync, the rename, and the folder's sync


def test_a_crash_at_any_moment_leaves_no_checkpoint_or_a_whole_one(tmp_path: Path) -> None:
    crash_at = 0
    finished = False
    while not finished:
        work = tmp_path / f"crash-{crash_at}"
        work.mkdir()
        staged, final = a_staged_checkpoint(work)
        disk = LossyDisk(work, crash_at)
        disk.unsynced(staged)
        try:
            commit(staged, final, disk)
            finished = True
        except PowerCut:
            pass

        left: set[Tree] = set()
        for state in disk.states(work / "checkpoints"):
            found = [tree for name, tree in state if checkpoint_step(name) is not None]
            assert len(found) == 1 or not finished
            left.update(found)
        for number, tree in enumerate(left):
            write_tree(tree, work / "left" / str(number))
            assert verify_dir(work / "left" / str(number)).step == 7
        crash_at += 1
    assert crash_at > 8


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EIO])
def test_when_any_call_fails_the_old_content_stands_and_nothing_is_left_over(tmp_path: Path, reason: int) -> None:
    target = tmp_path / "history.json"
    target.write_bytes(OLD)
    for fail_at in (1, 2):  # the write and the rename; the third call syncs a folder that has the new name already
        with pytest.raises(OSError, match=r"\[Errno"):
            write_file(target, NEW, FailingDisk(fail_at, OSError(reason, "no")))
        assert target.read_bytes() == OLD
        assert [p.name for p in tmp_path.iterdir()] == ["history.json"]


def test_a_content_whose_folder_would_not_sync_is_new_and_the_caller_knows(tmp_path: Path) -> None:
    target = tmp_path / "history.json"
    target.write_bytes(OLD)
    with pytest.raises(OSError, match="no"):
        write_file(target, NEW, FailingDisk(3, OSError(errno.EIO, "no")))
    assert target.read_bytes() == NEW


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EIO])
def test_when_any_call_fails_no_checkpoint_appears_and_no_part_of_it_stays(tmp_path: Path, reason: int) -> None:
    fail_at = 1
    while True:
        work = tmp_path / str(fail_at)
        staged, final = a_staged_checkpoint(work)
        disk = FailingDisk(fail_at, OSError(reason, "no"))
        try:
            commit(staged, final, disk)
        except OSError:
            assert list((work / "checkpoints").iterdir()) == []
            assert not staged.exists()
            assert disk.synced_after_failure == []
            fail_at += 1
            continue
        assert verify_dir(final).step == 7
        break
    assert fail_at > 8


def test_a_checkpoint_that_exists_is_never_overwritten(tmp_path: Path) -> None:
    staged, final = a_staged_checkpoint(tmp_path / "first")
    commit(staged, final, Disk())
    other, _ = a_staged_checkpoint(tmp_path / "second")
    with pytest.raises(OSError):
        commit(other, final, Disk())
    assert verify_dir(final).step == 7


def test_a_leftover_partial_of_an_earlier_crash_is_replaced(tmp_path: Path) -> None:
    staged, final = a_staged_checkpoint(tmp_path)
    leftover = final.with_name(final.name + PARTIAL)
    leftover.mkdir()
    (leftover / "weights.bin").write_bytes(b"half")
    size = commit(staged, final, Disk())
    assert size == 256 * 8 + len(b'{"step": 7}')
    assert verify_dir(final).files.keys() == {"weights.bin", "deeper/state.json"}
    assert not leftover.exists()


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def _nul(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [_truncate, _flip, _nul, _empty, Path.unlink])
@pytest.mark.parametrize("name", ["weights.bin", "deeper/state.json", MANIFEST])
def test_any_damage_to_any_file_is_seen(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    staged, final = a_staged_checkpoint(tmp_path)
    commit(staged, final, Disk())
    damage(final / name)
    with pytest.raises(NotWhole):
        verify_dir(final)


def test_any_flipped_bit_of_the_manifest_is_seen(tmp_path: Path) -> None:
    """Not only digests: a step or a sample count that lies would resume at the wrong place."""
    staged, final = a_staged_checkpoint(tmp_path)
    commit(staged, final, Disk())
    content = (final / MANIFEST).read_bytes()
    for position in range(len(content)):
        for bit in (0, 5, 7):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            (final / MANIFEST).write_bytes(bytes(damaged))
            with pytest.raises(NotWhole):
                verify_dir(final)


def test_the_sealed_manifest_is_ordinary_json(tmp_path: Path) -> None:
    staged, final = a_staged_checkpoint(tmp_path)
    commit(staged, final, Disk())
    manifest = json.loads((final / MANIFEST).read_bytes())
    assert manifest["step"] == 7
    assert len(manifest["seal"]) == 64


def test_a_folder_where_a_file_was_is_seen(tmp_path: Path) -> None:
    staged, final = a_staged_checkpoint(tmp_path)
    commit(staged, final, Disk())
    (final / "weights.bin").unlink()
    (final / "weights.bin").mkdir()
    with pytest.raises(NotWhole):
        verify_dir(final)


@pytest.mark.skipif(sys.platform == "win32", reason="the number of open files is not limited so")
def test_what_cannot_be_read_now_is_not_called_damaged(tmp_path: Path) -> None:
    staged, final = a_staged_checkpoint(tmp_path)
    commit(staged, final, Disk())
    with no_descriptors(), pytest.raises(OSError, match=r"Errno 24"):
        verify_dir(final)
    assert verify_dir(final).step == 7


class HeldForAMoment(Disk):
    """A disk on which another program holds what is to be renamed for as long as two tries, as Windows tells it."""

    def __init__(self) -> None:
        self.tries = 0

    def rename(self, source: Path, target: Path) -> None:
        self.tries += 1
        if self.tries <= 2:
            held = PermissionError(errno.EACCES, "another program uses it")
            held.__dict__["winerror"] = 32  # an attribute of the class there only
            raise held
        super().rename(source, target)


def test_a_rename_waits_until_a_virus_scanner_lets_go(tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    disk = HeldForAMoment()
    rename(tmp_path / "lora", tmp_path / "lora.old", disk)
    assert disk.tries == 3
    assert (tmp_path / "lora.old").is_dir()


def test_a_rename_that_is_refused_for_good_is_refused_at_once(tmp_path: Path) -> None:
    disk = FailingDisk(1, OSError(errno.ENOSPC, "no"))
    with pytest.raises(OSError, match="no"):
        rename(tmp_path / "a", tmp_path / "b", disk)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc: a file system whose folders cannot be synced")
def test_a_folder_that_its_file_system_cannot_sync_is_no_failure() -> None:
    Disk().sync_dir(Path("/proc/self"))


def test_a_folder_that_is_not_there_is_not_synced_in_silence(tmp_path: Path) -> None:
    if sys.platform != "win32":
        with pytest.raises(FileNotFoundError):
            Disk().sync_dir(tmp_path / "nowhere")


def test_a_copy_of_a_checkpoint_is_as_good_as_the_first(tmp_path: Path) -> None:
    staged, final = a_staged_checkpoint(tmp_path)
    commit(staged, final, Disk())
    shutil.copytree(final, tmp_path / "elsewhere")
    assert verify_dir(tmp_path / "elsewhere") == verify_dir(final)


def test_an_empty_folder_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NotWhole, match="manifest is missing"):
        verify_dir(tmp_path)
    (tmp_path / MANIFEST).write_bytes(seal(a_manifest({})))
    with pytest.raises(NotWhole, match="names no file"):
        verify_dir(tmp_path)


@pytest.mark.parametrize(
    ("platform", "number", "winerror", "expected"),
    [
        ("win32", errno.EACCES, 32, True),  # what MoveFile and its like say
        ("win32", errno.EACCES, None, True),  # what the C runtime's open says of the same
        ("win32", errno.ENOSPC, None, False),
        ("win32", errno.ENOENT, 2, False),
        ("linux", errno.EACCES, None, False),
        ("darwin", errno.EACCES, None, False),
    ],
)
def test_a_file_that_is_held_is_known_by_either_of_windows_ways_to_say_so(
    platform: str, number: int, winerror: int | None, expected: bool
) -> None:
    error = OSError(number, "no")
    error.__dict__["winerror"] = winerror
    assert may_pass(error, platform) == expected


class CountsSyncs(Disk):
    def __init__(self) -> None:
        self.syncs = 0

    def fsync(self, descriptor: int) -> None:
        self.syncs += 1
        super().fsync(descriptor)


@pytest.mark.skipif(sys.platform == "win32", reason="folders are not synced there")
def test_a_folder_is_synced_by_the_same_call_as_a_file(tmp_path: Path) -> None:
    disk = CountsSyncs()
    disk.sync_dir(tmp_path)
    assert disk.syncs == 1
