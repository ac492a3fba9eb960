"""The backend, loaded in a thread: importing a framework takes seconds, and reading the user's rows needs none."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from backpropagate_backends.base import Backend
from backpropagate_backends.registry import load, resolve_auto
from backpropagate_protocol.errors import DependencyError

# TRL imports it wherever it is installed, and it takes most of a second; trackers are fed by the supervisor.
_NEVER_USED = ("wandb",)


class Frameworks:
    """Begins to warm the backend `name` when made; `none` begins nothing."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._backend: Backend | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._warm, name="frameworks", daemon=True)
        if name != "none":
            self._thread.start()

    def _warm(self) -> None:
        try:
            self._backend = _ready(self._name)
        except BaseException as error:  # noqa: BLE001 - raised again where the backend is asked for
            self._error = error

    @property
    def over(self) -> bool:
        """Whether what was begun is done, well or not: one that stood by has nothing left to import."""
        return self._name != "none" and not self._thread.is_alive()

    def backend(self, name: str) -> Backend:
        """The backend that the Job wants, its frameworks imported. Raises what went wrong with that."""
        if self._name != "none":
            self._thread.join()
        if name != self._name:
            return _ready(name)  # the warm-up was for another one; what they share is imported already
        if self._error is not None:
            raise self._error
        assert self._backend is not None
        return self._backend


def _ready(name: str) -> Backend:
    try:
        backend = load(resolve_auto() if name == "auto" else name)
        with _importing():
            backend.warm()
    except ImportError as error:
        raise DependencyError(f"the training packages cannot be imported: {error}") from error
    return backend


@contextmanager
def _importing() -> Iterator[None]:
    """While thousands of modules are made, nothing of them is garbage, and looking for some is a quarter of the time.

    They are not looked through later, either. This is a process of its own and ends with its job, so the little that is
    never freed does not add up.
    """
    for name in _NEVER_USED:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # means: as if it were not installed
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()
