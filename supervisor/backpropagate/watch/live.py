"""The live view on a terminal, drawn with rich."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from backpropagate.watch.view import BARS, RunView, duration, held_out, learning_rate, measured, memory, span, sparkline
from backpropagate.watch.wording import in_phase
from backpropagate_protocol.redact import redact

_REDRAWS_PER_SECOND = 4
_ASCII_BARS = "_.-=+*#"


class LiveDisplay:
    """Draws a RunView; redraws are throttled by rich, so that a run of quick steps costs no more than a slow one."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, highlight=False)
        self._ascii = not (self._console.encoding or "").lower().startswith("utf")
        self._view = RunView()
        self._live = Live(
            get_renderable=self._draw,
            console=self._console,
            refresh_per_second=_REDRAWS_PER_SECOND,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def show(self, view: RunView, line: str) -> None:
        self._view = view
        if line:
            self._live.console.print(Text(redact(f"{view.run_id[:8]} {line}")))

    def redraw(self) -> None:
        self._live.refresh()

    def close(self) -> None:
        self._live.stop()

    def _draw(self) -> RenderableType:
        view = self._view
        if view.ended is not None:
            return Group()
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            Text(view.run_id[:8], style="dim"),
            *([Text(view.link)] if view.link else []),
            _bar(view),
            Text(f"step {view.step}/{view.total_steps}" if view.phase == "train" else in_phase(view), style="bold"),
            Text(learning_rate(view), style="dim"),
        )
        return Group(
            bar, Text("  " + "  ".join(self._facts(view)), overflow="ellipsis", no_wrap=True), *_recovered(view)
        )

    def _facts(self, view: RunView) -> list[str]:
        facts = []
        if view.loss is not None:
            facts.append(f"loss {view.loss:.4f} {sparkline(view.losses, bars=_ASCII_BARS if self._ascii else BARS)}")
        if measured(view):
            facts.append(measured(view))
        if held_out(view):
            facts.append(held_out(view))
        if view.tokens_per_second is not None and not view.stage.name:
            facts.append(f"{view.tokens_per_second:,.0f} tokens/s")
        if view.remaining is not None and not view.stage.name:
            facts.append(f"{span(*view.remaining)} left")
        if memory(view):
            facts.append(memory(view))
        if view.celsius:
            facts.append(f"{view.celsius} °C")
        if view.checkpoint_step is not None:
            facts.append(f"saved at step {view.checkpoint_step}, {duration(view.now - view.checkpoint_time)} ago")
        return facts


def _bar(view: RunView) -> ProgressBar:
    """How far the training is, or the stage beside it."""
    if view.stage.name:
        return ProgressBar(total=max(view.stage.total, 1), completed=view.stage.done, width=30)
    return ProgressBar(total=max(view.total_steps, 1), completed=view.step, width=30)


def _recovered(view: RunView) -> list[Text]:
    return [
        Text(f"  recovered: {redact(what)}", style="yellow", overflow="ellipsis", no_wrap=True)
        for what in view.recoveries[-3:]
    ]
