"""The power goes at any moment of a row of saves: what is found afterwards opens, and is never older than what was told."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from backpropagate import checkpoints
from backpropagate_protocol.rundir import Manifest, OutputDir, RunDir, checkpoint_step
from backpropagate_runner.checkpoint import commit, make_room, prune
from tests.protocol.lossy_disk import Entries, LossyDisk, write_tree

KEEP = 2


def a_manifest(step: int, order: int = 7) -> Manifest:
    return Manifest(
        run_id="r", step=step, total_steps=99, samples_seen=8 * step, order=order, micro_batch=4, accumulation=2,
        data_digest="data", spec_digest="spec", backend="toy",
    )  # fmt: skip


class Saves:
    """A run that saves, on a disk that can be asked at each call what would be left if this were the last moment."""

    def __init__(self, folder: Path, disk: type[LossyDisk] = LossyDisk) -> None:
        self.run = OutputDir(folder / "out").run("r")
        for made in (self.run.checkpoints, self.run.staging):
            made.mkdir(parents=True)
        self.told = 0  # the newest step whose checkpoint the supervisor has heard of
        self.points = 0
        self.tried: set[tuple[Entries, int]] = set()
        self._replay = OutputDir(folder / "replay").run("r")
        self._disk = disk(self.run.path, before_call=self._every_state_opens)

    def save(self, step: int, order: int = 7) -> None:
        staged = self.run.staging / f"checkpoint-{step}"
        staged.mkdir(exist_ok=True)
        (staged / "weights.bin").write_bytes(bytes([step]) * 64)
        (staged / "state.json").write_bytes(b'{"step": %d}' % step)
        self._disk.unsynced(staged)
        manifest = a_manifest(step, order)
        if not make_room(self.run.checkpoint(step), manifest, self._disk):
            commit(staged, self.run.checkpoint(step), manifest, self._disk)
        self.told = step
        prune(self.run, step, KEEP, self._disk)
        self._every_state_opens()

    def _every_state_opens(self) -> None:
        self.points += 1
        for state in self._disk.states(self.run.checkpoints):
            found: Entries = tuple((name, tree) for name, tree in state if checkpoint_step(name) is not None)
            if (found, self.told) in self.tried:
                continue
            self.tried.add((found, self.told))
            shutil.rmtree(self._replay.path, ignore_errors=True)
            write_tree(found, self._replay.checkpoints)
            newest = self._newest(self._replay)
            assert newest >= self.told, f"{self.told} was told, {newest} is there"

    @staticmethod
    def _newest(run: RunDir) -> int:
        search = checkpoints.newest_good(run)
        assert not search.unreadable
        return search.found.step if search.found else 0


def test_no_crash_in_a_row_of_saves_costs_a_checkpoint_that_was_told(tmp_path: Path) -> None:
    saves = Saves(tmp_path)
    for step in (5, 10, 15, 20):
        saves.save(step)
    assert checkpoints.steps(saves.run) == [15, 20]
    assert saves.points > 40
    assert len(saves.tried) > 20


def test_no_crash_while_a_step_is_saved_again_costs_the_one_before(tmp_path: Path) -> None:
    """A run that had to go back saves a step whose name is taken: the same again, and one that differs."""
    saves = Saves(tmp_path)
    saves.save(5)
    saves.save(10)
    saves.save(10)
    saves.told = 5  # what is moved aside is no promise any more
    saves.save(10, order=8)
    manifest = msgspec.json.decode((saves.run.checkpoint(10) / "manifest.json").read_bytes(), type=Manifest)
    assert manifest.order == 8


class NeverSyncsFiles(LossyDisk):
    def sync_file(self, path: Path) -> None: ...


class NeverSyncsFolders(LossyDisk):
    def sync_dir(self, path: Path) -> None: ...


@pytest.mark.parametrize("disk", [NeverSyncsFiles, NeverSyncsFolders])
def test_a_save_that_leaves_out_a_sync_would_be_caught_here(tmp_path: Path, disk: type[LossyDisk]) -> None:
    saves = Saves(tmp_path, disk)
    with pytest.raises(AssertionError, match="5 was told, 0 is there"):
        saves.save(5)
