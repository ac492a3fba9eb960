"""What other processes hold of the run's card: whether they are why its memory ran out, and how long they are waited for. Pure.

Two know of it. The child sees how much of the device neither it nor those who were there at its first step have; the sensors
know who has it. Where neither says anything, nobody else is to blame. Seconds and MiB.
"""

from __future__ import annotations

from backpropagate.judge.states import BEFORE_TRAINING
from backpropagate.judge.verdict import Cause, Kind
from backpropagate_protocol.messages import NOTICEABLE

PATIENCE = 1800.0
_LOOKS = (5.0, 10.0, 20.0, 40.0, 60.0)  # until the next try, where nobody says when it is free


class Others:
    """The other processes on the card."""

    def __init__(self) -> None:
        self.memory = 0
        self.holders = ""
        self._seen = False
        self._before = 0  # when the training began: it was sized beside them
        self._since: float | None = None
        self._tries = 0
        self.awaited = False  # no child lives until they are gone, or a look is due

    def read(self, memory: int, holders: str) -> None:
        self.memory, self.holders, self._seen = memory, holders, True

    def begun(self) -> None:
        """The model is on the device, and fits beside those who are there now."""
        self._before = self.memory

    def progress(self) -> None:
        """A step was committed: the next wait is another one."""
        self._since, self._tries = None, 0

    def are_to_blame(self, cause: Cause) -> bool:
        """Whether what was asked for would have been there without them."""
        if cause.kind is not Kind.OOM:
            return False
        taken = self.memory if cause.phase in BEFORE_TRAINING else max(cause.others, self.memory - self._before)
        return taken >= max(NOTICEABLE, cause.needed - cause.free)

    def wait(self, now: float) -> float | None:
        """Seconds until the next look; None: they have been waited for long enough."""
        self._since = now if self._since is None else self._since
        if now - self._since >= PATIENCE:
            return None
        self._tries += 1
        self.awaited = True
        return _LOOKS[min(self._tries, len(_LOOKS)) - 1]

    @property
    def are_there(self) -> bool:
        """Whether they are seen to hold the memory still. Unseen, only a try can tell."""
        return self._seen and self.memory - self._before >= NOTICEABLE

    @property
    def culprits(self) -> str:
        """Who they are, for people."""
        return self.holders if self.are_there and self.holders else "other processes"
