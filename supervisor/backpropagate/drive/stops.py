"""Who may end a run, and how that is heard: signals, and the owner's control pipe on standard input."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from backpropagate.doors import process


class Stops:
    """Wishes to end: `ctrl-c`, `sigterm`, `owner-gone`, `kill`. Whoever is told first hears those that came before, too.

    asked: all of them, in order; may begin with those that were asked for before anybody listened.
    """

    def __init__(self, asked: list[str], *, owner_pipe: bool = False) -> None:
        self.asked, self._owner_pipe = asked, owner_pipe
        self._tell: Callable[[str], None] | None = None

    @contextmanager
    def heard(self) -> Iterator[None]:
        """While the block runs, in the main thread and in its event loop. The pipe has one reader, however many stages a
        run has: two would take each other's words."""
        loop = asyncio.get_running_loop()

        def asked(reason: str) -> None:
            loop.call_soon_threadsafe(self._hear, reason)

        with process.signals(asked):
            if self._owner_pipe:
                threading.Thread(target=_listen_to_owner, args=(loop, self._hear), daemon=True).start()
            yield

    @contextmanager
    def told(self, tell: Callable[[str], None]) -> Iterator[None]:
        """While the block runs, `tell` gets each wish."""
        for reason in tuple(self.asked):
            tell(reason)
        self._tell = tell
        try:
            yield
        finally:
            self._tell = None

    def _hear(self, reason: str) -> None:
        self.asked.append(reason)
        if self._tell is not None:
            self._tell(reason)


def _listen_to_owner(loop: asyncio.AbstractEventLoop, hear: Callable[[str], None]) -> None:
    """Reads the owner's wishes from standard input, in a thread of its own, until the owner is gone."""
    rest = b""
    while True:
        try:
            data = os.read(0, 4096)
        except OSError:
            data = b""
        *lines, rest = (rest + data).split(b"\n")
        reasons = [{b"stop": "ctrl-c", b"kill": "kill"}[line] for line in lines if line in (b"stop", b"kill")]
        try:
            for reason in reasons if data else [*reasons, "owner-gone"]:
                loop.call_soon_threadsafe(hear, reason)
        except RuntimeError:
            return  # the loop is closed: the run is over
        if not data:
            return
