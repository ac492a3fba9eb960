"""The runner's end of the pipes: the only file that touches the descriptors on which it talks with its parent.

Guarantees:
1. No print of any library can reach the protocol: descriptors 0 and 1 are claimed before anything else is imported.
2. The thread that trains never waits for the parent: it leaves a message and goes on.
3. Progress is coalesced, the newest replaces one not yet written; every other message is written, in order.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable

from backpropagate_protocol.framing import ProtocolError, decoder_for_child, encode
from backpropagate_protocol.messages import Ping, Progress, RunJob, Save, Say, Stop, ToChild, ToParent

_READ = 1 << 16


def claim() -> tuple[int, int]:
    """Moves the protocol to private descriptors; returns (from parent, to parent). 0 becomes null and 1 becomes 2."""
    incoming, outgoing = os.dup(0), os.dup(1)  # dup gives descriptors that no child of ours inherits
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    if sys.platform == "win32":
        import msvcrt

        msvcrt.setmode(incoming, os.O_BINARY)
        msvcrt.setmode(outgoing, os.O_BINARY)
    return incoming, outgoing


def write_on_in(path: str) -> None:
    """What is printed here, by whatever library, goes into this file from now on. One that does not open changes nothing."""
    try:
        # Windows: descriptors take their mode with them, and one for text would put a second \r before each \n.
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o644)
    except OSError:
        return
    os.dup2(log, 2)
    os.dup2(log, 1)
    os.close(log)


class Channel:
    """Frames in, frames out, one thread for each. `heard` gets Stop and Save.

    `lost` is called when the parent is gone, `confused` when it sent what is no message of this protocol; both with a
    reason, in a thread of the channel's, and no message is read after that.
    """

    def __init__(
        self,
        incoming: int,
        outgoing: int,
        heard: Callable[[Stop | Save], None],
        lost: Callable[[str], None],
        confused: Callable[[str], None],
    ) -> None:
        self._incoming, self._outgoing = incoming, outgoing
        self._heard, self._lost, self._confused = heard, lost, confused
        self._jobs: queue.SimpleQueue[RunJob | None] = queue.SimpleQueue()
        self._talk: queue.SimpleQueue[Say | None] = queue.SimpleQueue()
        self._events: deque[bytes] = deque()
        self._latest: Progress | None = None
        self._changed = threading.Condition()
        self._writing = False
        self._broken = False
        self._stalled = False

    def start(self) -> None:
        threading.Thread(target=self._read, name="protocol-in", daemon=True).start()
        threading.Thread(target=self._write, name="protocol-out", daemon=True).start()

    def job(self) -> RunJob | None:
        """Waits for the Job; None if the parent went away without giving one."""
        return self._jobs.get()

    def say(self) -> Say | None:
        """Waits for the next thing that is said in a conversation; None if the parent went away."""
        return self._talk.get()

    def send(self, message: ToParent) -> None:
        """Leaves a message that is never dropped."""
        self.send_bytes(encode(message))

    def send_bytes(self, frame: bytes) -> None:
        with self._changed:
            if self._latest is not None:
                # What was said before must arrive before: only a newer progress may replace an older one.
                self._events.append(encode(self._latest))
                self._latest = None
            self._events.append(frame)
            self._changed.notify_all()

    def progress(self, progress: Progress) -> None:
        """Leaves where the training is; replaces the last one if that was not yet written."""
        with self._changed:
            if self._latest is None and not self._events:
                self._changed.notify_all()
            self._latest = progress

    def flush(self, timeout: float) -> bool:
        """Waits until all is written; False if it is not within `timeout` seconds, or if nobody reads any more."""
        with self._changed:
            self._changed.wait_for(self._idle, timeout)
            return self._idle() and not self._broken

    def settle(self, timeout: float) -> None:
        """Gives what was sent a moment to be written, unless it is known that nobody is reading at present.

        For before a time in which this process may die or its threads may not run: what is out cannot be lost.
        """
        with self._changed:
            if not self._stalled:
                self._stalled = not self._changed.wait_for(self._idle, timeout)

    def _idle(self) -> bool:
        return self._broken or not (self._writing or self._events or self._latest is not None)

    def _write(self) -> None:
        while True:
            with self._changed:
                self._writing = self._stalled = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._events or self._latest is not None)
                self._writing = True
                parts = list(self._events)
                self._events.clear()
                latest, self._latest = self._latest, None
            if latest is not None:
                parts.append(encode(latest))
            try:
                self._write_all(b"".join(parts))
            except OSError as error:
                with self._changed:
                    self._broken = True
                    self._changed.notify_all()
                self._lost(f"the pipe to the parent broke: {error.strerror}")
                return

    def _write_all(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._outgoing, view[: 1 << 20]) :]

    def _read(self) -> None:
        decoder = decoder_for_child()
        reason = "the parent closed the pipe"
        try:
            while data := os.read(self._incoming, _READ):
                for message in decoder.feed(data):
                    self._hear(message)
            decoder.close()
        except ProtocolError as error:
            self._confused(str(error))
            return
        except OSError as error:
            reason = f"the pipe from the parent broke: {error}"
        self._jobs.put(None)
        self._talk.put(None)
        self._lost(reason)

    def _hear(self, message: ToChild) -> None:
        match message:
            case RunJob():
                self._jobs.put(message)
            case Stop() | Save():
                self._heard(message)
            case Say():
                self._talk.put(message)
            case Ping():
                pass  # that it came through is all it says
