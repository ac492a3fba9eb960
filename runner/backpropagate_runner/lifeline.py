"""Why no runner outlives its supervisor: a lease that a thread renews while the parent lives, and the kernel's link.

1. When the parent dies, the kernel kills this process at once where it can (`backpropagate_protocol.lifeline`).
2. Everywhere, `faulthandler` holds a lease in a C thread: it ends the process even while the GIL is held. A thread here
   renews it as long as the parent is alive. The parent need not say anything for that: a supervisor that is stopped or
   swapped out must not cost a training run (docs/decisions/0001-lease.md).
3. When the parent is gone the lease is renewed no more: what is left of it is the time to save and end.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading

from backpropagate_protocol.lifeline import is_alive
from backpropagate_protocol.messages import Phase

LEASE = 120.0
LONG_LEASE = 3600.0
TICK = 2.0

# In these a framework may hold the GIL for minutes without a fault: imports, reading weights, compiling kernels.
_LONG_PHASES = frozenset({Phase.IMPORT, Phase.LOAD, Phase.FIRST_STEP, Phase.REFERENCE})


class Lifeline:
    """Made once, in the first lines of the runner. `parent` is the pid that the supervisor gave on the command line;
    `lease` and `long_lease` are seconds, `tick` is how often the parent is looked at."""

    def __init__(
        self, parent: int, *, lease: float = LEASE, long_lease: float = LONG_LEASE, tick: float = TICK
    ) -> None:
        self._parent = parent
        self._short, self._long, self._tick = lease, long_lease, tick
        # Behind a wrapper (a launcher of a virtual environment on Windows, a shell script as --runner-python) the
        # supervisor is not our direct parent; then its pid is watched instead of our own parent's.
        self._direct = sys.platform != "win32" and os.getppid() == parent
        self._lease = long_lease
        self._gone = threading.Event()
        self._lock = threading.Lock()

    def start(self) -> None:
        self._renew()
        threading.Thread(target=self._watch, name="lifeline", daemon=True).start()

    def enter(self, phase: Phase) -> None:
        """Gives the lease the length that fits the phase."""
        lease = self._long if phase in _LONG_PHASES else self._short
        if lease != self._lease:
            self._lease = lease
            self._renew()

    def parent_gone(self, grace: float) -> None:
        """The last lease: this process ends within `grace` seconds, whatever it is doing."""
        with self._lock:
            if not self._gone.is_set():
                self._gone.set()
                faulthandler.dump_traceback_later(grace, exit=True)

    def _renew(self) -> None:
        with self._lock:
            if not self._gone.is_set():
                faulthandler.dump_traceback_later(self._lease, exit=True)

    def _parent_lives(self) -> bool:
        return os.getppid() == self._parent if self._direct else is_alive(self._parent)

    def _watch(self) -> None:
        while not self._gone.wait(self._tick) and self._parent_lives():
            self._renew()
