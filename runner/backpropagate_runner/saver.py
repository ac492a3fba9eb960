"""Makes staged folders checkpoints beside the training: one at a time, in a thread, told as soon as each is durable.

Invariants:
1. A checkpoint is announced only after it is durable under its final name.
2. A disk that is full or failing ends nothing: the partial goes, the failure is told.
3. At most one is under way. Whoever wants the next waits for it first, and then knows how it went.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from backpropagate_backends.base import Write
from backpropagate_protocol.durable import DISK, Disk, discard
from backpropagate_protocol.errors import DiskFullError
from backpropagate_protocol.messages import CheckpointFailed, CheckpointSaved
from backpropagate_protocol.redact import redact
from backpropagate_protocol.rundir import Manifest, RunDir
from backpropagate_runner.channel import Channel
from backpropagate_runner.checkpoint import commit, make_room, prune
from backpropagate_runner.drill import Drill
from backpropagate_runner.faults import is_disk_trouble

SETTLE_SECONDS = 0.2  # a parent that reads needs a thousandth of it


@dataclass(frozen=True, slots=True)
class Order:
    """A checkpoint to be made. Times are those of the clock: when the training was held up for it, and let go again."""

    staged: Path
    manifest: Manifest
    write: Write
    began: float
    released: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it went: durable, or not for the disk's sake. Any other error is raised by `Saver.wait`."""

    order: Order
    ended: float
    durable: bool


class Saver:
    """Called from the thread that trains; `keep` checkpoints stay, and with `best` those that were the best."""

    def __init__(
        self,
        run: RunDir,
        keep: int,
        best: bool,
        channel: Channel,
        drill: Drill,
        disk: Disk = DISK,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run, self._keep, self._best = run, keep, best
        self._channel, self._drill, self._disk, self._clock = channel, drill, disk, clock
        self._failures = 0  # in a row
        self._thread: threading.Thread | None = None
        self._outcome: Outcome | None = None
        self._error: BaseException | None = None

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def begin(self, order: Order) -> None:
        """In the thread. The one before must have been waited for."""
        if self._thread is not None:
            raise RuntimeError("a checkpoint is under way")
        self._thread = threading.Thread(target=self._work, args=(order,), name="save", daemon=True)
        self._thread.start()

    def do(self, order: Order) -> Outcome | None:
        """The same here and now."""
        self.begin(order)
        return self.wait()

    def wait(self, timeout: float | None = None) -> Outcome | None:
        """The outcome of the one under way, once; None if none is, or if it takes longer than `timeout` seconds.

        Raises what was wrong with it, if that was not the disk.
        """
        if self._thread is None:
            return None
        self._thread.join(timeout)
        if self._thread.is_alive():
            return None
        self._thread = None
        outcome, error = self._outcome, self._error
        self._outcome = self._error = None
        if error is not None:
            raise error
        return outcome

    def failed(self, step: int, error: BaseException) -> None:
        """Says that a checkpoint could not be written. Raises `error` if that was not the disk's fault."""
        if not isinstance(error, OSError) and not is_disk_trouble(error):
            raise error  # out of memory while saving, for one
        self._failures += 1
        text = redact(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
        self._channel.send(CheckpointFailed(step, DiskFullError.default_code, text, self._failures))

    # --- in the thread ----------------------------------------------------------------------------------------------

    def _work(self, order: Order) -> None:
        try:
            self._outcome = self._made(order)
        except BaseException as error:  # noqa: BLE001 - the thread that trains raises it
            discard(order.staged)
            self._error = error

    def _made(self, order: Order) -> Outcome:
        step = order.manifest.step
        try:
            size = self._commit(order)
        except Exception as error:  # noqa: BLE001 - `failed` raises again what is not the disk's
            discard(order.staged)
            self.failed(step, error)
            return Outcome(order, self._clock(), durable=False)
        ended = self._clock()
        self._failures = 0
        self._announce(order, ended, size)
        prune(self._run, step, self._keep, best=self._best)
        return Outcome(order, ended, durable=True)

    def _commit(self, order: Order) -> int:
        """Bytes on the disk; 0 if this very checkpoint was there."""
        final = self._run.checkpoint(order.manifest.step)
        disk = self._drill.disk_for(order.manifest.step, self._disk)
        order.staged.mkdir(parents=True, exist_ok=True)
        order.write(order.staged)
        if make_room(final, order.manifest, disk):
            discard(order.staged)
            return 0
        size, _ = commit(order.staged, final, order.manifest, disk)
        return size

    def _announce(self, order: Order, ended: float, size: int) -> None:
        manifest = order.manifest
        final = self._run.checkpoint(manifest.step)
        self._drill.after_save(manifest.step, final)
        self._channel.send(
            CheckpointSaved(
                name=final.name,
                step=manifest.step,
                samples_seen=manifest.samples_seen,
                order=manifest.order,
                seconds=ended - order.began,
                bytes=size,
                loss=manifest.loss,
                blocked=min(order.released, ended) - order.began,
            )
        )
        self._channel.settle(SETTLE_SECONDS)
