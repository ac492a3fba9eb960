"""A stage in this process, for tests: what it says is kept instead of sent."""

from __future__ import annotations

import os

from backpropagate_protocol.messages import Notice, Phase, PhaseChanged, ToParent
from backpropagate_runner.channel import Channel
from backpropagate_runner.export.stage import Stage
from backpropagate_runner.lifeline import Lifeline
from backpropagate_runner.voice import Voice


class _Kept(Channel):
    def __init__(self) -> None:
        super().__init__(-1, -1, lambda _: None, lambda _: None, lambda _: None)
        self.said: list[ToParent] = []

    def send(self, message: ToParent) -> None:
        self.said.append(message)


class Heard:
    """`stage` is to be handed to the stage under test. `signs`: every sign of progress, also those too quick to be sent."""

    def __init__(self, phase: Phase) -> None:
        self._channel = _Kept()
        self.signs = 0
        # One length of lease only, so that no lease of this process is ever begun.
        voice = Voice(self._channel, Lifeline(os.getpid(), lease=3600.0, long_lease=3600.0))
        self.stage = Stage(phase, voice, self._sign)

    def _sign(self, number: int) -> None:
        self.signs = number

    @property
    def said(self) -> list[ToParent]:
        return self._channel.said

    @property
    def notices(self) -> list[str]:
        return [message.text for message in self.said if isinstance(message, Notice)]

    @property
    def phases(self) -> list[PhaseChanged]:
        return [message for message in self.said if isinstance(message, PhaseChanged)]
