"""What the runner was asked to do while it works: stop, save. Signals and messages leave a wish; the loop looks it up.

States: waiting → training → ended. While waiting (no optimizer step begun) a stop is answered at once, from here, since the
main thread may be deep inside an import. While training the loop sees the wish at its next step boundary. Once ended,
the last word is on its way and a stop changes nothing.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from enum import Enum, auto
from types import FrameType

from backpropagate_protocol.messages import Save, Stop


class State(Enum):
    WAITING = auto()
    TRAINING = auto()
    ENDED = auto()


class Control:
    """`leave` is called, in a thread, when a stop comes before the first step; it says Stopped and ends the process."""

    def __init__(self, leave: Callable[[], None]) -> None:
        self.stop: Stop | None = None
        self._save = False
        self._state = State.WAITING
        self._turn = threading.Lock()
        self._leave = leave
        # A signal handler may only do what is re-entrant: an assignment, and put() of this queue.
        self._asked: queue.SimpleQueue[Stop] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="control", daemon=True).start()

    def handle_signals(self) -> None:
        """SIGTERM asks for a save and a stop, like the message. Ctrl-C and a closed terminal are the parent's business."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if sys.platform == "win32":
            signal.signal(signal.SIGBREAK, self._on_signal)
        else:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.ask_if_not_asked(Stop(signal.Signals(number).name.lower()))

    def ask(self, wish: Stop | Save) -> None:
        match wish:
            case Stop():
                self.stop = wish
                self._asked.put(wish)
            case Save():
                self._save = True

    def ask_if_not_asked(self, wish: Stop) -> None:
        """For a stop that says less than a message: one that was told not to save must not begin to."""
        if self.stop is None:
            self.ask(wish)

    def take_save(self) -> bool:
        """Whether a checkpoint was asked for since the last call."""
        wanted, self._save = self._save, False
        return wanted

    def begin_training(self) -> None:
        with self._turn:
            self._state = State.TRAINING

    def end(self) -> None:
        with self._turn:
            self._state = State.ENDED

    def _serve(self) -> None:
        while True:
            self._asked.get()
            with self._turn:
                if self._state is State.WAITING:
                    self._leave()
                    os._exit(0)
