"""Trackio: its local database, or the Space or server that its own variables name."""

from __future__ import annotations

from collections.abc import Mapping

import trackio

from backpropagate.track.telling import Ended, Fact, Note, Values
from backpropagate.track.tracker import Subject


class Trackio:
    """Knows a run by its name, so that name has the run id in it. The notes are its alerts."""

    def __init__(self, subject: Subject) -> None:
        self.whole, self.kept = False, ""
        self._run = trackio.init(
            project=subject.spec.project,
            name=subject.unique_name,
            config={**subject.settings, "run_id": subject.spec.run_id},
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def values(self, point: Values) -> None:
        self._run.log(dict(point.values), step=point.step)

    def note(self, note: Note, *, new: bool) -> None:
        if new:
            self._run.alert(note.text, level=trackio.AlertLevel.INFO, step=note.step)

    def facts(self, facts: Mapping[str, Fact]) -> None:
        """The notes say them in words."""

    def flush(self) -> None:
        """It writes what it has several times a second; there is nothing to ask for."""

    def close(self, ended: Ended | None) -> None:
        self._run.finish()
