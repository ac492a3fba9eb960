"""Work that takes as long as a disk does, in a thread that nobody has to wait for: neither who gave it up nor the process' end.

A pool's threads are joined when the interpreter ends, and a read of a disk that is gone may last for ever.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

_T = TypeVar("_T")


async def aside(work: Callable[[], _T]) -> _T:
    """What `work` returns or raises. Cancelled, it goes on without us, for as long as this process lives.

    So `work` must be something that may still happen, or be cut off, after nobody wants it any more.
    """
    loop = asyncio.get_running_loop()
    result: asyncio.Future[_T] = loop.create_future()

    def returned(value: _T) -> None:
        if not result.done():
            result.set_result(value)

    def raised(error: Exception) -> None:
        if not result.done():
            result.set_exception(error)

    def run() -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody asks any more
            try:
                value = work()
            except Exception as error:  # noqa: BLE001 - it is raised where it is waited for
                loop.call_soon_threadsafe(raised, error)
            else:
                loop.call_soon_threadsafe(returned, value)

    threading.Thread(target=run, name="aside", daemon=True).start()
    return await result
