"""The run's card: whose it is, what fits on it, how warm it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, aclosing
from pathlib import Path

import anyio

from backpropagate import gpu, locks, plan, userstate
from backpropagate.decisions import CardKnown, CardLimits, Input, SensorLost, StopAsked, Temperature
from backpropagate.environ import environment
from backpropagate.events import Event, ModelReady
from backpropagate.policy import Policy
from backpropagate.process import visible_device
from backpropagate_protocol.errors import BusyError, ExitCode
from backpropagate_protocol.spec import RunSpec

_RETRY_LOCK = 1.0
_RETRY_SENSOR = 60.0


class Card:
    """Watches one card for one run. `busy` is set if another run holds it."""

    def __init__(
        self,
        spec: RunSpec,
        script: Path | None,
        known_micro_batch: int | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spec, self._script, self._known, self._clock = spec, script, known_micro_batch, clock
        self._device = visible_device(environment().get("CUDA_VISIBLE_DEVICES"))
        self.wanted = script is not None or (spec.backend in ("auto", "cuda") and self._device not in ("", "-1"))
        self.fit_key: str | None = None
        self.latest: gpu.Sample | None = None
        self.busy: BusyError | None = None
        self._lost: str | None = None
        self._feed: Callable[[Input], None] | None = None
        self._held = ExitStack()

    def event(self, event: Event) -> None:
        """A run that turned out to be on a GPU whose sensors are silent says so; on the CPU nobody misses them."""
        if isinstance(event, ModelReady) and event.device.startswith("cuda") and self._lost and self._feed:
            self._feed(SensorLost(self._clock(), self._lost))

    async def watch(self, feed: Callable[[Input], None], policy: Policy) -> None:
        """Reads the card for as long as the run lasts. Its first answer, or its absence, lets the Job go out."""
        self._feed = feed
        known = False
        while True:
            try:
                async with aclosing(gpu.samples(self._device, self._script)) as samples:
                    async for sample in samples:
                        known = known or await self._first(sample, feed)
                        if not known:
                            return
                        self.latest = sample
                        feed(Temperature(self._clock(), sample.celsius))
            except gpu.SensorError as error:
                self._lost = str(error)
                if known or self._spec.backend == "cuda" or policy.device.startswith("cuda"):
                    feed(SensorLost(self._clock(), self._lost))
            if not known:
                feed(CardKnown(self._clock()))
                return
            await anyio.sleep(_RETRY_SENSOR)

    async def _first(self, sample: gpu.Sample, feed: Callable[[Input], None]) -> bool:
        """Takes the card for this run; False if another one has it."""
        while True:
            try:
                self._held.enter_context(
                    locks.hold(locks.gpu_lock(sample.uuid), self._spec.run_id, f"the GPU {sample.name}")
                )
                break
            except BusyError as busy:
                if not self._spec.safety.wait_for_lock:
                    self.busy = busy
                    feed(StopAsked(self._clock(), "a busy GPU", ExitCode.TRY_LATER, kill=True))
                    return False
                await anyio.sleep(_RETRY_LOCK)
        feed(CardLimits(self._clock(), sample.slowdown, sample.shutdown))
        train, model = self._spec.train, self._spec.model.name
        self.fit_key = userstate.fit_key(sample.name, model, train.method, self._spec.data.max_length)
        micro = self._known
        if micro is None:
            fitted = userstate.fitted(self.fit_key)
            micro = plan.first_micro_batch(self._spec, fitted=fitted, card_memory=sample.memory_total)
        feed(CardKnown(self._clock(), micro))
        return True

    def release(self) -> None:
        self._held.close()
