"""The door to small processes of ours that read from us and write lines: sensors, which a sick driver may hang."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import anyio
from anyio.abc import Process

_BURIAL_SECONDS = 5.0
_END_SECONDS = 2.0

# A Ctrl-C in the terminal is for us alone: a helper in a group of its own goes on reading, and ends with its input.
if sys.platform == "win32":
    _GROUP_FLAGS, _OWN_SESSION = subprocess.CREATE_NEW_PROCESS_GROUP, False
else:
    _GROUP_FLAGS, _OWN_SESSION = 0, True


@asynccontextmanager
async def helper(argv: Sequence[str]) -> AsyncIterator[Process]:
    """A small process of ours that reads from us and writes lines; killed when the block ends."""
    process = await anyio.open_process(
        [sys.executable, "-P", *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        creationflags=_GROUP_FLAGS,
        start_new_session=_OWN_SESSION,
    )
    try:
        yield process
    finally:
        with anyio.CancelScope(shield=True):
            if process.returncode is None:
                process.kill()
            if await buried(process):
                await process.aclose()


async def buried(process: Process) -> bool:
    """Whether it is gone, after a moment: one that hangs in a driver cannot be waited for."""
    with anyio.move_on_after(_BURIAL_SECONDS):
        await process.wait()
        return True
    return False


class LineHelper:
    """As `helper`, for programs without an event loop: a process that writes lines until its standard input ends."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            creationflags=_GROUP_FLAGS,
            start_new_session=_OWN_SESSION,
        )

    def lines(self) -> Iterator[bytes]:
        """What it writes, to its end."""
        assert self._process.stdout is not None
        yield from self._process.stdout

    def close(self) -> None:
        """Ends it; one that hangs in a driver is left to the kernel."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.kill()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return
        self._process.stdout.close()


def ask(argv: Sequence[str], seconds: float) -> bytes:
    """What a small process of ours writes within `seconds`; nothing if it takes longer or cannot be started."""
    try:
        helper = LineHelper(argv)
    except OSError:
        return b""
    said: list[bytes] = []
    # In a thread, since one that hangs in a driver may not even be killed, and then its pipe never ends.
    reader = threading.Thread(target=lambda: said.extend(helper.lines()), daemon=True)
    reader.start()
    reader.join(seconds)
    hung = reader.is_alive()
    helper.close()
    return b"" if hung else b"".join(said)
