"""When a second runner is kept ready for a fault, and when it is let go again. Pure; seconds and MiB.

A standby costs memory for as long as it waits and a few seconds of a processor once. It is worth that where imports take
seconds, the run takes more than a minute, and nobody needs the memory more.
"""

from __future__ import annotations

from backpropagate_protocol.host_memory import Memory

FIRST_AFTER = 60.0  # of training: a run that is over in a minute has paid for nothing
ROOM = 6144  # that must be there to begin with: three times what a standby takes
SHARE = 0.15  # and this much of all the memory
SHORT = 2048  # below this it is let go, and what it held is there again
LOOK = 10.0  # between two looks at the memory
REST = 120.0  # after one was let go
PATIENCE = (2.0, 10.0, 60.0)  # before a dead one is replaced; with one death more there is none in this run
WITHOUT_IMPORTS = frozenset({"toy"})


class Readiness:
    """One run's. `wish`: on, off or auto; on asks for no memory and waits for no minute."""

    def __init__(self, wish: str, backend: str) -> None:
        self._forced = wish == "on"
        self._never = wish == "off" or (wish == "auto" and backend in WITHOUT_IMPORTS)
        self._not_before = 0.0
        self._deaths = 0
        self._faults = 0

    def advanced(self, now: float) -> None:
        """A child made its first step. Where there was a fault already, another one is likelier."""
        if not self._forced and not self._faults:
            self._not_before = max(self._not_before, now + FIRST_AFTER)

    def delay(self, now: float, memory: Memory | None) -> float | None:
        """Seconds until this is to be asked again; 0: start one now; None: there will be none any more."""
        if self._never:
            return None
        if now < self._not_before:
            return self._not_before - now
        return 0.0 if self._forced or _has_room(memory) else LOOK

    def is_kept(self, memory: Memory | None) -> bool:
        """Whether the one that waits may go on waiting."""
        return self._forced or memory is None or memory.available >= SHORT

    def failed(self) -> None:
        """A training was cut off by a fault."""
        self._faults += 1

    def died(self, now: float) -> bool:
        """It ended by itself. False: once too often."""
        if self._deaths == len(PATIENCE):
            self._never = True
            return False
        self._not_before = now + PATIENCE[self._deaths]
        self._deaths += 1
        return True

    def let_go(self, now: float) -> None:
        """It was ended for the sake of the memory."""
        self._not_before = now + REST

    def end(self) -> None:
        """There will be no next child."""
        self._never = True


def _has_room(memory: Memory | None) -> bool:
    return memory is not None and memory.available >= max(ROOM, SHARE * memory.total)
