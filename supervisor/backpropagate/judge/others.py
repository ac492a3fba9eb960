"""What other processes hold of the run's card: whether they are why its memory ran out, and how long they are waited for. Pure.

Two know of it. The child sees how much of the device neither it nor those who were there at its first step have; the sensors
know who has it. Where neither says anything, nobody else is to blame. Seconds and MiB.
"""

from __future__ import annotations

from backpropagate.judge.states import BEFORE_TRAINING
from backpropagate.judge.verdict import Cause, Kind
from backpropagate_protocol.messages import NOTICEABLE

PATIENCE = 1800.0
PATIENCE_WITH_RESIDENTS = 120.0  # with those who were there before the run: a desktop does not leave
_TELL_EVERY = 30.0
_LOOKS = (5.0, 10.0, 20.0, 40.0, 60.0)  # until the next try, where nobody says when it is free


class Others:
    """The other processes on the card."""

    def __init__(self) -> None:
        self.memory = 0
        self.holders = ""
        self.patience = PATIENCE  # of this wait
        self._pids: tuple[int, ...] = ()
        self._seen = False
        self._before: int | None = None  # when the run first looked, then when the training began: sized beside them
        self._spared = 0  # how much they may hold for the wait to be over
        self._since: float | None = None
        self._tries = 0
        self._told: tuple[float, int, tuple[int, ...]] | None = None  # when, how much, who
        self.awaited = False  # no child lives until they are gone, or a look is due

    def read(self, memory: int, holders: str, pids: tuple[int, ...] = ()) -> None:
        if self._before is None:
            self._before = memory
        self.memory, self.holders, self._pids, self._seen = memory, holders, pids, True

    def begun(self) -> None:
        """The model is on the device, and fits beside those who are there now."""
        self._before = self.memory

    def progress(self) -> None:
        """A step was committed: the next wait is another one."""
        self._since, self._tries, self._told = None, 0, None

    def are_to_blame(self, cause: Cause) -> bool:
        """Whether what was asked for would have been there without them.

        While a model is loaded those count, too, who were there before the run, but they are not waited for for long.
        """
        if cause.kind is not Kind.OOM:
            return False
        lacking = max(NOTICEABLE, cause.needed - cause.free)
        before = self._before or 0
        if max(cause.others, self.memory - before) >= lacking:
            self._spared, self.patience = before, PATIENCE
            return True
        if self.patience > PATIENCE_WITH_RESIDENTS:
            self._since, self._tries = None, 0  # it is another wait, and has its own time
        self._spared, self.patience = 0, PATIENCE_WITH_RESIDENTS
        return cause.phase in BEFORE_TRAINING and self.memory >= lacking

    def wait(self, now: float) -> float | None:
        """Seconds until the next look; None: they have been waited for long enough."""
        self._since = now if self._since is None else self._since
        if now - self._since >= self.patience:
            return None
        self._tries += 1
        self.awaited = True
        return _LOOKS[min(self._tries, len(_LOOKS)) - 1]

    def are_news(self, now: float) -> bool:
        """Whether people should hear of them again: others hold it, or noticeably more or less of it. Not too often."""
        if self._told is None:
            return True
        when, memory, pids = self._told
        same = pids == self._pids and abs(self.memory - memory) < NOTICEABLE
        return not same and now - when >= _TELL_EVERY

    def told(self, now: float) -> None:
        # Where nobody could be named, whoever is seen next is news at once.
        self._told = (now, self.memory, self._pids) if self.culprits == self.holders else None

    @property
    def are_there(self) -> bool:
        """Whether they are seen to hold the memory still. Unseen, only a try can tell."""
        return self._seen and self.memory - self._spared >= NOTICEABLE

    @property
    def culprits(self) -> str:
        """Who they are, for people."""
        return self.holders if self.are_there and self.holders else "other processes"
