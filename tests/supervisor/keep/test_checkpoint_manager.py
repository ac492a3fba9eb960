"""CheckpointManager: what may go goes, in a run and in a campaign, and what may be needed never does."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest

from backpropagate.checkpoints import CheckpointManager, CheckpointPolicy
from backpropagate.events import Event, LinkEnded, LinkScored
from backpropagate.judge.campaign import link_id
from backpropagate.keep import locks
from backpropagate.keep.journal import Journal
from backpropagate.measured import LinkScore
from backpropagate_protocol.errors import BusyError, CheckpointError
from backpropagate_protocol.rundir import OutputDir, RunDir, Standing
from backpropagate_protocol.spec import CampaignSpec, DataSpec, ModelSpec, RunSpec
from tests.supervisor.test_checkpoints import names, run_dir, save

_ID = "6f1c8ad0-0000-4000-8000-000000000001"
_NOTHING = CheckpointPolicy(keep_best_n=0, keep_final=False)


def flip(folder: Path) -> None:
    state = folder / "state.bin"
    state.write_bytes(b"\x01" + state.read_bytes()[1:])


def campaign(tmp_path: Path, *happened: Event) -> tuple[CheckpointManager, list[RunDir]]:
    """Three runs with the checkpoints 1, 2 and 100, as far as `happened` goes."""
    data = tuple(DataSpec(source=f"{i}.jsonl", holdout=20) for i in range(3))
    wanted = CampaignSpec(runs=data, names=("a", "b", "c"))
    output = OutputDir(tmp_path)
    spec = RunSpec(run_id=_ID, created="", output=str(tmp_path), model=ModelSpec(name="tiny", path="tiny"), data=data[0], kind="campaign", campaign=wanted)  # fmt: skip
    home = output.run(_ID)
    home.path.mkdir(parents=True)
    home.spec.write_bytes(msgspec.json.encode(spec))
    with Journal(home.events) as lines:
        for event in happened:
            lines.append(event)
    members = [output.run(link_id(_ID, number)) for number in (1, 2, 3)]
    for member in members:
        for step in (1, 2, 100):
            save(member, step, 1.0 / step, run_id=member.run_id)
    return CheckpointManager(home.path), members


def ended(link: int) -> LinkEnded:
    return LinkEnded(time=1.0, run_id=_ID, link=link, link_run=link_id(_ID, link), name="", adapter="")


def scored(link: int, *losses: float) -> LinkScored:
    told = tuple(LinkScore("newest", task, loss, 0.5, 9, 1) for task, loss in enumerate(losses))
    return LinkScored(time=1.0, run_id=_ID, link=link, scores=told)


def test_the_best_by_its_held_out_loss_stays_while_the_run_may_still_be_made_of_it(tmp_path: Path) -> None:
    run = run_dir(tmp_path)
    for step, best in ((1, 1), (2, 1), (3, 3), (4, 3), (5, 3)):
        loss = {1: 0.9, 2: 1.5, 3: 0.5, 4: 0.7, 5: 0.8}
        save(run, step, 1.0, standing=Standing(step=step, loss=loss[step], best_step=best, best_loss=loss[best]))
    manager = CheckpointManager(run.path, CheckpointPolicy(keep_best_n=0))
    assert [each.validation_loss for each in manager.list()] == [0.9, 1.5, 0.5, 0.7, 0.8]
    found = manager.best()
    assert found is not None
    assert found.step == 3
    manager.prune()
    assert names(run) == {"step-00000003", "step-00000005"}


def test_what_was_registered_is_told_and_kept(tmp_path: Path) -> None:
    run = run_dir(tmp_path)
    for step in (1, 2, 3):
        save(run, step, 1.0)
    manager = CheckpointManager(run.path)
    manager.register(run.checkpoint(1), validation_loss=0.5)
    first = manager.register(manager.list()[0], protected=True)
    assert (first.validation_loss, first.protected, first.run_boundary, first.step) == (0.5, True, False, 1)
    assert CheckpointManager(run.path).list()[0] == first
    assert not manager.register(run.checkpoint(1), protected=False).protected


def test_validation_loss_comes_before_training_loss(tmp_path: Path) -> None:
    run = run_dir(tmp_path)
    for step, loss in ((1, 0.1), (2, 0.2), (3, 0.3)):
        save(run, step, loss)
    manager = CheckpointManager(run.path, CheckpointPolicy(keep_best_n=1))
    best = manager.best()
    assert best is not None
    assert best.step == 1
    manager.register(run.checkpoint(2), validation_loss=9.0)
    best = manager.best()
    assert best is not None
    assert best.step == 2
    assert manager.prune() == [run.checkpoint(1)]


def test_of_equals_the_newer_is_the_better(tmp_path: Path) -> None:
    run = run_dir(tmp_path)
    for step in (1, 2, 3):
        save(run, step, 0.0)
    best = CheckpointManager(run.path).best()
    assert best is not None
    assert best.step == 3


def test_what_is_protected_and_where_a_run_ended_stays(tmp_path: Path) -> None:
    run = run_dir(tmp_path)
    for step in (1, 2, 3, 4):
        save(run, step)
    manager = CheckpointManager(run.path, CheckpointPolicy(keep_best_n=0, keep_run_boundaries=True))
    manager.register(run.checkpoint(1), protected=True)
    manager.register(run.checkpoint(2), run_boundary=True)
    assert manager.prune() == [run.checkpoint(3)]
    assert names(run) == {"step-00000001", "step-00000002", "step-00000004"}


def test_the_register_forgets_what_is_gone(tmp_path: Path) -> None:
    run = run_dir(tmp_path)
    for step in (1, 2):
        save(run, step)
    manager = CheckpointManager(run.path, _NOTHING)
    manager.register(run.checkpoint(1), validation_loss=1.0)
    manager.prune()
    manager.register(run.checkpoint(2), validation_loss=2.0)
    assert b'"step": 1' not in run.checkpoint_register.read_bytes()


@pytest.mark.parametrize(
    "where", ["step-00000009", "step-00000001.quarantine", "../../another/checkpoints/step-00000001"]
)
def test_only_what_is_there_can_be_registered(tmp_path: Path, where: str) -> None:
    run = run_dir(tmp_path)
    save(run, 1)
    with pytest.raises(CheckpointError):
        CheckpointManager(run.path).register(run.checkpoints / where, protected=True)
    assert not run.checkpoint_register.exists()


def test_a_register_that_cannot_be_read_protects_everything(tmp_path: Path) -> None:
    run = run_dir(tmp_path)
    for step in (1, 2):
        save(run, step)
    run.checkpoint_register.write_text("{")
    with pytest.raises(CheckpointError, match=r"checkpoints\.json"):
        CheckpointManager(run.path, _NOTHING).prune()
    assert len(names(run)) == 2


def test_where_the_newest_is_damaged_the_one_before_stays_too(tmp_path: Path) -> None:
    run = run_dir(tmp_path)
    for step in (1, 2, 3):
        save(run, step)
    flip(run.checkpoint(3))
    assert CheckpointManager(run.path, CheckpointPolicy(keep_best_n=0)).prune() == [run.checkpoint(1)]


def test_where_none_is_whole_all_stay(tmp_path: Path) -> None:
    run = run_dir(tmp_path)
    for step in (1, 2, 3):
        flip(save(run, step))
    assert CheckpointManager(run.path, _NOTHING).prune() == []
    assert len(names(run)) == 3


def test_what_is_no_checkpoint_is_left_alone(tmp_path: Path) -> None:
    run = run_dir(tmp_path)
    for step in (1, 2):
        save(run, step)
    (save(run, 3) / "manifest.json").unlink()
    save(run, 4, run_id="another")
    for folder in ("step-00000005.partial", "step-00000006.quarantine", "mine"):
        (run.checkpoints / folder).mkdir()
    CheckpointManager(run.path, _NOTHING).prune()
    left = {
        "step-00000002",
        "step-00000003",
        "step-00000004",
        "step-00000005.partial",
        "step-00000006.quarantine",
        "mine",
    }
    assert names(run) == left


def test_nothing_is_removed_while_a_supervisor_works_in_the_folder(tmp_path: Path) -> None:
    run = run_dir(tmp_path)
    for step in (1, 2):
        save(run, step)
    manager = CheckpointManager(run.path, _NOTHING)
    with locks.hold(run.output.lock, "the-run", "the output folder"):
        assert manager.prune(dry_run=True) == [run.checkpoint(1)]
        with pytest.raises(BusyError):
            manager.prune()
        assert len(names(run)) == 2
    assert manager.prune() == [run.checkpoint(1)]


def test_the_sums_are_those_of_the_files(tmp_path: Path) -> None:
    run = run_dir(tmp_path)
    empty = CheckpointManager(run.path).stats()
    assert (empty.count, empty.bytes, empty.best, empty.newest) == (0, 0, None, None)
    for step, loss in ((1, 1.0), (2, 2.0)):
        save(run, step, loss)
    manager = CheckpointManager(run.path)
    manager.register(run.checkpoint(2), protected=True)
    found = manager.stats()
    assert (found.count, found.bytes, found.protected, found.validated) == (2, 512, 1, 0)
    assert found.best is not None
    assert found.newest is not None
    assert (found.best.step, found.newest.step) == (1, 2)


def test_a_campaigns_checkpoints_are_those_of_all_its_runs(tmp_path: Path) -> None:
    manager, members = campaign(tmp_path, ended(1), scored(1, 2.0))
    assert [(each.link, each.step) for each in manager.list()] == [
        (link, step) for link in (1, 2, 3) for step in (1, 2, 100)
    ]
    assert manager.stats().count == 9
    assert manager.list()[0].path == members[0].checkpoint(1)


def test_a_campaigns_runs_are_ranked_by_what_they_said_to_held_out_rows(tmp_path: Path) -> None:
    manager, _ = campaign(tmp_path, ended(1), scored(1, 2.0), ended(2), scored(2, 1.0, 2.0), ended(3), scored(3, 9.0))
    found = [each for each in manager.list() if each.validation_loss is not None]
    assert [(each.link, each.step, each.validation_loss) for each in found] == [
        (1, 100, 2.0),
        (2, 100, 1.5),
        (3, 100, 9.0),
    ]
    best = manager.best()
    assert best is not None
    assert best.link == 2


def test_of_a_run_that_is_not_finished_the_newest_good_one_stays(tmp_path: Path) -> None:
    manager, members = campaign(tmp_path, ended(1))
    manager.policy = _NOTHING
    flip(members[1].checkpoint(100))
    manager.prune()
    assert [names(member) for member in members] == [
        set(),
        {"step-00000002", "step-00000100"},
        {"step-00000100"},
    ]


def test_where_a_campaigns_runs_ended_stays_if_wished(tmp_path: Path) -> None:
    manager, members = campaign(tmp_path, ended(1), ended(2), ended(3))
    manager.policy = CheckpointPolicy(keep_best_n=0, keep_final=False, keep_run_boundaries=True)
    manager.prune()
    assert [names(member) for member in members] == [{"step-00000100"}] * 3


@pytest.mark.parametrize("seed", range(8))
def test_whatever_the_policy_a_good_checkpoint_is_left_and_a_dry_run_tells_the_truth(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    run = run_dir(tmp_path)
    for step in range(1, chance.randint(2, 6)):
        folder = save(run, step, chance.choice([None, chance.random()]))
        if chance.random() < 0.3:
            flip(folder)
    manager = CheckpointManager(
        run.path,
        CheckpointPolicy(
            keep_best_n=chance.randint(0, 2),
            keep_final=chance.random() < 0.5,
            keep_run_boundaries=chance.random() < 0.5,
        ),
    )
    good = {each.step for each in manager.list() if manager.verify(each)}
    told = manager.prune(dry_run=True)
    assert manager.prune() == told
    left = {each.step for each in manager.list()}
    assert not good or max(good) in left
    assert manager.prune() == []
