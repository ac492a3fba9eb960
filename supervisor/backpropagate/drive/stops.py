"""Who may end a run, and how that is heard: signals, the owner's control pipe on standard input, and a file of requests."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from backpropagate.doors import process

_LOOK_EVERY = 1.0  # seconds


class Stops:
    """Wishes to end: `ctrl-c`, `sigterm`, `owner-gone`, `kill`, and what is requested. Whoever is told first hears those
    that came before, too.

    asked: all of them, in order; may begin with those that were asked for before anybody listened.
    requested: looks whether another process has left a request (see stop_requests), once a second; must be quick.
    """

    def __init__(
        self, asked: list[str], *, owner_pipe: bool = False, requested: Callable[[], str | None] = lambda: None
    ) -> None:
        self.asked, self._owner_pipe, self._requested = asked, owner_pipe, requested
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
            looking = loop.create_task(self._look())
            try:
                yield
            finally:
                looking.cancel()

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

    async def _look(self) -> None:
        while True:
            reason = self._requested()
            if reason is not None:
                self._hear(reason)
            await asyncio.sleep(_LOOK_EVERY)

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
