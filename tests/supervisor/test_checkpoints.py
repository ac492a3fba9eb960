"""Checkpoints as the parent sees them: the newest that verifies, and nothing is ever deleted that might be needed."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from backpropagate import checkpoints
from backpropagate.checkpoints import CheckpointManager, CheckpointPolicy
from backpropagate.keep import results
from backpropagate_protocol import durable
from backpropagate_protocol.rundir import PARTIAL, Manifest, OutputDir, RunDir, Standing


def run_dir(tmp_path: Path) -> RunDir:
    return OutputDir(tmp_path).run("the-run")


def save(
    run: RunDir,
    step: int,
    loss: float | None = None,
    run_id: str = "the-run",
    name: str = "",
    standing: Standing | None = None,
) -> Path:
    """A checkpoint, committed as the runner commits one."""
    staged = run.staging / "staged"
    staged.mkdir(parents=True)
    (staged / "state.bin").write_bytes(bytes(range(256)))
    manifest = Manifest(
        run_id=run_id,
        step=step,
        total_steps=100,
        samples_seen=8 * step,
        order=step,
        micro_batch=8,
        accumulation=1,
        data_digest="d",
        spec_digest="s",
        backend="toy",
        loss=loss,
        standing=standing,
    )
    final = run.checkpoints / name if name else run.checkpoint(step)
    durable.commit_dir(staged, final, lambda files: msgspec.json.encode(msgspec.structs.replace(manifest, files=files)))
    return final


def names(run: RunDir) -> set[str]:
    return {entry.name for entry in run.checkpoints.iterdir()}


def test_without_checkpoints_a_run_begins_at_the_start(tmp_path: Path) -> None:
    assert checkpoints.newest_good(run_dir(tmp_path)) == checkpoints.Search(None)


def test_the_newest_that_verifies_is_found(tmp_path: Path) -> None:
    run = run_dir(tmp_path)
    for step in (5, 10, 15):
        save(run, step)
    search = checkpoints.newest_good(run)
    assert search.found is not None
    assert (search.found.name, search.found.samples_seen) == ("step-00000015", 120)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "no manifest", "torn manifest"])
def test_a_damaged_one_is_put_aside_and_the_one_before_is_taken(tmp_path: Path, damage: str) -> None:
    run = run_dir(tmp_path)
    save(run, 5)
    folder = save(run, 10)
    state, manifest = folder / "state.bin", folder / "manifest.json"
    match damage:
        case "truncated":
            state.write_bytes(state.read_bytes()[:-1])
        case "flipped":
            state.write_bytes(b"\x01" + state.read_bytes()[1:])
        case "missing":
            state.unlink()
        case "no manifest":
            manifest.unlink()
        case _:
            manifest.write_bytes(manifest.read_bytes()[:-9])
    search = checkpoints.newest_good(run)
    assert search.found is not None
    assert search.found.step == 5
    assert [name for name, _ in search.aside] == ["step-00000010"]
    assert names(run) == {"step-00000005", "step-00000010.quarantine"}


@pytest.mark.skipif(sys.platform == "win32", reason="making a link takes a privilege there")
def test_one_that_cannot_be_read_now_is_neither_put_aside_nor_passed_over(tmp_path: Path) -> None:
    run = run_dir(tmp_path)
    save(run, 5)
    state = save(run, 10) / "state.bin"
    (save(run, 15) / "manifest.json").unlink()
    content = state.read_bytes()
    state.unlink()
    state.symlink_to(state)  # to open it is an error of the file system, as a failing disk's would be
    search = checkpoints.newest_good(run)
    assert search.found is None
    assert "state.bin" in search.unreadable
    assert [name for name, _ in search.aside] == ["step-00000015"]
    assert names(run) == {"step-00000005", "step-00000010", "step-00000015.quarantine"}

    state.unlink()
    state.write_bytes(content)
    again = checkpoints.newest_good(run)
    assert again.found is not None
    assert (again.found.step, again.unreadable) == (10, "")


def test_checkpoints_that_cannot_be_listed_are_not_taken_for_none(tmp_path: Path) -> None:
    run = run_dir(tmp_path)
    run.path.mkdir(parents=True)
    run.checkpoints.write_text("no folder")
    assert checkpoints.newest_good(run).unreadable


def test_a_second_one_of_that_name_is_put_aside_beside_the_first(tmp_path: Path) -> None:
    run = run_dir(tmp_path)
    for _ in range(2):
        (save(run, 10) / "state.bin").unlink()
        checkpoints.newest_good(run)
    assert names(run) == {"step-00000010.quarantine", "step-00000010.quarantine-1"}


def test_what_belongs_to_another_run_or_step_is_not_taken(tmp_path: Path) -> None:
    run = run_dir(tmp_path)
    save(run, 5, run_id="another-run")
    save(run, 6, name="step-00000007")
    search = checkpoints.newest_good(run)
    assert search.found is None
    assert len(search.aside) == 2


def test_a_sweep_removes_what_is_half_made_and_nothing_else(tmp_path: Path) -> None:
    run = run_dir(tmp_path)
    save(run, 5)
    for left in (run.staging / "x", run.checkpoints / "step-00000009.partial", run.output.cache / "y.partial"):
        left.mkdir(parents=True)
    (run.path / ".spec.json.1234.tmp").write_text("x")
    (run.output.path / "the user's own.partial").write_text("x")
    (run.checkpoints / "step-00000004.quarantine").mkdir()
    checkpoints.sweep(run)
    assert names(run) == {"step-00000005", "step-00000004.quarantine"}
    assert sorted(entry.name for entry in run.output.path.iterdir()) == ["cache", "runs", "the user's own.partial"]
    assert not list(run.output.cache.iterdir())
    assert [entry.name for entry in run.path.iterdir()] == ["checkpoints"]


def test_an_adapter_that_had_stepped_aside_for_one_that_never_came_is_given_its_name_back(tmp_path: Path) -> None:
    run_dir = OutputDir(tmp_path).run("a")
    aside = run_dir.path / f".{run_dir.adapter.name}.old{PARTIAL}"
    aside.mkdir(parents=True)
    (aside / "weights").write_bytes(b"whole")
    checkpoints.sweep(run_dir)
    assert (run_dir.adapter / "weights").read_bytes() == b"whole"
    assert not aside.exists()


def test_a_sweep_that_cannot_look_says_nothing(tmp_path: Path) -> None:
    run = run_dir(tmp_path)
    run.path.mkdir(parents=True)
    run.checkpoints.write_text("no folder")
    left = run.path / ".spec.json.1234.tmp"
    left.write_text("x")
    old = adapter(tmp_path / ".lora.old.partial", "first")
    if sys.platform != "win32":
        run.output.lora.symlink_to(run.output.lora)  # not there to be looked at, and not to be replaced
    checkpoints.sweep(run)
    assert not left.exists()
    assert old.exists() == (sys.platform != "win32")


def test_pruning_keeps_the_best_and_the_newest(tmp_path: Path) -> None:
    run = run_dir(tmp_path)
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 4.0)):
        save(run, step, loss)
    manager = CheckpointManager(run.path, CheckpointPolicy(keep_best_n=1))
    assert manager.prune(dry_run=True) == [run.checkpoint(1), run.checkpoint(3)]
    assert len(names(run)) == 4
    manager.prune()
    assert names(run) == {"step-00000002", "step-00000004"}
    best, final = manager.best(), manager.final()
    assert best is not None
    assert final is not None
    assert (best.step, final.step) == (2, 4)
    assert manager.verify(final)


@pytest.mark.parametrize("policy", [CheckpointPolicy(keep_best_n=0, keep_final=False), CheckpointPolicy(keep_best_n=0)])
def test_pruning_never_removes_the_last_one(tmp_path: Path, policy: CheckpointPolicy) -> None:
    run = run_dir(tmp_path)
    for step in (1, 2):
        save(run, step)
    CheckpointManager(run.path, policy).prune()
    assert names(run) == {"step-00000002"}


def adapter(folder: Path, content: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(content)
    (folder / "manifest.json").write_text("ours")
    return folder


def test_the_newest_adapter_takes_the_place_of_the_older(tmp_path: Path) -> None:
    output = OutputDir(tmp_path / "out")
    output.path.mkdir()
    for content in ("first", "second"):
        results.publish_adapter(adapter(tmp_path / content, content), output)
        assert (output.lora / "adapter_config.json").read_text() == content
    assert [path.name for path in output.lora.iterdir()] == ["adapter_config.json"]
    assert [path.name for path in output.path.iterdir()] == ["lora"]


def test_an_adapter_that_cannot_be_copied_leaves_the_old_one(tmp_path: Path) -> None:
    output = OutputDir(tmp_path / "out")
    output.path.mkdir()
    results.publish_adapter(adapter(tmp_path / "first", "first"), output)
    with pytest.raises(OSError, match="nowhere"):
        results.publish_adapter(tmp_path / "nowhere", output)
    assert (output.lora / "adapter_config.json").read_text() == "first"


def test_a_swap_that_was_cut_off_is_taken_back(tmp_path: Path) -> None:
    output = OutputDir(tmp_path)
    adapter(tmp_path / ".lora.old.partial", "first")
    adapter(tmp_path / ".lora.new.partial", "second")
    checkpoints.sweep(output.run("any"))
    assert (output.lora / "adapter_config.json").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["lora"]
