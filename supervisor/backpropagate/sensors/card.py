"""The run's card: whose it is, what fits on it, how warm it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, aclosing
from pathlib import Path

import anyio

from backpropagate.doors.environ import environment
from backpropagate.doors.process import visible_device
from backpropagate.events import Event, ModelReady
from backpropagate.judge.decisions import (
    CardGone,
    CardKnown,
    CardLimits,
    CardVitals,
    Input,
    MemoryHeld,
    MemorySpilled,
    SensorLost,
    StopAsked,
    Temperature,
    XidSeen,
)
from backpropagate.judge.estimate import Gpu, Sizing
from backpropagate.judge.on_card import is_on_card
from backpropagate.judge.start import first_micro_batch
from backpropagate.judge.too_large import doubt, refusal
from backpropagate.judge.xids import FINAL
from backpropagate.keep import locks, userstate
from backpropagate.sensors import gpu
from backpropagate.sensors.holders import in_words, others
from backpropagate_protocol.catalogue import ExitCode
from backpropagate_protocol.errors import BackpropagateError, BusyError
from backpropagate_protocol.spec import RunSpec

_RETRY_LOCK = 1.0
_RETRY_PROBE = 0.1  # someone may only be looking who has it
_RETRY_SENSOR = (60.0, 60.0, 120.0, 300.0, 600.0)  # and from then on
_HANGS = 3  # in a row, then it is asked nothing more: each may leave a process that nobody can end
_MEMORY_SECONDS = 30.0
_MEMORY_SLACK = 256  # MiB: a desktop's windows come and go


class Reservation:
    """The cards that a supervisor keeps to itself, longer than one training. Let go of them with `release`."""

    def __init__(self) -> None:
        self._held = ExitStack()
        self._uuids: set[str] = set()

    def take(self, uuid: str, run_id: str, what: str) -> None:
        """Raises BusyError if another process has it, OSError if there can be no lock."""
        if uuid not in self._uuids:
            self._held.enter_context(locks.hold(locks.gpu_lock(uuid), run_id, what, patience=0.0))
            self._uuids.add(uuid)

    def release(self) -> None:
        self._held.close()
        self._uuids.clear()


class Card:
    """Watches one card for one run. `busy` is set if another run holds it, `refused` if the training cannot fit on it."""

    def __init__(
        self,
        spec: RunSpec,
        script: Path | None,
        known_micro_batch: int | None,
        clock: Callable[[], float] = time.monotonic,
        *,
        wanted: bool = True,
        reserved: Reservation | None = None,
        sizing: Callable[[Gpu], Sizing | None] | None = None,
        retry: Sequence[float] = _RETRY_SENSOR,
    ) -> None:
        """`wanted` False: nobody looks at the card, whatever the spec says. `reserved`: of somebody who goes on to use it
        after this run; without it the card is let go of by `release`. `sizing`: what can be told of the memory that the run will
        take on a card; None where nothing can. `retry`: seconds before sensors that failed are asked again, the last of them from
        then on."""
        self._spec, self._script, self._known, self._clock = spec, script, known_micro_batch, clock
        self._device = visible_device(environment().get("CUDA_VISIBLE_DEVICES"))
        there = spec.backend in ("auto", "cuda") and self._device not in ("", "-1")
        self.wanted = wanted and (script is not None or there)
        self.fit_key: str | None = None
        self.latest: gpu.Sample | None = None
        self.busy: BusyError | None = None
        self.refused: BackpropagateError | None = None
        self._sizing, self._retry = sizing, retry
        self._elsewhere = False  # the run turned out to be on no card
        self._idle = 0  # MiB in use before any child of ours had a model
        self._news = anyio.Event()
        self._lost: str | None = None
        self._feed: Callable[[Input], None] | None = None
        self.child: Callable[[], int | None] = lambda: None  # the process that trains, if one lives
        self._others: tuple[int, str, tuple[int, ...]] | None = None
        self._held = reserved or Reservation()
        self._own = reserved is None

    @property
    def turned_away(self) -> bool:
        """The run does not get this card."""
        return self.busy is not None or self.refused is not None

    @property
    def name(self) -> str:
        """Empty where none is seen."""
        return self.latest.name if self.latest is not None else ""

    def event(self, event: Event) -> None:
        """A run that turned out to be on a GPU whose sensors are silent says so; on the CPU nobody misses them, nor the card."""
        if not isinstance(event, ModelReady):
            return
        if not is_on_card(event.device):
            self._leave()
        elif event.device.startswith("cuda") and self._lost and self._feed:
            self._feed(SensorLost(self._clock(), self._lost))

    def _leave(self) -> None:
        """Others may have it, and what they do with it is no concern of this run's."""
        self._elsewhere = True
        self.latest = self.fit_key = None
        self._held.release()

    async def watch(
        self, feed: Callable[[Input], None], device: Callable[[], str], warn: Callable[[str], None]
    ) -> None:
        """Reads the card for as long as the run lasts. Its first answer, or its absence, lets the Job go out; a card that answers
        only then is watched from there on.

        device: what the newest child trains on, as far as it is known.
        """
        self._feed = feed
        known, awaited = False, True  # the card; by the Job
        failures = hangs = 0
        while not self._elsewhere:
            try:
                async with aclosing(gpu.samples(self._device, self._script)) as samples:
                    async for sample in samples:
                        if self._elsewhere:
                            return
                        for code in sample.xids:
                            feed(XidSeen(self._clock(), code))
                        if FINAL.intersection(sample.xids):
                            return
                        if sample.xids:
                            continue
                        known = known or await self._first(sample, feed, warn, awaited=awaited)
                        if not known:
                            return
                        awaited, self._lost = False, None
                        failures = hangs = 0
                        self._seen(sample)
                        self._tell_others(sample, feed, self.child())
                        self._tell_health(sample, feed)
            except gpu.SensorError as error:
                self.latest = None
                self._lost = str(error)
                if error.gone:
                    feed(CardGone(self._clock(), self._lost))
                    return
                hangs = hangs + 1 if error.hung else 0
                if known or self._spec.backend == "cuda" or device().startswith("cuda"):
                    feed(SensorLost(self._clock(), self._lost, error.hung))
                if error.absent:
                    hangs = _HANGS
            if awaited:
                feed(CardKnown(self._clock()))
                awaited = False
            if hangs >= _HANGS:
                return
            await anyio.sleep(self._retry[min(failures, len(self._retry) - 1)])
            failures += 1

    def _tell_health(self, sample: gpu.Sample, feed: Callable[[Input], None]) -> None:
        now, vitals = self._clock(), sample.vitals
        feed(CardVitals(now, vitals))
        feed(Temperature(now, sample.celsius, sample.to_slowdown, sample.to_shutdown))
        # An optimizer that keeps its state in paged memory has it in the host's, and is meant to.
        if vitals.shared is not None and not self._spec.train.optim.startswith("paged"):
            feed(MemorySpilled(now, vitals.shared, sample.memory_used, sample.memory_total))

    def _seen(self, sample: gpu.Sample) -> None:
        self.latest = sample
        self._news.set()
        self._news = anyio.Event()

    def _tell_others(self, sample: gpu.Sample, feed: Callable[[Input], None], child: int | None) -> None:
        found = others(sample.holders, child) if sample.holders is not None else None
        if found is None:
            return
        pids = tuple(sorted(holder.pid for holder in found))
        told = sum(holder.memory for holder in found), in_words(found), pids
        if told != self._others:
            self._others = told
            feed(MemoryHeld(self._clock(), *told))

    def rehearsal(self, micro_batch: int) -> int | None:
        """TrainJob.rehearse for it; None where no card is watched."""
        return None if self.fit_key is None else userstate.rehearsed(self.fit_key, micro_batch)

    async def memory_back(self) -> None:
        """Returns when a dead child's memory is back, or gets no freer since others have it; within 30 s in any case."""
        still = 0
        with anyio.move_on_after(_MEMORY_SECONDS):
            while self.latest is not None and still < 2:  # blind, the driver's promise has to do
                before = self.latest.memory_used
                await self._news.wait()  # what was read before the death says nothing
                used = self.latest.memory_used
                if used <= self._idle + _MEMORY_SLACK:
                    return
                still = still + 1 if used >= before else 0

    async def _first(
        self, sample: gpu.Sample, feed: Callable[[Input], None], warn: Callable[[str], None], *, awaited: bool
    ) -> bool:
        """Takes the card for this run; False if the run does not get it. `awaited`: the Job waits for this; if it does not, the
        training goes on already, and may stay."""
        try:
            busy = await self._take(sample, wait=awaited and self._spec.safety.wait_for_lock)
        except OSError as error:
            busy = None
            warn(f"the GPU cannot be reserved for this run ({error.strerror or error}); other runs may use it too")
        if self._elsewhere:
            self._held.release()
            return False
        if busy is not None and awaited:
            self.busy = busy
            feed(StopAsked(self._clock(), "a busy GPU", ExitCode.TRY_LATER, kill=True))
            return False
        if busy is not None:
            warn(f"{busy.message}, which was not known when this run began, since the GPU's sensors were silent")
        feed(CardLimits(self._clock(), sample.slowdown, sample.shutdown))
        self.fit_key = userstate.fit_key(sample.name, self._spec)
        if not awaited:
            return True
        self._idle = sample.memory_used
        self._tell_others(sample, feed, None)  # a child, if there is one, has no Job yet
        feed(CardVitals(self._clock(), sample.vitals))  # before anything is begun on a card that needs a reset
        micro = self._known
        if micro is None:
            micro = self._first_micro_batch(sample, warn)
        if self.refused is not None:
            feed(StopAsked(self._clock(), "a card that is too small", ExitCode.USER_ERROR, kill=True))
            return False
        feed(CardKnown(self._clock(), micro))
        return True

    def _first_micro_batch(self, sample: gpu.Sample, warn: Callable[[str], None]) -> int:
        assert self.fit_key is not None
        card = Gpu(sample.name, sample.memory_total, sample.memory_used)
        fitted = userstate.fitted(self.fit_key)
        sizing = self._sizing(card) if self._sizing is not None and sample.memory_total else None
        sized = sizing.largest(card.free) if sizing is not None else None
        micro = first_micro_batch(self._spec, fitted=fitted, sized=sized, card_memory=sample.memory_total)
        if sizing is not None and fitted is None:
            self.refused = refusal(sizing, card)
            doubts = doubt(sizing, card, micro)
            if doubts and self.refused is None:
                warn(doubts)
        return micro

    async def _take(self, sample: gpu.Sample, *, wait: bool) -> BusyError | None:
        """Tries for as long as a probe may take, or until it is free with `wait`. None: we have it."""
        began = self._clock()
        while True:
            try:
                holder = self._spec.parent or self._spec.run_id
                self._held.take(sample.uuid, holder, f"the GPU {sample.name}")
                return None
            except BusyError as busy:
                looked_long = self._clock() - began > locks.PATIENCE
                if looked_long and not wait:
                    return busy
                await anyio.sleep(_RETRY_LOCK if looked_long else _RETRY_PROBE)

    def release(self) -> None:
        if self._own:
            self._held.release()
