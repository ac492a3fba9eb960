"""Says where the child is: which phase, how far, and what somebody should read once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from backpropagate_protocol.messages import Notice, Phase, PhaseChanged
from backpropagate_protocol.redact import redact
from backpropagate_runner.channel import Channel
from backpropagate_runner.lifeline import Lifeline

_SAME_PHASE_EVERY = 0.25  # seconds: a long phase says that it advances, not each row


class Voice:
    """Says where the child is. `where`, `step` and `others` are what a fault will be reported with."""

    def __init__(self, channel: Channel, lifeline: Lifeline, clock: Callable[[], float] = time.monotonic) -> None:
        self.where = Phase.IMPORT
        self.step = 0
        self.others = 0  # MiB that other processes took since the training began
        self._channel, self._lifeline, self._clock = channel, lifeline, clock
        self._said = -math.inf

    def phase(self, phase: Phase, done: int = 0, total: int = 0, detail: str = "") -> None:
        now = self._clock()
        if phase is self.where and now - self._said < _SAME_PHASE_EVERY and done != total:
            return
        self.where, self._said = phase, now
        self._lifeline.enter(phase)
        self._channel.send(PhaseChanged(phase, done, total, redact(detail)))

    def notice(self, text: str, level: str = "info") -> None:
        self._channel.send(Notice(level, redact(text)))
