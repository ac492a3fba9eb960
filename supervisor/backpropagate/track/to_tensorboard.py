"""TensorBoard: event files in the run directory, written with TensorBoard's own writer, without torch or TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping

from tensorboard.compat.proto.event_pb2 import Event as LogEvent
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from backpropagate.track.telling import Ended, Fact, Note, Values
from backpropagate.track.tracker import Subject


class TensorBoard:
    """Each process writes a file of its own; TensorBoard shows all files of a folder as one run."""

    def __init__(self, subject: Subject) -> None:
        self.whole, self.kept = False, ""
        folder = subject.run_dir.tensorboard
        first = not (folder.is_dir() and any(folder.iterdir()))
        self._writer = EventFileWriter(str(folder))
        if first:
            self._text("settings", _table(subject.settings | {"run_id": subject.spec.run_id}), 0, None)

    def values(self, point: Values) -> None:
        shown = [Summary.Value(tag=name, simple_value=value) for name, value in point.values.items()]
        self._write(LogEvent(step=point.step, wall_time=point.time, summary=Summary(value=shown)))

    def note(self, note: Note, *, new: bool) -> None:
        if new:
            self._text("events", note.text, note.step, note.time)

    def facts(self, facts: Mapping[str, Fact]) -> None:
        self._text("facts", _table(facts), 0, None)

    def _text(self, tag: str, text: str, step: int, time: float | None) -> None:
        event = LogEvent(step=step, summary=text_pb(tag, text))
        event.wall_time = time or 0.0
        self._write(event)

    def _write(self, event: LogEvent) -> None:
        self._writer.add_event(event)

    def flush(self) -> None:
        self._writer.flush()

    def close(self, ended: Ended | None) -> None:
        self._writer.close()


def _table(facts: Mapping[str, Fact]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())])
