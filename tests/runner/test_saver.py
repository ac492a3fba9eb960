"""Checkpoints written beside the training: what is told when, and that no two are under way."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from backpropagate_backends.base import Write
from backpropagate_protocol.durable import verify_dir
from backpropagate_protocol.framing import decoder_for_parent
from backpropagate_protocol.messages import CheckpointFailed, CheckpointSaved, ToParent
from backpropagate_protocol.rundir import Manifest, OutputDir, RunDir
from backpropagate_runner.channel import Channel
from backpropagate_runner.control import Control
from backpropagate_runner.drill import Drill
from backpropagate_runner.saver import Order, Saver


class Scene:
    """A saver on a real folder and a real pipe."""

    def __init__(self, folder: Path) -> None:
        self.run: RunDir = OutputDir(folder).run("r")
        self.run.checkpoints.mkdir(parents=True)
        self.run.staging.mkdir()
        self._incoming, self._to_child = os.pipe()
        self._from_child, outgoing = os.pipe()
        channel = Channel(self._incoming, outgoing, lambda _: None, lambda _: None, lambda _: None)
        channel.start()
        self._channel = channel
        drill = Drill((), 1, channel, Control(lambda: None))
        self.saver = Saver(self.run, keep=2, best=False, channel=channel, drill=drill)

    def order(self, step: int, write: Write) -> Order:
        manifest = Manifest(
            run_id="r",
            step=step,
            total_steps=100,
            samples_seen=8 * step,
            order=7,
            micro_batch=4,
            accumulation=2,
            data_digest="data",
            spec_digest="spec",
            backend="toy",
        )
        return Order(self.run.staging / f"checkpoint-{step}", manifest, write, began=0.0, released=0.0)

    def said(self) -> list[ToParent]:
        assert self._channel.flush(10)
        return list(decoder_for_parent().feed(os.read(self._from_child, 1 << 16)))

    def close(self) -> None:
        os.close(self._to_child)
        for thread in threading.enumerate():
            if thread.name == "protocol-in":
                thread.join(10)
        os.close(self._incoming)
        os.close(self._from_child)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.close()


def _write(folder: Path) -> None:
    (folder / "state.json").write_text("{}")


def test_the_training_goes_on_while_one_is_written_and_nothing_is_said_before_it_is_durable(scene: Scene) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def write(folder: Path) -> None:
        begun.set()
        assert go_on.wait(30)
        _write(folder)

    scene.saver.begin(scene.order(5, write))
    assert begun.wait(30)
    assert scene.saver.busy
    assert scene.saver.wait(0.0) is None
    assert not scene.run.checkpoint(5).exists()
    with pytest.raises(RuntimeError, match="under way"):
        scene.saver.begin(scene.order(6, _write))
    go_on.set()
    outcome = scene.saver.wait()
    assert outcome is not None
    assert outcome.durable
    assert verify_dir(scene.run.checkpoint(5)).step == 5
    assert not outcome.order.staged.exists()
    [saved] = scene.said()
    assert isinstance(saved, CheckpointSaved)
    assert (saved.name, saved.step) == ("step-00000005", 5)
    assert saved.blocked == 0.0 < saved.seconds
    assert scene.saver.wait() is None


def test_a_disk_that_takes_nothing_is_told_and_counted_until_it_takes_one(scene: Scene) -> None:
    def full(folder: Path) -> None:
        _write(folder)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for step, write in ((5, full), (6, full), (7, _write), (8, full)):
        outcome = scene.saver.do(scene.order(step, write))
        assert outcome is not None
        assert outcome.durable == (write is _write)
    said = scene.said()
    assert [(m.step, m.failures) for m in said if isinstance(m, CheckpointFailed)] == [(5, 1), (6, 2), (8, 1)]
    assert [p.name for p in scene.run.checkpoints.iterdir()] == ["step-00000007"]
    assert list(scene.run.staging.iterdir()) == []


def test_what_is_not_the_disks_fault_is_raised_where_it_is_waited_for(scene: Scene) -> None:
    def wrong(folder: Path) -> None:
        raise MemoryError("no room for the file's index")

    scene.saver.begin(scene.order(5, wrong))
    with pytest.raises(MemoryError):
        scene.saver.wait()
    assert list(scene.run.staging.iterdir()) == []
    outcome = scene.saver.do(scene.order(6, _write))
    assert outcome is not None
    assert outcome.durable
