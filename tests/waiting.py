"""Waiting for a fact, in tests: asked again and again until a generous deadline, never slept for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_pause = threading.Event()


def eventually(
    fact: Callable[[], object], what: str, why_not: Callable[[], object] = lambda: "", seconds: float = 60.0
) -> None:
    """Returns once `fact` is true; fails, saying why not, if it does not come true."""
    deadline = time.monotonic() + seconds
    while not fact():
        if time.monotonic() > deadline:
            raise AssertionError(f"it did not come true that {what}: {why_not()}")
        _pause.wait(0.01)
