"""The live view in a notebook: one output cell that changes in place. Does nothing where there is no notebook."""

from __future__ import annotations

import html
import sys
from collections.abc import Callable
from typing import Protocol, cast

from backpropagate import events
from backpropagate.events import Event
from backpropagate.watch.view import RunView, sparkline
from backpropagate.watch.wording import in_phase, in_words, progress_line
from backpropagate_protocol.redact import redact

_REDRAW_SECONDS = 0.25


class _Handle(Protocol):
    def update(self, shown: object) -> None: ...


def in_notebook() -> bool:
    """Whether this code runs in a Jupyter kernel. IPython is never imported for the question."""
    shell = sys.modules.get("IPython")
    get_ipython: Callable[[], object] | None = getattr(shell, "get_ipython", None)
    return get_ipython is not None and hasattr(get_ipython(), "kernel")


class _Page:
    """What a notebook shows: HTML, or text where a front end has no HTML."""

    def __init__(self, view: RunView, log: list[str]) -> None:
        first = progress_line(view) if view.phase == "train" else in_phase(view)
        link = f"{view.link}  " if view.link else ""
        self._lines = [f"run {view.run_id[:8]}  {link}{first}  {sparkline(view.losses)}", *log[-8:]]
        done, total = (view.stage.done, view.stage.total) if view.stage.name else (view.step, view.total_steps)
        self._share = done / total if total else 0.0

    def __repr__(self) -> str:
        return redact("\n".join(self._lines))

    def _repr_html_(self) -> str:
        text = html.escape(repr(self)).replace("\n", "<br>")
        return f'<progress max="1" value="{self._share:.4f}"></progress><pre style="margin:0">{text}</pre>'


class NotebookSink:
    """Redraws at most four times a second of event time, and for every event that matters."""

    def __init__(self) -> None:
        self._view = RunView()
        self._log: list[str] = []
        self._handle: _Handle | None = None
        self._drawn = float("-inf")

    def event(self, event: Event) -> None:
        self._view.see(event)
        line = "" if isinstance(event, events.PhaseEntered) else in_words(event)
        if line:
            self._log.append(line)
        elif event.time - self._drawn < _REDRAW_SECONDS:
            return
        self._drawn = event.time
        self._draw()

    def _draw(self) -> None:
        page = _Page(self._view, self._log)
        if self._handle is not None:
            self._handle.update(page)
            return
        from IPython.display import display

        self._handle = cast(_Handle, display(page, display_id=True))

    def close(self) -> None:
        if self._handle is not None:
            self._draw()
